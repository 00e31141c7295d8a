//! Arguments of `study` and `report`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use hybridnorm::lab::study::Shard;

use super::shared::{LockArgs, OutputArgs, OverrideArgs};

/// Arguments of `study`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct StudyArgs {
    /// Operation on existing study folders.
    #[command(subcommand)]
    pub command: Option<StudyCommand>,
    /// Study file: a configuration without placement, learning rate and seed, and a section `[study]` that lists
    /// them.
    #[arg(value_name = "STUDY.toml", required = true)]
    pub study: Option<PathBuf>,
    /// Overrides of the configuration.
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Study folder (default: `runs/NAME` for NAME.toml).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Number of concurrent runs; the threads are divided among them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
    /// Resume the study in the folder: finished runs are kept, interrupted ones are resumed.
    #[arg(long)]
    pub resume: bool,
    /// Run only every N-th run, starting with the I-th, so that N machines can share the work.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// File locks.
    #[command(flatten)]
    pub lock: LockArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Operations on existing study folders.
#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// Merge the finished runs in several folders of one study into one folder.
    Merge(MergeArgs),
}

/// Arguments of `study merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folders to merge.
    #[arg(required = true, value_name = "DIR")]
    pub from: Vec<PathBuf>,
    /// Output folder.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// File locks.
    #[command(flatten)]
    pub lock: LockArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Study folder or run directories, optionally with files written by `probe --out`, or such files alone.
    #[arg(required = true, value_name = "STUDY|RUN|PROBE.json")]
    pub paths: Vec<PathBuf>,
    /// Output file, required for HTML (default for Markdown and JSON: standard output).
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = ReportFormat::Html)]
    pub format: ReportFormat,
}

/// Format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Self-contained page that opens offline.
    Html,
    /// Tables for a pull request.
    Markdown,
    /// All numbers.
    Json,
}
