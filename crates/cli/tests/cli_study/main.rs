//! Studies: planning, running, kills, shards, merging, comparison of runs (verdicts: cli_study_verdicts.rs).

#[path = "../common/mod.rs"]
mod common;
mod comparison;
mod data;
mod resuming;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{TestDir, code, files_below, signal, stderr};
use serde_json::Value;

const STUDY: &str = r#"
[study]
placements = ["pre-norm", "hybridnorm", { name = "mine", base = "hybridnorm", block = { ffn = { skip = "raw" } } }]
lr = [1e-3, 1e-2]
seeds = [1, 2]
[model]
d_model = 16
n_layers = 2
n_heads = 2
d_ff = 32
init = { scheme = "megatron" }
[data]
train = ["stories:60"]
tokenizer = "bytes"
[schedule]
kind = "constant"
[train]
steps = 40
batch_size = 4
seq_len = 16
eval_every = 0
eval_sequences = 0
checkpoint_every = 5
keep_checkpoints = 1
[log]
layers_every = 8
"#;

fn test_dir() -> TestDir {
    let dir = TestDir::new();
    dir.write("study.toml", STUDY);
    dir
}

fn args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["study", "study.toml", "--quiet", "--out", out];
    args.extend(more);
    args
}

/// Returns every file of a study folder; records without their cost.
fn content(dir: &TestDir, out: &str) -> BTreeMap<String, Value> {
    let folder = dir.path(out);
    let files = files_below(&folder).into_iter().map(|file| {
        let name = file.strip_prefix(&folder).unwrap();
        let value = match name.starts_with("runs") {
            true => record(&file),
            false => Value::String(fs::read_to_string(&file).unwrap()),
        };
        (name.to_str().unwrap().to_owned(), value)
    });
    files.collect()
}

fn records(dir: &TestDir, out: &str) -> Vec<Value> {
    let files = files_below(&dir.path(out).join("runs"));
    files.iter().map(|file| record(file)).collect()
}

/// Reads a record without its cost.
fn record(file: &Path) -> Value {
    let mut record: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let cost = record.as_object_mut().unwrap().remove("cost").unwrap();
    // The checksum covers the cost, too.
    let sum = record.as_object_mut().unwrap().remove("sha256").unwrap();
    assert_eq!(sum.as_str().unwrap().len(), 64);
    assert!(cost["threads"].as_u64().unwrap() > 0, "{cost}");
    record
}

#[test]
fn invalid_studies_are_rejected_before_training() {
    let dir = test_dir();
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--set", "study.lr=[]"], &["study.lr is empty"]),
        (
            &["--set", "study.lr=[1e-3,1e-3]"],
            &["study.lr has a duplicate"],
        ),
        (
            &["--set", "study.placements=[\"pre-nrom\"]"],
            &["entry 1", "pre-norm"],
        ),
        (
            &["--set", "study.placements=[\"hybridnorm\"]"],
            &["study.rules.baseline = \"pre-norm\" (the default) is not in study.placements"],
        ),
        (&["--set", "study.rules.alpha=2"], &["study.rules.alpha"]),
        (
            &["--set", "optimizer.lr=1e-3"],
            &["optimizer.lr has no effect", "study.lr"],
        ),
        (
            &["--set", "model.placement=\"pre-norm\""],
            &["model.placement has no effect"],
        ),
        (
            &["--set", "study.halving={at=[1.5],keep=0.5}"],
            &["study.halving.at"],
        ),
        (
            &["--set", "study.halving={at=[0.01,0.5],keep=0.5}"],
            &["0.01 falls on step 1"],
        ),
        (
            &["--set", "study.halving={at=[0.499,0.5],keep=0.5}"],
            &["0.5 falls on the same step"],
        ),
        (
            &["--jobs", "99", "--threads", "2"],
            &["jobs = 99, expected 1 to 2", "one of the 2 threads"],
        ),
    ];
    for (more, words) in cases {
        dir.expect_error(2, &args("no", more), words);
        assert!(!dir.path("no").exists(), "{more:?}");
    }
}

#[test]
fn invalid_shards_files_and_folders_of_studies_are_rejected() {
    let dir = test_dir();
    let output = dir.run(&["study", "study.toml", "--shard", "4/3"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("expected I/N"));
    dir.write("bad.toml", STUDY.replace("lr = [", "lrs = ["));
    dir.expect_error(
        2,
        &["study", "bad.toml"],
        &["bad.toml: line 4", "did you mean `lr`"],
    );
    dir.expect_error(1, &["study", "none.toml"], &["none.toml: no such file"]);
    dir.expect_error(
        1,
        &["study", "merge", "nowhere", "--out", "x"],
        &["nowhere", "no such file"],
    );
}
