//! Batches of instances, in an order that only depends on (seed, epoch), from an exact cursor.
//!
//! An instance is `seq_len + 1` tokens: inputs are all but the last, targets all but the first. A
//! stream of tokens is cut into instances that share one token with their neighbours (instance i
//! covers tokens `i*seq_len ..= (i+1)*seq_len`), so every token but the first is a target once
//! per epoch; a rest shorter than an instance is left out. Rows of two-dimensional arrays are
//! instances as they are.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

use super::ready::ReadyTokens;
use super::shard::TokenStream;

/// Instances of one length out of one or several token streams or arrays.
#[derive(Debug)]
pub struct TokenDataset {
    parts: Vec<Part>,
    seq_len: usize,
    instances: u64,
    identity: Sha256,
}

#[derive(Debug)]
struct Part {
    tokens: TokenStream,
    /// Distance between the starts of two instances.
    stride: u64,
    /// Index of its first instance.
    start: u64,
    instances: u64,
}

impl TokenDataset {
    /// An empty set of instances with `seq_len` inputs and as many targets.
    ///
    /// # Errors
    /// If `seq_len` is 0.
    pub fn new(seq_len: usize) -> Result<Self> {
        if seq_len == 0 {
            return Err(Error::config("the sequence length is 0"));
        }
        Ok(Self {
            parts: Vec::new(),
            seq_len,
            instances: 0,
            identity: Sha256::new(),
        })
    }

    /// Appends the instances of a stream. `identity` is something that differs when the tokens
    /// do; it goes into [`TokenDataset::fingerprint`]. A stream shorter than an instance adds none.
    pub fn push_stream(&mut self, tokens: TokenStream, identity: &str) {
        let stride = self.seq_len as u64;
        let instances = tokens.len().saturating_sub(1) / stride;
        self.push(tokens, stride, instances, identity);
    }

    /// Appends a ready file: its stream, or its rows.
    ///
    /// # Errors
    /// If its rows are not of `seq_len + 1` tokens, or the file cannot be read.
    pub fn push_ready(&mut self, ready: ReadyTokens) -> Result<()> {
        let identity = file_identity(&ready)?;
        let Some(width) = ready.row_width() else {
            self.push_stream(ready.into_tokens(), &identity);
            return Ok(());
        };
        if width != self.seq_len as u64 + 1 {
            return Err(Error::format(
                ready.path(),
                format!(
                    "rows of {width} tokens; a sequence length of {} needs {}",
                    self.seq_len,
                    self.seq_len as u64 + 1
                ),
            ));
        }
        let tokens = ready.into_tokens();
        let instances = tokens.len() / width;
        self.push(tokens, width, instances, &identity);
        Ok(())
    }

    fn push(&mut self, tokens: TokenStream, stride: u64, instances: u64, identity: &str) {
        self.identity.update(format!(
            "{stride} {instances} {} {identity}\n",
            tokens.len()
        ));
        self.parts.push(Part {
            tokens,
            stride,
            start: self.instances,
            instances,
        });
        self.instances += instances;
    }

    /// Instances in all.
    pub fn len(&self) -> u64 {
        self.instances
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.instances == 0
    }

    /// Inputs per instance.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokens in all parts, those in incomplete instances included.
    pub fn tokens(&self) -> u64 {
        self.parts.iter().map(|part| part.tokens.len()).sum()
    }

    /// SHA-256 of what the parts are; equal only for the same data, cut the same way.
    pub fn fingerprint(&self) -> String {
        crate::files::hex(&self.identity.clone().finalize())
    }

    /// The tokens of instance `id`, `seq_len + 1` of them.
    ///
    /// # Errors
    /// If there is no such instance, or a token is beyond the vocabulary.
    pub fn instance(&self, id: u64) -> Result<Vec<u32>> {
        let mut tokens = vec![0; self.seq_len + 1];
        self.read(id, &mut tokens)?;
        Ok(tokens)
    }

    fn read(&self, id: u64, tokens: &mut [u32]) -> Result<()> {
        let part = self
            .parts
            .partition_point(|part| part.start + part.instances <= id);
        match self.parts.get(part) {
            Some(part) => part.tokens.read((id - part.start) * part.stride, tokens),
            None => Err(Error::config(format!(
                "instance {id} of {}",
                self.instances
            ))),
        }
    }

    fn batch(&self, ids: Vec<u64>, epoch: u64) -> Result<Batch> {
        let mut batch = Batch {
            inputs: Vec::with_capacity(ids.len() * self.seq_len),
            targets: Vec::with_capacity(ids.len() * self.seq_len),
            instance_ids: ids,
            seq_len: self.seq_len,
            epoch,
        };
        let mut tokens = vec![0; self.seq_len + 1];
        for &id in &batch.instance_ids {
            self.read(id, &mut tokens)?;
            // A token stream only gives ids below 2^31.
            let signed = |tokens: &[u32]| tokens.iter().map(|&t| t as i32).collect::<Vec<_>>();
            batch.inputs.extend(signed(&tokens[..self.seq_len]));
            batch.targets.extend(signed(&tokens[1..]));
        }
        Ok(batch)
    }

    /// All instances in order, or the first `limit`, in batches of `batch_size`; the last batch
    /// may be smaller. For validation.
    pub fn sequential(&self, batch_size: usize, limit: Option<u64>) -> SequentialBatches<'_> {
        SequentialBatches {
            dataset: self,
            next: 0,
            end: limit.map_or(self.instances, |limit| limit.min(self.instances)),
            batch_size: batch_size.max(1) as u64,
        }
    }
}

/// SHA-256 over all tokens as u32.
fn file_identity(ready: &ReadyTokens) -> Result<String> {
    let mut digest = Sha256::new();
    ready.tokens().for_each_chunk(|tokens| {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        digest.update(&bytes);
    })?;
    Ok(crate::files::hex(&digest.finalize()))
}

/// Instances side by side, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Input tokens, `[b, t]`.
    pub inputs: Vec<i32>,
    /// The tokens that follow them, `[b, t]`.
    pub targets: Vec<i32>,
    /// Which instance each row is, `[b]`.
    pub instance_ids: Vec<u64>,
    /// Columns, t.
    pub seq_len: usize,
    /// Epoch of the first row.
    pub epoch: u64,
}

impl Batch {
    /// Rows, b.
    pub fn len(&self) -> usize {
        self.instance_ids.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.instance_ids.is_empty()
    }
}

/// The order of instances within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A permutation that depends on the seed and the epoch only.
    Shuffled {
        /// The seed.
        seed: u64,
    },
    /// As they stand in the data.
    Sequential,
}

/// Exactly where a stream is: the next instance to hand out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the data completed.
    pub epoch: u64,
    /// Instances handed out in this one.
    pub position: u64,
}

/// An endless stream of batches.
#[derive(Debug)]
pub struct BatchStream {
    dataset: TokenDataset,
    order: Order,
    cursor: Cursor,
    /// The current epoch's permutation, made when first needed.
    permutation: Option<(u64, Vec<u32>)>,
}

impl BatchStream {
    /// A stream over `dataset` that goes on at `cursor`; `Cursor::default()` is the start.
    ///
    /// # Errors
    /// If the data has no instance, too many to shuffle (2^32), or fewer than the cursor says.
    pub fn new(dataset: TokenDataset, order: Order, cursor: Cursor) -> Result<Self> {
        let instances = dataset.len();
        if instances == 0 {
            return Err(Error::config(format!(
                "{} tokens are not enough for one sequence of {} and its targets; use more text or a shorter sequence length",
                dataset.tokens(),
                dataset.seq_len()
            )));
        }
        if matches!(order, Order::Shuffled { .. }) && instances > u64::from(u32::MAX) {
            return Err(Error::config(format!(
                "{instances} instances are too many to shuffle; use a longer sequence length or sequential order"
            )));
        }
        if cursor.position > instances {
            return Err(Error::config(format!(
                "the data position to go on from is instance {}, but there are only {instances}: the data changed",
                cursor.position
            )));
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

    /// Where the stream is; give it to [`BatchStream::new`] to go on from here.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The data.
    pub fn dataset(&self) -> &TokenDataset {
        &self.dataset
    }

    /// The next `batch_size` instances; an epoch's end may lie within a batch.
    ///
    /// Instances come in the same order whatever the sizes of batches. On an error the cursor
    /// stays where it was.
    ///
    /// # Errors
    /// If `batch_size` is 0 or a token is beyond the vocabulary.
    pub fn next_batch(&mut self, batch_size: usize) -> Result<Batch> {
        if batch_size == 0 {
            return Err(Error::config("the batch size is 0"));
        }
        let start = self.cursor;
        let ids = (0..batch_size).map(|_| self.next_id()).collect();
        let batch = self.dataset.batch(ids, start.epoch);
        if batch.is_err() {
            self.cursor = start;
        }
        batch
    }

    /// What [`BatchStream::next_batch`] will give; the cursor stays where it is.
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

/// A uniform permutation of `0..n` (Fisher-Yates) drawn from ChaCha8 keyed by SHA-256 of (seed,
/// epoch).
pub fn permutation(seed: u64, epoch: u64, n: u32) -> Vec<u32> {
    let mut digest = Sha256::new();
    digest.update(b"hybridnorm data order 1");
    digest.update(seed.to_le_bytes());
    digest.update(epoch.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(digest.finalize().into());
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..order.len()).rev() {
        // Multiply and shift: the bias is below 2^-32, and the result the same everywhere.
        let below = i as u128 + 1;
        let j = (u128::from(generator.next_u64()) * below) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// Iterator of [`TokenDataset::sequential`].
#[derive(Debug)]
pub struct SequentialBatches<'d> {
    dataset: &'d TokenDataset,
    next: u64,
    end: u64,
    batch_size: u64,
}

impl Iterator for SequentialBatches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        if self.next >= self.end {
            return None;
        }
        let end = self.end.min(self.next.saturating_add(self.batch_size));
        let ids = (self.next..end).collect();
        self.next = end;
        let batch = self.dataset.batch(ids, 0);
        if batch.is_err() {
            self.next = self.end;
        }
        Some(batch)
    }
}
