//! Keys and values of positions already seen.

use super::decoder::Caches;
use super::recent::Recent;
use crate::graph::{Buffer, ValueId};
use crate::plan::Program;

/// The cache of a whole model for one batch of sequences, with the programs that read and extend it.
///
/// It stores the inputs of attention: keys and values after every norm, scale and rotation; of latent
/// attention the normed latent and the rotated key.
#[derive(Debug, Default)]
pub struct KvCache {
    buffers: Vec<Buffer>,
    batch: usize,
    capacity: usize,
    len: usize,
    programs: Recent<(usize, bool, bool), (Program, ValueId)>,
}

impl KvCache {
    /// A cache of no block yet.
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

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Positions seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }

    /// The program for `seq` new positions, made by `build` where there is none yet.
    pub(super) fn program(
        &mut self,
        seq: usize,
        all: bool,
        build: impl FnOnce(Caches<'_>) -> (Program, ValueId),
    ) -> &(Program, ValueId) {
        let caches = Caches {
            buffers: &self.buffers,
            capacity: self.capacity,
            is_prompt: self.len == 0 && seq > 1,
        };
        let key = (seq, all, caches.is_prompt);
        self.programs.get_or_insert_with(key, || build(caches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Type};
    use crate::plan::Options;

    fn program(_: Caches<'_>) -> (Program, ValueId) {
        let g = Builder::new();
        let x = g.input("x", Type::f32([1])).id();
        (Program::new(g.finish(), &[x], Options::default()), x)
    }

    #[test]
    fn programs_of_many_prompt_lengths_leave_and_the_one_that_decodes_stays() {
        let mut cache = KvCache::new(1, 100);
        cache.program(1, false, program);
        for seq in 2..100 {
            cache.program(seq, false, program);
            cache.program(1, false, |_| unreachable!("decodes every token"));
        }
        assert_eq!(cache.programs.len(), Recent::<(), ()>::MOST);
    }
}
