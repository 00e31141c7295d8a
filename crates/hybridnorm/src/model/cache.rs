//! KV cache: keys and values of previous positions.

use super::decoder::KvCaches;
use super::lru_cache::LruCache;
use crate::graph::{Buffer, ValueId};
use crate::plan::Program;

/// KV cache of all blocks for one batch of sequences, with the programs that read and extend it.
///
/// It stores the inputs of attention: keys and values after all norms, scales and rotations; for latent attention,
/// the normalized latent and the rotated key.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::Model;
/// # use hybridnorm::model::ModelConfig;
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let mut cache = model.new_cache(1, 8)?;
/// let prompt = model.next_logits(&[1, 2, 3], &mut cache, false)?;
/// model.next_logits(&[4], &mut cache, false)?;
/// assert_eq!((cache.len(), cache.capacity()), (4, 8));
///
/// // After clearing, the same prompt yields the same logits.
/// cache.clear();
/// assert_eq!(model.next_logits(&[1, 2, 3], &mut cache, false)?, prompt);
/// model.free_cache(cache);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct KvCache {
    buffers: Vec<Buffer>,
    batch: usize,
    capacity: usize,
    len: usize,
    programs: LruCache<(usize, bool, bool), (Program, ValueId)>,
}

impl KvCache {
    /// Creates a cache without blocks.
    pub(super) fn new(batch: usize, capacity: usize) -> Self {
        Self {
            batch,
            capacity,
            ..Self::default()
        }
    }

    /// Adds the buffer of the next block.
    pub(super) fn push(&mut self, buffer: Buffer) {
        self.buffers.push(buffer);
    }

    /// Returns the number of sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the number of cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the maximum number of positions.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Removes all positions.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }

    /// Returns the program for `seq` new positions, built by `build` if not cached.
    pub(super) fn program(
        &mut self,
        seq: usize,
        all_positions: bool,
        build: impl FnOnce(KvCaches<'_>) -> (Program, ValueId),
    ) -> &(Program, ValueId) {
        let caches = KvCaches {
            buffers: &self.buffers,
            capacity: self.capacity,
            is_prefill: self.len == 0 && seq > 1,
        };
        let key = (seq, all_positions, caches.is_prefill);
        self.programs.get_or_insert_with(key, || build(caches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Type};
    use crate::plan::Options;

    fn program(_: KvCaches<'_>) -> (Program, ValueId) {
        let g = Builder::new();
        let x = g.input("x", Type::f32([1])).id();
        (Program::new(g.finish(), &[x], Options::default()), x)
    }

    #[test]
    fn decode_program_is_not_evicted() {
        let mut cache = KvCache::new(1, 100);
        cache.program(1, false, program);
        for seq in 2..100 {
            cache.program(seq, false, program);
            cache.program(1, false, |_| unreachable!("the decode program is cached"));
        }
        assert_eq!(cache.programs.len(), LruCache::<(), ()>::CAPACITY);
    }
}
