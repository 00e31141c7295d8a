//! KV cache of independent sequences, for continuous batching.

use super::decoder::{Decoder, KvCaches};
use super::lru_cache::LruCache;
use super::model::Model;
use crate::error::{Error, Result};
use crate::exec::TensorRef;
use crate::graph::{Buffer, Builder, DType, Type, ValueId};
use crate::memory;
use crate::ops::{self, Arguments, Segment};
use crate::plan::Program;

/// KV cache of all blocks for sequences of different lengths, one per slot, with the programs that read and extend it.
///
/// A slot is reused for another sequence after [`SlotCache::clear`].
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::{Model, SlotTokens};
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
/// let mut cache = model.new_slot_cache(2, 8)?;
/// // Prompts of different lengths, then one step of both sequences.
/// model.slot_logits(&mut cache, &[SlotTokens { slot: 0, ids: &[1, 2, 3] }], false)?;
/// model.slot_logits(&mut cache, &[SlotTokens { slot: 1, ids: &[4] }], false)?;
/// let step = [SlotTokens { slot: 0, ids: &[5] }, SlotTokens { slot: 1, ids: &[6] }];
/// let logits = model.slot_logits(&mut cache, &step, false)?;
/// assert_eq!((logits.len(), cache.len(0), cache.len(1)), (2 * 8, 4, 2));
/// model.free_slot_cache(cache);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct SlotCache {
    buffers: Vec<Buffer>,
    capacity: usize,
    /// Cached positions of each slot.
    lens: Vec<usize>,
    /// Programs of steps of one new position in each of n + 1 slots.
    steps: Vec<Option<SlotProgram>>,
    /// Programs of other runs.
    other: LruCache<Shape, SlotProgram>,
}

/// A program, and its output.
type SlotProgram = (Program, ValueId);

/// New tokens of the sequence in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotTokens<'a> {
    /// The slot.
    pub slot: usize,
    /// Token ids, at least one.
    pub ids: &'a [i32],
}

/// Shape of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    rows: usize,
    segments: usize,
    /// True if one sequence begins with more than one position.
    is_prefill: bool,
    output: Output,
}

/// Output of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Hidden states of all positions.
    Hidden,
    /// Logits of all positions.
    Logits,
    /// Logits of the last position of the only segment.
    LastLogits,
}

impl Shape {
    /// True if every segment has one position, and logits.
    fn is_step(&self) -> bool {
        self.rows == self.segments && self.output != Output::Hidden
    }
}

impl SlotCache {
    /// Returns the number of slots.
    pub fn slots(&self) -> usize {
        self.lens.len()
    }

    /// Returns the maximum number of positions of a slot.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of cached positions of a slot.
    pub fn len(&self, slot: usize) -> usize {
        self.lens[slot]
    }

    /// True if no position of a slot is cached.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.lens[slot] == 0
    }

    /// Removes all positions of a slot.
    pub fn clear(&mut self, slot: usize) {
        self.lens[slot] = 0;
    }

    /// Returns the segments of new tokens.
    fn segments(&self, tokens: &[SlotTokens<'_>]) -> Result<Vec<Segment>> {
        let mut is_used = vec![false; self.slots()];
        let segment = |new: &SlotTokens<'_>| {
            let Some(is_used) = is_used.get_mut(new.slot) else {
                let expected = format!("below {}, the number of slots", self.slots());
                return Err(Error::out_of_range("slot", new.slot, expected));
            };
            if std::mem::replace(is_used, true) {
                return Err(Error::invalid_value(
                    "slot",
                    format!("slot {} occurs twice", new.slot),
                ));
            }
            let (past, len) = (self.lens[new.slot], new.ids.len());
            if past + len > self.capacity {
                let expected = format!("at most {}, the capacity of a slot", self.capacity);
                return Err(Error::out_of_range("positions", past + len, expected));
            }
            Ok(Segment {
                slot: new.slot,
                past,
                len,
            })
        };
        tokens.iter().map(segment).collect()
    }

    /// Returns the program of a shape, built by `build` if not cached.
    fn program(
        &mut self,
        shape: Shape,
        build: impl FnOnce(KvCaches<'_>) -> SlotProgram,
    ) -> &SlotProgram {
        let caches = KvCaches {
            buffers: &self.buffers,
            capacity: self.capacity,
            is_prefill: shape.is_prefill,
        };
        match shape.is_step() {
            true => self.steps[shape.rows - 1].get_or_insert_with(|| build(caches)),
            false => self.other.get_or_insert_with(shape, || build(caches)),
        }
    }
}

impl Model {
    /// Allocates an empty cache of `slots` sequences of up to `capacity` positions.
    ///
    /// # Errors
    /// If there is no slot or no position, or the cache does not fit into memory.
    pub fn new_slot_cache(&mut self, slots: usize, capacity: usize) -> Result<SlotCache> {
        if slots == 0 {
            return Err(Error::out_of_range("slots", 0, "at least 1"));
        }
        self.check_capacity(capacity)?;
        let (bytes, layers) = (
            self.slot_cache_bytes(slots, capacity),
            self.config().n_layers,
        );
        memory::check_available(
            bytes,
            &format!("keys and values of {slots} sequences of {capacity} positions"),
        )?;
        let mut cache = SlotCache {
            capacity,
            lens: vec![0; slots],
            steps: (0..slots).map(|_| None).collect(),
            ..SlotCache::default()
        };
        for _ in 0..layers {
            match self
                .executor
                .allocate(DType::F32, bytes as usize / 4 / layers)
            {
                Ok(buffer) => cache.buffers.push(buffer),
                Err(error) => {
                    self.free_slot_cache(cache);
                    return Err(error);
                }
            }
        }
        Ok(cache)
    }

    /// Returns the bytes of the buffers of a [`SlotCache`], saturating.
    pub fn slot_cache_bytes(&self, slots: usize, capacity: usize) -> u64 {
        let config = self.config();
        let sizes = [slots, capacity, config.cache_width(), config.n_layers];
        let elements = sizes
            .iter()
            .fold(1u64, |product, &size| product.saturating_mul(size as u64));
        elements.saturating_mul(4)
    }

    /// Frees the memory of a cache.
    pub fn free_slot_cache(&mut self, cache: SlotCache) {
        for buffer in cache.buffers {
            self.executor.free(buffer);
        }
    }

    /// Runs new positions of the sequences in some slots, and appends them to the cache. Returns the logits of the last
    /// new position of each sequence (s, v), or of every new position (n, v) with `all_positions`, in the given order.
    ///
    /// A sequence that runs alone gets the bits that [`Model::next_logits`] gives it. In a run of several, the rounding
    /// of matmuls may depend on the total number of new positions; nothing else depends on the other sequences.
    ///
    /// # Errors
    /// As [`Model::check_ids`]; if a slot does not exist, occurs twice, or has not enough capacity; if there is not
    /// enough memory.
    pub fn slot_logits(
        &mut self,
        cache: &mut SlotCache,
        tokens: &[SlotTokens<'_>],
        all_positions: bool,
    ) -> Result<Vec<f32>> {
        let output = match tokens.len() == 1 && !all_positions {
            true => Output::LastLogits,
            false => Output::Logits,
        };
        let logits = self.run_slots(cache, tokens, output)?;
        let is_step = tokens.iter().all(|new| new.ids.len() == 1);
        Ok(
            match all_positions || is_step || output == Output::LastLogits {
                true => logits,
                false => last_rows(&logits, tokens, self.config().vocab_size),
            },
        )
    }

    /// Runs new positions as [`Model::slot_logits`] does; returns their hidden states (n, d), from which
    /// [`Model::logits_of_hidden`] computes the logits of selected ones.
    ///
    /// # Errors
    /// As [`Model::slot_logits`].
    pub fn slot_hidden(
        &mut self,
        cache: &mut SlotCache,
        tokens: &[SlotTokens<'_>],
    ) -> Result<Vec<f32>> {
        self.run_slots(cache, tokens, Output::Hidden)
    }

    fn run_slots(
        &mut self,
        cache: &mut SlotCache,
        tokens: &[SlotTokens<'_>],
        output: Output,
    ) -> Result<Vec<f32>> {
        for new in tokens {
            self.check_ids(new.ids, 1, new.ids.len())?;
        }
        let segments = cache.segments(tokens)?;
        let ids: Vec<i32> = tokens.iter().flat_map(|new| new.ids).copied().collect();
        self.check_ids(&ids, 1, ids.len())?;
        let shape = Shape {
            rows: ids.len(),
            segments: segments.len(),
            is_prefill: segments.len() == 1 && segments[0].past == 0 && ids.len() > 1,
            output,
        };
        let slots = cache.slots();
        let decoder = &self.decoder;
        let (program, values) =
            cache.program(shape, |caches| record(decoder, shape, slots, caches));
        let ints: Vec<i32> = segments
            .iter()
            .flat_map(|segment| segment.to_ints())
            .collect();
        let inputs = [
            ("ids", TensorRef::I32(&ids)),
            ("segments", TensorRef::I32(&ints)),
        ];
        self.executor.run(program, Arguments::default(), &inputs)?;
        let values = self.executor.output(program, *values).into_f32();
        for segment in &segments {
            cache.lens[segment.slot] += segment.len;
        }
        Ok(values)
    }

    /// Replaces the sequence in slot `to` by the first `len` positions of that in slot `from`.
    ///
    /// # Errors
    /// If a slot does not exist, or `from` has fewer positions.
    pub fn copy_slot(
        &mut self,
        cache: &mut SlotCache,
        from: usize,
        to: usize,
        len: usize,
    ) -> Result<()> {
        let slots = cache.slots();
        if let Some(&slot) = [from, to].iter().find(|&&slot| slot >= slots) {
            let expected = format!("below {slots}, the number of slots");
            return Err(Error::out_of_range("slot", slot, expected));
        }
        if len > cache.lens[from] {
            let expected = format!("at most {}, those of slot {from}", cache.lens[from]);
            return Err(Error::out_of_range("positions", len, expected));
        }
        let width = self.decoder.config().cache_width();
        let size = cache.capacity * width;
        for &buffer in cache.buffers.iter().filter(|_| from != to) {
            let rows = self
                .executor
                .read(buffer, from * size..from * size + len * width);
            self.executor.write(buffer, to * size, rows.as_tensor_ref());
        }
        cache.lens[to] = len;
        Ok(())
    }

    /// Allocates the memory that [`Model::slot_logits`] needs for one segment of `rows` positions and for a step of all
    /// slots, so that later calls do not fail for lack of it. Returns its bytes: values of a program, and what the kernel
    /// of an op allocates.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn prepare_slot_logits(&mut self, cache: &mut SlotCache, rows: usize) -> Result<u64> {
        let slots = cache.slots();
        let all = |is_prefill| Shape {
            rows,
            segments: 1,
            is_prefill,
            output: Output::Logits,
        };
        let step = Shape {
            rows: slots,
            segments: slots,
            is_prefill: false,
            output: Output::Logits,
        };
        let mut largest = 0;
        for shape in [all(rows > 1), all(false), step] {
            let decoder = &self.decoder;
            let (program, _) = cache.program(shape, |caches| record(decoder, shape, slots, caches));
            self.executor.prepare(program)?;
            largest = largest.max(program.arena_bytes() + program.workspace_bytes());
        }
        Ok(largest as u64)
    }

    fn check_capacity(&self, capacity: usize) -> Result<()> {
        let longest = self.config().max_seq_len;
        match (1..=longest).contains(&capacity) {
            true => Ok(()),
            false => {
                let expected = format!("1 to max_seq_len = {longest}");
                Err(Error::out_of_range("capacity", capacity, expected))
            }
        }
    }
}

/// Records the program of a shape.
fn record(decoder: &Decoder, shape: Shape, slots: usize, caches: KvCaches<'_>) -> SlotProgram {
    let g = Builder::new();
    let ids = Decoder::tokens(&g, "ids", 1, shape.rows);
    let segments = g.input("segments", Type::i32([shape.segments, Segment::WIDTH]));
    let hidden = decoder
        .forward_segments(ids, segments, slots, caches)
        .hidden;
    let output = match shape.output {
        Output::Hidden => hidden,
        Output::Logits => decoder.logits(hidden),
        Output::LastLogits => decoder.logits(ops::last_position(hidden)),
    };
    let output = output.id();
    (
        Program::new(g.finish(), &[output], decoder.plan_options()),
        output,
    )
}

/// Returns the last row of each sequence.
fn last_rows(rows: &[f32], tokens: &[SlotTokens<'_>], width: usize) -> Vec<f32> {
    let mut end = 0;
    let last = |new: &SlotTokens<'_>| {
        end += new.ids.len();
        &rows[(end - 1) * width..end * width]
    };
    tokens.iter().flat_map(last).copied().collect()
}
