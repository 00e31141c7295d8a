//! Times a kernel and its reference.

use std::time::Instant;

use super::Bound;
use super::problem::{Case, Problem, Run};
use crate::bench::timing::median;

/// What no cache holds, in bytes.
const BEYOND_CACHES: usize = 256 << 20;
/// Most copies. Only shapes of a test are so small that they leave something in a cache.
const MOST_COPIES: usize = 1024;
/// The shortest time of a part of a reference that is scaled, in seconds.
const PROBE: f64 = 0.05;
/// References that take longer are not timed as a whole, in seconds.
const LONGEST: f64 = 1.0;
/// A reference is timed again until it has taken this long, in seconds.
const ENOUGH: f64 = 0.1;

/// Times of one op.
pub struct Timing {
    /// Median of the kernel, in seconds.
    pub seconds: f64,
    /// What the kernel does in that time: operations or bytes.
    pub work: f64,
    /// The reference on the whole problem, in seconds.
    pub naive_seconds: f64,
    /// The part of the whole it was timed on.
    pub naive_part: f64,
    /// See [`Problem::largest_difference`].
    pub largest_difference: f64,
}

/// Measures the kernel for about `seconds`, three calls at least.
pub fn measure(case: &Case, seconds: f64) -> Timing {
    let (naive_seconds, naive_part, largest_difference) = reference(case, seconds.min(ENOUGH));
    let problem = (case.problem)(case.units);
    Timing {
        seconds: call(case.bound, &problem, &problem.kernel, 3, seconds),
        work: problem.work,
        naive_seconds,
        naive_part,
        largest_difference,
    }
}

/// Time of the whole, the part it was measured on, and the largest difference there.
fn reference(case: &Case, seconds: f64) -> (f64, f64, f64) {
    let mut units = 1;
    loop {
        let problem = (case.problem)(units);
        let mut outputs = problem.outputs.clone();
        let started = Instant::now();
        (problem.naive)(&problem.inputs, &mut outputs);
        let first = started.elapsed().as_secs_f64();
        let part = units as f64 / case.units as f64;
        let is_long = first >= PROBE && first / part > LONGEST;
        if units == case.units || is_long {
            let time = call(case.bound, &problem, &problem.naive, 1, seconds);
            return (time / part, part, problem.largest_difference());
        }
        units = match first >= PROBE {
            true => case.units,
            false => units.saturating_mul(8).min(case.units),
        };
    }
}

/// Median time of a call, over at least so many calls and seconds. What is bound by memory runs on
/// copies in turn, so that no cache holds what a call reads.
fn call(bound: Bound, problem: &Problem, run: &Run, least: usize, seconds: f64) -> f64 {
    let copies = match bound {
        Bound::Arithmetic => 1,
        Bound::Read | Bound::ReadWrite => (BEYOND_CACHES / problem.bytes() + 2).min(MOST_COPIES),
    };
    let mut sets: Vec<_> = (0..copies)
        .map(|_| (problem.inputs.clone(), problem.outputs.clone()))
        .collect();
    if let Some((inputs, outputs)) = sets.last_mut() {
        run(inputs, outputs);
    }
    let (mut times, mut spent) = (Vec::new(), 0.0);
    while times.len() < least || spent < seconds {
        let (inputs, outputs) = &mut sets[times.len() % copies];
        let started = Instant::now();
        run(inputs, outputs);
        let time = started.elapsed().as_secs_f64();
        times.push(time);
        spent += time;
    }
    median(&times)
}
