//! Benchmark of a training step.

use std::collections::BTreeMap;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::machine;
use super::timing::{check_seconds, median};
use crate::Device;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::{Model, ModelConfig};
use crate::plan::Recompute;
use crate::train::inventory::inventory;
use crate::train::{Config, Optimizer, OptimizerConfig, StepShape, TrainingStep};

/// Maximum warm-up steps; the measurement starts once a step takes no new memory.
const MOST_WARM_UP: usize = 8;

/// Options of the step benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOptions {
    /// Sequences per optimizer step.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Micro-batches per optimizer step.
    pub grad_accum_steps: usize,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
    /// Configuration of the optimizer.
    pub optimizer: OptimizerConfig,
    /// Approximate duration of the measurement in seconds; at least three steps are measured.
    pub seconds: f64,
}

impl StepOptions {
    /// Returns the options for the training step of a configuration.
    pub fn of(config: &Config, seconds: f64) -> Self {
        Self {
            batch_size: config.train.batch_size,
            seq_len: config.train.seq_len,
            grad_accum_steps: config.train.grad_accum_steps,
            recompute: config.train.recompute,
            optimizer: config.optimizer.clone(),
            seconds,
        }
    }
}

/// Results of the step benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Peak GEMM throughput of the machine just after the steps, in GFLOP/s.
    pub sgemm_gflops: f64,
    /// `gflops / sgemm_gflops`.
    pub sgemm_share: f64,
    /// Peak resident memory of the process during the steps, where the system reports it.
    pub peak_rss_bytes: Option<u64>,
    /// Page faults per step, where the system reports them.
    pub page_faults_per_step: Option<f64>,
    /// Median wall time per step by op, in seconds; `other` is the time outside all ops.
    pub seconds_by_op: BTreeMap<&'static str, f64>,
}

/// Measures the training of a model on random tokens.
///
/// # Errors
/// If the configuration is not valid or does not fit into memory, or the time is negative or not finite.
pub fn step(config: &ModelConfig, options: &StepOptions, device: Device) -> Result<StepReport> {
    let StepOptions {
        batch_size,
        seq_len,
        grad_accum_steps,
        seconds,
        ..
    } = *options;
    check_seconds(seconds)?;
    if grad_accum_steps == 0 || batch_size == 0 || !batch_size.is_multiple_of(grad_accum_steps) {
        return Err(Error::config(format!(
            "train.grad_accum_steps = {grad_accum_steps} does not divide train.batch_size = {batch_size}"
        )));
    }
    if seq_len == 0 || seq_len > config.max_seq_len {
        return Err(Error::config(format!(
            "train.seq_len = {seq_len} is not between 1 and model.max_seq_len = {}",
            config.max_seq_len
        )));
    }
    let micro = batch_size / grad_accum_steps;
    let shape = StepShape {
        micro_batch: micro,
        seq_len,
        grad_accum_steps,
        recompute: options.recompute,
    };
    let inventory = inventory(config, shape, &options.optimizer)?;
    memory::require(
        inventory.memory.besides_program(),
        "the model's weights, moments, gradients and activations",
    )?;
    let mut model = Model::new(config, 1, device)?;
    let mut optimizer = Optimizer::new(options.optimizer.clone(), &mut model)?;
    let mut training = TrainingStep::new(shape, &mut model, &mut optimizer)?;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let vocab = config.vocab_size as i32;
    let mut draw = || -> Vec<i32> {
        (0..micro * seq_len)
            .map(|_| random.random_range(0..vocab))
            .collect()
    };
    let lr = options.optimizer.lr;
    let mut one_step = |model: &mut Model| -> Result<()> {
        for _ in 0..grad_accum_steps {
            let (inputs, targets) = (draw(), draw());
            training.pass(model, &mut optimizer, &inputs, &targets, lr)?;
        }
        training.finish(model, &mut optimizer, lr)?;
        Ok(())
    };
    for step in 1..=MOST_WARM_UP {
        let faults = machine::page_faults();
        one_step(&mut model)?;
        if step >= 2 && machine::page_faults() == faults {
            break;
        }
    }
    memory::reset_peak();
    let faults = machine::page_faults();
    let (mut times, mut by_op) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while times.len() < 3 || begun.elapsed().as_secs_f64() < seconds {
        model.executor_mut().start_profile();
        let started = Instant::now();
        one_step(&mut model)?;
        times.push(started.elapsed().as_secs_f64());
        by_op.push(model.executor_mut().take_profile());
    }
    let steps = times.len();
    let faults = faults
        .zip(machine::page_faults())
        .map(|(before, after)| (after - before) as f64 / steps as f64);
    let peak_rss_bytes = memory::peak_bytes();
    drop(model);
    // Measured afterwards, since the allocator retains its matrices.
    let sgemm_gflops = machine::sgemm_gflops().max(machine::sgemm_gflops());

    let step_seconds = median(&times);
    let mut names: Vec<&'static str> = by_op.iter().flat_map(|ops| ops.keys().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let mut seconds_by_op = BTreeMap::new();
    for name in names {
        let of_name = |ops: &BTreeMap<_, std::time::Duration>| {
            ops.get(name).map_or(0.0, std::time::Duration::as_secs_f64)
        };
        seconds_by_op.insert(name, median(&by_op.iter().map(of_name).collect::<Vec<_>>()));
    }
    let known: f64 = seconds_by_op.values().sum();
    seconds_by_op.insert("other", (step_seconds - known).max(0.0));
    let tokens = (batch_size * seq_len) as f64;
    let gflops = inventory.counts.train_flops_per_token as f64 * tokens / step_seconds / 1e9;
    Ok(StepReport {
        threads: crate::threads::count(),
        parameters: inventory.counts.total,
        steps,
        step_seconds,
        tokens_per_second: tokens / step_seconds,
        gflops,
        sgemm_gflops,
        sgemm_share: gflops / sgemm_gflops,
        peak_rss_bytes,
        page_faults_per_step: faults,
        seconds_by_op,
    })
}
