//! Matrix multiplication in single precision or bfloat16, with sums in single precision.
//!
//! The right operand is packed into [panels](Packed), once for any number of uses; the left one is read in place. Each
//! element is a sum over the inner dimension in an order that depends on the shapes only, so that results are
//! bit-identical for any number of threads. In single precision they also are for any processor, each sum being a
//! chain of fused multiply-adds over blocks of 512; in bfloat16 they depend on the vector unit.
//!
//! References of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VDPBF16PS.

mod arithmetic;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
mod operands;
mod packed;
mod panels;
#[cfg(test)]
mod tests;
mod tiles;
mod unit;

use crate::floats::{Floats, FloatsMut, round};
use crate::simd::dispatch;
use half::bf16;
use rayon::prelude::*;

pub(crate) use operands::{LeftBuffer, OutputRows};
pub use packed::Packed;
pub use panels::Precision;
pub(crate) use panels::{PANEL, PanelRow, Rows, pack, pack_transposed, panels};
pub(crate) use tiles::{ActiveRegion, Left, LeftLayout, Output, TiledMatmul};

/// Minimum number of multiply-adds for a multi-threaded matmul.
const PARALLEL_WORK: usize = 1 << 18;
/// Rows of the output per task, a multiple of the rows of all tiles: enough for each panel that is read from the L3
/// cache to be used often.
const ROWS: usize = 192;
/// Maximum columns of the output per task: panels of common inner dimensions stay in the L2 cache.
const COLUMNS: usize = 384;
/// Columns of a tile.
const TILE_COLUMNS: usize = 48;
/// Rows of the widest tile.
const TILE_ROWS: usize = 24;
/// Number of tasks that a matmul is split into if it is large enough.
const TASKS: usize = 8;
/// Steps of the inner dimension that [`multiply_transposed`] packs at a time.
const PACKED_STEPS: usize = 256;
/// Padding of a packed step, so that the steps of a tile do not map to the same set of the L1 cache.
const PADDING: usize = 16;

/// A row-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: Floats<'a>,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// A row-major matrix that is written.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: FloatsMut<'a>,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> Matrix<'a> {
    /// Creates a matrix (rows, columns) of contiguous elements.
    ///
    /// # Panics
    /// If there are more or fewer elements.
    pub fn new(data: impl Into<Floats<'a>>, rows: usize, columns: usize) -> Self {
        let data = data.into();
        assert_eq!(
            data.len(),
            rows * columns,
            "matmul: a matrix is not ({rows}, {columns})"
        );
        Self {
            data,
            rows,
            columns,
            stride: columns,
        }
    }

    /// Creates a matrix whose row i starts at `i * stride` of a slice that may be longer.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn with_stride(
        data: impl Into<Floats<'a>>,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Self {
        let data = data.into();
        check_bounds(data.len(), rows, columns, stride);
        Self {
            data,
            rows,
            columns,
            stride,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn data(self) -> Rows<'a> {
        Rows::new(self.data, self.stride)
    }
}

impl<'a> MatrixMut<'a> {
    /// Creates a matrix as [`Matrix::new`] does.
    pub fn new(data: impl Into<FloatsMut<'a>>, rows: usize, columns: usize) -> Self {
        let data = data.into();
        assert_eq!(
            data.len(),
            rows * columns,
            "matmul: an output is not ({rows}, {columns})"
        );
        Self {
            data,
            rows,
            columns,
            stride: columns,
        }
    }

    /// Creates a matrix as [`Matrix::with_stride`] does.
    pub fn with_stride(
        data: impl Into<FloatsMut<'a>>,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Self {
        let data = data.into();
        check_bounds(data.len(), rows, columns, stride);
        assert!(
            rows <= 1 || columns <= stride,
            "matmul: rows of an output overlap"
        );
        Self {
            data,
            rows,
            columns,
            stride,
        }
    }
}

fn check_bounds(len: usize, rows: usize, columns: usize, stride: usize) {
    let last = rows
        .saturating_sub(1)
        .checked_mul(stride)
        .and_then(|last| last.checked_add(columns));
    assert!(
        rows == 0 || last.is_some_and(|last| last <= len),
        "matmul: a matrix ({rows}, {columns}) with stride {stride} does not fit a slice of {len}"
    );
}

/// Computes `c = scale * a b` for `a` (m, k), `b` (k, n), `c` (m, n).
///
/// # Panics
/// If the shapes do not match.
pub fn multiply(a: Matrix, b: &Packed, c: MatrixMut, scale: f32) {
    multiply_or_add(a, b, c, scale, false);
}

/// Computes `c += scale * a b` for `a` (m, k), `b` (k, n), `c` (m, n) in single precision.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_add(a: Matrix, b: &Packed, c: MatrixMut, scale: f32) {
    multiply_or_add(a, b, c, scale, true);
}

fn multiply_or_add(a: Matrix, b: &Packed, c: MatrixMut, scale: f32, accumulate: bool) {
    let shapes = (
        (a.rows, a.columns),
        (b.inner(), b.columns()),
        (c.rows, c.columns),
    );
    assert_eq!(a.columns, b.inner(), "matmul: shapes {shapes:?}");
    assert_eq!(
        (c.rows, c.columns),
        (a.rows, b.columns()),
        "matmul: shapes {shapes:?}"
    );
    match c.data {
        FloatsMut::F32(out) => multiply_into(a, b, out, c.stride, scale, accumulate),
        FloatsMut::Bf16(out) => multiply_into(a, b, out, c.stride, scale, accumulate),
    }
}

/// Computes [`multiply`] or [`multiply_add`] into rows of any element type.
fn multiply_into<T: Element + Default>(
    a: Matrix,
    b: &Packed,
    c: &mut [T],
    stride: usize,
    scale: f32,
    accumulate: bool,
) {
    let (m, n) = (a.rows, b.columns());
    let row_blocks = m.div_ceil(ROWS).max(1);
    let columns = (n * row_blocks / (TILE_COLUMNS * TASKS)).clamp(1, COLUMNS / TILE_COLUMNS);
    let size = (ROWS, columns * TILE_COLUMNS);
    let is_parallel = is_parallel(m, n, a.columns);
    let mut converted = Vec::new();
    let left = steps(b.precision(), a, &mut converted, is_parallel);
    for_each_block(c, (m, n, stride), size, is_parallel, |block| {
        TiledMatmul {
            precision: b.precision(),
            left: Left {
                data: &left.data[block.row * left.stride..],
                ..left
            },
            rows: block.rows.len(),
            right: b.panels_from(block.column),
            steps: b.steps(),
            columns: block.columns,
            out: BlockOutput {
                rows: &mut block.rows,
                scale,
                accumulate,
            },
        }
        .run();
    });
}

/// Computes `c = scale * aᵀ b`, or adds it to `c`, for `a` (k, m), `b` (k, n), `c` (m, n) in single precision.
///
/// # Panics
/// If the shapes do not match.
pub fn multiply_transposed(
    precision: Precision,
    a: Matrix,
    b: Matrix,
    c: MatrixMut,
    scale: f32,
    accumulate: bool,
) {
    let shapes = (
        (a.rows, a.columns),
        (b.rows, b.columns),
        (c.rows, c.columns),
    );
    assert_eq!(a.rows, b.rows, "matmul: shapes {shapes:?}");
    assert_eq!(
        (c.rows, c.columns),
        (a.columns, b.columns),
        "matmul: shapes {shapes:?}"
    );
    let (m, n, k) = (c.rows, c.columns, a.rows);
    let columns = n.div_ceil(TILE_COLUMNS).clamp(1, COLUMNS / TILE_COLUMNS) * TILE_COLUMNS;
    let column_blocks = n.div_ceil(columns).max(1);
    let rows = (m * column_blocks / (TILE_ROWS * TASKS)).clamp(1, ROWS / TILE_ROWS) * TILE_ROWS;
    let b = Packed::new(precision, b);
    let FloatsMut::F32(out) = c.data else {
        panic!("matmul: sums are not accumulated in bfloat16")
    };
    for_each_block(
        out,
        (m, n, c.stride),
        (rows, columns),
        is_parallel(m, n, k),
        |block| {
            let height = block.rows.len();
            let mut packed = Vec::new();
            for first in (0..b.steps().max(1)).step_by(PACKED_STEPS) {
                let count = PACKED_STEPS.min(b.steps() - first);
                TiledMatmul {
                    precision,
                    left: transposed_steps(
                        precision,
                        a,
                        first,
                        count,
                        block.row,
                        height,
                        &mut packed,
                    ),
                    rows: height,
                    right: b.panels_from(block.column).get(first..).unwrap_or_default(),
                    steps: b.steps(),
                    columns: block.columns,
                    out: BlockOutput {
                        rows: &mut block.rows,
                        scale,
                        accumulate: accumulate || first > 0,
                    },
                }
                .run_active(|_| ActiveRegion {
                    inner: 0..count * precision.group(),
                    columns: usize::MAX,
                });
            }
        },
    );
}

/// Returns an upper bound on the bytes that [`multiply`] of (m, k) and (k, n) allocates, and packing its right operand.
pub fn workspace(precision: Precision, m: usize, n: usize, k: usize) -> usize {
    let slices = m * n.div_ceil(TILE_COLUMNS) * size_of::<&mut [f32]>();
    let converted = 4 * m * precision.steps(k);
    Packed::bytes(precision, k, n) + converted + slices
}

/// Returns an upper bound on the bytes that [`multiply_transposed`] of (k, m) and (k, n) allocates on `threads`
/// threads.
pub fn transposed_workspace(
    precision: Precision,
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) -> usize {
    let slices = m * n.div_ceil(COLUMNS) * size_of::<&mut [f32]>();
    let left = 4 * PACKED_STEPS.min(precision.steps(k)) * (ROWS + PANEL + PADDING);
    Packed::bytes(precision, k, n) + threads * left + slices
}

/// True if a matmul of (m, k) and (k, n) should be multi-threaded.
pub(crate) fn is_parallel(m: usize, n: usize, k: usize) -> bool {
    m.saturating_mul(n).saturating_mul(k) >= PARALLEL_WORK
}

/// Returns the left operand in steps: in place, or converted in `buffer`.
fn steps<'a>(
    precision: Precision,
    a: Matrix<'a>,
    buffer: &'a mut Vec<u32>,
    parallel: bool,
) -> Left<'a> {
    let group = precision.group();
    let in_place = match (precision, a.data) {
        (Precision::F32, Floats::F32(data)) => Some(bytemuck::cast_slice(data)),
        // Pairs of a row must not share a step with another row.
        (Precision::Bf16, Floats::Bf16(data))
            if a.stride.is_multiple_of(2) && a.columns.is_multiple_of(2) =>
        {
            bytemuck::try_cast_slice(&data[..data.len() / 2 * 2]).ok()
        }
        _ => None,
    };
    if let Some(data) = in_place {
        return Left {
            data,
            stride: a.stride / group,
            layout: LeftLayout::RowMajor,
        };
    }
    let stride = precision.steps(a.columns);
    buffer.resize(a.rows * stride, 0);
    let convert = |(i, out): (usize, &mut [u32])| {
        panels::load_row(precision, a.data().row(i, a.columns), out);
    };
    match parallel {
        true => buffer
            .par_chunks_exact_mut(stride.max(1))
            .enumerate()
            .for_each(convert),
        false => buffer
            .chunks_exact_mut(stride.max(1))
            .enumerate()
            .for_each(convert),
    }
    Left {
        data: buffer,
        stride,
        layout: LeftLayout::RowMajor,
    }
}

/// Returns columns `column..column + height` of `count` steps from `first` on as the rows of a left operand: in place,
/// or packed in `buffer`.
fn transposed_steps<'a>(
    precision: Precision,
    a: Matrix<'a>,
    first: usize,
    count: usize,
    column: usize,
    height: usize,
    buffer: &'a mut Vec<u32>,
) -> Left<'a> {
    let layout = LeftLayout::StepMajor;
    let row = first * precision.group();
    let start = (row * a.stride + column).min(a.data.len());
    let data = a.data.slice(start..a.data.len());
    if let (Precision::F32, Floats::F32(data)) = (precision, data) {
        let (data, stride) = (bytemuck::cast_slice(data), a.stride);
        return Left {
            data,
            stride,
            layout,
        };
    }
    let stride = height.next_multiple_of(PANEL) + PADDING;
    buffer.resize(count * stride, 0);
    let n = (count * precision.group()).min(a.rows - row);
    let rows = Rows {
        data,
        stride: a.stride,
    };
    dispatch(
        #[inline(always)]
        || {
            panels::for_each_step(precision, rows, n, height, |step, column, row| {
                buffer[step * stride + column..][..PANEL].copy_from_slice(&row);
            });
        },
    );
    Left {
        data: buffer,
        stride,
        layout,
    }
}

/// Part of the output of a matmul.
struct Block<'a, T> {
    row: usize,
    column: usize,
    columns: usize,
    rows: Vec<&'a mut [T]>,
}

/// Element of an output.
trait Element: Copy + Send {
    /// Writes `scale * sums` to the output, or adds it.
    fn put(out: &mut [Self; PANEL], sums: &[f32; PANEL], scale: f32, accumulate: bool);
}

impl Element for f32 {
    #[inline(always)]
    fn put(out: &mut [Self; PANEL], sums: &[f32; PANEL], scale: f32, accumulate: bool) {
        let before = if accumulate { *out } else { [0.0; PANEL] };
        let mut after = *sums;
        for (after, before) in after.iter_mut().zip(before) {
            *after = scale * *after + before;
        }
        *out = after;
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn put(out: &mut [Self; PANEL], sums: &[f32; PANEL], scale: f32, accumulate: bool) {
        assert!(!accumulate, "matmul: sums are not accumulated in bfloat16");
        let mut rounded = [bf16::ZERO; PANEL];
        for (rounded, sum) in rounded.iter_mut().zip(sums) {
            *rounded = round(scale * sum);
        }
        *out = rounded;
    }
}

/// Output of a block: `scale` times the sums, added to what is there if `accumulate`.
struct BlockOutput<'b, 'a, T> {
    rows: &'b mut [&'a mut [T]],
    scale: f32,
    accumulate: bool,
}

impl<T: Element + Default> Output for BlockOutput<'_, '_, T> {
    #[inline(always)]
    fn put(&mut self, row: usize, column: usize, count: usize, sums: &[[f32; PANEL]]) {
        let (whole, rest) = self.rows[row][column..][..count].as_chunks_mut::<PANEL>();
        for (out, sums) in whole.iter_mut().zip(sums) {
            T::put(out, sums, self.scale, self.accumulate);
        }
        if !rest.is_empty() {
            let mut padded = [T::default(); PANEL];
            padded[..rest.len()].copy_from_slice(rest);
            T::put(&mut padded, &sums[whole.len()], self.scale, self.accumulate);
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

/// Runs `f` on blocks of at most (rows, columns) elements of a row-major matrix.
fn for_each_block<T: Send>(
    data: &mut [T],
    (rows, columns, stride): (usize, usize, usize),
    size: (usize, usize),
    parallel: bool,
    f: impl Fn(&mut Block<'_, T>) + Sync + Send,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let mut blocks = split(data, rows, columns, stride, size);
    match parallel {
        true => blocks.par_iter_mut().with_max_len(1).for_each(f),
        false => blocks.iter_mut().for_each(f),
    }
}

/// Splits rows into blocks.
fn split<T>(
    data: &mut [T],
    rows: usize,
    columns: usize,
    stride: usize,
    (block_rows, block_columns): (usize, usize),
) -> Vec<Block<'_, T>> {
    let count = columns.div_ceil(block_columns);
    let mut blocks = Vec::with_capacity(rows.div_ceil(block_rows) * count);
    for (i, row) in data.chunks_mut(stride).take(rows).enumerate() {
        if i % block_rows == 0 {
            blocks.extend((0..columns).step_by(block_columns).map(|column| Block {
                row: i,
                column,
                columns: block_columns.min(columns - column),
                rows: Vec::with_capacity(block_rows.min(rows - i)),
            }));
        }
        let first = blocks.len() - count;
        let parts = row[..columns].chunks_mut(block_columns);
        for (block, part) in blocks[first..].iter_mut().zip(parts) {
            block.rows.push(part);
        }
    }
    blocks
}
