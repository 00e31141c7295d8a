//! Arguments of `bench`.

use std::path::PathBuf;
use std::process::Command;

use clap::{Args, Subcommand};
use hybridnorm::Error;
use hybridnorm::train::Config;

use super::shared::{DeviceArgs, OutputArgs, OverrideArgs};

/// Configuration that is measured by default.
const DEFAULT: &str = include_str!("../../configs/bench.toml");

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Training step: throughput, FLOP/s relative to the machine's peak, memory, time per op.
    Step(BenchArgs),
    /// Decoding of one token at a time: throughput relative to the machine's memory bandwidth, memory.
    Decode(BenchArgs),
    /// Every named placement in training and decoding: throughput and memory relative to pre-norm.
    Placements(BenchPlacementsArgs),
    /// Each op on the CPU: time, fraction of its roofline (peak FLOP/s or memory bandwidth), speed-up over the f64
    /// reference loops.
    Ops(BenchOpsArgs),
}

/// Arguments of `bench step` and `bench decode`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Model and output options.
    #[command(flatten)]
    pub model: BenchModelArgs,
    /// Approximate duration of the measurement.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5.0,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
}

/// Arguments of `bench placements`.
#[derive(Debug, Args)]
pub struct BenchPlacementsArgs {
    /// Model and output options; the placement varies.
    #[command(flatten)]
    pub model: BenchModelArgs,
    /// Duration of one measurement; a round takes four per placement.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2.0,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
    /// Number of rounds; each measures a placement and pre-norm in turn.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// Measure only this placement; may be repeated (default: all of `placement list`).
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
}

/// Arguments of `bench ops`.
#[derive(Debug, Args)]
pub struct BenchOpsArgs {
    /// Model shapes and output options.
    #[command(flatten)]
    pub model: BenchModelArgs,
    /// Approximate duration per op, plus at most a few seconds for its reference.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.25,
        allow_negative_numbers = true
    )]
    pub seconds: f64,
    /// Fail if a kernel is slower than its minimum speed-up over the reference loops in this file, or differs from its
    /// reference by more than 1e-4 (in bf16 1/128).
    #[arg(long, value_name = "FLOORS.toml")]
    pub floors: Option<PathBuf>,
}

/// Model to benchmark, and output options.
#[derive(Debug, Args)]
pub struct BenchModelArgs {
    /// Configuration with `[train]` and a `[model]` with `vocab_size` (default: a model of 17 million parameters).
    #[arg(long, value_name = "CONFIG.toml")]
    pub config: Option<PathBuf>,
    /// Overrides of the configuration.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl BenchModelArgs {
    /// Loads the configuration.
    pub fn load_config(&self) -> Result<Config, Error> {
        match &self.config {
            Some(path) => Config::load(path, &self.overrides.settings),
            None => Config::parse(DEFAULT, &self.overrides.settings),
        }
    }

    /// Appends the options that choose the model to a command line.
    pub fn append_to(&self, command: &mut Command) {
        if let Some(path) = &self.config {
            command.arg("--config").arg(path);
        }
        for setting in &self.overrides.settings {
            command.args(["--set", setting]);
        }
    }
}
