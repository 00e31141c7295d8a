//! Matrix multiplication in single precision or bfloat16, with sums in single precision.
//!
//! The right operand is packed into [panels](Packed), once for any number of uses; the left one is read in place if
//! it has the type of the kernel and is not transposed. Each element is a sum over the inner dimension in an order that depends on the shapes
//! only, so that results are bit-identical for any number of threads. In single precision they also are for any
//! processor, each sum being a chain of fused multiply-adds over blocks of 512, or 256 in [`multiply_transposed`]; in
//! bfloat16 they depend on the unit.
//!
//! References of the instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and
//! VDPBF16PS.

// On other systems nothing tells that the process may use tile registers.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code)]
mod amx;
mod arithmetic;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
mod blocks;
mod kernel;
mod matrix;
mod operands;
#[allow(unsafe_code)]
mod packed;
mod panels;
#[cfg(test)]
mod tests;
mod tiles;
#[allow(unsafe_code)]
mod transpose;

use crate::floats::{Float, Floats, FloatsMut};
use blocks::{BlockOutput, for_each_block};
use half::bf16;
use std::cell::Cell;
use tiles::{Output, SUM_STEPS};

pub(crate) use kernel::Kernel;
pub use kernel::{Precision, unit_name};
pub use matrix::{Matrix, MatrixMut};
pub(crate) use operands::{LeftBuffer, OutputRows};
pub use packed::Packed;
pub(crate) use panels::{PANEL, PanelRow, Rows, pack, pack_transposed, panels};
pub(crate) use tiles::{ActiveRegion, Left, LeftLayout, TiledMatmul};

/// Minimum number of multiply-adds for a multi-threaded matmul.
const PARALLEL_WORK: usize = 1 << 18;
/// Maximum rows of the output per task: enough for each panel that is read from the L3
/// cache to be used often.
const ROWS: usize = 192;
/// Maximum columns of the output per task: panels of a part of the inner dimension stay in the L2 cache.
const COLUMNS: usize = 384;
/// Columns of the widest tile.
const TILE_COLUMNS: usize = 48;
/// Minimum rows of the output per task of [`multiply_transposed`], if there are tasks enough: each reads the whole right
/// operand.
const TRANSPOSED_ROWS: usize = 96;
/// Number of tasks that a matmul is split into if it is large enough.
const TASKS: usize = 8;
const NOT_ACCUMULATED: &str = "matmul: sums are not accumulated in bfloat16";

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
        FloatsMut::Bf16(out) => {
            assert!(!accumulate, "{NOT_ACCUMULATED}");
            multiply_into(a, b, out, c.stride, scale, accumulate);
        }
    }
}

/// Computes [`multiply`] or [`multiply_add`] into rows of any element type.
fn multiply_into<T: Float>(
    a: Matrix,
    b: &Packed,
    c: &mut [T],
    stride: usize,
    scale: f32,
    accumulate: bool,
) {
    let (m, n, k) = (a.rows, b.columns(), a.columns);
    let columns = columns_of_block(m, n);
    let rows = rows_of_block(b.kernel(), m, n.div_ceil(columns), 1);
    let precision = b.precision();
    let is_narrow = matches!(a.data, Floats::Bf16(_));
    let rounded = (!is_narrow && is_rounded_first(precision, m, n)).then(|| a.narrowed());
    let a = rounded.as_ref().map_or(a, |data| Matrix::new(data, m, k));
    for_each_block(
        c,
        (m, n, stride),
        (rows, columns),
        is_parallel(m, n, k),
        |block| {
            let product = Product {
                a: a.from(block.row, 0),
                b,
                rows: block.rows.len(),
                inner: k,
                column: block.column,
                columns: block.columns,
            };
            // Sums of several parts are added in single precision, in the output where it holds nothing else.
            let is_sum = !T::IS_ROUNDED && scale == 1.0 && !accumulate;
            with_buffers(|Buffers { left, sums }| {
                if is_sum || b.steps() <= SUM_STEPS {
                    for first in product.parts() {
                        let out = BlockOutput {
                            rows: &mut block.rows,
                            column: 0,
                            scale,
                            accumulate: accumulate || first > 0,
                        };
                        product.multiply_part(first, left, out);
                    }
                    return;
                }
                let stride = product.columns.next_multiple_of(PANEL);
                let len = product.rows * stride;
                if sums.len() < len {
                    // Not resized, which would reserve up to twice as much.
                    *sums = vec![0.0; len];
                }
                for first in product.parts() {
                    let out = OutputRows {
                        data: &mut sums[..len],
                        stride,
                        accumulate: first > 0,
                    };
                    product.multiply_part(first, left, out);
                }
                let mut out = BlockOutput {
                    rows: &mut block.rows,
                    column: 0,
                    scale,
                    accumulate,
                };
                out.put_all(&sums[..len], product.columns, stride);
            });
        },
    );
}

/// Product of rows and columns of two matrices.
struct Product<'a> {
    a: Rows<'a>,
    b: &'a Packed,
    rows: usize,
    inner: usize,
    /// First column.
    column: usize,
    columns: usize,
}

impl Product<'_> {
    /// Returns the first steps of the parts of the inner dimension that are multiplied one after another, so that the
    /// panels of a part stay in the L2 cache.
    fn parts(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.b.steps().max(1)).step_by(SUM_STEPS)
    }

    /// Computes the product over one part of the inner dimension.
    fn multiply_part(&self, first: usize, left: &mut LeftBuffer, out: impl Output) {
        let kernel = self.b.kernel();
        let start = first * kernel.group();
        let inner = (SUM_STEPS * kernel.group()).min(self.inner - start);
        let columns = self.columns;
        TiledMatmul {
            kernel,
            left: left.row_major(kernel, self.a.skip(start), self.rows, inner),
            rows: self.rows,
            right: self
                .b
                .panels_from(self.column)
                .get(first..)
                .unwrap_or_default(),
            steps: self.b.steps(),
            columns,
            out,
        }
        .run_active(|_| ActiveRegion {
            inner: 0..inner,
            columns,
        });
    }
}

/// Buffers that a thread keeps from one block to the next, so that they are not allocated and cleared for each.
#[derive(Default)]
struct Buffers {
    left: LeftBuffer,
    /// Sums of a block over parts of the inner dimension.
    sums: Vec<f32>,
}

/// Runs `f` with the buffers of this thread.
fn with_buffers(f: impl FnOnce(&mut Buffers)) {
    thread_local! {
        static BUFFERS: Cell<Buffers> = Cell::default();
    }
    let mut buffers = BUFFERS.take();
    f(&mut buffers);
    BUFFERS.set(buffers);
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
    let b = Packed::new(precision, b);
    let kernel = b.kernel();
    let (rows, columns) = transposed_block(kernel, m, n);
    let FloatsMut::F32(out) = c.data else {
        panic!("{NOT_ACCUMULATED}")
    };
    for_each_block(
        out,
        (m, n, c.stride),
        (rows, columns),
        is_parallel(m, n, k),
        |block| {
            let rows = block.rows.len();
            let part_steps = kernel.transposed_steps();
            with_buffers(|buffers| {
                for first in (0..b.steps().max(1)).step_by(part_steps) {
                    let start = first * kernel.group();
                    let inner = (part_steps * kernel.group()).min(k - start);
                    let a = a.from(start, block.row);
                    let left = buffers.left.transposed(kernel, a, inner, rows);
                    for column in (0..block.columns).step_by(COLUMNS) {
                        let right = b.panels_from(block.column + column);
                        TiledMatmul {
                            kernel,
                            left,
                            rows,
                            right: right.get(first..).unwrap_or_default(),
                            steps: b.steps(),
                            columns: COLUMNS.min(block.columns - column),
                            out: BlockOutput {
                                rows: &mut block.rows,
                                column,
                                scale,
                                accumulate: accumulate || first > 0,
                            },
                        }
                        .run_active(|_| ActiveRegion {
                            inner: 0..inner,
                            columns: usize::MAX,
                        });
                    }
                }
            });
        },
    );
}

/// Returns the rows and columns of a block of [`multiply_transposed`] of (k, m) and (k, n): whole rows, whose left operand
/// is transposed once, unless there are more threads than such blocks.
fn transposed_block(kernel: Kernel, m: usize, n: usize) -> (usize, usize) {
    let tasks = TASKS.max(2 * rayon::current_num_threads());
    let row_blocks = tasks.min((m / TRANSPOSED_ROWS).max(tasks / 2));
    let rows = rows_of_block(kernel, m, 1, row_blocks);
    let column_blocks = tasks / m.div_ceil(rows).max(1);
    let columns = n.div_ceil(column_blocks.clamp(1, n.div_ceil(COLUMNS).max(1)));
    let columns = columns.max(1).next_multiple_of(TILE_COLUMNS);
    (rows, columns)
}

/// Returns an upper bound on the bytes that [`multiply`] of (m, k) and (k, n) allocates on `threads` threads, or keeps in
/// their buffers, and packing its right operand.
pub fn workspace(precision: Precision, m: usize, n: usize, k: usize, threads: usize) -> usize {
    let slices = m * n.div_ceil(TILE_COLUMNS) * size_of::<&mut [f32]>();
    let inner = k.min(SUM_STEPS * Kernel::from(precision).group());
    let sums = match inner < k {
        true => 4 * m.min(ROWS) * n.min(COLUMNS).next_multiple_of(PANEL),
        false => 0,
    };
    let left = LeftBuffer::bytes(precision, m.min(ROWS), inner) + sums;
    let rounded = match is_rounded_first(precision, m, n) {
        true => m * k * size_of::<bf16>(),
        false => 0,
    };
    Packed::bytes(precision, k, n) + threads * left + slices + rounded
}

/// Returns an upper bound on the bytes that [`multiply_transposed`] of (k, m) and (k, n) allocates on `threads`
/// threads, or keeps in their buffers.
pub fn transposed_workspace(
    precision: Precision,
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) -> usize {
    let slices = m * n.div_ceil(COLUMNS) * size_of::<&mut [f32]>();
    let kernel = Kernel::from(precision);
    let inner = k.min(kernel.transposed_steps() * kernel.group());
    let left = LeftBuffer::bytes(kernel, m.min(ROWS), inner);
    Packed::bytes(precision, k, n) + threads * left + slices
}

/// Returns the columns of a block of [`multiply`].
fn columns_of_block(m: usize, n: usize) -> usize {
    let row_blocks = m.div_ceil(ROWS).max(1);
    let tiles = (n * row_blocks / (TILE_COLUMNS * TASKS)).clamp(1, COLUMNS / TILE_COLUMNS);
    tiles * TILE_COLUMNS
}

/// True if [`multiply`] rounds a left operand in single precision as a whole: each of several blocks of columns would
/// round its rows again.
fn is_rounded_first(precision: Precision, m: usize, n: usize) -> bool {
    precision == Precision::Bf16 && n > columns_of_block(m, n)
}

/// Returns the rows of a block: the most that split `rows` into at least `blocks` blocks and, with `column_blocks` blocks of
/// columns, let no thread work much longer than the best size would. Results do not depend on it.
fn rows_of_block(kernel: Kernel, rows: usize, column_blocks: usize, blocks: usize) -> usize {
    let tile = kernel.tile_rows();
    let blocks = blocks.max(rows.div_ceil(ROWS)).max(1);
    let most = rows.div_ceil(blocks).next_multiple_of(tile).max(tile);
    let threads = rayon::current_num_threads();
    // Rows of the busiest thread, if idle threads take the blocks with the rest of the rows.
    let busiest = |size: usize| {
        let whole = rows / size * column_blocks;
        let rest = match whole.is_multiple_of(threads) {
            true => column_blocks.div_ceil(threads) * (rows % size),
            false => 0,
        };
        whole.div_ceil(threads) * size + rest
    };
    let sizes = (1..most / tile + 1).map(|tiles| tiles * tile);
    let best = sizes.clone().map(busiest).min().unwrap_or(0);
    let is_balanced = |size: &usize| busiest(*size) * 32 <= best * 33;
    sizes.rev().find(is_balanced).unwrap_or(tile)
}

/// True if a matmul of (m, k) and (k, n) should be multi-threaded.
pub(crate) fn is_parallel(m: usize, n: usize, k: usize) -> bool {
    m.saturating_mul(n).saturating_mul(k) >= PARALLEL_WORK
}
