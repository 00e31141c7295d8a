//! Benchmark of each op on the CPU, relative to the reference executor and to the limit of the machine.
//!
//! A case is a small program built with the public op builders and fused as in training. [`Cpu`](crate::exec::Cpu)
//! and [`Reference`](crate::exec::Reference) run it on the same operands; only the op that produces its
//! outputs is timed.
//!
//! Matmuls, attention and loss are compared with the peak GEMM throughput of the machine, memory-bound ops with memory
//! bandwidth. The program of a memory-bound op contains copies of it whose operands together exceed all caches, since
//! in training its data come from memory as well.

mod case;
mod experts;
mod matmuls;
mod measure;
mod memory_bound;
mod program;
mod shape;

use derive_setters::Setters;
use serde::Serialize;

use super::machine::{self, BandwidthBenchmark};
use super::timing::check_seconds;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::ModelConfig;
use crate::plan::Precision;
use crate::train::Config;

use case::Case;
use measure::{Timing, measure};
use shape::ModelShape;

/// Kernels between two measurements of the limits.
const KERNELS_PER_LIMIT_MEASUREMENT: usize = 12;

/// Options of the op benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct OpsOptions {
    /// Sequences per micro-batch.
    pub micro_batch: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Precision of activations and matmuls.
    pub precision: Precision,
    /// Approximate duration of the measurement of each kernel in seconds, at least three calls. Its reference
    /// takes at most a few seconds in addition.
    pub seconds: f64,
}

impl OpsOptions {
    /// Returns the options for micro-batches of `micro_batch` sequences of `seq_len` tokens, in single precision.
    pub fn new(micro_batch: usize, seq_len: usize, seconds: f64) -> Self {
        Self {
            micro_batch,
            seq_len,
            precision: Precision::F32,
            seconds,
        }
    }

    /// Returns the options for the micro-batch shape and the precision of a configuration.
    pub fn of(config: &Config, seconds: f64) -> Self {
        let shape = config.train.step_shape();
        Self::new(shape.micro_batch, shape.seq_len, seconds).with_precision(shape.precision)
    }
}

/// Limit of the machine that bounds an op. Not `#[non_exhaustive]`: a table must have a label and a unit for every
/// limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Peak GEMM throughput, in bfloat16 for ops that read or write it, in GFLOP/s.
    #[serde(rename = "arithmetic")]
    Compute,
    /// Read bandwidth of memory, in GB/s.
    Read,
    /// Read and write bandwidth of memory, in GB/s.
    ReadWrite,
}

/// Results of the op benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OpsReport {
    /// Number of compute threads; the reference uses one.
    pub threads: usize,
    /// Sequences per micro-batch.
    pub micro_batch: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Precision of activations and matmuls, such as `f32`.
    pub precision: String,
    /// Peak single-precision GEMM throughput, the best of measurements before, between and after the ops, in GFLOP/s.
    pub sgemm_gflops: f64,
    /// Peak GEMM throughput with bfloat16 operands at these times, in GFLOP/s.
    pub bf16_gemm_gflops: f64,
    /// Peak read bandwidth at these times, in GB/s.
    pub read_gb_per_second: f64,
    /// Peak bandwidth of `y = y + x` at these times, in GB/s.
    pub read_write_gb_per_second: f64,
    /// One row for each op and direction.
    pub rows: Vec<OpRow>,
}

/// Measurements of one kernel: an op in one direction.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OpRow {
    /// Name of the op, with its variant if there are several.
    pub op: &'static str,
    /// `forward`, `backward`, or another computation.
    pub direction: &'static str,
    /// Limit that the rate is compared with.
    pub bound: Bound,
    /// Median wall time of a call, in seconds.
    pub seconds: f64,
    /// Throughput at that time in GFLOP/s, or in GB/s of the bytes that have to be moved: every input read
    /// once and every output written once. Reads of cache lines before they are written do not count.
    pub rate: f64,
    /// Limit of the machine, in the same unit.
    pub limit: f64,
    /// `rate / limit`.
    pub share_of_limit: f64,
    /// Wall time of the reference, single-threaded plain loops in double precision, in seconds. If the whole
    /// problem would take more than about a second, a part is timed and extrapolated linearly.
    #[serde(rename = "naive_seconds")]
    pub reference_seconds: f64,
    /// True if the op reads or writes bfloat16.
    pub is_bf16: bool,
    /// Fraction of the problem that the reference was timed on.
    #[serde(rename = "naive_part")]
    pub reference_fraction: f64,
    /// `reference_seconds / seconds`.
    #[serde(rename = "speedup_over_naive")]
    pub speedup_over_reference: f64,
    /// Largest difference between the outputs of the kernel and of the reference on that fraction, relative to the
    /// largest element of the reference's output.
    pub largest_difference: f64,
}

/// Measures every kernel at the shapes of a model. `on_progress` receives the numbers of finished and of all
/// kernels.
///
/// Attention is causal without softcap, the QKV transform normalizes q, k and v of every head, and the
/// optimizer step is that of the largest matrix, the embedding.
///
/// The limits of the machine alone take some seconds to measure.
///
/// # Errors
/// If the configuration is not valid or has `mla`, the buffers do not fit into memory, a size is 0, or the
/// time is negative or not finite.
///
/// ```no_run
/// use hybridnorm::bench::{OpsOptions, ops};
/// use hybridnorm::train::{Config, ModelSection, TrainSection};
///
/// let model = ModelSection::new("hybridnorm")
///     .with_d_model(64)
///     .with_n_layers(2)
///     .with_n_heads(4)
///     .with_d_ff(128)
///     .with_vocab_size(256);
/// let config = Config::default()
///     .with_model(model)
///     .with_train(TrainSection::default().with_batch_size(4).with_seq_len(32));
/// let report = ops(&config.model_config()?, &OpsOptions::of(&config, 0.1), &mut |_, _| {})?;
/// for row in &report.rows {
///     println!("{} {}: {:.1} times plain loops", row.op, row.direction, row.speedup_over_reference);
/// }
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn ops(
    config: &ModelConfig,
    options: &OpsOptions,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<OpsReport> {
    let OpsOptions {
        micro_batch,
        seq_len,
        precision,
        seconds,
    } = *options;
    check_seconds(seconds)?;
    if micro_batch == 0 || seq_len == 0 {
        return Err(Error::conflict(
            ["train.batch_size", "train.seq_len"],
            format!("{micro_batch} sequences of {seq_len} tokens, expected at least 1 of each"),
        ));
    }
    config.resolve()?;
    if config.mla.is_some() {
        return Err(Error::invalid_value(
            "model.mla",
            "the op benchmark does not support multi-head latent attention; use a configuration \
             without model.mla",
        ));
    }
    let shape = ModelShape::new(config, micro_batch, seq_len);
    let bytes = shape
        .largest_bytes()
        .saturating_add((BandwidthBenchmark::BYTES + measure::BEYOND_CACHES) as u64);
    memory::check_available(bytes, "the buffers of the largest op")?;

    let mut machine = Machine::new();
    let cases = cases(&shape);
    let mut timings = Vec::with_capacity(cases.len());
    for (index, case) in cases.iter().enumerate() {
        if index % KERNELS_PER_LIMIT_MEASUREMENT == 0 {
            machine.measure();
        }
        timings.push(measure(case, precision, seconds)?);
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
        precision: precision.to_string(),
        sgemm_gflops: limits.sgemm,
        bf16_gemm_gflops: limits.bf16_gemm,
        read_gb_per_second: limits.read,
        read_write_gb_per_second: limits.read_write,
        rows,
    })
}

/// Returns the cases of all kernels.
fn cases(shape: &ModelShape) -> Vec<Case> {
    let mut cases = memory_bound::cases(shape);
    cases.extend(matmuls::cases(shape));
    cases.extend(experts::cases(shape));
    cases
}

impl OpRow {
    /// Returns the [difference](Self::largest_difference) that rounding explains: in bfloat16 one in its last bit, since a
    /// value that the kernel sums in another order may round to the other neighbour.
    pub fn tolerance(&self) -> f64 {
        tolerance(self.is_bf16)
    }
}

fn tolerance(is_bf16: bool) -> f64 {
    match is_bf16 {
        false => 1e-4,
        true => 1.0 / 128.0,
    }
}

fn row(case: &Case, timing: &Timing, limits: &Limits) -> OpRow {
    let rate = 1e-9 * timing.flops_or_bytes / timing.seconds;
    let limit = match case.bound {
        Bound::Compute if timing.is_bf16 => limits.bf16_gemm,
        Bound::Compute => limits.sgemm,
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
        is_bf16: timing.is_bf16,
        reference_seconds: timing.reference.seconds,
        reference_fraction: timing.reference.fraction,
        speedup_over_reference: timing.reference.seconds / timing.seconds,
        largest_difference: timing.reference.largest_difference,
    }
}

/// Largest values measured so far, in GFLOP/s and GB/s.
#[derive(Default)]
struct Limits {
    sgemm: f64,
    bf16_gemm: f64,
    read: f64,
    read_write: f64,
}

/// Measures limits repeatedly, since a shared machine reaches them only from time to time.
struct Machine {
    bandwidth: BandwidthBenchmark,
    limits: Limits,
}

impl Machine {
    fn new() -> Self {
        Self {
            bandwidth: BandwidthBenchmark::new(),
            limits: Limits::default(),
        }
    }

    fn measure(&mut self) {
        let Self { bandwidth, limits } = self;
        limits.sgemm = limits.sgemm.max(machine::sgemm_gflops());
        limits.bf16_gemm = limits.bf16_gemm.max(machine::bf16_gemm_gflops());
        limits.read = limits.read.max(1e-9 * bandwidth.read());
        limits.read_write = limits.read_write.max(1e-9 * bandwidth.read_write());
    }
}

#[cfg(test)]
mod tests {
    use hybridnorm_kernels::activation::Activation;

    use super::measure::{difference, largest_difference};
    use super::program::BenchmarkProgram;
    use super::shape::Experts;
    use super::*;
    use crate::exec::{Cpu, Reference};
    use crate::graph::DType;

    fn small() -> Vec<Case> {
        cases(&ModelShape {
            batch: 3,
            seq: 7,
            d_model: 24,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            d_ff: 10,
            up: 20,
            vocab: 37,
            activation: Activation::Swiglu,
            experts: Some(Experts {
                count: 3,
                top_k: 2,
                width: 5,
            }),
        })
    }

    fn case(op: &str, direction: &str) -> Case {
        let mut cases = small().into_iter();
        let found = cases.find(|case| case.op == op && case.direction == direction);
        found.unwrap_or_else(|| panic!("{op} {direction}"))
    }

    #[test]
    fn kernels_match_their_references() {
        let cases = small();
        assert!(cases.len() > 50);
        for case in &cases {
            for units in [1, case.units] {
                let problem = (case.problem)(units);
                let mut reference =
                    BenchmarkProgram::<Reference>::new(&problem, 1, Precision::F32).unwrap();
                reference.run().unwrap();
                let difference =
                    largest_difference(&problem, Precision::F32, &reference.outputs()).unwrap();
                assert!(
                    difference < 1e-5,
                    "{} {}, {units} units: {difference}",
                    case.op,
                    case.direction
                );
                assert!(reference.flops_or_bytes(case.bound) > 0.0);
            }
        }
    }

    #[test]
    fn kernels_in_bf16_match_their_references() {
        let all = small().into_iter().flat_map(|case| {
            let units = [1, case.units];
            let all = [DType::F32, DType::Bf16].map(|residual| units.map(|n| (residual, n)));
            let problems = all.concat().into_iter();
            problems
                .map(|(residual, n)| (case.op, case.direction, residual, (case.problem)(n)))
                .collect::<Vec<_>>()
        });
        for (op, direction, residual, problem) in all {
            let precision = Precision::Bf16 { residual };
            let mut reference = BenchmarkProgram::<Reference>::new(&problem, 1, precision).unwrap();
            reference.run().unwrap();
            let expected = reference.outputs();
            let difference = largest_difference(&problem, precision, &expected).unwrap();
            assert!(
                difference <= tolerance(reference.is_bf16()),
                "{op} {direction}, {precision}: {difference}"
            );
        }
    }

    #[test]
    fn operands_have_the_types_of_training() {
        let bytes = |op, direction, precision| {
            let case = case(op, direction);
            let problem = (case.problem)(case.units);
            let program = BenchmarkProgram::<Cpu>::new(&problem, 1, precision).unwrap();
            program.flops_or_bytes(Bound::ReadWrite)
        };
        let bf16 = |residual| Precision::Bf16 { residual };
        let single = bf16(DType::F32);
        // 21 rows. The norm reads the residual stream; its 24 gains are in single precision.
        let norm = |precision| bytes("norm rms", "forward", precision);
        assert_eq!(norm(single), 21.0 * 24.0 * (4.0 + 2.0) + 4.0 * 24.0);
        assert_eq!(
            norm(bf16(DType::Bf16)),
            21.0 * 24.0 * (2.0 + 2.0) + 4.0 * 24.0
        );
        let swiglu = bytes("activation swiglu", "forward", single);
        assert_eq!(swiglu, 2.0 * 21.0 * (20.0 + 10.0));
        // 240 weights. The output of the branch is added to the stream; logits are always in single precision, those of one
        // row from rounded weights.
        let down = |precision| bytes("linear down", "forward", precision);
        let read = 21.0 * 10.0 * 2.0 + 240.0 * 4.0;
        assert_eq!(down(single), read + 21.0 * 24.0 * 4.0);
        assert_eq!(down(bf16(DType::Bf16)), read + 21.0 * 24.0 * 2.0);
        let up = bytes("linear up", "forward", single);
        assert_eq!(up, 2.0 * 21.0 * (24.0 + 20.0) + 4.0 * 480.0);
        let head = bytes("linear head", "one row", single);
        assert_eq!(head, 2.0 * 24.0 + 37.0 * (24.0 * 2.0 + 4.0));
        assert_eq!(
            bytes("adamw", "step", single),
            bytes("adamw", "step", Precision::F32)
        );
    }

    #[test]
    fn copies_give_equal_outputs_in_disjoint_memory() {
        for case in small() {
            let problem = (case.problem)(case.units);
            let mut one = BenchmarkProgram::<Cpu>::new(&problem, 1, Precision::F32).unwrap();
            let mut three = BenchmarkProgram::<Cpu>::new(&problem, 3, Precision::F32).unwrap();
            for run in 0..2 {
                one.run().unwrap();
                three.run().unwrap();
                let expected = [one.outputs(), one.outputs(), one.outputs()].concat();
                let name = format!("{} {}, run {run}", case.op, case.direction);
                assert_eq!(three.outputs(), expected, "{name}");
            }
            assert_eq!(
                three.flops_or_bytes(case.bound),
                one.flops_or_bytes(case.bound)
            );
            let regions = |benchmark: &BenchmarkProgram<Cpu>| {
                let outputs = benchmark.program().outputs().iter();
                let mut regions: Vec<_> =
                    outputs.map(|&id| benchmark.program().region(id)).collect();
                regions.sort();
                regions.dedup();
                regions.len()
            };
            assert_eq!(regions(&three), 3 * regions(&one));
        }
    }

    #[test]
    fn ops_are_fused_as_in_training() {
        for (op, direction, expected) in [
            ("add and norm", "forward", ["add and norm"].as_slice()),
            ("normed attention", "forward", &["attention"]),
            (
                "normed attention",
                "backward",
                &["attention", "attention, gradient"],
            ),
            ("experts down, even", "forward", &["experts down"]),
            (
                "experts down, even",
                "backward",
                &["experts down", "experts down, gradients"],
            ),
            ("loss", "forward", &["head and loss"]),
            ("loss", "with gradients", &["head and loss"]),
        ] {
            let case = case(op, direction);
            let benchmark =
                BenchmarkProgram::<Cpu>::new(&(case.problem)(case.units), 1, Precision::F32)
                    .unwrap();
            let nodes = benchmark.program().graph().nodes().iter();
            let found: Vec<_> = nodes.map(|node| node.op.operation().name()).collect();
            assert_eq!(found, expected, "{op} {direction}");
        }
    }

    /// An in-place op is timed without a copy of its operand.
    #[test]
    fn in_place_ops_copy_nothing() {
        for case in small() {
            let benchmark =
                BenchmarkProgram::<Cpu>::new(&(case.problem)(case.units), 2, Precision::F32)
                    .unwrap();
            for step in benchmark.program().steps() {
                assert!(step.copies.is_empty(), "{} {}", case.op, case.direction);
            }
        }
    }

    #[test]
    fn flops_and_bytes_are_those_of_the_op_alone() {
        let work = |op, direction| {
            let case = case(op, direction);
            BenchmarkProgram::<Cpu>::new(&(case.problem)(case.units), 1, Precision::F32)
                .unwrap()
                .flops_or_bytes(case.bound)
        };
        // 21 rows; 3 sequences with 28 pairs of positions each.
        assert_eq!(
            work("linear up", "backward weight"),
            2.0 * 21.0 * 24.0 * 20.0
        );
        assert_eq!(
            work("norm rms", "forward"),
            4.0 * (2.0 * 21.0 * 24.0 + 24.0)
        );
        assert_eq!(work("sum += x", "in place"), 4.0 * 3.0 * 21.0 * 24.0);
        assert_eq!(
            work("embedding", "forward"),
            4.0 * (21.0 + 2.0 * 21.0 * 24.0)
        );
        let matmul_flops = 2.0 * (3.0 * 28.0) * (4.0 * 6.0);
        assert_eq!(work("attention", "forward"), 2.0 * matmul_flops);
        assert_eq!(work("normed attention", "backward"), 5.0 * matmul_flops);
        assert_eq!(
            work("loss", "with gradients"),
            3.0 * 2.0 * 21.0 * 24.0 * 37.0
        );
    }

    #[test]
    fn differences_are_detected() {
        assert_eq!(difference(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
        assert_eq!(difference(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!(difference(&[f64::NAN, 0.0], &[1.0, 1.0]).is_nan());
        // The reference runs one more step, so its parameters differ.
        let problem = (case("adamw", "step").problem)(5);
        let mut reference =
            BenchmarkProgram::<Reference>::new(&problem, 1, Precision::F32).unwrap();
        reference.run().unwrap();
        reference.run().unwrap();
        assert!(largest_difference(&problem, Precision::F32, &reference.outputs()).unwrap() > 1e-4);
    }
}
