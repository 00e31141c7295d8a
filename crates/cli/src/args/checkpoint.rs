//! Arguments of the commands on checkpoints: `eval`, `generate` and `import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hybridnorm::Error;
use hybridnorm::eval::Sampling;

use super::shared::{DeviceArgs, OutputArgs, PrecisionArgs, StartTokenArg, TextArgs};
use super::tasks::TaskArgs;

/// Arguments of `eval`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("evaluated").required(true).args(["data", "tasks"]))]
pub struct EvalArgs {
    /// Checkpoint, or run directory, whose newest valid checkpoint is used.
    pub checkpoint: PathBuf,
    /// Text, pre-tokenized files or prepared folders, each with an optional name for the results; evaluated separately
    /// and pooled.
    #[arg(long, num_args = 1.., value_name = "[NAME=]PATH")]
    pub data: Vec<String>,
    /// Split of each data set, as training on it alone would split it (default: the held-out part of prepared folders
    /// that have one, all of anything else).
    #[arg(long, value_enum, conflicts_with = "tasks")]
    pub split: Option<EvalSplit>,
    /// Windows to evaluate: all, including shorter last ones, or only those of full length, as for the validation
    /// loss in training.
    #[arg(long, value_enum, default_value_t = EvalWindows::All, conflicts_with = "tasks")]
    pub windows: EvalWindows,
    /// Tokens per sequence (default: the model's maximum sequence length).
    #[arg(long, value_name = "N", conflicts_with = "tasks")]
    pub seq_len: Option<usize>,
    /// Let windows overlap: each has the full sequence length and advances by N tokens, and only tokens that no earlier
    /// window contains are scored.
    #[arg(long, value_name = "N", conflicts_with_all = ["tasks", "windows"])]
    pub stride: Option<usize>,
    /// Sequences per batch.
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "tasks")]
    pub batch_size: usize,
    /// Device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Precision.
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Downstream tasks.
    #[command(flatten)]
    pub tasks: TaskArgs,
    /// Options of raw text (default: those of the checkpoint's run, `[data.text]`).
    #[command(flatten)]
    pub text: TextArgs,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Windows of the data.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EvalWindows {
    /// All windows; every token except the first of each stream is a target.
    All,
    /// Windows of full sequence length.
    #[value(alias = "whole")]
    Full,
}

/// Split of the data.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EvalSplit {
    /// Training split.
    Train,
    /// Held-out split.
    Validation,
    /// Both splits.
    All,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Checkpoint, or run directory, whose newest valid checkpoint is used.
    pub checkpoint: PathBuf,
    /// Prompt.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Token before the prompt: the one that the tokenizer adds, if any; the end-of-text token; or none. An empty prompt
    /// is always one token.
    #[arg(long, value_enum, default_value_t = StartTokenArg::Tokenizer)]
    pub start_token: StartTokenArg,
    /// Device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Precision.
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Maximum number of new tokens; generation also stops at the tokens with which the model ends a text.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_tokens: usize,
    /// Sampling temperature; 0: greedy decoding.
    #[arg(
        long,
        value_name = "T",
        default_value_t = Sampling::default().temperature,
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Sample only from the K most likely tokens; 0: from all [default: 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    #[arg(long, value_name = "P", allow_negative_numbers = true, help = top_p_help())]
    pub top_p: Option<f64>,
    /// Random seed for sampling [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl GenerateArgs {
    /// Returns the sampling parameters.
    ///
    /// # Errors
    /// If one is out of range or has no effect.
    pub fn sampling(&self) -> Result<Sampling, Error> {
        let mut sampling = Sampling::default().with_temperature(self.temperature);
        sampling.top_k = self.top_k;
        sampling.top_p = self.top_p;
        sampling.seed = self.seed;
        sampling.check()?;
        Ok(sampling)
    }
}

fn top_p_help() -> String {
    format!(
        "Sample only from the most likely tokens whose cumulative probability reaches P (nucleus sampling); 1: from \
         all [default: {}]",
        Sampling::DEFAULT_TOP_P
    )
}

/// Joins names as in "a, b and c".
fn list(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        names => names.join(""),
    }
}

fn import_folder_help() -> String {
    format!(
        "Folder with `config.yaml` and `model.safetensors` or `model.pt`, or in Hugging Face format \
         (`config.json`, `model.safetensors`; families {}); or a GGUF file (families {})",
        list(&hybridnorm::interop::huggingface::families()),
        list(&hybridnorm::interop::gguf::architectures())
    )
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[arg(help = import_folder_help())]
    pub folder: PathBuf,
    /// Branch, tag or commit of a model that is downloaded by name.
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Checkpoint folder to write.
    #[arg(long, value_name = "CHECKPOINT_DIR")]
    pub out: PathBuf,
    /// Tokenizer to store in the checkpoint: `bytes`, `r50k`, `cl100k` or a `tokenizer.json`; replaces the
    /// `tokenizer.json` next to the weights, or the tokenizer of a GGUF file.
    #[arg(long, value_name = "SPEC")]
    pub tokenizer: Option<String>,
    /// Do not import the `tokenizer.json` next to the weights, or the tokenizer of a GGUF file.
    #[arg(long, conflicts_with = "tokenizer")]
    pub no_tokenizer: bool,
    /// Output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
