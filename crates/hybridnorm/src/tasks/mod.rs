//! Downstream tasks: multiple choice and cloze, scored by log-likelihoods of continuations.
//!
//! ```text
//! name or path -> Task (documents with contexts, continuations, the correct choice) -> token ids
//!     -> eval::score -> metrics of each document -> means with standard errors -> results
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `document.rs` | [`Task`], [`TaskDocument`], [`Choice`] |
//! | `read.rs`, `request_lines.rs`, `document_lines.rs` | files of requests, and of documents with choices |
//! | `catalog.rs`, `rows.rs`, `render.rs`, `mmlu.rs` | tasks by name, and those that are rendered from rows |
//! | `encode.rs` | tokenization of context and continuation, start token |
//! | `evaluate.rs`, `metrics.rs` | scores of a task, metrics with standard errors |
//! | `results.rs`, `run.rs` | results in the schema of lm-evaluation-harness, and their files |

mod catalog;
mod document;
mod document_lines;
mod encode;
mod evaluate;
mod metrics;
mod mmlu;
mod read;
mod render;
mod request_lines;
mod results;
mod rows;
mod run;

pub use catalog::{NamedTask, named_tasks, open_tasks, package_to_fetch};
pub use document::{Choice, Task, TaskDocument, Unconditional};
pub use encode::Tokenization;
pub(crate) use evaluate::check_task;
pub use evaluate::{ChoiceScore, DocumentScore, TaskOptions, TaskResult, evaluate_task};
pub use metrics::{Metric, MetricValue};
pub use read::{TaskFile, read_task};
pub use results::{sample_lines, task_results};
pub use run::TaskRun;
