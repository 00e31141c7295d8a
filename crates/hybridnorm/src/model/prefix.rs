//! Hidden states of continuations of a shared prefix, which is computed once, and logits of selected positions.

use super::decoder::{Decoder, KvCaches};
use super::lru_cache::LruCache;
use super::model::Model;
use crate::error::{Error, Result};
use crate::exec::TensorRef;
use crate::graph::{Buffer, Builder, DType, Type, ValueId};
use crate::memory;
use crate::ops::Arguments;
use crate::plan::{Options, Program};

/// Shape (b, t) of a run over the cache, the capacity of each sequence, and true for the run of the prefix itself.
type RunKey = ([usize; 2], usize, bool);

/// KV cache of one prefix at a time and of its continuations, which run side by side as sequences of one batch.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::Model;
///
/// # let config = hybridnorm::model::ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let mut model = Model::new(&config, 0, Device::Cpu)?;
/// // Two sequences of up to five positions.
/// let mut cache = model.new_prefix_cache(2, 5)?;
/// model.run_prefix(&[1, 2, 3], 3, &mut cache)?;
/// let hidden = model.run_continuations(&[4, 5, 6, 7], [2, 2], &mut cache)?;
/// let logits = model.logits_of_hidden(&hidden)?;
/// assert_eq!(logits.len(), 2 * 2 * config.vocab_size);
///
/// // The logits of the second sequence are those of the whole sequence.
/// let whole = model.logits(&[1, 2, 3, 6, 7], 1, 5)?.into_f32();
/// let (ours, whole) = (&logits[2 * 8..], &whole[3 * 8..]);
/// assert!(ours.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-5));
/// model.free_prefix_cache(cache);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct PrefixCache {
    buffers: Vec<Buffer>,
    sequences: usize,
    capacity: usize,
    prefix_len: usize,
    /// Number of sequences that hold the keys and values of the prefix.
    copies: usize,
    programs: LruCache<RunKey, (Program, ValueId)>,
}

impl PrefixCache {
    /// Returns the maximum number of continuations of a batch.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Returns the maximum number of positions of the prefix and a continuation together.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Rows of hidden states whose logits are computed at a time.
const HEAD_ROWS: usize = 64;

impl Model {
    /// Allocates a cache for a prefix and up to `sequences` continuations at a time, of up to `capacity` positions
    /// together with the prefix.
    ///
    /// # Errors
    /// If a size is 0, or the cache does not fit into memory.
    pub fn new_prefix_cache(&mut self, sequences: usize, capacity: usize) -> Result<PrefixCache> {
        if sequences == 0 || capacity == 0 {
            return Err(Error::out_of_range(
                "sequences and positions",
                0,
                "at least 1",
            ));
        }
        let config = self.decoder.config();
        let layers = config.n_layers;
        let elements = sequences
            .saturating_mul(capacity)
            .saturating_mul(config.cache_width());
        memory::check_available(
            elements.saturating_mul(4 * layers) as u64,
            &format!("keys and values of {sequences} sequences of up to {capacity} positions"),
        )?;
        let mut cache = PrefixCache {
            buffers: Vec::with_capacity(layers),
            sequences,
            capacity,
            prefix_len: 0,
            copies: 0,
            programs: LruCache::default(),
        };
        for _ in 0..layers {
            match self.executor.allocate(DType::F32, elements) {
                Ok(buffer) => cache.buffers.push(buffer),
                Err(error) => {
                    self.free_prefix_cache(cache);
                    return Err(error);
                }
            }
        }
        Ok(cache)
    }

    /// Frees the memory of a cache.
    pub fn free_prefix_cache(&mut self, cache: PrefixCache) {
        for buffer in cache.buffers {
            self.executor.free(buffer);
        }
    }

    /// Runs a prefix, the first `len` of `ids`, which replaces the previous one; returns the hidden states (t, d) of
    /// all `ids`. Ids after the first `len` are padding, which makes lengths of a few shapes.
    ///
    /// # Errors
    /// As [`Model::check_batch`]; [`Error::OutOfRange`] if the ids exceed the cache; or if there is not enough memory.
    ///
    /// # Panics
    /// If `len` exceeds the number of ids.
    pub fn run_prefix(
        &mut self,
        ids: &[i32],
        len: usize,
        cache: &mut PrefixCache,
    ) -> Result<Vec<f32>> {
        assert!(len <= ids.len(), "a prefix of {len} of {} ids", ids.len());
        cache.prefix_len = 0;
        let hidden = self.run_cached(ids, [1, ids.len()], cache, true)?;
        (cache.prefix_len, cache.copies) = (len, 1);
        Ok(hidden)
    }

    /// Runs continuations (b, t) of the prefix; returns their hidden states (b, t, d). The prefix remains for further
    /// continuations.
    ///
    /// # Errors
    /// As [`Model::check_batch`]; [`Error::OutOfRange`] if they exceed the cache; or if there is not enough memory.
    pub fn run_continuations(
        &mut self,
        ids: &[i32],
        shape: [usize; 2],
        cache: &mut PrefixCache,
    ) -> Result<Vec<f32>> {
        self.copy_prefix(cache, shape[0]);
        self.run_cached(ids, shape, cache, false)
    }

    fn run_cached(
        &mut self,
        ids: &[i32],
        [batch, seq]: [usize; 2],
        cache: &mut PrefixCache,
        is_prefix: bool,
    ) -> Result<Vec<f32>> {
        self.check_ids(ids, batch, seq)?;
        let (past, capacity) = (cache.prefix_len, cache.capacity);
        let positions = past + seq;
        if positions > capacity || batch > cache.sequences {
            let expected = format!(
                "at most {} × {capacity}, the capacity of the cache",
                cache.sequences
            );
            return Err(Error::out_of_range(
                "sequences and positions",
                format!("{batch} × {positions}"),
                expected,
            ));
        }
        let (decoder, buffers) = (&self.decoder, &cache.buffers);
        let key = ([batch, seq], capacity, is_prefix);
        let (program, output) = cache.programs.get_or_insert_with(key, || {
            let caches = KvCaches {
                buffers,
                capacity,
                is_prefill: is_prefix && seq > 1,
            };
            let g = Builder::new();
            let ids = Decoder::tokens(&g, "ids", batch, seq);
            let hidden = decoder.forward(ids, Some(caches)).hidden.id();
            (
                Program::new(g.finish(), &[hidden], Options::default()),
                hidden,
            )
        });
        let arguments = Arguments {
            past,
            ..Arguments::default()
        };
        self.executor
            .run(program, arguments, &[("ids", TensorRef::I32(ids))])?;
        Ok(self.executor.output(program, *output).into_f32())
    }

    /// Copies the keys and values of the prefix from the first sequence to the first `batch` ones.
    fn copy_prefix(&mut self, cache: &mut PrefixCache, batch: usize) {
        let batch = batch.min(cache.sequences);
        if batch <= cache.copies {
            return;
        }
        let width = self.decoder.config().cache_width();
        for &buffer in &cache.buffers {
            let rows = self.executor.read(buffer, 0..cache.prefix_len * width);
            let rows = rows.into_f32();
            for sequence in cache.copies..batch {
                let at = sequence * cache.capacity * width;
                self.executor.write(buffer, at, TensorRef::F32(&rows));
            }
        }
        cache.copies = batch;
    }

    /// Computes the logits (n, v) of hidden states (n, d) of [`Model::hidden`] or [`Model::run_continuations`].
    ///
    /// # Errors
    /// If there is not enough memory.
    ///
    /// # Panics
    /// If the hidden states are not whole rows.
    pub fn logits_of_hidden(&mut self, hidden: &[f32]) -> Result<Vec<f32>> {
        let config = self.decoder.config();
        let (d, v) = (config.d_model, config.vocab_size);
        assert!(
            hidden.len().is_multiple_of(d),
            "hidden states are not (n, {d})"
        );
        let mut logits = Vec::with_capacity(hidden.len() / d * v);
        let mut padded = vec![0.0; HEAD_ROWS * d];
        for rows in hidden.chunks(HEAD_ROWS * d) {
            padded[..rows.len()].copy_from_slice(rows);
            let decoder = &self.decoder;
            let (program, output) = self.head.get_or_insert_with((), || {
                let g = Builder::new();
                let hidden = g.input("hidden", Type::f32([HEAD_ROWS, d]));
                let logits = decoder.logits(hidden).id();
                (
                    Program::new(g.finish(), &[logits], Options::default()),
                    logits,
                )
            });
            self.executor.run(
                program,
                Arguments::default(),
                &[("hidden", TensorRef::F32(&padded))],
            )?;
            let found = self.executor.output(program, *output).into_f32();
            logits.extend_from_slice(&found[..rows.len() / d * v]);
        }
        Ok(logits)
    }
}
