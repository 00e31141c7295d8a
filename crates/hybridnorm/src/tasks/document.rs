//! A task: documents with contexts, continuations and the correct choice.

use std::sync::Arc;

use serde_json::Value;

/// A downstream task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Task {
    /// Name under which results are listed.
    pub name: String,
    /// File or package that it was read from.
    pub source: String,
    /// SHA-256 of the bytes of that file after decompression.
    pub sha256: String,
    /// Name of the main metric in the configuration of the file, if it has one, such as `acc_per_char`.
    pub primary_metric: Option<String>,
    /// Number of solved examples in each context, if known.
    pub num_fewshot: Option<u64>,
    /// Version of the task in the configuration of the file; 0 without one.
    pub version: u64,
    /// Number of documents in the file, before a limit.
    pub all_documents: usize,
    /// Documents, in the order of the file.
    pub documents: Vec<TaskDocument>,
}

/// A document of a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskDocument {
    /// Id in the file.
    pub id: u64,
    /// Fields of the document in the file, for the record of samples.
    pub fields: Value,
    /// Choices, in order.
    pub choices: Vec<Choice>,
    /// Indices of the correct choices.
    pub gold: Vec<usize>,
}

/// A choice of a document: a continuation of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// Text before the continuation.
    pub context: Arc<str>,
    /// Text whose log-likelihood is computed, with the delimiter before the choice.
    pub continuation: String,
    /// Bytes of that delimiter, usually one space.
    pub delimiter_bytes: usize,
    /// Request that measures how likely the choice is without its document.
    pub unconditional: Option<Unconditional>,
}

/// A choice without its document, for pointwise mutual information.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unconditional {
    /// Text before the continuation, such as `Answer:`.
    pub context: Arc<str>,
    /// Text whose log-likelihood is computed.
    pub continuation: String,
}

impl Choice {
    /// Creates a choice without an unconditional request.
    pub(super) fn new(context: Arc<str>, delimiter: &str, text: &str) -> Self {
        Self {
            context,
            continuation: format!("{delimiter}{text}"),
            delimiter_bytes: delimiter.len(),
            unconditional: None,
        }
    }

    /// Returns the choice without the delimiter before it.
    pub fn text(&self) -> &str {
        &self.continuation[self.delimiter_bytes..]
    }
}

impl Task {
    /// True if documents have several choices; otherwise each has one continuation.
    pub fn is_multiple_choice(&self) -> bool {
        self.documents
            .iter()
            .any(|document| document.choices.len() > 1)
    }
}
