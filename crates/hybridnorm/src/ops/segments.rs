//! Sequences of different lengths in one run, for continuous batching. Inference-only: no gradients.
//!
//! The rows of all sequences form one flat batch (1, n, ..). A segment is a run of rows that continues the sequence in
//! one slot of a cache; `segments` (s, 3) holds in each row the slot, the number of cached positions and the number of
//! new rows, which sum to n. Each op computes its counterpart for uniform batches (`cache.rs`, `latent_decode.rs`,
//! `rope_table.rs`) segment by segment, so that a sequence gets the bits that it gets alone.

use std::ops::Range;
use std::sync::Arc;

use hybridnorm_cuda::ElementType;
use hybridnorm_kernels::attention::{AttentionConfig, LatentAttentionConfig};
use hybridnorm_kernels::cache::Append;
use rayon::prelude::*;

use super::cache::{CacheAppend, CachedAttention, appended, cache_attention};
use super::device::CacheRows;
use super::latent_decode::{LatentAttention, latent_cache_attention};
use super::rope_table::RopeTable;
use super::{Arguments, DeviceOperands, InputOperand, Operands, Operation, OutputOperand};
use crate::graph::{Type, Value};

/// Length up to which a segment may need scratch memory by cached position; longer ones need it by row.
const MAX_SHORT_SEGMENT: usize = 8;

/// New rows of the sequence in one slot of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Slot of the cache.
    pub slot: usize,
    /// Cached positions of the slot, which precede the new rows.
    pub past: usize,
    /// New rows.
    pub len: usize,
}

impl Segment {
    /// Integers of a segment in `segments` (s, 3).
    pub const WIDTH: usize = 3;

    /// Returns the integers of the segment.
    pub fn to_ints(self) -> [i32; Self::WIDTH] {
        [self.slot, self.past, self.len].map(|x| x as i32)
    }

    fn arguments(&self) -> Arguments {
        Arguments {
            past: self.past,
            ..Arguments::default()
        }
    }
}

/// Rotary table of the positions of segments; see [`segment_rope_table`].
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentRopeTable {
    frequencies: Arc<[f64]>,
    magnitude: f64,
    rows: usize,
}

/// Positions of the rows of segments; see [`segment_positions`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentPositions {
    rows: usize,
}

/// Copy of columns of the rows of segments to their slots; see [`segment_cache_append`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentCacheAppend {
    append: Append,
    capacity: usize,
}

/// Attention of segments over their slots; see [`segment_cached_attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentCachedAttention {
    pub(crate) config: AttentionConfig,
    capacity: usize,
}

/// Attention of absorbed queries of segments over their slots; see [`segment_latent_attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentLatentAttention {
    config: LatentAttentionConfig,
    capacity: usize,
}

/// Computes the rotary table (n, k) of the positions of `segments` (s, 3); otherwise as
/// [`rope_table`](super::rope_table()).
pub fn segment_rope_table<'g>(segments: Value<'g>, frequencies: &[f64], magnitude: f64, rows: usize) -> Value<'g> {
    let op = SegmentRopeTable {
        frequencies: frequencies.into(),
        magnitude,
        rows,
    };
    let [table] = segments.builder().op(op, &[segments]);
    table
}

/// Returns the positions (1, n) of the rows of `segments` (s, 3), as [`positions`](super::positions()) does.
pub fn segment_positions(segments: Value<'_>, rows: usize) -> Value<'_> {
    let [positions] = segments.builder().op(SegmentPositions { rows }, &[segments]);
    positions
}

/// Writes c columns of rows (1, n, w), from `first_column` on, to a cache (slots, capacity, c), state that is updated:
/// those of each segment after the past rows of its slot.
///
/// # Panics
/// If the shapes do not match; at run time, if segments do not fit their slots or two of them share one.
pub fn segment_cache_append<'g>(rows_1nw: Value<'g>, first_column: usize, cache: Value<'g>, segments: Value<'g>) {
    let append = Append {
        batch: 1,
        width: rows_1nw.shape().width(),
        first_column,
        columns: cache.shape().width(),
    };
    let op = SegmentCacheAppend {
        append,
        capacity: slot_capacity(cache),
    };
    let [] = rows_1nw.builder().op(op, &[rows_1nw, cache, segments]);
}

/// Computes attention of the queries of packed rows (1, n, ..) of segments over a cache (slots, capacity, ..); otherwise
/// as [`cached_attention`](super::cached_attention()). `config` is for one sequence of n positions. Returns the context
/// (1, n, h·value). Not differentiable.
///
/// # Panics
/// If the shapes are not those of `config`; at run time, if segments do not fit their slots.
pub fn segment_cached_attention<'g>(
    packed_1nw: Value<'g>,
    cache: Value<'g>,
    segments: Value<'g>,
    config: AttentionConfig,
) -> Value<'g> {
    let op = SegmentCachedAttention {
        config,
        capacity: slot_capacity(cache),
    };
    let [ctx] = packed_1nw.builder().op(op, &[packed_1nw, cache, segments]);
    ctx
}

/// Computes attention of absorbed queries (1, n, ..) of segments over a cache (slots, capacity, l + r); otherwise as
/// [`latent_attention`](super::latent_attention()). `config` is for one sequence of n positions. Returns the latent
/// context (1, n, h·l). Not differentiable.
///
/// # Panics
/// If the shapes are not those of `config`; at run time, if segments do not fit their slots.
pub fn segment_latent_attention<'g>(
    queries_1nw: Value<'g>,
    cache: Value<'g>,
    segments: Value<'g>,
    config: LatentAttentionConfig,
) -> Value<'g> {
    let op = SegmentLatentAttention {
        config,
        capacity: slot_capacity(cache),
    };
    let [ctx] = queries_1nw.builder().op(op, &[queries_1nw, cache, segments]);
    ctx
}

/// Returns the segments of `ints` (s, 3).
///
/// # Panics
/// If an integer is negative, or the rows of the segments are not `rows`.
fn read_segments(ints: &[i32], rows: usize) -> Vec<Segment> {
    let index = |x: i32| usize::try_from(x).expect("segments: slots, pasts and lengths must not be negative");
    let of_row = |row: &[i32]| Segment {
        slot: index(row[0]),
        past: index(row[1]),
        len: index(row[2]),
    };
    let segments: Vec<Segment> = ints.chunks_exact(Segment::WIDTH).map(of_row).collect();
    let total: usize = segments.iter().map(|segment| segment.len).sum();
    assert_eq!(total, rows, "segments: rows");
    segments
}

/// Returns the first row of each segment.
fn first_rows(segments: &[Segment]) -> Vec<usize> {
    let mut next = 0;
    let first = |segment: &Segment| {
        next += segment.len;
        next - segment.len
    };
    segments.iter().map(first).collect()
}

/// Returns the capacity of a slot of a cache (slots, capacity, c).
fn slot_capacity(cache: Value<'_>) -> usize {
    match cache.shape().sizes() {
        &[_, capacity, _] => capacity,
        sizes => panic!("segments: the cache is not (slots, capacity, c), but {sizes:?}"),
    }
}

/// Checks the types of flat rows (1, n, width), a cache (slots, capacity, columns) and segments (s, 3); returns n and s.
fn check_types(name: &str, inputs: &[Type], [width, capacity, columns]: [usize; 3]) -> [usize; 2] {
    let [rows, cache, segments] = inputs else {
        panic!("{name}: expected rows, a cache and segments")
    };
    let &[_, n, _] = rows.shape.sizes() else {
        panic!("{name}: the rows are not (1, n, {width})")
    };
    assert_eq!(*rows, Type::f32([1, n, width]), "{name}: rows");
    let slots = cache.shape.sizes()[0];
    assert_eq!(*cache, Type::f32([slots, capacity, columns]), "{name}: cache");
    [n, check_segments(name, segments)]
}

/// Checks the type of segments (s, 3); returns their number.
fn check_segments(name: &str, segments: &Type) -> usize {
    let &[count, _] = segments.shape.sizes() else {
        panic!("{name}: the segments are not (s, 3)")
    };
    assert_eq!(*segments, Type::i32([count, Segment::WIDTH]), "{name}: segments");
    count
}

/// Executor of an op on the operands of one segment.
trait Precision: Copy + Send + Sync + 'static {
    fn run(op: &dyn Operation, io: &mut Operands<'_, Self>);
}

impl Precision for f32 {
    fn run(op: &dyn Operation, io: &mut Operands<'_, f32>) {
        op.cpu(io);
    }
}

impl Precision for f64 {
    fn run(op: &dyn Operation, io: &mut Operands<'_, f64>) {
        op.reference(io);
    }
}

impl SegmentRopeTable {
    fn run<T: Precision>(&self, io: &mut Operands<'_, T>) {
        let segments = read_segments(io.ints(0), self.rows);
        let width = 2 * self.frequencies.len();
        let lengths = segments.iter().map(|segment| segment.len * width);
        for (segment, table) in segments.iter().zip(io.next_output().split_floats(lengths)) {
            let op = RopeTable {
                frequencies: self.frequencies.clone(),
                magnitude: self.magnitude,
                positions: segment.len,
            };
            T::run(&op, &mut Operands::new(Vec::new(), vec![table], segment.arguments()));
        }
    }
}

impl SegmentPositions {
    fn run<T: Precision>(&self, io: &mut Operands<'_, T>) {
        let segments = read_segments(io.ints(0), self.rows);
        let positions = segments.iter().flat_map(|segment| segment.past..segment.past + segment.len);
        for (written, position) in io.write_ints().iter_mut().zip(positions) {
            *written = position as i32;
        }
    }
}

impl SegmentCacheAppend {
    fn run<T: Precision>(&self, io: &mut Operands<'_, T>) {
        let Append { width, columns, .. } = self.append;
        let cache = io.write();
        let rows = io.input(0);
        let segments = read_segments(io.ints(2), rows.floats_len() / width);
        let size = self.capacity * columns;
        // The rows of a step are few compared with its matmuls, so that slots are written one after another.
        for (segment, first) in segments.iter().zip(first_rows(&segments)) {
            let rows = rows.floats_slice(first * width..(first + segment.len) * width);
            let reads = vec![rows, InputOperand::InPlace];
            let writes = vec![OutputOperand::Float(&mut cache[segment.slot * size..][..size])];
            T::run(&CacheAppend(self.append), &mut Operands::new(reads, writes, segment.arguments()));
        }
    }
}

/// Attention of segments: the op of one segment, and its sizes.
struct SegmentAttention<'a, O> {
    /// Returns the attention of one sequence of this many positions.
    op: &'a (dyn Fn(usize) -> O + Sync),
    /// Values per query row, cached row and context row.
    widths: [usize; 3],
    capacity: usize,
}

impl<O: Operation> SegmentAttention<'_, O> {
    /// Computes the context of all segments. `scratch` of a segment is taken from the next operand, if the executor has
    /// any.
    fn run<T: Precision>(&self, io: &mut Operands<'_, T>, scratch: Option<&(dyn Fn(&Segment) -> usize + Sync)>) {
        let [width, columns, ctx_width] = self.widths;
        let (ctx, cache) = (io.next_output(), io.read(1));
        let segments = read_segments(io.ints(2), io.input(0).floats_len() / width);
        let contexts = ctx.split_floats(segments.iter().map(|segment| segment.len * ctx_width));
        let mut rest = scratch.map(|_| io.write());
        let scratches: Vec<Option<&mut [T]>> = segments
            .iter()
            .map(|segment| rest.as_mut()?.split_off_mut(..scratch?(segment)))
            .collect();
        let (rows, size) = (io.input(0), self.capacity * columns);
        let tasks: Vec<_> = segments
            .iter()
            .zip(first_rows(&segments))
            .zip(contexts.into_iter().zip(scratches))
            .collect();
        tasks.into_par_iter().for_each(|((segment, first), (ctx, scratch))| {
            let rows = rows.floats_slice(first * width..(first + segment.len) * width);
            let slot = &cache[segment.slot * size..][..size];
            let reads = vec![rows, InputOperand::Float(slot)];
            let mut writes = vec![ctx];
            writes.extend(scratch.map(OutputOperand::Float));
            T::run(&(self.op)(segment.len), &mut Operands::new(reads, writes, segment.arguments()));
        });
    }
}

impl SegmentCachedAttention {
    fn widths(&self) -> [usize; 3] {
        let AttentionConfig {
            heads,
            kv_heads,
            head_dim,
            value_dim,
            ..
        } = self.config;
        let columns = kv_heads * (head_dim + value_dim);
        [heads * head_dim + columns, columns, heads * value_dim]
    }

    fn run<T: Precision>(&self, io: &mut Operands<'_, T>, scratch: Option<&(dyn Fn(&Segment) -> usize + Sync)>) {
        let attention = SegmentAttention {
            op: &|seq| CachedAttention(AttentionConfig { batch: 1, seq, ..self.config }),
            widths: self.widths(),
            capacity: self.capacity,
        };
        attention.run(io, scratch);
    }
}

impl SegmentLatentAttention {
    fn widths(&self) -> [usize; 3] {
        let LatentAttentionConfig { heads, latent, rope, .. } = self.config;
        [heads * (latent + rope), latent + rope, heads * latent]
    }

    fn of_len(&self, seq: usize) -> LatentAttentionConfig {
        LatentAttentionConfig {
            batch: 1,
            seq,
            ..self.config
        }
    }

    fn run<T: Precision>(&self, io: &mut Operands<'_, T>, scratch: Option<&(dyn Fn(&Segment) -> usize + Sync)>) {
        let attention = SegmentAttention {
            op: &|seq| LatentAttention(self.of_len(seq)),
            widths: self.widths(),
            capacity: self.capacity,
        };
        attention.run(io, scratch);
    }
}

impl Operation for SegmentRopeTable {
    fn name(&self) -> &'static str {
        "rotations of segments"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check_segments(self.name(), &inputs[0]);
        vec![Type::f32([self.rows, 2 * self.frequencies.len()])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.run(io);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.run(io);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let rows = CacheRows::of_segments(io, io.read(0), self.rows);
        let positions = io.scratch(ElementType::I32, self.rows);
        rows.positions(io, positions);
        let op = RopeTable {
            frequencies: self.frequencies.clone(),
            magnitude: self.magnitude,
            positions: self.rows,
        };
        op.record(io, Some(positions))
    }
}

impl Operation for SegmentPositions {
    fn name(&self) -> &'static str {
        "positions of segments"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check_segments(self.name(), &inputs[0]);
        vec![Type::i32([1, self.rows])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.run(io);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.run(io);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (segments, positions) = (io.read(0), io.write());
        CacheRows::of_segments(io, segments, self.rows).positions(io, positions);
        Ok(())
    }
}

impl Operation for SegmentCacheAppend {
    fn name(&self) -> &'static str {
        "cache append of segments"
    }

    /// Reads rows and updates a cache; has no outputs.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let Append { width, columns, .. } = self.append;
        check_types(self.name(), inputs, [width, self.capacity, columns]);
        Vec::new()
    }

    fn state_inputs(&self, _inputs: usize) -> Range<usize> {
        1..2
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.run(io);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.run(io);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, segments, cache) = (io.read(0), io.read(2), io.write());
        let rows = CacheRows::of_segments(io, segments, x.len() / self.append.width);
        let slot = self.capacity * self.append.columns;
        rows.append(io, x, cache, appended(&self.append, slot));
        Ok(())
    }
}

impl Operation for SegmentCachedAttention {
    fn name(&self) -> &'static str {
        "cached attention of segments"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [width, columns, ctx_width] = self.widths();
        let [n, _] = check_types(self.name(), inputs, [width, self.capacity, columns]);
        vec![Type::f32([1, n, ctx_width])]
    }

    fn scratch(&self, inputs: &[Type]) -> usize {
        inputs[0].shape.rows() * self.config.heads
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.run(io, None);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.run(io, Some(&|segment| segment.len * self.config.heads));
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, cache, segments, ctx) = (io.read(0), io.read(1), io.read(2), io.write());
        let [width, columns, _] = self.widths();
        let rows = CacheRows::of_segments(io, segments, x.len() / width);
        let layout = cache_attention(&self.config, self.capacity * columns);
        rows.attend(io, [x, cache, ctx], layout)
    }
}

impl Operation for SegmentLatentAttention {
    fn name(&self) -> &'static str {
        "latent attention of segments"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [width, columns, ctx_width] = self.widths();
        let [n, _] = check_types(self.name(), inputs, [width, self.capacity, columns]);
        vec![Type::f32([1, n, ctx_width])]
    }

    /// Each segment needs that of one of its positions per position, or that of a long sequence of as many positions.
    fn scratch(&self, inputs: &[Type]) -> usize {
        let (rows, segments) = (inputs[0].shape.rows(), inputs[2].shape.rows());
        let short = (1..=MAX_SHORT_SEGMENT.min(rows)).map(|len| self.of_len(len).scratch_len(self.capacity));
        segments * short.max().unwrap_or(0) + rows * self.config.heads
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.run(io, None);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let needed = |segment: &Segment| self.of_len(segment.len).scratch_len(segment.past + segment.len);
        self.run(io, Some(&needed));
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, cache, segments, ctx) = (io.read(0), io.read(1), io.read(2), io.write());
        let [width, columns, _] = self.widths();
        let rows = CacheRows::of_segments(io, segments, x.len() / width);
        let layout = latent_cache_attention(&self.config, self.capacity * columns);
        rows.attend(io, [x, cache, ctx], layout)
    }
}
