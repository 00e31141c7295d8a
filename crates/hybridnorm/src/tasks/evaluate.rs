//! Evaluation of a model on a task.

use derive_setters::Setters;
use serde::Serialize;

use super::document::{Task, TaskDocument};
use super::encode::{Encoder, Texts, Tokenization};
use super::metrics::{Metric, MetricValue};
use crate::data::{StartToken, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};
use crate::plan::Precision;
use crate::score::{Request, Score, cache_bytes, score};

/// Documents that are encoded and scored at a time.
const DOCUMENTS_AT_ONCE: usize = 256;

/// Options of an evaluation on tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Setters, Serialize)]
#[setters(prefix = "with_")]
#[non_exhaustive]
pub struct TaskOptions {
    /// Tokenization of contexts and continuations.
    pub tokenization: Tokenization,
    /// Token before every context.
    pub start_token: StartToken,
}

/// Score of one choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ChoiceScore {
    /// Log-likelihood of the continuation, in nats.
    pub log_likelihood: f64,
    /// Number of tokens of the continuation.
    pub tokens: usize,
    /// True if greedy decoding yields the continuation.
    pub is_greedy: bool,
    /// Log-likelihood of the unconditional request, if there is one.
    pub unconditional: Option<f64>,
}

/// Scores of the choices of a document.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DocumentScore {
    /// Scores, in the order of the choices.
    pub choices: Vec<ChoiceScore>,
    /// Value of each metric of the task for this document; for the perplexity, the log-likelihood.
    pub metrics: Vec<(Metric, f64)>,
}

/// Result of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskResult {
    /// Name of the task.
    pub name: String,
    /// Metrics; the first one is the main metric of the task.
    pub metrics: Vec<MetricValue>,
    /// Number of requests.
    pub requests: usize,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Number of requests whose context was cut at its start, because it is longer than the model's maximum sequence
    /// length.
    pub cut_requests: usize,
    /// Number of tokens cut from these contexts.
    pub cut_tokens: u64,
    /// Id of the token before every context.
    pub start_id: Option<u32>,
    /// Id of the token that replaces an empty context.
    pub empty_context_id: u32,
    /// Precision of the model, if it is not single precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Scores of the documents.
    #[serde(skip)]
    pub documents: Vec<DocumentScore>,
}

impl TaskResult {
    /// Returns the value of a metric, if the task has it.
    pub fn metric(&self, metric: Metric) -> Option<MetricValue> {
        self.metrics
            .iter()
            .copied()
            .find(|found| found.metric == metric)
    }
}

/// Evaluates a model on a task. `progress` receives the approximate number of scored documents.
///
/// # Errors
/// If a continuation has no token or more than the model's maximum sequence length, a log-probability is not finite, or
/// there is not enough memory. The task then has no result.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::data::Tokenizer;
/// use hybridnorm::tasks::{Metric, TaskFile, TaskOptions, evaluate_task, read_task};
/// # use hybridnorm::model::{Model, ModelConfig};
///
/// # let tokenizer = Tokenizer::bytes();
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(tokenizer.vocab_size())
/// #     .with_max_seq_len(32);
/// # let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let lines = r#"{"context": "2 + 2 =", "choices": ["4", "5"], "gold": 0}"#;
/// let file = TaskFile {
///     name: "sums".to_owned(),
///     path: "sums.jsonl".to_owned(),
///     lines: Box::new(lines.as_bytes()),
///     config: None,
/// };
/// let task = read_task(file, None)?;
/// let result = evaluate_task(&mut model, &tokenizer, &task, TaskOptions::default(), &mut |_| ())?;
/// let accuracy = result.metric(Metric::Acc).unwrap();
/// assert!(accuracy.value == 0.0 || accuracy.value == 1.0);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn evaluate_task(
    model: &mut Model,
    tokenizer: &Tokenizer,
    task: &Task,
    options: TaskOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<TaskResult> {
    let encoder = Encoder::new(tokenizer, options.tokenization, options.start_token);
    let mut result = TaskResult {
        name: task.name.clone(),
        metrics: Vec::new(),
        requests: 0,
        tokens: 0,
        cut_requests: 0,
        cut_tokens: 0,
        start_id: encoder.start.id,
        empty_context_id: encoder.start.of_empty,
        documents: Vec::with_capacity(task.documents.len()),
        precision: (model.precision() != Precision::F32).then(|| model.precision().to_string()),
    };
    for documents in task.documents.chunks(DOCUMENTS_AT_ONCE) {
        let requests = encode(model.config(), &encoder, task, documents)?;
        let (before, count) = (result.documents.len(), documents.len());
        let mut on_request = |done| progress(before + done * count / requests.len());
        let scores =
            score(model, &requests, &mut on_request).map_err(|error| in_task(task, error))?;
        for score in &scores {
            result.tokens += score.tokens.len() as u64;
            result.cut_requests += usize::from(score.cut_tokens > 0);
            result.cut_tokens += score.cut_tokens as u64;
        }
        result.requests += scores.len();
        let mut scores = scores.iter();
        let documents = documents
            .iter()
            .map(|document| document_score(document, &mut scores));
        result.documents.extend(documents);
    }
    aggregate(task, &mut result);
    Ok(result)
}

/// Checks that a model can be evaluated on a task; returns the maximum bytes of the keys and values.
///
/// # Errors
/// As [`evaluate_task`], except those of the model's weights.
pub(crate) fn check_task(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    task: &Task,
    options: TaskOptions,
) -> Result<u64> {
    let encoder = Encoder::new(tokenizer, options.tokenization, options.start_token);
    let mut largest = 0;
    for documents in task.documents.chunks(DOCUMENTS_AT_ONCE) {
        let requests = encode(config, &encoder, task, documents)?;
        largest = largest.max(cache_bytes(config, &requests));
    }
    Ok(largest)
}

/// Encodes and checks the requests of documents.
fn encode(
    config: &ModelConfig,
    encoder: &Encoder<'_>,
    task: &Task,
    documents: &[TaskDocument],
) -> Result<Vec<Request>> {
    let texts: Vec<Texts<'_>> = documents.iter().flat_map(texts).collect();
    let requests = encoder.encode(&texts).and_then(|requests| {
        check(config, documents, &requests)?;
        Ok(requests)
    });
    requests.map_err(|error| in_task(task, error))
}

/// Returns the requests of a document: of each choice, and its unconditional one.
fn texts(document: &TaskDocument) -> impl Iterator<Item = Texts<'_>> {
    document.choices.iter().flat_map(|choice| {
        let texts = Texts {
            context: &choice.context,
            continuation: &choice.continuation,
        };
        let unconditional = choice.unconditional.as_ref().map(|request| Texts {
            context: &request.context,
            continuation: &request.continuation,
        });
        std::iter::once(texts).chain(unconditional)
    })
}

/// Checks the continuations of documents, to name the document in the error.
fn check(config: &ModelConfig, documents: &[TaskDocument], requests: &[Request]) -> Result<()> {
    let longest = config.max_seq_len;
    let ids = documents
        .iter()
        .flat_map(|document| texts(document).map(|_| document.id));
    for (id, request) in ids.zip(requests) {
        let tokens = request.continuation.len();
        if tokens == 0 {
            let problem =
                format!("document {id}: a continuation adds no token to those of its context");
            return Err(Error::invalid_value("continuation", problem));
        }
        if tokens > longest {
            let key = format!("document {id}: tokens of a continuation");
            return Err(Error::out_of_range(
                key,
                tokens,
                format!("at most max_seq_len = {longest}"),
            ));
        }
    }
    Ok(())
}

fn in_task(task: &Task, error: Error) -> Error {
    match error {
        Error::Diverged { step, problem } => Error::Diverged {
            step,
            problem: format!("task {}: {problem}", task.name),
        },
        Error::OutOfMemory { .. } => error,
        error => Error::invalid_value("task", format!("task {}: {error}", task.name)),
    }
}

fn document_score<'s>(
    document: &TaskDocument,
    scores: &mut impl Iterator<Item = &'s Score>,
) -> DocumentScore {
    let mut next = || scores.next().expect("a score of every request");
    let choices = document.choices.iter().map(|choice| {
        let score = next();
        ChoiceScore {
            log_likelihood: score.log_likelihood(),
            tokens: score.tokens.len(),
            is_greedy: score.is_greedy(),
            unconditional: choice
                .unconditional
                .as_ref()
                .map(|_| next().log_likelihood()),
        }
    });
    DocumentScore {
        choices: choices.collect(),
        metrics: Vec::new(),
    }
}

/// Computes the metrics that all documents have, with the main one first.
fn aggregate(task: &Task, result: &mut TaskResult) {
    let all: &[Metric] = match task.is_multiple_choice() {
        true => &Metric::MULTIPLE_CHOICE,
        false => &Metric::ONE_CONTINUATION,
    };
    let mut all = all.to_vec();
    let main = task.primary_metric.as_deref().and_then(Metric::of_olmes);
    all.sort_by_key(|&metric| Some(metric) != main);
    for metric in all {
        let documents = task.documents.iter().zip(&result.documents);
        let values: Option<Vec<f64>> = documents
            .map(|(document, score)| metric.of_document(document, score))
            .collect();
        let Some(values) = values else { continue };
        for (document, &value) in result.documents.iter_mut().zip(&values) {
            document.metrics.push((metric, value));
        }
        result.metrics.push(metric.aggregate(&values));
    }
}
