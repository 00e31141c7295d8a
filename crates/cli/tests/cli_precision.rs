//! Mixed precision in commands that run several trainings or continue one.

mod common;

use std::process::Output;

use common::{TestDir, stderr};
use serde_json::{Value, json};

const BF16: &str = "train.precision=bf16";

/// Returns the values of a key of all records below.
fn values<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value {
        Value::Object(fields) => (fields.iter())
            .flat_map(|(name, field)| match name == key {
                true => vec![field],
                false => values(field, key),
            })
            .collect(),
        Value::Array(elements) => elements.iter().flat_map(|e| values(e, key)).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn replays_across_a_change_of_precision_are_bit_identical() {
    let dir = TestDir::new();
    for (run, first, then) in [
        ("to-bf16", "train.precision=f32", BF16),
        ("to-f32", BF16, "train.precision=f32"),
    ] {
        let kept = ["--set", "train.keep_checkpoints=1", "--set"];
        dir.train(run, &[&kept[..], &[first]].concat());
        let longer = [then, "--set", "train.steps=30", "--resume"];
        let resumed = common::train_args(run, &[&kept[..], &longer].concat())
            .into_iter()
            .filter(|arg| *arg != "--quiet")
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let resumed: Vec<&str> = resumed.iter().map(String::as_str).collect();
        let notes = stderr(&dir.run(&resumed));
        assert!(notes.contains("train.precision changed from"), "{notes}");
        assert!(!notes.contains("results depend on the unit"), "{notes}");
        let units: Value =
            serde_json::from_slice(&dir.read(format!("{run}/segments.json"))).unwrap();
        let is_bf16: Vec<bool> = (units.as_array().unwrap().iter())
            .map(|segment| segment["bf16_unit"].is_string())
            .collect();
        assert_eq!(is_bf16, [first == BF16, then == BF16]);
        let replay = dir.json(&["replay", run, "--step", "27", "--after", "3", "--json"]);
        assert_eq!(
            replay["comparison"],
            json!({"steps": 30, "first_difference": null, "other_conditions": []}),
            "{run}"
        );
    }
}

#[test]
fn a_finished_run_keeps_its_validation_loss_in_another_precision() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let loss = |set: &str| {
        let finished = ["--resume", "--json", "--set", set];
        let found = dir.json(&common::train_args("run", &finished));
        let loss = found["validation"]["loss"].as_f64();
        loss.expect("a validation loss")
    };
    assert_eq!(loss("train.precision=f32"), loss(BF16));
}

#[test]
fn probes_and_studies_take_the_precision() {
    let dir = TestDir::new();
    let probe = |set: &str, more: &[&str]| {
        let args = ["probe", "tiny.toml", "--steps", "2", "--set", set];
        dir.run(&[&args[..], more].concat())
    };
    let output = probe(BF16, &["--json"]);
    let notes = stderr(&output);
    assert!(notes.contains("computed in bf16"), "{notes}");
    let losses = |output: &Output| -> Vec<f64> {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let losses = values(&report, "loss").into_iter();
        losses.filter_map(Value::as_f64).collect()
    };
    let single = losses(&probe("train.precision=f32", &["--json"]));
    let bf16 = losses(&output);
    assert!(!single.is_empty() && single.len() == bf16.len());
    assert_ne!(single, bf16);
    for (single, bf16) in single.iter().zip(&bf16) {
        assert!((single - bf16).abs() < 0.01 * single, "{single} {bf16}");
    }

    let grid = "[study]\nplacements = [\"pre-norm\", \"hybridnorm\"]\nlr = [1e-3]\nseeds = [1]\n";
    let tiny = String::from_utf8(dir.read("tiny.toml")).unwrap();
    let is_kept = |line: &&str| {
        !["seed", "placement", "lr"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    let kept: Vec<&str> = tiny.lines().filter(is_kept).collect();
    dir.write(
        "study.toml",
        grid.to_owned()
            + &kept.join(
                "
",
            ),
    );
    let output = dir.run(&["study", "study.toml", "--out", "study", "--set", BF16]);
    let notes = stderr(&output);
    assert!(notes.contains("computed in bf16"), "{notes}");
    for record in common::files_below(&dir.path("study/runs")) {
        let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let units = values(&record, "bf16_unit");
        assert!(units.iter().all(|unit| unit.is_string()) && units.len() == 1);
    }
    let report = dir.ok(&["report", "study", "--format", "markdown", "--quiet"]);
    assert!(report.contains("Matmuls in bf16 with "), "{report}");
}

#[test]
fn copies_of_weights_take_memory_and_change_no_result() {
    const COPIES: &str = "train.bf16_weight_copies=true";
    let dir = TestDir::new();
    let set = |settings: &[&'static str]| -> Vec<&'static str> {
        settings
            .iter()
            .flat_map(|setting| ["--set", setting])
            .collect()
    };
    dir.train("rounded", &set(&[BF16]));
    dir.train("copied", &set(&[BF16, COPIES]));
    let metrics = |run| dir.reproducible_metrics(run);
    assert!(!metrics("rounded").is_empty());
    assert_eq!(metrics("rounded"), metrics("copied"));
    let bytes = |settings: &[&'static str]| {
        let found = dir.json(&[&["inspect", "tiny.toml", "--json"], &set(settings)[..]].concat());
        found["inventory"]["memory"]["weight_copies"]
            .as_u64()
            .unwrap()
    };
    assert_eq!([bytes(&[]), bytes(&[BF16])], [0, 0]);
    assert!(bytes(&[BF16, COPIES]) > 0);
    let words = ["train.bf16_weight_copies has no effect"];
    dir.train_fails(2, "single", &set(&[COPIES]), &words);
}
