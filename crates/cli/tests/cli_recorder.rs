//! Flight recorder: layers, spikes, dumps, replays, event files.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{TestDir, files_below, train_args};
use serde_json::Value;

#[test]
fn layer_logging_does_not_change_results() {
    let dir = TestDir::new();
    dir.train("with", &["--set", "log.layers_every=4"]);
    dir.train("without", &["--set", "log.layers_every=0"]);
    assert_eq!(
        dir.reproducible_metrics("with"),
        dir.reproducible_metrics("without")
    );
    let layers = dir.read_jsonl("with/layers.jsonl");
    let steps: Vec<u64> = layers
        .iter()
        .map(|row| row["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [4, 8, 12, 16, 20]);
    for (row, metrics) in layers
        .iter()
        .zip(dir.metrics("with").iter().skip(3).step_by(4))
    {
        let blocks = row["blocks"].as_array().unwrap();
        assert_eq!(blocks.len(), 2);
        let mut squares = 0.0;
        for part in blocks.iter().chain([&row["ends"]]) {
            let norms = part["grad_norm"].as_object().unwrap();
            squares += norms
                .values()
                .map(|norm| norm.as_f64().unwrap().powi(2))
                .sum::<f64>();
        }
        // The labels together cover all parameters.
        let whole = metrics["grad_norm"].as_f64().unwrap();
        assert!(
            (squares.sqrt() / whole - 1.0).abs() < 1e-5,
            "{squares} {whole}"
        );
        for block in blocks {
            let entropy = block["scores"]["entropy"].as_f64().unwrap();
            assert!(entropy > 0.0 && entropy < 16f64.ln(), "{entropy}");
            assert!(block["stream"]["max"].as_f64() >= block["stream"]["rms"].as_f64());
            assert!(block["gain_drift"].as_f64().unwrap() > 0.0);
        }
    }
    // Gains start at 1 and drift.
    let drift = |row: &Value| row["blocks"][1]["gain_drift"].as_f64().unwrap();
    assert!(drift(&layers[4]) > drift(&layers[0]));
    assert!(dir.read("without/layers.jsonl").is_empty());
}

#[test]
fn a_resumed_run_records_every_step_once() {
    let dir = TestDir::new();
    dir.train("whole", &["--set", "log.layers_every=2"]);
    dir.train(
        "parts",
        &[
            "--set",
            "log.layers_every=2",
            "--set",
            "train.steps=11",
            "--set",
            "schedule.kind=constant",
        ],
    );
    dir.train(
        "constant",
        &[
            "--set",
            "log.layers_every=2",
            "--set",
            "schedule.kind=constant",
        ],
    );
    dir.train(
        "parts",
        &[
            "--set",
            "log.layers_every=2",
            "--set",
            "schedule.kind=constant",
            "--resume",
        ],
    );
    assert_eq!(
        dir.read_jsonl("constant/layers.jsonl"),
        dir.read_jsonl("parts/layers.jsonl")
    );
    assert_ne!(
        dir.read_jsonl("constant/layers.jsonl"),
        dir.read_jsonl("whole/layers.jsonl")
    );
}

#[test]
fn non_finite_values_write_a_dump() {
    let dir = TestDir::new();
    let clip = "optimizer.clip_grad_norm=0";
    // Finite weights with a non-finite loss.
    let more = ["--set", "optimizer.lr=1e30", "--set", clip];
    dir.train_fails(
        1,
        "run",
        &more,
        &["step 2: loss NaN", "see run/flight/step-00000002.json"],
    );
    let dump: Value = serde_json::from_slice(&dir.read("run/flight/step-00000002.json")).unwrap();
    assert_eq!(dump["step"], 2);
    assert_eq!(dump["weights"], "before");
    assert_eq!(dump["loss"], Value::Null);
    assert_eq!(dump["instances"].as_array().unwrap().len(), 4);
    assert_eq!(dump["layers"]["blocks"].as_array().unwrap().len(), 2);
    assert!(dump["parameters"]["blocks.1.attention.qkv"].is_object());
    // Non-finite gradients of some parameters at the first step.
    let sharp = "model.placement={base=\"pre-norm\",block={attn_inner={attn_scale=1e30}}}";
    dir.train_fails(
        1,
        "sharp",
        &["--set", sharp],
        &[
            "step 1: loss",
            "gradient norm NaN",
            "sharp/flight/step-00000001.json",
        ],
    );
    // A non-finite update.
    let more = ["--set", "optimizer.lr=1e300", "--set", clip];
    dir.train_fails(
        1,
        "worse",
        &more,
        &[
            "step 1: loss",
            "update norm",
            "worse/flight/step-00000001.json",
        ],
    );
    let dump: Value = serde_json::from_slice(&dir.read("worse/flight/step-00000001.json")).unwrap();
    assert_eq!(dump["weights"], "after");
    assert!(
        dump["loss"].is_f64() && dump["update_norm"].is_null(),
        "{dump}"
    );
    assert!(dir.read("worse/metrics.jsonl").is_empty());
}

/// Trains a run whose weights jump right after a checkpoint, which causes spikes.
fn train_with_spikes(dir: &TestDir, run: &str) {
    let calm = [
        "--set",
        "schedule.kind=constant",
        "--set",
        "train.keep_checkpoints=9",
    ];
    let mut first = calm.to_vec();
    first.extend(["--set", "train.steps=60"]);
    dir.train(run, &first);
    let mut second = calm.to_vec();
    second.extend([
        "--set",
        "train.steps=63",
        "--set",
        "optimizer.lr=0.3",
        "--resume",
    ]);
    dir.train(run, &second);
}

#[test]
fn spikes_are_counted_and_write_a_dump() {
    let dir = TestDir::new();
    train_with_spikes(&dir, "run");
    let dumps = files_below(&dir.path("run/flight"));
    assert!(!dumps.is_empty());
    let dump: Value = serde_json::from_slice(&fs::read(&dumps[0]).unwrap()).unwrap();
    assert_eq!(dump["step"], 61);
    assert_eq!(dump["weights"], "after");
    assert_eq!(dump["kind"], "spike");
    let reasons = dump["reasons"].to_string();
    assert!(reasons.contains("update norm"), "{reasons}");
    assert!(reasons.contains("standard deviations above"), "{reasons}");
    // Earlier spikes are restored from the checkpoint.
    let again = dir.json(&train_args(
        "run",
        &[
            "--set",
            "train.steps=63",
            "--set",
            "schedule.kind=constant",
            "--set",
            "optimizer.lr=0.3",
            "--set",
            "train.keep_checkpoints=9",
            "--resume",
            "--json",
        ],
    ));
    assert!(
        again["spikes"]["update_norm"].as_u64().unwrap() >= 1,
        "{again}"
    );
    assert_eq!(
        again["spike_scores"]["update_norm"],
        again["spikes"]["update_norm"].as_f64().unwrap() / 128.0
    );
}

#[test]
fn replays_are_bit_identical_unless_changed() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let replay = |more: &[&str]| {
        let mut args = vec![
            "replay", "run", "--step", "13", "--after", "4", "--json", "--quiet",
        ];
        args.extend(more);
        dir.json(&args)
    };
    let same = replay(&[]);
    assert_eq!(same["from"], 10);
    let steps = same["steps"].as_array().unwrap();
    assert_eq!(
        steps
            .iter()
            .map(|pair| pair["step"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        (11..=17).collect::<Vec<_>>()
    );
    for pair in steps {
        for key in [
            "loss",
            "grad_norm",
            "update_norm",
            "lr",
            "tokens",
            "validation_loss",
        ] {
            assert_eq!(
                pair["run"][key], pair["replay"][key],
                "{key} at {}",
                pair["step"]
            );
        }
    }
    assert_eq!(dir.read_jsonl("run-replay-13/layers.jsonl").len(), 7);
    let slower = replay(&["--set", "optimizer.lr=1e-5", "--out", "slower"]);
    let first = &slower["steps"][0];
    assert_eq!(first["run"]["loss"], first["replay"]["loss"]);
    assert_ne!(first["run"]["update_norm"], first["replay"]["update_norm"]);
    let other = replay(&["--placement", "pre-norm", "--out", "other"]);
    assert_eq!(other["changed"][0], "model.placement=\"pre-norm\"");
    assert_ne!(
        other["steps"][0]["run"]["loss"],
        other["steps"][0]["replay"]["loss"]
    );
    let new = other["new_parameters"].to_string();
    assert!(new.contains("blocks.1.attn.in_norm.gain"), "{new}");
    // A replay is an ordinary run.
    dir.ok(&["eval", "other", "--data", "stories:5", "--quiet"]);
}

#[test]
fn invalid_replays_are_rejected() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.expect_error(
        2,
        &["replay", "run", "--step", "40"],
        &["run: step = 40, expected 1 to 21"],
    );
    dir.ok(&["replay", "run", "--step", "13", "--quiet"]);
    dir.expect_error(
        2,
        &["replay", "run", "--step", "13"],
        &["run-replay-13 already contains a run; choose another directory"],
    );
    dir.expect_error(
        2,
        &[
            "replay",
            "run",
            "--step",
            "13",
            "--placement",
            "pre",
            "--out",
            "x",
        ],
        &["unknown placement"],
    );
    for key in ["seed=9", "train.seq_len=8", "data.order=\"sequential\""] {
        let args = ["replay", "run", "--step", "13", "--out", "x", "--set", key];
        dir.expect_error(2, &args, &["determines the batches"]);
    }
    let short = [
        "replay",
        "run",
        "--step",
        "13",
        "--out",
        "x",
        "--set",
        "train.steps=12",
    ];
    dir.expect_error(2, &short, &["train.steps = 12 ends before step 13"]);
    assert!(!dir.path("x").exists());
}

#[test]
fn a_failed_run_is_replayed_from_its_last_checkpoint() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=10"]);
    let more = [
        "--set",
        "optimizer.lr=1e300",
        "--set",
        "optimizer.clip_grad_norm=0",
        "--set",
        "train.steps=20",
        "--resume",
    ];
    dir.train_fails(1, "run", &more, &["update norm"]);
    let replay = dir.json(&[
        "replay",
        "run",
        "--step",
        "11",
        "--after",
        "2",
        "--json",
        "--quiet",
        "--set",
        "optimizer.lr=1e-3",
    ]);
    assert_eq!(replay["ended"], Value::Null);
    assert_eq!(replay["steps"].as_array().unwrap().len(), 3);
}

#[test]
fn event_files_are_written_only_on_request() {
    let dir = TestDir::new();
    dir.train("without", &[]);
    dir.train("with", &["--set", "log.tensorboard=true"]);
    let events = |run: &str| {
        let files = files_below(&dir.path(run));
        files
            .iter()
            .filter(|file| file.to_string_lossy().contains("tfevents"))
            .count()
    };
    assert_eq!((events("without"), events("with")), (0, 1));
}

/// Reads the event files of an interrupted and resumed run with the `tensorboard` package, which the interpreter in
/// `TENSORBOARD_PYTHON` has.
#[test]
#[ignore = "needs Python with the tensorboard package"]
fn tensorboard_reads_every_step_once() {
    let dir = TestDir::new();
    let python = std::env::var("TENSORBOARD_PYTHON").unwrap_or_else(|_| "python3".into());
    let events = [
        "--set",
        "log.tensorboard=true",
        "--set",
        "schedule.kind=constant",
    ];
    let mut first = events.to_vec();
    first.extend(["--set", "train.steps=13"]);
    dir.train("run", &first);
    fs::remove_dir_all(dir.path("run/checkpoints/step-00000013")).unwrap();
    let mut second = events.to_vec();
    second.push("--resume");
    dir.train("run", &second);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard_scalars.py");
    let output = Command::new(python)
        .arg(script)
        .arg(dir.path("run"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let metrics = dir.metrics("run");
    for (tag, key) in [
        ("train/loss", "loss"),
        ("train/update_norm", "update_norm"),
        ("train/lr", "lr"),
    ] {
        let points = read[tag].as_array().unwrap();
        assert_eq!(points.len(), 20, "{tag}");
        for (point, row) in points.iter().zip(&metrics) {
            assert_eq!(point[0], row["step"]);
            let (found, written) = (point[1].as_f64().unwrap(), row[key].as_f64().unwrap());
            assert!(
                (found - written).abs() <= 1e-6 * written.abs(),
                "{tag}: {found} {written}"
            );
        }
    }
    assert_eq!(read["validation/loss"].as_array().unwrap().len(), 2);
    assert_eq!(read["blocks/grad_norm/01"].as_array().unwrap().len(), 2);
}
