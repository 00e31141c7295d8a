//! Results of downstream tasks equal those of lm-evaluation-harness 0.4.13 on the same model and requests
//! (`fixtures/tasks/reference.py`).

mod common;

use common::reference::{fixture, json};
use hybridnorm::Device;
use hybridnorm::data::{StartToken, Tokenizer};
use hybridnorm::interop::huggingface;
use hybridnorm::tasks::{
    Metric, Task, TaskFile, TaskOptions, TaskResult, Tokenization, evaluate_task, read_task,
    sample_lines, task_results,
};

/// Returns a task of the fixture and its result.
fn evaluate(name: &str, options: TaskOptions) -> (Task, TaskResult) {
    let folder = fixture("tasks");
    let mut model = huggingface::import(&folder, Device::Cpu).unwrap();
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let file = TaskFile::open(&folder.join(format!("{name}.jsonl"))).unwrap();
    let task = read_task(file, None).unwrap();
    let result = evaluate_task(&mut model, &tokenizer, &task, options, &mut |_| ()).unwrap();
    (task, result)
}

fn numbers(values: &serde_json::Value) -> Vec<f64> {
    let values = values.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn log_likelihoods_and_metrics_equal_the_reference() {
    let expected = json(&fixture("tasks").join("expected.json"));
    for (name, metrics) in [
        (
            "places",
            &[
                Metric::Acc,
                Metric::AccNorm,
                Metric::AccBytes,
                Metric::ExactMatch,
            ][..],
        ),
        ("endings", &[Metric::Acc]),
    ] {
        let (_, result) = evaluate(name, TaskOptions::default());
        let expected = &expected[name];
        let all = expected["log_likelihoods"].as_array().unwrap();
        assert_eq!(result.documents.len(), all.len());
        for (found, expected) in result.documents.iter().zip(all) {
            let expected = numbers(expected);
            assert_eq!(found.choices.len(), expected.len());
            for (found, expected) in found.choices.iter().zip(expected) {
                let error = (found.log_likelihood - expected).abs();
                assert!(error < 1e-3, "{name}: {found:?}, expected {expected}");
            }
        }
        for metric in metrics {
            let found = result.metric(*metric).unwrap();
            let expected = |key: String| expected["metrics"][key].as_f64().unwrap();
            assert_eq!(found.value, expected(metric.name().to_owned()), "{name}");
            let stderr = expected(format!("{}_stderr", metric.name()));
            assert!((found.stderr.unwrap() - stderr).abs() < 1e-12, "{name}");
        }
    }
}

#[test]
fn perplexity_and_cut_contexts_equal_the_reference() {
    let expected = json(&fixture("tasks").join("expected.json"));
    let (task, result) = evaluate("endings", TaskOptions::default());
    let perplexity = result.metric(Metric::Perplexity).unwrap().value;
    let reference = expected["endings"]["metrics"]["perplexity"]
        .as_f64()
        .unwrap();
    assert!(
        (perplexity / reference - 1.0).abs() < 1e-4,
        "{perplexity} {reference}"
    );
    // Some contexts are longer than the model's 48 positions.
    assert!(result.cut_requests > 0 && result.cut_tokens > 0);
    let results = task_results(&[(task, result)], TaskOptions::default());
    let left_out = &results["configs"]["endings"]["left_out"];
    assert!(left_out["requests_with_cut_context"].as_u64() > Some(0));
}

#[test]
fn a_dropped_start_token_changes_the_results() {
    let (_, with) = evaluate("places", TaskOptions::default());
    let none = TaskOptions::default().with_start_token(StartToken::None);
    let (_, without) = evaluate("places", none);
    assert_eq!((with.start_id, without.start_id), (Some(0), None));
    assert_ne!(with.documents[1].choices, without.documents[1].choices);
    // An empty context is the start token in both; the rounding of a run depends on the other requests in it.
    for (with, without) in with.documents[40]
        .choices
        .iter()
        .zip(&without.documents[40].choices)
    {
        assert_eq!(with.tokens, without.tokens);
        let difference = (with.log_likelihood - without.log_likelihood).abs();
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn separate_tokenization_differs_where_white_space_ends_a_context() {
    let (_, joint) = evaluate("places", TaskOptions::default());
    let separate = TaskOptions::default().with_tokenization(Tokenization::Separate);
    let (_, separate) = evaluate("places", separate);
    assert_ne!(joint.documents[0].choices, separate.documents[0].choices);
}

#[test]
fn samples_have_the_fields_of_the_reference() {
    let (task, result) = evaluate("places", TaskOptions::default());
    let lines: Vec<_> = sample_lines(&task, &result).collect();
    assert_eq!(lines.len(), task.documents.len());
    for (line, score) in lines.iter().zip(&result.documents) {
        for key in [
            "doc_id",
            "doc",
            "target",
            "arguments",
            "resps",
            "filtered_resps",
            "filter",
            "metrics",
            "acc",
        ] {
            assert!(line.get(key).is_some(), "{key}");
        }
        let first: f64 = line["filtered_resps"][0][0]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(first, score.choices[0].log_likelihood);
    }
}
