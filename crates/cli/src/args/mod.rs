//! Command-line arguments, by group of commands. The documentation of a flag is its help text.

mod bench;
mod checkpoint;
mod data;
mod export;
mod model;
mod serve;
mod shared;
mod study;
mod tasks;
mod training;

pub use bench::{BenchCommand, BenchOpsArgs, BenchPlacementsArgs};
pub use checkpoint::{EvalArgs, EvalSplit, EvalWindows, GenerateArgs, ImportArgs};
pub use data::{DataCommand, PrepareArgs, PublicText};
pub use export::ExportArgs;
pub use model::{
    AttentionKind, ExplainFormat, InspectArgs, PlacementCommand, PlacementExplainArgs,
    PlacementListArgs,
};
pub use serve::ServeArgs;
pub use shared::{DevicesArgs, GlobalArgs, OutputArgs};
pub use study::{MergeArgs, ReportArgs, ReportFormat, StudyArgs, StudyCommand};
pub use tasks::TaskArgs;
pub use training::{ProbeArgs, QuickstartArgs, ReplayArgs, TrainArgs};

use clap::{Parser, Subcommand};

/// Train transformer language models and compare norm placements.
#[derive(Debug, Parser)]
#[command(name = "hybridnorm", version, arg_required_else_help = true)]
pub struct Cli {
    /// Global options.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train HybridNorm* and Pre-Norm on real text and compare them, in a few minutes.
    Quickstart(QuickstartArgs),
    /// Train a model.
    Train(TrainArgs),
    /// Measure activations, gradients and updates of placements at the first and the last training step.
    Probe(ProbeArgs),
    /// Replay the steps of a run around a given step, optionally with changes.
    Replay(ReplayArgs),
    /// Train many models that differ in placement, learning rate and seed, and compare them.
    Study(StudyArgs),
    /// Write a report of a study, of runs or of a probe: a self-contained HTML page, Markdown or JSON.
    Report(ReportArgs),
    /// Measure loss and perplexity of a checkpoint on data, or its accuracy on downstream tasks.
    Eval(EvalArgs),
    /// Generate text with a checkpoint.
    Generate(GenerateArgs),
    /// Serve a checkpoint over HTTP: OpenAI's completions and chat completions, and a page to type into.
    Serve(ServeArgs),
    /// Fetch, tokenize and inspect text.
    Data {
        /// Operation on data.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// List and explain the named placements.
    Placement {
        /// Operation on placements.
        #[command(subcommand)]
        command: PlacementCommand,
    },
    /// List the devices of this machine: the CPU, and CUDA cards.
    Devices(DevicesArgs),
    /// Print the resolved model of a configuration or checkpoint: parameters, FLOPs, memory.
    Inspect(InspectArgs),
    /// Benchmark training and generation on this machine, with random tokens.
    Bench {
        /// Benchmark to run.
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Convert a model folder of Hugging Face or of the official HybridNorm code, or a GGUF file, to a checkpoint.
    Import(ImportArgs),
    /// Convert a checkpoint for transformers and other programs.
    Export(ExportArgs),
}
