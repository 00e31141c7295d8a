//! Each CPU kernel against a naive reference and against its own limit.
//!
//! Matrix products, attention and loss are held against the best matrix product of the machine;
//! whatever touches each number a few times only, against the bandwidth of memory. Such an op
//! and its reference run on copies of its buffers in turn that no cache holds together, since in
//! training its data come from memory as well.

mod experts;
mod measure;
mod naive;
mod pointwise;
mod problem;
mod products;

use serde::Serialize;

use super::machine::{self, Bandwidth};
use super::timing::check_seconds;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::ModelConfig;
use crate::train::Config;

use measure::{Timing, measure};
use problem::{Case, Shape};

/// Kernels between two measurements of the limits.
const BETWEEN_LIMITS: usize = 12;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpsOptions {
    /// Sequences at a time.
    pub micro_batch: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Measure each kernel for about this many seconds, three calls at least. Its reference takes
    /// a few seconds at most, besides.
    pub seconds: f64,
}

impl OpsOptions {
    /// The shapes that a configuration trains with.
    pub fn of(config: &Config, seconds: f64) -> Self {
        Self {
            micro_batch: config.train.batch_size / config.train.grad_accum_steps,
            seq_len: config.train.seq_len,
            seconds,
        }
    }
}

/// What an op can at best be bound by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The rate of the best matrix product, in GFLOP/s.
    Arithmetic,
    /// The rate at which memory is read, in GB/s.
    Read,
    /// The rate at which memory is read and written, in GB/s.
    ReadWrite,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpsReport {
    /// Threads that computed; the references take one.
    pub threads: usize,
    /// Sequences at a time.
    pub micro_batch: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// The best matrix product before, amid and after the ops, in GFLOP/s.
    pub sgemm_gflops: f64,
    /// The best bandwidth of reading at these times, in GB/s.
    pub read_gb_per_second: f64,
    /// The best bandwidth of `y = y + x` at these times, in GB/s.
    pub read_write_gb_per_second: f64,
    /// One row for each op and direction.
    pub rows: Vec<OpRow>,
}

/// One kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpRow {
    /// The op, with its form where there are several.
    pub op: &'static str,
    /// `forward`, `backward`, or what else it computes.
    pub direction: &'static str,
    /// What the rate is held against.
    pub bound: Bound,
    /// Median wall time of a call.
    pub seconds: f64,
    /// Arithmetic at that time in GFLOP/s, or bytes that have to be moved in GB/s: every input
    /// read once and every output written once. That a cache reads a line before it is written
    /// does not count.
    pub rate: f64,
    /// The machine's best, in the same unit.
    pub limit: f64,
    /// `rate / limit`.
    pub share_of_limit: f64,
    /// Wall time of the reference, single-threaded plain loops. Where the whole would take more
    /// than about a second, a part is timed and scaled linearly.
    pub naive_seconds: f64,
    /// The part of the whole that the reference was timed on.
    pub naive_part: f64,
    /// `naive_seconds / seconds`.
    pub speedup_over_naive: f64,
    /// Largest difference between the two on that part, relative to the largest number of the
    /// reference's output.
    pub largest_difference: f64,
}

/// Measures every kernel at the shapes of a model. `on_progress` gets the numbers of kernels done
/// and in all.
///
/// Attention is causal without a cap, its preparation has norms on every head's q, k and v, and
/// the optimizer's step is that of the largest matrix, the embedding.
///
/// # Errors
/// If the configuration is not valid, the buffers do not fit into memory, there is nothing to
/// compute on, or the time is no number.
pub fn ops(
    config: &ModelConfig,
    options: &OpsOptions,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<OpsReport> {
    let OpsOptions {
        micro_batch,
        seq_len,
        seconds,
    } = *options;
    check_seconds(seconds)?;
    if micro_batch == 0 || seq_len == 0 {
        return Err(Error::config(format!(
            "{micro_batch} sequences of {seq_len} tokens, expected at least 1 of each"
        )));
    }
    config.resolve()?;
    if config.mla.is_some() {
        return Err(Error::config(
            "kernels are measured with attention whose heads have keys and values of their own; take a \
             configuration without model.mla",
        ));
    }
    let shape = Shape::new(config, micro_batch, seq_len);
    let bytes = shape
        .largest_bytes()
        .saturating_add(Bandwidth::BYTES as u64);
    memory::require(bytes, "the buffers of the largest op")?;

    let mut machine = Machine::new();
    let cases = cases(&shape);
    let mut timings = Vec::with_capacity(cases.len());
    for (index, case) in cases.iter().enumerate() {
        if index % BETWEEN_LIMITS == 0 {
            machine.measure();
        }
        timings.push(measure(case, seconds));
        on_progress(index + 1, cases.len());
    }
    machine.measure();
    let limits = machine.limits;
    let rows = cases
        .iter()
        .zip(timings)
        .map(|(case, timing)| row(case, &timing, &limits))
        .collect();
    Ok(OpsReport {
        threads: crate::threads::count(),
        micro_batch,
        seq_len,
        sgemm_gflops: limits.sgemm,
        read_gb_per_second: limits.read,
        read_write_gb_per_second: limits.read_write,
        rows,
    })
}

/// Every kernel.
fn cases(shape: &Shape) -> Vec<Case> {
    let mut cases = pointwise::cases(shape);
    cases.extend(products::cases(shape));
    cases.extend(experts::cases(shape));
    cases
}

fn row(case: &Case, timing: &Timing, limits: &Limits) -> OpRow {
    let rate = 1e-9 * timing.work / timing.seconds;
    let limit = match case.bound {
        Bound::Arithmetic => limits.sgemm,
        Bound::Read => limits.read,
        Bound::ReadWrite => limits.read_write,
    };
    OpRow {
        op: case.op,
        direction: case.direction,
        bound: case.bound,
        seconds: timing.seconds,
        rate,
        limit,
        share_of_limit: rate / limit,
        naive_seconds: timing.naive_seconds,
        naive_part: timing.naive_part,
        speedup_over_naive: timing.naive_seconds / timing.seconds,
        largest_difference: timing.largest_difference,
    }
}

/// The most that the machine did so far, in GFLOP/s and GB/s.
#[derive(Default)]
struct Limits {
    sgemm: f64,
    read: f64,
    read_write: f64,
}

/// Measures limits. A machine that others use as well shows now and then only what it can do.
struct Machine {
    bandwidth: Bandwidth,
    limits: Limits,
}

impl Machine {
    fn new() -> Self {
        Self {
            bandwidth: Bandwidth::new(),
            limits: Limits::default(),
        }
    }

    fn measure(&mut self) {
        let Self { bandwidth, limits } = self;
        limits.sgemm = limits.sgemm.max(machine::sgemm_gflops());
        limits.read = limits.read.max(1e-9 * bandwidth.read());
        limits.read_write = limits.read_write.max(1e-9 * bandwidth.read_write());
    }
}

#[cfg(test)]
mod tests {
    use super::problem::Experts;
    use super::*;

    #[test]
    fn every_kernel_computes_what_its_reference_does() {
        let shape = Shape {
            batch: 3,
            seq: 7,
            d_model: 24,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            d_ff: 10,
            up: 20,
            vocab: 37,
            experts: Some(Experts {
                count: 3,
                top_k: 2,
                width: 5,
                up: 10,
            }),
        };
        let cases = cases(&shape);
        assert!(cases.len() > 40);
        for case in &cases {
            for units in [1, case.units] {
                let problem = (case.problem)(units);
                let difference = problem.largest_difference();
                assert!(
                    difference < 1e-5,
                    "{} {}, {units} units: {difference}",
                    case.op,
                    case.direction
                );
                assert!(problem.work > 0.0);
            }
        }
    }

    #[test]
    fn a_difference_shows() {
        let problem = problem::problem(
            [vec![1.0, 2.0]],
            [vec![0.0; 2]],
            |[x], [y]| y.copy_from_slice(x),
            |[x], [y]| y.copy_from_slice(&[x[0], 4.0]),
        );
        assert_eq!(problem.largest_difference(), 0.5);
        let broken = problem::problem([], [vec![0.0]], |_, [y]| y[0] = f32::NAN, |_, _| {});
        assert!(broken.largest_difference().is_nan());
    }
}
