//! Every command does what its help text says.

#[path = "../common/mod.rs"]
mod common;
mod models;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::TestDir;
use serde_json::{Value, json};

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{a} {b}");
}

#[test]
fn data_is_prepared_and_inspected() {
    let dir = TestDir::new();
    dir.write("a folder/ä.txt", "One line.\n\nAnother line.\n".repeat(50));
    dir.write("b.jsonl", "{\"text\": \"json\"}\n".repeat(50));
    let args = [
        "data",
        "prepare",
        "a folder",
        "b.jsonl",
        "--tokenizer",
        "bytes",
        "--out",
        "p q",
        "--json",
    ];
    let manifest = dir.json(&args);
    assert_eq!(manifest["sources"][1]["documents"], 50);
    let inspected = dir.json(&["data", "inspect", "p q", "--json"]);
    assert_eq!(inspected["manifest"], manifest);
    assert!(
        dir.ok(&["data", "inspect", "p q"])
            .contains("every shard matches")
    );
    dir.expect_error(2, &args[..8], &["p q", "already holds prepared data"]);
    dir.ok(&[&args[..8], &["--overwrite", "--quiet"]].concat());
    dir.expect_error(
        2,
        &[
            "data",
            "prepare",
            "b.jsonl",
            "--tokenizer",
            "bytes",
            "--out",
            "r",
            "--validation-fraction",
            "1",
        ],
        &["validation_fraction = 1"],
    );
}

/// A short quickstart.
const QUICKSTART: [&str; 6] = [
    "quickstart",
    "--quiet",
    "--data",
    "stories:80",
    "--steps",
    "2",
];

#[test]
fn quickstart_is_reproducible() {
    let dir = TestDir::new();
    let args = [&QUICKSTART[..], &["--out", "q", "--json"]].concat();
    let found = dir.json(&args);
    let names: Vec<&Value> = found["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["placement"])
        .collect();
    assert_eq!(names, ["hybridnorm-star", "pre-norm"]);
    let again = dir.json(&args);
    for row in [0, 1] {
        assert_eq!(
            found["rows"][row]["validation_loss"],
            again["rows"][row]["validation_loss"]
        );
    }
    let written: Value = serde_json::from_slice(&dir.read("q/results.json")).unwrap();
    assert_eq!(written, again);
    assert!(dir.ok(&args[..8]).contains("pre-norm generates:"));
    dir.expect_error(
        2,
        &[
            "quickstart",
            "--quiet",
            "--data",
            "stories:80",
            "--steps",
            "0",
            "--out",
            "q",
        ],
        &["steps = 0, expected at least 1"],
    );
    // Runs of others are not deleted.
    dir.train("own/pre-norm", &[]);
    let mut other = args.clone();
    other[7] = "own";
    dir.expect_error(2, &other, &["own/pre-norm", "not created by quickstart"]);
    assert_eq!(dir.reproducible_metrics("own/pre-norm").len(), 20);
    dir.write("q/pre-norm/notes.txt", "mine");
    dir.json(&args);
    assert_eq!(dir.read("q/pre-norm/notes.txt"), b"mine");
}

#[test]
fn quickstart_trains_in_bf16() {
    let dir = TestDir::new();
    let [exact, rounded] = ["f32", "bf16"].map(|precision| {
        let out = ["--json", "--out", precision, "--precision", precision];
        dir.json(&[&QUICKSTART[..], &out].concat())
    });
    assert_eq!(exact["precision"], "f32");
    assert_eq!(rounded["precision"], "bf16, residual stream in f32");
    for row in [0, 1] {
        let [exact, rounded] =
            [&exact, &rounded].map(|found| found["rows"][row]["validation_loss"].as_f64().unwrap());
        let difference = (exact - rounded).abs();
        assert!(difference > 0.0 && difference < 0.05, "{difference}");
    }
}

#[test]
fn quiet_prints_results_only() {
    let dir = TestDir::new();
    let output = dir.run(&["train", "tiny.toml", "--quiet", "--run", "run"]);
    let result = String::from_utf8(output.stdout).unwrap();
    assert!(
        result.starts_with("finished: 20 steps, 1,280 tokens, validation loss"),
        "{result}"
    );
    assert_eq!(result.lines().count(), 1, "{result}");
    assert!(output.stderr.is_empty());
    let outcome = dir.json(&["train", "tiny.toml", "--quiet", "--run", "other", "--json"]);
    assert_eq!(
        (&outcome["finished"], &outcome["step"]),
        (&json!(true), &json!(20))
    );
    let output = dir.run(&["eval", "run", "--data", "stories:9", "--json", "--quiet"]);
    assert!(output.stderr.is_empty());
    // Only results go to standard output, even without `--quiet`.
    let output = dir.run(&["train", "tiny.toml", "--run", "loud"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), result);
    assert!(!output.stderr.is_empty());
}

#[test]
fn unusual_names_work() {
    let dir = TestDir::new();
    let config = dir.read("tiny.toml");
    dir.write("a b/ü 'x'.toml", config);
    dir.ok(&["train", "a b/ü 'x'.toml", "--quiet"]);
    assert!(dir.path("runs/ü 'x'/config.toml").exists());
    dir.ok(&["eval", "runs/ü 'x'", "--data", "stories:9", "--json"]);
    let table = [
        "--set",
        "model.placement={base='pre-norm', norm={eps=1e-4}}",
    ];
    dir.train("table", &table);
    dir.train(
        "table",
        &[&table[..], &["--resume", "--set", "train.steps=21"]].concat(),
    );
}
