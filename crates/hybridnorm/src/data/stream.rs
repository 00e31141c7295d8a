//! Batches of instances, in an order that depends only on (seed, epoch), from an exact cursor.
//!
//! Instances are defined in [`super::dataset`].

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

use super::dataset::{Batch, TokenDataset};

/// Order of instances within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// A permutation that depends on the seed and the epoch only.
    Shuffled {
        /// The seed.
        seed: u64,
    },
    /// In the order of the data.
    Sequential,
}

/// Exact position of a stream: the next instance to return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Completed epochs.
    pub epoch: u64,
    /// Instances returned in the current epoch.
    pub position: u64,
}

/// Endless stream of batches.
///
/// ```
/// use hybridnorm::data::{BatchStream, Cursor, Order, TokenDataset};
///
/// let tokens: Vec<u32> = (0..41).collect();
/// let dataset = TokenDataset::from_tokens(&tokens, 4, 41)?;
/// let mut stream = BatchStream::new(dataset, Order::Shuffled { seed: 0 }, Cursor::default())?;
/// let batch = stream.next_batch(3)?;
/// assert_eq!((batch.len(), batch.inputs.len()), (3, 12));
/// assert_eq!(batch.targets[0], batch.inputs[0] + 1);
/// assert_eq!(stream.cursor().position, 3);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct BatchStream {
    dataset: TokenDataset,
    order: Order,
    cursor: Cursor,
    /// Current epoch and its permutation, computed on first use.
    permutation: Option<(u64, Vec<u32>)>,
}

impl BatchStream {
    /// Returns a stream over `dataset` that continues at `cursor`; `Cursor::default()` is the start.
    ///
    /// # Errors
    /// If the data has no instance, too many to shuffle (2^32), or fewer than the cursor position.
    pub fn new(dataset: TokenDataset, order: Order, cursor: Cursor) -> Result<Self> {
        let instances = dataset.len();
        if instances == 0 {
            return Err(Error::conflict(
                ["data", "seq_len"],
                format!(
                    "{} tokens are not enough for one sequence of {} and its targets; use more text or a shorter sequence length",
                    dataset.tokens(),
                    dataset.seq_len()
                ),
            ));
        }
        if matches!(order, Order::Shuffled { .. }) && instances > u64::from(u32::MAX) {
            return Err(Error::conflict(
                ["order", "seq_len"],
                format!(
                    "{instances} instances are too many to shuffle; use a longer sequence length or sequential order"
                ),
            ));
        }
        if cursor.position > instances {
            return Err(Error::conflict(
                ["cursor", "data"],
                format!(
                    "cannot resume at instance {} of {instances}: the data has changed",
                    cursor.position
                ),
            ));
        }
        let mut stream = Self {
            dataset,
            order,
            cursor,
            permutation: None,
        };
        stream.roll_over();
        Ok(stream)
    }

    /// Returns the current position; pass it to [`BatchStream::new`] to continue from here.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Returns the dataset.
    pub fn dataset(&self) -> &TokenDataset {
        &self.dataset
    }

    /// Returns the next `batch_size` instances; a batch may span the end of an epoch.
    ///
    /// The order of instances does not depend on batch sizes. On an error the cursor does not move.
    ///
    /// # Errors
    /// If `batch_size` is 0 or a token is outside the vocabulary.
    pub fn next_batch(&mut self, batch_size: usize) -> Result<Batch> {
        if batch_size == 0 {
            return Err(Error::out_of_range("batch_size", 0, "at least 1"));
        }
        let start = self.cursor;
        let ids = (0..batch_size).map(|_| self.next_id()).collect();
        let batch = self.dataset.batch(ids, start.epoch);
        if batch.is_err() {
            self.cursor = start;
        }
        batch
    }

    /// Returns the next batch as [`BatchStream::next_batch`] does, without moving the cursor.
    ///
    /// # Errors
    /// As [`BatchStream::next_batch`].
    pub fn peek(&mut self, batch_size: usize) -> Result<Batch> {
        let here = self.cursor;
        let batch = self.next_batch(batch_size);
        self.cursor = here;
        batch
    }

    /// Moves past `instances` instances without reading them.
    pub fn skip(&mut self, instances: u64) {
        let n = self.dataset.len();
        let ahead = u128::from(self.cursor.position) + u128::from(instances);
        self.cursor.epoch += (ahead / u128::from(n)) as u64;
        self.cursor.position = (ahead % u128::from(n)) as u64;
    }

    fn next_id(&mut self) -> u64 {
        let Cursor { epoch, position } = self.cursor;
        self.cursor.position += 1;
        let id = match self.order {
            Order::Sequential => position,
            Order::Shuffled { seed } => {
                let current = self.permutation.as_ref().map(|(epoch, _)| *epoch);
                if current != Some(epoch) {
                    let instances = self.dataset.len() as u32;
                    self.permutation = Some((epoch, permutation(seed, epoch, instances)));
                }
                let order = self.permutation.as_ref().map(|(_, order)| order);
                order.map_or(0, |order| order[position as usize].into())
            }
        };
        self.roll_over();
        id
    }

    fn roll_over(&mut self) {
        if self.cursor.position == self.dataset.len() {
            self.cursor.epoch += 1;
            self.cursor.position = 0;
        }
    }
}

/// Returns a uniform permutation of `0..n` (Fisher-Yates) drawn from ChaCha8 keyed by SHA-256 of
/// (seed, epoch).
pub fn permutation(seed: u64, epoch: u64, n: u32) -> Vec<u32> {
    let mut digest = Sha256::new();
    digest.update(b"hybridnorm data order 1");
    digest.update(seed.to_le_bytes());
    digest.update(epoch.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(digest.finalize().into());
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..order.len()).rev() {
        // Multiply and shift: the bias is below 2^-32, and the result is the same on all platforms.
        let below = i as u128 + 1;
        let j = (u128::from(generator.next_u64()) * below) >> 64;
        order.swap(i, j as usize);
    }
    order
}
