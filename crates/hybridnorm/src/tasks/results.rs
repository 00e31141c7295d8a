//! Results of tasks in the schema that lm-evaluation-harness writes.

use serde_json::{Map, Value, json};

use super::document::{Task, TaskDocument};
use super::evaluate::{DocumentScore, TaskOptions, TaskResult};
use crate::files;

/// Returns the keys `results`, `configs`, `versions`, `n-shot`, `higher_is_better` and `n-samples` of the results that
/// lm-evaluation-harness writes, for several tasks. Values are under `METRIC,none`, standard errors under
/// `METRIC_stderr,none`. The configuration of a task names its file, the hash of its lines, the tokenization and the
/// tokens before contexts, and counts cut contexts.
pub fn task_results(tasks: &[(Task, TaskResult)], options: TaskOptions) -> Map<String, Value> {
    let mut all = Map::new();
    let mut add = |key: &str, of: &dyn Fn(&Task, &TaskResult) -> Value| {
        let values = tasks
            .iter()
            .map(|(task, result)| (task.name.clone(), of(task, result)));
        all.insert(key.to_owned(), Value::Object(values.collect()));
    };
    add("results", &|task, result| results(task, result));
    add("group_subtasks", &|_, _| json!([]));
    add("configs", &|task, result| config(task, result, options));
    add("versions", &|task, _| json!(task.version));
    add("n-shot", &|task, _| json!(task.num_fewshot));
    add("higher_is_better", &|_, result| {
        let metrics = result.metrics.iter().map(|found| found.metric);
        metrics
            .map(|metric| (metric.name().to_owned(), json!(metric.is_higher_better())))
            .collect::<Map<_, _>>()
            .into()
    });
    add(
        "n-samples",
        &|task, _| json!({"original": task.all_documents, "effective": task.documents.len()}),
    );
    all
}

fn results(task: &Task, result: &TaskResult) -> Value {
    let mut values = Map::new();
    values.insert("alias".into(), json!(task.name));
    values.insert("sample_len".into(), json!(task.documents.len()));
    for found in &result.metrics {
        let name = found.metric.name();
        values.insert(format!("{name},none"), json!(found.value));
        // As in lm-evaluation-harness, where there is none.
        let stderr = found.stderr.map_or(json!("N/A"), |stderr| json!(stderr));
        values.insert(format!("{name}_stderr,none"), stderr);
    }
    values.into()
}

fn config(task: &Task, result: &TaskResult, options: TaskOptions) -> Value {
    let output_type = match task.is_multiple_choice() {
        true => "multiple_choice",
        false => "loglikelihood",
    };
    let metrics = result.metrics.iter().map(|found| {
        json!({
            "metric": found.metric.name(),
            "aggregation": if found.metric.name() == "perplexity" { "perplexity" } else { "mean" },
            "higher_is_better": found.metric.is_higher_better(),
        })
    });
    json!({
        "task": task.name,
        "output_type": output_type,
        "num_fewshot": task.num_fewshot,
        "metric_list": metrics.collect::<Vec<_>>(),
        "metadata": {"version": task.version},
        "source": task.source,
        "source_sha256": task.sha256,
        "tokenization": options.tokenization,
        "start_token": options.start_token,
        "start_id": result.start_id,
        "empty_context_id": result.empty_context_id,
        "requests": result.requests,
        "scored_tokens": result.tokens,
        "left_out": {"requests_with_cut_context": result.cut_requests, "cut_context_tokens": result.cut_tokens},
    })
}

/// Returns one JSON object per document, in the form of the samples that lm-evaluation-harness logs: the document, the
/// arguments of its requests, their log-likelihoods and whether each is greedy, and the metrics.
pub fn sample_lines<'a>(
    task: &'a Task,
    result: &'a TaskResult,
) -> impl Iterator<Item = Value> + 'a {
    let documents = task.documents.iter().zip(&result.documents);
    documents.map(|(document, score)| sample(document, score))
}

fn sample(document: &TaskDocument, score: &DocumentScore) -> Value {
    let mut arguments = Map::new();
    let (mut responses, mut unconditional) = (Vec::new(), Vec::new());
    for (index, (choice, score)) in document.choices.iter().zip(&score.choices).enumerate() {
        arguments.insert(
            format!("gen_args_{index}"),
            json!({"arg_0": &*choice.context, "arg_1": choice.continuation}),
        );
        responses.push(response(score.log_likelihood, score.is_greedy));
        unconditional.extend(score.unconditional);
    }
    let target = match document.gold.as_slice() {
        [gold] => gold.to_string(),
        gold => format!("{gold:?}"),
    };
    let first_context = document
        .choices
        .first()
        .map_or("", |choice| &choice.context);
    let metrics = score.metrics.iter().map(|(metric, _)| metric.name());
    let mut sample = json!({
        "doc_id": document.id,
        "doc": document.fields,
        "target": target,
        "arguments": arguments,
        "resps": responses.iter().map(|response| json!([response])).collect::<Vec<_>>(),
        "filtered_resps": responses,
        "filter": "none",
        "metrics": metrics.collect::<Vec<_>>(),
        "doc_hash": files::sha256(document.fields.to_string().as_bytes()),
        "prompt_hash": files::sha256(first_context.as_bytes()),
        "target_hash": files::sha256(target.as_bytes()),
        "tokens": score.choices.iter().map(|choice| choice.tokens).collect::<Vec<_>>(),
    });
    if let Some(sample) = sample.as_object_mut() {
        if !unconditional.is_empty() {
            sample.insert("unconditional".into(), json!(unconditional));
        }
        for &(metric, value) in &score.metrics {
            sample.insert(metric.name().into(), json!(value));
        }
    }
    sample
}

/// Returns a log-likelihood as text, as in the samples of lm-evaluation-harness.
fn response(log_likelihood: f64, is_greedy: bool) -> Value {
    let is_greedy = if is_greedy { "True" } else { "False" };
    json!([log_likelihood.to_string(), is_greedy])
}
