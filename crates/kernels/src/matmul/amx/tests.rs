use super::emulator::is_configured;
use super::model::{multiply_add, tdpbf16ps};
use super::{Token, is_permitted, is_supported};
use crate::matmul::tiles::SUM_STEPS;
use crate::matmul::{
    ActiveRegion, Kernel, Left, LeftLayout, OutputRows, PanelRow, TiledMatmul, panels,
};
use crate::testing::Rng;
use proptest::prelude::*;
use std::iter::repeat;
use std::ops::Range;
use std::ptr::null_mut;
use std::slice;

/// Random pairs of bfloat16 numbers.
type Pairs = fn(&mut Rng, usize) -> Vec<u32>;

/// Pairs of bfloat16 numbers.
fn pairs(rng: &mut Rng, len: usize) -> Vec<u32> {
    let numbers = rng.normal(2 * len);
    let bits = |x: f32| x.to_bits() >> 16;
    let pairs = numbers.chunks_exact(2);
    pairs.map(|x| bits(x[0]) | bits(x[1]) << 16).collect()
}

/// Pairs of numbers with products around the smallest normal number; some are zero or subnormal, few large or not finite.
fn special_pairs(rng: &mut Rng, len: usize) -> Vec<u32> {
    let kinds = rng.below(2048, 2 * len);
    let others = rng.below(1 << 16, 2 * len);
    let bits = |(kind, other): (&i32, &i32)| {
        let exponent = match kind {
            0 => 255,
            1 => 190,
            2..128 => 0,
            _ => 60 + kind % 8,
        };
        (*other as u32 & 0x807f) | (exponent as u32) << 7
    };
    let numbers: Vec<u32> = kinds.iter().zip(&others).map(bits).collect();
    let (pairs, _) = numbers.as_chunks();
    pairs.iter().map(|[x, y]| x | y << 16).collect()
}

/// A matmul of pairs.
#[derive(Clone, Debug)]
struct Problem {
    rows: usize,
    columns: usize,
    steps: usize,
    /// Steps of the right operand before the first of the matmul.
    skipped: usize,
    /// Active steps of the first 32 rows; each further group has `fewer`.
    active: Range<usize>,
    fewer: usize,
}

impl Problem {
    fn left_len(&self) -> usize {
        self.rows * self.steps
    }

    fn right_len(&self) -> usize {
        panels(self.columns) * self.steps
    }

    /// Returns the active steps of a row.
    fn active(&self, row: usize) -> Range<usize> {
        let Range { start, end } = self.active;
        start..end.saturating_sub(row / 32 * self.fewer).max(start)
    }

    /// Returns random operands.
    fn operands(&self, seed: u64, pairs: Pairs) -> (Vec<u32>, Vec<PanelRow>) {
        let mut rng = Rng::new(seed);
        let left = pairs(&mut rng, self.left_len());
        let right = pairs(&mut rng, 16 * self.right_len());
        let (right, _) = right.as_chunks::<16>();
        (left, right.iter().map(|row| PanelRow(*row)).collect())
    }

    /// Returns the sums of the kernel.
    fn run(&self, token: Token, left: &[u32], right: &[PanelRow]) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows * self.columns];
        TiledMatmul {
            kernel: Kernel::Amx(token),
            left: Left {
                data: left,
                stride: self.steps,
                layout: LeftLayout::RowMajor,
            },
            rows: self.rows,
            right: right.get(self.skipped..).unwrap_or_default(),
            steps: self.steps,
            columns: self.columns,
            out: OutputRows {
                data: &mut out,
                stride: self.columns,
                accumulate: false,
            },
        }
        .run_active(|rows| {
            let Range { start, end } = self.active(rows.start);
            ActiveRegion {
                inner: 2 * start..2 * end,
                columns: self.columns,
            }
        });
        out
    }

    /// Returns the sums of chains of the plain model.
    fn model(&self, left: &[u32], right: &[PanelRow]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            for column in 0..self.columns {
                let pair = |step: usize| {
                    let left = left[row * self.steps + step];
                    let right = &right[column / 16 * self.steps + self.skipped + step];
                    (left, right.0[column % 16])
                };
                // Zeros at the end of a block may change the sign of a zero.
                let padded = |block: Range<usize>| block.map(pair).chain(repeat((0, 0))).take(16);
                let parts = split(&self.active(row), SUM_STEPS).map(|part| {
                    split(&part, 16).fold(0.0, |sum, block| tdpbf16ps(sum, padded(block)))
                });
                out.push(parts.reduce(|total, sum| total + sum).unwrap_or(0.0));
            }
        }
        out
    }
}

/// Splits a range at the multiples of a size.
fn split(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *range;
    let blocks = start / size..end.div_ceil(size);
    blocks.map(move |block| start.max(block * size)..end.min((block + 1) * size))
}

#[track_caller]
fn assert_identical(found: &[f32], want: &[f32]) {
    assert_eq!(found.len(), want.len());
    for (i, (found, want)) in found.iter().zip(want).enumerate() {
        // The bits of a NaN are not specified.
        let are_identical = found.to_bits() == want.to_bits() || found.is_nan() && want.is_nan();
        assert!(are_identical, "element {i}: {found:e}, expected {want:e}");
    }
}

fn problems() -> impl Strategy<Value = Problem> {
    let rows = prop_oneof![1usize..70, Just(1), Just(16), Just(17), Just(32)];
    let steps = prop_oneof![4 => 0usize..70, 1 => 500usize..1100];
    let active = (0usize..3, any::<[u16; 2]>());
    (rows, 1usize..70, steps, active).prop_map(|(rows, columns, steps, (skipped, ends))| {
        let skipped = skipped.min(steps);
        let last = steps - skipped;
        let [first, second] = ends.map(|end| usize::from(end) % (last + 1));
        Problem {
            // Few, for the emulator.
            rows: if steps > 100 { rows.min(20) } else { rows },
            columns: if steps > 100 {
                columns.min(20)
            } else {
                columns
            },
            steps,
            skipped,
            active: match ends[0] % 3 {
                0 => 0..last,
                1 => first / 16 * 16..last,
                _ => first.min(second)..first.max(second),
            },
            fewer: usize::from(ends[1]) % 20,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn sums_equal_chains_of_the_plain_model(
        problem in problems(), is_special in any::<bool>(), seed in any::<u64>(),
    ) {
        let pairs = if is_special { special_pairs } else { pairs };
        let (mut left, mut right) = problem.operands(seed, pairs);
        // Steps that are not active may have any contents.
        for row in 0..problem.rows {
            let active = problem.active(row);
            for step in (0..problem.steps).filter(|step| !active.contains(step)) {
                left[row * problem.steps + step] = u32::MAX;
            }
        }
        // Infinities in the steps that only the first rows use: nothing of them remains for the next ones.
        let always_active = problem.active(problem.rows - 1);
        for (at, row) in right.iter_mut().enumerate() {
            let step = (at % problem.steps).wrapping_sub(problem.skipped);
            if !problem.active.contains(&step) {
                *row = PanelRow([u32::MAX; 16]);
            } else if is_special && !always_active.contains(&step) {
                *row = PanelRow([0x7f80_7f80; 16]);
            }
        }
        let found = problem.run(Token::emulated(), &left, &right);
        assert_identical(&found, &problem.model(&left, &right));
        prop_assert!(!is_configured());
    }

    #[test]
    fn sums_of_a_row_do_not_depend_on_other_rows(problem in problems(), seed in any::<u64>()) {
        let problem = Problem { fewer: 0, ..problem };
        let (left, right) = problem.operands(seed, pairs);
        let all = problem.run(Token::emulated(), &left, &right);
        let row = problem.rows - 1;
        let one = Problem { rows: 1, ..problem };
        let found = one.run(Token::emulated(), &left[row * one.steps..], &right);
        assert_identical(&found, &all[row * one.columns..]);
    }
}

#[test]
fn amx_equals_its_plain_model() {
    if !(is_supported() && is_permitted()) {
        println!("not run: the processor has no AMX");
        return;
    }
    let problem = Problem {
        rows: 96,
        columns: 80,
        steps: 1000,
        skipped: 0,
        active: 3..990,
        fewer: 7,
    };
    let token = Token::new().expect("AMX is available");
    for (seed, pairs) in [(1, pairs as Pairs), (2, special_pairs)] {
        let (left, right) = problem.operands(seed, pairs);
        let found = problem.run(token, &left, &right);
        assert_identical(&found, &problem.model(&left, &right));
    }
}

/// Memory that ends at a page that must not be accessed.
struct Guarded {
    start: *mut libc::c_void,
    size: usize,
}

impl Guarded {
    const PAGE: usize = 4096;

    fn new(size: usize) -> Self {
        let size = size.next_multiple_of(Self::PAGE);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, whose last page is then made inaccessible.
        unsafe {
            let start = libc::mmap(null_mut(), size + Self::PAGE, protection, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let guard = start.byte_add(size);
            assert_eq!(libc::mprotect(guard, Self::PAGE, libc::PROT_NONE), 0);
            Self { start, size }
        }
    }

    /// Returns the last elements before the inaccessible page.
    fn end<T: bytemuck::Pod>(&mut self, len: usize) -> &mut [T] {
        let offset = self.size - len * size_of::<T>();
        // SAFETY: the mapping holds these bytes, which are initialized and are valid for `T`, and is borrowed as long
        // as the slice.
        unsafe { slice::from_raw_parts_mut(self.start.byte_add(offset).cast(), len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is not used any more.
        unsafe { libc::munmap(self.start, self.size + Self::PAGE) };
    }
}

#[test]
fn nothing_is_read_beyond_the_operands() {
    for (rows, columns, steps, skipped) in [
        (1, 1, 1, 0),
        (5, 17, 31, 2),
        (32, 32, 32, 0),
        (33, 16, 33, 1),
        (31, 48, 16, 0),
    ] {
        let problem = Problem {
            rows,
            columns,
            steps,
            skipped,
            active: 0..steps - skipped,
            fewer: 0,
        };
        let mut left = Guarded::new(4 * problem.left_len());
        let mut right = Guarded::new(64 * problem.right_len());
        let left = left.end(problem.left_len());
        let right = right.end::<PanelRow>(problem.right_len());
        let operands = problem.operands(4, pairs);
        left.copy_from_slice(&operands.0);
        right.copy_from_slice(&operands.1);
        let found = problem.run(Token::emulated(), left, right);
        assert_identical(&found, &problem.model(left, right));
    }
}

/// Computes a multiply-add with subnormal operands and results as zeros.
#[target_feature(enable = "fma")]
fn flushed(a: f32, b: f32, c: f32) -> f32 {
    const DAZ_FTZ: u32 = 1 << 6 | 1 << 15;
    let mut out = c;
    let mut control = 0u32;
    // SAFETY: the control register is restored.
    unsafe {
        std::arch::asm!(
            "stmxcsr [{control}]",
            "mov {before:e}, [{control}]",
            "or dword ptr [{control}], {bits}",
            "ldmxcsr [{control}]",
            "vfmadd231ss {out}, {a}, {b}",
            "mov [{control}], {before:e}",
            "ldmxcsr [{control}]",
            control = in(reg) &raw mut control,
            before = out(reg) _,
            bits = const DAZ_FTZ,
            out = inout(xmm_reg) out,
            a = in(xmm_reg) a,
            b = in(xmm_reg) b,
            options(nostack),
        );
    }
    out
}

#[test]
fn multiply_add_of_the_model_equals_that_of_the_processor() {
    if !is_x86_feature_detected!("fma") {
        println!("not run: the processor has no FMA");
        return;
    }
    let mut rng = Rng::new(9);
    let mut number = |exponent: u32| {
        let bits = rng.below(1 << 16, 1)[0] as u32 & 0x807f | exponent << 7;
        f32::from_bits(bits << 16)
    };
    for i in 0..200_000u32 {
        // Products around 2^-150, and sums around the smallest normal number.
        let exponent = 40 + i % 25;
        let small = [number(exponent), number(100 + i % 7 - exponent)];
        let bits = f32::MIN_POSITIVE.to_bits() + ((i % 5) << (i % 11));
        let c = f32::from_bits(bits | (i << 31));
        let any = [number(i % 256), number(i / 256 % 256)];
        for ([a, b], c) in [
            (small, c),
            (small, 0.0),
            (any, c),
            (any, number(i / 9 % 256)),
        ] {
            // SAFETY: the processor has the instruction.
            let want = unsafe { flushed(a, b, c) };
            assert_identical(&[multiply_add(a, b, c)], &[want]);
        }
    }
}
