//! Timing of an op and its reference.

use super::Bound;
use super::case::{Case, Problem};
use super::program::BenchmarkProgram;
use crate::bench::timing::median;
use crate::error::Result;
use crate::exec::{Cpu, Executor, Reference};
use crate::plan::Precision;

/// Size of the operands of memory-bound ops, in bytes; larger than any cache.
pub const BEYOND_CACHES: usize = 256 << 20;
/// Maximum number of copies. Only the shapes of tests reach it, and some of their data then stay in a cache.
const MAX_COPIES: usize = 256;
/// Minimum time of a part of the reference that is extrapolated, in seconds.
const MIN_PARTIAL_SECONDS: f64 = 0.05;
/// References that take longer are timed on a part, in seconds.
const MAX_FULL_SECONDS: f64 = 1.0;
/// A reference is repeated until it has taken this long, in seconds.
const MIN_TOTAL_SECONDS: f64 = 0.1;

/// Times of one op.
pub struct Timing {
    /// Median time of the kernel, in seconds.
    pub seconds: f64,
    /// Floating-point operations or bytes of the kernel in that time.
    pub flops_or_bytes: f64,
    /// True if the kernel reads or writes bfloat16.
    pub is_bf16: bool,
    pub reference: ReferenceTiming,
}

/// Time of the reference, and the difference from it.
pub struct ReferenceTiming {
    /// Time of the whole problem, in seconds.
    pub seconds: f64,
    /// Fraction of the problem that was timed.
    pub fraction: f64,
    /// See [`largest_difference`]; over that fraction.
    pub largest_difference: f64,
}

/// Measures the kernel for about `seconds`, at least three calls.
///
/// # Errors
/// If there is not enough memory.
pub fn measure(case: &Case, precision: Precision, seconds: f64) -> Result<Timing> {
    let reference = reference(case, precision, seconds.min(MIN_TOTAL_SECONDS))?;
    let problem = (case.problem)(case.units);
    let mut program = BenchmarkProgram::<Cpu>::new(&problem, 1, precision)?;
    let work = program.flops_or_bytes(case.bound);
    if case.bound != Bound::Compute {
        let copies = (BEYOND_CACHES as f64 / work) as usize + 2;
        program = BenchmarkProgram::new(&problem, copies.min(MAX_COPIES), precision)?;
    }
    // The first run allocates memory.
    program.run()?;
    Ok(Timing {
        seconds: time(&mut program, 3, seconds)?,
        flops_or_bytes: work,
        is_bf16: program.is_bf16(),
        reference,
    })
}

fn reference(case: &Case, precision: Precision, seconds: f64) -> Result<ReferenceTiming> {
    let mut units = 1;
    loop {
        let problem = (case.problem)(units);
        let mut program = BenchmarkProgram::<Reference>::new(&problem, 1, precision)?;
        let first = program.run()?;
        let fraction = units as f64 / case.units as f64;
        let is_long = first >= MIN_PARTIAL_SECONDS && first / fraction > MAX_FULL_SECONDS;
        if units == case.units || is_long {
            return Ok(ReferenceTiming {
                largest_difference: largest_difference(&problem, precision, &program.outputs())?,
                seconds: time(&mut program, 1, seconds)? / fraction,
                fraction,
            });
        }
        units = match first >= MIN_PARTIAL_SECONDS {
            true => case.units,
            false => units.saturating_mul(8).min(case.units),
        };
    }
}

/// Returns the median time of a call, over at least `min_calls` calls and `seconds` seconds.
fn time<E: Executor>(
    program: &mut BenchmarkProgram<E>,
    min_calls: usize,
    seconds: f64,
) -> Result<f64> {
    let (mut times, mut spent) = (Vec::new(), 0.0);
    while times.len() * program.copies() < min_calls || spent < seconds {
        let time = program.run()?;
        times.push(time);
        spent += time * program.copies() as f64;
    }
    Ok(median(&times))
}

/// Returns the largest difference between an output of the kernel and the expected one, relative to the
/// largest element of the latter.
///
/// # Errors
/// If there is not enough memory.
pub fn largest_difference(
    problem: &Problem,
    precision: Precision,
    expected: &[Vec<f64>],
) -> Result<f64> {
    let mut program = BenchmarkProgram::<Cpu>::new(problem, 1, precision)?;
    program.run()?;
    let found = program.outputs();
    let pairs = found.iter().zip(expected);
    Ok(largest(
        pairs.map(|(found, expected)| difference(found, expected)),
    ))
}

/// Returns the largest difference between two elements, relative to the largest expected element.
pub fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "elements of an output");
    let max_difference = largest(found.iter().zip(expected).map(|(a, b)| a - b));
    match max_difference == 0.0 {
        true => 0.0,
        false => max_difference / largest(expected.iter().copied()),
    }
}

/// Returns the largest absolute value; NaN if there is one.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    let magnitudes = values.map(f64::abs);
    magnitudes.max_by(f64::total_cmp).unwrap_or(0.0)
}
