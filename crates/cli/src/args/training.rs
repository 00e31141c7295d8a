//! Arguments of the commands that train: `quickstart`, `train`, `probe` and `replay`.

use std::path::PathBuf;

use clap::Args;

use super::shared::{DeviceArgs, FloatFormatArg, LockArgs, OutputArgs, OverrideArgs};

/// Arguments of `quickstart`.
#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// Folder for the two runs and the results.
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    pub out: PathBuf,
    /// Text to use instead of the default: a file, folder or glob, `gutenberg`, or `stories:N` (N generated stories);
    /// may be repeated.
    #[arg(long, value_name = "INPUT")]
    pub data: Vec<String>,
    /// Training steps per model.
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Precision of matmuls and activations; with `bf16`, matmuls of bfloat16 operands with sums in single precision.
    #[arg(long, value_enum, default_value_t = FloatFormatArg::F32)]
    pub precision: FloatFormatArg,
    /// File locks.
    #[command(flatten)]
    pub lock: LockArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Overrides of the configuration.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Run directory (default: `runs/NAME` for NAME.toml).
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Resume from the newest valid checkpoint of the run directory.
    #[arg(long)]
    pub resume: bool,
    /// Device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// File locks.
    #[command(flatten)]
    pub lock: LockArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Overrides of the configuration.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Names of the placements to probe, separated by commas (default: the configuration's placement).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub placements: Vec<String>,
    /// Training steps per placement, of which the first and the last are measured (default: 100, or `train.steps` if
    /// fewer).
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Write all measurements as JSON to this file, which `report` reads.
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Run directory.
    pub run: PathBuf,
    /// Step of interest; the replay starts from the newest checkpoint before it, or from the first step if none
    /// remains.
    #[arg(long, value_name = "S")]
    pub step: u64,
    /// Number of steps to replay after it.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub after: u64,
    /// Use another placement; parameters that exist in both placements are loaded from the checkpoint.
    #[arg(long, value_name = "NAME")]
    pub placement: Option<String>,
    /// Overrides of the configuration.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Run directory of the replay (default: the run's with `-replay-S` appended).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// File locks.
    #[command(flatten)]
    pub lock: LockArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
