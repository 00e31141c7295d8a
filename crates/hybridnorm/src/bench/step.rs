//! Benchmark of a training step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use derive_setters::Setters;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::machine;
use super::timing::{check_seconds, median};
use crate::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::counts::Counts;
use crate::model::{Model, ModelConfig};
use crate::plan::{Precision, Recompute};
use crate::train::inventory::inventory;
use crate::train::{Config, Optimizer, OptimizerConfig, StepShape, TrainingStep};

/// Maximum warm-up steps; the measurement starts once a step causes no page faults.
const MAX_WARM_UP_STEPS: usize = 8;

/// Options of the step benchmark.
#[derive(Debug, Clone, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct StepOptions {
    /// Sequences per optimizer step.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Micro-batches per optimizer step.
    pub grad_accum_steps: usize,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
    /// Precision of matmuls and activations.
    pub precision: Precision,
    /// True if rounded copies of weights are kept, see [`StepShape::keep_rounded_weights`].
    pub keep_rounded_weights: bool,
    /// Configuration of the optimizer.
    pub optimizer: OptimizerConfig,
    /// Approximate duration of the measurement in seconds; at least three steps are measured.
    pub seconds: f64,
}

impl StepOptions {
    /// Returns options for AdamW without gradient accumulation or recomputation, measured for about 5 seconds.
    pub fn new(batch_size: usize, seq_len: usize) -> Self {
        Self {
            batch_size,
            seq_len,
            grad_accum_steps: 1,
            recompute: Recompute::None,
            precision: Precision::F32,
            keep_rounded_weights: false,
            optimizer: OptimizerConfig::default(),
            seconds: 5.0,
        }
    }

    /// Returns the options for the training step of a configuration.
    pub fn of(config: &Config, seconds: f64) -> Self {
        Self {
            batch_size: config.train.batch_size,
            seq_len: config.train.seq_len,
            grad_accum_steps: config.train.grad_accum_steps,
            recompute: config.train.recompute,
            precision: config.train.program_precision(),
            keep_rounded_weights: config.train.bf16_weight_copies,
            optimizer: config.optimizer.clone(),
            seconds,
        }
    }
}

/// Results of the step benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Number of compute threads.
    pub threads: usize,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Number of measured steps.
    pub steps: usize,
    /// Median wall time of a step, in seconds.
    pub step_seconds: f64,
    /// Training throughput at the median time, in tokens per second.
    pub tokens_per_second: f64,
    /// Throughput of the model at the median time, in GFLOP/s:
    /// `6 · matrix parameters + 6 · L · h·k · (T + 1)` FLOPs per token, as in `inspect`.
    pub gflops: f64,
    /// Peak GEMM throughput of the machine just after the steps in single precision, in GFLOP/s.
    pub sgemm_gflops: f64,
    /// Model FLOPs utilization (MFU) relative to the measured single-precision peak: `gflops / sgemm_gflops`.
    pub sgemm_share: f64,
    /// Peak GEMM throughput just after the steps with bfloat16 operands, in GFLOP/s.
    pub bf16_gemm_gflops: f64,
    /// MFU relative to the measured bfloat16 peak: `gflops / bf16_gemm_gflops`.
    pub bf16_gemm_share: f64,
    /// Precision of the steps.
    pub precision: String,
    /// Vector unit of the matmuls of the steps.
    pub matmul_unit: &'static str,
    /// Peak resident memory of the process during the steps, where the system reports it.
    pub peak_rss_bytes: Option<u64>,
    /// Page faults per step, where the system reports them.
    pub page_faults_per_step: Option<f64>,
    /// Median wall time per step by op, in seconds; `other` is the time outside all ops.
    pub seconds_by_op: BTreeMap<&'static str, f64>,
}

/// Measures training steps of a model on random tokens.
///
/// # Errors
/// If the configuration is not valid or does not fit into memory, or the time is negative or not finite.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::bench::{self, StepOptions};
/// use hybridnorm::model::ModelConfig;
///
/// let mut config = ModelConfig::default();
/// (config.d_model, config.n_layers, config.d_ff) = (16, 1, 32);
/// (config.n_heads, config.n_kv_heads) = (2, 2);
/// config.placement = hybridnorm::placement::named("pre-norm")?;
/// (config.vocab_size, config.max_seq_len) = (64, 8);
/// let options = StepOptions::new(2, 8).with_seconds(0.0);
/// let report = bench::step(&config, &options, Device::Cpu)?;
/// assert_eq!(report.steps, 3);
/// assert!(report.tokens_per_second > 0.0);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn step(config: &ModelConfig, options: &StepOptions, device: Device) -> Result<StepReport> {
    check_seconds(options.seconds)?;
    options.check_shape(config)?;
    let inventory = inventory(config, options.step_shape(), &options.optimizer)?;
    memory::check_available(
        inventory.memory.total_without_process(),
        "the model's weights, moments, gradients and activations",
    )?;
    let mut session = Session::new(config, options, device)?;
    session.warm_up()?;
    let samples = session.measure(options.seconds)?;
    drop(session);
    // Measured last: the allocator retains the matrices of the GEMM benchmark, which would count as memory of the
    // model.
    let best = |measure: fn() -> f64| measure().max(measure());
    let peaks = [machine::sgemm_gflops, machine::bf16_gemm_gflops].map(best);
    Ok(samples.report(options, &inventory.counts, peaks))
}

impl StepOptions {
    fn check_shape(&self, config: &ModelConfig) -> Result<()> {
        let (batch, accum) = (self.batch_size, self.grad_accum_steps);
        if accum == 0 || batch == 0 || !batch.is_multiple_of(accum) {
            return Err(Error::conflict(
                ["train.grad_accum_steps", "train.batch_size"],
                format!(
                    "train.grad_accum_steps = {accum} does not divide train.batch_size = {batch}"
                ),
            ));
        }
        if self.seq_len == 0 || self.seq_len > config.max_seq_len {
            return Err(Error::out_of_range(
                "train.seq_len",
                self.seq_len,
                format!("1 to model.max_seq_len = {}", config.max_seq_len),
            ));
        }
        Ok(())
    }

    fn step_shape(&self) -> StepShape {
        StepShape {
            micro_batch: self.batch_size / self.grad_accum_steps,
            seq_len: self.seq_len,
            grad_accum_steps: self.grad_accum_steps,
            recompute: self.recompute,
            precision: self.precision,
            keep_rounded_weights: self.keep_rounded_weights,
        }
    }
}

/// State of training on random tokens.
struct Session {
    model: Model,
    optimizer: Optimizer,
    training: TrainingStep,
    shape: StepShape,
    lr: f64,
    rng: ChaCha8Rng,
}

impl Session {
    fn new(config: &ModelConfig, options: &StepOptions, device: Device) -> Result<Self> {
        let shape = options.step_shape();
        let mut model = Model::new(config, 1, device)?;
        let mut optimizer = Optimizer::new(options.optimizer.clone(), &mut model)?;
        Ok(Self {
            training: TrainingStep::new(shape, &mut model, &mut optimizer)?,
            model,
            optimizer,
            shape,
            lr: options.optimizer.lr,
            rng: ChaCha8Rng::seed_from_u64(1),
        })
    }

    /// Runs at least two warm-up steps, until one causes no page faults; at most [`MAX_WARM_UP_STEPS`].
    fn warm_up(&mut self) -> Result<()> {
        for step in 1..=MAX_WARM_UP_STEPS {
            let faults = machine::page_faults();
            self.one_step()?;
            if step >= 2 && machine::page_faults() == faults {
                break;
            }
        }
        Ok(())
    }

    /// Measures steps for about `seconds`, at least three.
    fn measure(&mut self, seconds: f64) -> Result<Samples> {
        memory::reset_peak();
        let faults_before = machine::page_faults();
        let (mut step_seconds, mut time_by_op) = (Vec::new(), Vec::new());
        let begun = Instant::now();
        while step_seconds.len() < 3 || begun.elapsed().as_secs_f64() < seconds {
            self.model.executor_mut().start_profile();
            let started = Instant::now();
            self.one_step()?;
            step_seconds.push(started.elapsed().as_secs_f64());
            time_by_op.push(self.model.executor_mut().take_profile());
        }
        let faults = faults_before.zip(machine::page_faults());
        let steps = step_seconds.len() as f64;
        Ok(Samples {
            page_faults_per_step: faults.map(|(before, after)| (after - before) as f64 / steps),
            peak_rss_bytes: memory::peak_bytes(),
            step_seconds,
            time_by_op,
        })
    }

    fn one_step(&mut self) -> Result<()> {
        for _ in 0..self.shape.grad_accum_steps {
            let (inputs, targets) = (self.random_tokens(), self.random_tokens());
            let Self {
                model, optimizer, ..
            } = self;
            self.training
                .run_micro_batch(model, optimizer, &inputs, &targets, self.lr)?;
        }
        self.training
            .finish(&mut self.model, &mut self.optimizer, self.lr)?;
        Ok(())
    }

    fn random_tokens(&mut self) -> Vec<i32> {
        let vocab = self.model.config().vocab_size as i32;
        (0..self.shape.micro_batch * self.shape.seq_len)
            .map(|_| self.rng.random_range(0..vocab))
            .collect()
    }
}

/// Measurements of all steps.
struct Samples {
    step_seconds: Vec<f64>,
    time_by_op: Vec<BTreeMap<&'static str, Duration>>,
    peak_rss_bytes: Option<u64>,
    page_faults_per_step: Option<f64>,
}

impl Samples {
    fn report(self, options: &StepOptions, counts: &Counts, peaks: [f64; 2]) -> StepReport {
        let [sgemm_gflops, bf16_gemm_gflops] = peaks;
        let step_seconds = median(&self.step_seconds);
        let tokens = (options.batch_size * options.seq_len) as f64;
        let gflops = counts.train_flops_per_token as f64 * tokens / step_seconds / 1e9;
        StepReport {
            threads: crate::threads::count(),
            parameters: counts.total,
            steps: self.step_seconds.len(),
            step_seconds,
            tokens_per_second: tokens / step_seconds,
            gflops,
            sgemm_gflops,
            sgemm_share: gflops / sgemm_gflops,
            bf16_gemm_gflops,
            bf16_gemm_share: gflops / bf16_gemm_gflops,
            precision: options.precision.to_string(),
            matmul_unit: options.precision.matmul_unit(),
            peak_rss_bytes: self.peak_rss_bytes,
            page_faults_per_step: self.page_faults_per_step,
            seconds_by_op: self.seconds_by_op(step_seconds),
        }
    }

    /// Returns the median seconds of each op, and of the time outside all ops.
    fn seconds_by_op(&self, step_seconds: f64) -> BTreeMap<&'static str, f64> {
        let names: BTreeSet<&'static str> = self
            .time_by_op
            .iter()
            .flat_map(|ops| ops.keys().copied())
            .collect();
        let median_of = |name| {
            let seconds =
                |ops: &BTreeMap<_, Duration>| ops.get(name).map_or(0.0, Duration::as_secs_f64);
            median(&self.time_by_op.iter().map(seconds).collect::<Vec<_>>())
        };
        let mut seconds_by_op: BTreeMap<_, _> = names
            .into_iter()
            .map(|name| (name, median_of(name)))
            .collect();
        let known: f64 = seconds_by_op.values().sum();
        seconds_by_op.insert("other", (step_seconds - known).max(0.0));
        seconds_by_op
    }
}
