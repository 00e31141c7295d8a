//! Loops over rows in single precision, whatever the element types of the operands.
//!
//! Operands in bfloat16 are widened and rounded a few rows at a time, while these are in the L1 cache; those in single
//! precision are passed through. The loops of an op are thus written once.

use crate::floats::{Floats, FloatsMut, narrow, widen};
use crate::simd::dispatch;
use half::bf16;
use rayon::prelude::*;

/// Maximum elements of the widest operand of a block, unless a row has more: all operands together fit an L1 cache of
/// 32 KiB. Rows in single precision are neither faster nor slower in such blocks.
const BLOCK_ELEMENTS: usize = 1024;

/// Elements that a loop writes.
pub(crate) enum Output<'a> {
    /// Overwritten without being read.
    Overwrite(FloatsMut<'a>),
    /// Read and written.
    Update(FloatsMut<'a>),
}

/// Splits rows into chunks of `rows_per_chunk`. For each creates a result with `init` and calls `f` with the result, the
/// index of the first row, and the inputs and outputs of each block of its rows, in order; returns the results in order.
/// `f` also gets a scratch value with unspecified contents, which `scratch` makes for each task.
///
/// Each operand comes with its width, and all have equally many rows. `f` must be marked `#[inline(always)]`, see
/// [`dispatch`](crate::simd::dispatch).
#[inline(always)]
pub(crate) fn fold_rows<S, R: Send, const I: usize, const O: usize>(
    rows_per_chunk: usize,
    inputs: [(Floats, usize); I],
    outputs: [(Output, usize); O],
    scratch: impl Fn() -> S + Sync + Send,
    init: impl Fn() -> R + Sync,
    f: impl Fn(&mut S, &mut R, usize, [&[f32]; I], [&mut [f32]; O]) + Sync,
) -> Vec<R> {
    let is_read = outputs
        .each_ref()
        .map(|(y, _)| matches!(y, Output::Update(_)));
    let outputs = outputs.map(|(y, width)| match y {
        Output::Overwrite(y) | Output::Update(y) => (y, width),
    });
    let output_widths = outputs.each_ref().map(|(_, width)| *width);
    let lengths = inputs.iter().map(|(x, width)| x.len() / width);
    let lengths = lengths.chain(outputs.iter().map(|(y, width)| y.len() / width));
    let rows = lengths.max().unwrap_or(0);
    let mut sizes = inputs.iter().map(|(x, width)| (x.len(), *width));
    debug_assert!(
        sizes.all(|(len, width)| len == rows * width),
        "inputs have {rows} rows"
    );
    let mut sizes = outputs.iter().map(|(y, width)| (y.len(), *width));
    debug_assert!(
        sizes.all(|(len, width)| len == rows * width),
        "outputs have {rows} rows"
    );
    let widths = inputs.iter().map(|(_, width)| width);
    let widest = widths.chain(&output_widths).max();
    let rows_per_block = (BLOCK_ELEMENTS / widest.copied().unwrap_or(1)).max(1);
    let mut pieces = outputs.map(|(y, width)| pieces(y, rows_per_chunk * width).into_iter());
    let chunks: Vec<[FloatsMut; O]> = (0..rows.div_ceil(rows_per_chunk))
        .map(|_| {
            pieces
                .each_mut()
                .map(|pieces| pieces.next().expect("as many chunks of every output"))
        })
        .collect();
    let chunks = chunks.into_par_iter().enumerate();
    let run = |(scratch, buffers): &mut (S, Buffers<I, O>),
               (c, mut outputs): (usize, [FloatsMut; O])| {
        let mut result = init();
        let end = rows.min((c + 1) * rows_per_chunk);
        dispatch(
            #[inline(always)]
            || {
                let mut row = c * rows_per_chunk;
                while row < end {
                    let count = rows_per_block.min(end - row);
                    let mut wide_inputs: [&[f32]; I] = [&[]; I];
                    let all = inputs.iter().zip(&mut buffers.inputs);
                    for (((x, width), buffer), wide) in all.zip(&mut wide_inputs) {
                        *wide = match x.slice(row * width..(row + count) * width) {
                            Floats::F32(x) => x,
                            Floats::Bf16(x) => buffer.widened(x),
                        };
                    }
                    let first = row - c * rows_per_chunk;
                    let mut wide_outputs: [&mut [f32]; O] =
                        std::array::from_fn(|_| Default::default());
                    let all = outputs.iter_mut().zip(&mut buffers.outputs);
                    for (o, ((output, buffer), wide)) in all.zip(&mut wide_outputs).enumerate() {
                        let width = output_widths[o];
                        let part = first * width..(first + count) * width;
                        *wide = match output {
                            FloatsMut::F32(y) => &mut y[part],
                            FloatsMut::Bf16(y) if is_read[o] => buffer.widened(&y[part]),
                            FloatsMut::Bf16(_) => buffer.of_len(part.len()),
                        };
                    }
                    f(scratch, &mut result, row, wide_inputs, wide_outputs);
                    for (o, output) in outputs.iter_mut().enumerate() {
                        if let FloatsMut::Bf16(y) = output {
                            let width = output_widths[o];
                            let part = first * width..(first + count) * width;
                            narrow(&buffers.outputs[o].0, &mut y[part]);
                        }
                    }
                    row += count;
                }
            },
        );
        result
    };
    chunks
        .map_init(|| (scratch(), Buffers::default()), run)
        .collect()
}

/// Calls `f` as [`fold_rows`] does, without results.
#[inline(always)]
pub(crate) fn for_each_rows<const I: usize, const O: usize>(
    rows_per_chunk: usize,
    inputs: [(Floats, usize); I],
    outputs: [(Output, usize); O],
    f: impl Fn(usize, [&[f32]; I], [&mut [f32]; O]) + Sync,
) {
    fold_rows(
        rows_per_chunk,
        inputs,
        outputs,
        || (),
        || (),
        #[inline(always)]
        |(), (), row, inputs, outputs| f(row, inputs, outputs),
    );
}

/// Widened inputs and outputs of a block.
struct Buffers<const I: usize, const O: usize> {
    inputs: [Buffer; I],
    outputs: [Buffer; O],
}

impl<const I: usize, const O: usize> Default for Buffers<I, O> {
    fn default() -> Self {
        Self {
            inputs: [const { Buffer(Vec::new()) }; I],
            outputs: [const { Buffer(Vec::new()) }; O],
        }
    }
}

/// Elements of a block in single precision.
struct Buffer(Vec<f32>);

impl Buffer {
    /// Returns elements that are to be overwritten.
    #[inline(always)]
    fn of_len(&mut self, len: usize) -> &mut [f32] {
        self.0.resize(len, 0.0);
        &mut self.0
    }

    /// Returns the elements in single precision.
    #[inline(always)]
    fn widened(&mut self, x: &[bf16]) -> &mut [f32] {
        let out = self.of_len(x.len());
        widen(x, out);
        out
    }
}

/// Splits elements into pieces of `size`.
fn pieces(y: FloatsMut, size: usize) -> Vec<FloatsMut> {
    match y {
        FloatsMut::F32(y) => y.chunks_mut(size).map(FloatsMut::F32).collect(),
        FloatsMut::Bf16(y) => y.chunks_mut(size).map(FloatsMut::Bf16).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::{self, Activation};
    use crate::elementwise::add_to;
    use crate::norm::{self, Gain, NormConfig, NormFn};
    use crate::qkv::{self, BoundQkvTransform, QkOrder, QkvTransform};
    use crate::testing::Rng;

    #[test]
    fn bfloat16_is_rounded_once() {
        let x: Vec<f32> = (0..1000).map(|i| 1.0 + 1e-3 * i as f32).collect();
        let mut x_narrow = vec![bf16::ZERO; x.len()];
        narrow(&x, &mut x_narrow);
        let add = |x: Floats, y: FloatsMut| {
            fold_rows(
                64,
                [(x, 1)],
                [(Output::Update(y), 1)],
                || (),
                Vec::new,
                #[inline(always)]
                |(), blocks: &mut Vec<(usize, usize)>, first, [x], [y]| {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                    blocks.push((first, x.len()));
                },
            )
        };
        let (mut wide, mut half) = (vec![0.5f32; 1000], vec![bf16::from_f32(0.5); 1000]);
        let chunks = add(Floats::Bf16(&x_narrow), FloatsMut::F32(&mut wide));
        add(Floats::Bf16(&x_narrow), FloatsMut::Bf16(&mut half));
        assert_eq!(chunks.len(), 16);
        for (c, blocks) in chunks.iter().enumerate() {
            assert_eq!(*blocks, [(64 * c, 64.min(1000 - 64 * c))]);
        }
        for ((x, wide), half) in x_narrow.iter().zip(&wide).zip(&half) {
            assert_eq!(*wide, 0.5 + x.to_f32());
            assert_eq!(*half, bf16::from_f32(*wide));
        }
    }

    /// Blocks of several rows, operands of different widths, a last block and a last chunk that are shorter.
    #[test]
    fn rows_in_blocks_are_those_of_a_plain_loop() {
        const WIDTH: usize = 300;
        let mut rng = Rng::new(7);
        for rows in [0, 1, 7, 8, 23] {
            let x = rng.normal(rows * WIDTH);
            let mut x_narrow = vec![bf16::ZERO; x.len()];
            narrow(&x, &mut x_narrow);
            let mut updated = vec![bf16::from_f32(0.5); rows * WIDTH / 2];
            let mut overwritten = vec![bf16::NAN; rows];
            let firsts = fold_rows(
                7,
                [(Floats::Bf16(&x_narrow), WIDTH)],
                [
                    (Output::Update((&mut updated).into()), WIDTH / 2),
                    (Output::Overwrite((&mut overwritten).into()), 1),
                ],
                || (),
                Vec::new,
                #[inline(always)]
                |(), firsts: &mut Vec<usize>, first, [x], [y, sums]| {
                    firsts.push(first);
                    let rows = x.chunks_exact(WIDTH).zip(y.chunks_exact_mut(WIDTH / 2));
                    for ((x, y), sum) in rows.zip(sums) {
                        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                        *sum = x.iter().sum();
                    }
                },
            );
            let starts: Vec<usize> = firsts.iter().map(|firsts| firsts[0]).collect();
            assert_eq!(starts, (0..rows).step_by(7).collect::<Vec<_>>());
            // Three rows of 300 elements are a block.
            assert!(firsts.iter().flatten().all(|first| first % 7 % 3 == 0));
            for (r, x) in x_narrow.chunks_exact(WIDTH).enumerate() {
                let x: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
                assert_eq!(overwritten[r], bf16::from_f32(x.iter().sum()));
                for (c, y) in updated[r * WIDTH / 2..][..WIDTH / 2].iter().enumerate() {
                    assert_eq!(*y, bf16::from_f32(0.5 + x[c]));
                }
            }
        }
    }

    /// Runs an op on operands in single precision and in bfloat16; the results must differ by the last rounding only.
    fn check(
        name: &str,
        inputs: &[&Vec<f32>],
        outputs: &[&Vec<f32>],
        op: impl Fn(&[Floats], &mut [FloatsMut]),
    ) {
        let rounded = |x: &[f32]| {
            let mut out = vec![bf16::ZERO; x.len()];
            narrow(x, &mut out);
            out
        };
        let widened = |x: &Vec<bf16>| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let narrow_inputs: Vec<Vec<bf16>> = inputs.iter().map(|x| rounded(x)).collect();
        let mut narrow_outputs: Vec<Vec<bf16>> = outputs.iter().map(|x| rounded(x)).collect();
        let wide_inputs: Vec<Vec<f32>> = narrow_inputs.iter().map(widened).collect();
        let mut wide_outputs: Vec<Vec<f32>> = narrow_outputs.iter().map(widened).collect();
        let read: Vec<Floats> = narrow_inputs.iter().map(Floats::from).collect();
        let mut written: Vec<FloatsMut> = narrow_outputs.iter_mut().map(FloatsMut::from).collect();
        op(&read, &mut written);
        let read: Vec<Floats> = wide_inputs.iter().map(Floats::from).collect();
        let mut written: Vec<FloatsMut> = wide_outputs.iter_mut().map(FloatsMut::from).collect();
        op(&read, &mut written);
        let expected: Vec<Vec<bf16>> = wide_outputs.iter().map(|x| rounded(x)).collect();
        assert_eq!(narrow_outputs, expected, "{name}");
    }

    #[test]
    fn ops_in_bfloat16_are_those_in_single_precision_rounded() {
        const ROWS: usize = 37;
        const WIDTH: usize = 192;
        let mut rng = Rng::new(8);
        let mut normal = |width: usize| rng.normal(ROWS * width);
        for act in [Activation::Swiglu, Activation::Gelu, Activation::Relu2] {
            let wide = act.inputs(WIDTH);
            let (x, y, dx) = (normal(wide), normal(WIDTH), normal(wide));
            let name = format!("{act:?}");
            check(&name, &[&x], &[&y], |x, y| {
                activation::forward(act, x[0], y[0].reborrow(), WIDTH);
            });
            check(&name, &[&x], &[&y, &dx], |x, y| {
                let [dy, dx] = y else { unreachable!() };
                activation::backward(act, x[0], dy.reborrow(), dx.reborrow(), WIDTH);
            });
        }
        let norm = NormConfig {
            function: NormFn::Rmsnorm,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: false,
            width: WIDTH,
            groups: 1,
        };
        let (gain, x, y) = (vec![1.5; WIDTH], normal(WIDTH), normal(WIDTH));
        check("norm", &[&x], &[&y], |x, y| {
            norm::forward(&norm, x[0], &gain, y[0].reborrow());
        });
        check("norm, gradients", &[&x], &[&y], |x, y| {
            norm::backward_in_place(&norm, x[0], &gain, y[0].reborrow(), &mut vec![0.0; WIDTH]);
        });
        check("sum", &[&x], &[&y], |x, y| add_to(x[0], y[0].reborrow()));
        let head = Some(NormConfig { width: 64, ..norm });
        let transform = QkvTransform {
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            q: head,
            k: head,
            v: head,
            order: QkOrder::BeforeRope,
            qk_scale: 1.0,
            clip: None,
        };
        let table = qkv::rope_table(&qkv::rope_frequencies(1e4, 64), 1.0, 0, ROWS);
        let bound = BoundQkvTransform::new(&transform, &table, [&gain[..64]; 3]);
        let (x, dy, y) = (normal(256), normal(256), normal(256));
        check("q·k·v", &[&x], &[&y], |x, y| {
            qkv::forward(&bound, x[0], y[0].reborrow());
        });
        check("q·k·v, gradients", &[&x, &dy], &[&y], |x, y| {
            let [mut q, mut k, mut v] = [(); 3].map(|()| vec![0.0; 64]);
            qkv::backward(
                &bound,
                x[0],
                x[1],
                y[0].reborrow(),
                [&mut q, &mut k, &mut v],
            );
        });
    }
}
