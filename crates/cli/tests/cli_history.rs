//! History of a run: its segments, the changes between them, and the configuration of each step.

mod common;

use std::fs;
use std::path::Path;

use common::{TestDir, code, files_below, stderr, train_args};
use serde_json::Value;

fn without_quiet<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = train_args(run, more);
    args.retain(|arg| *arg != "--quiet");
    args
}

/// Trains and returns standard error.
fn train_stderr(dir: &TestDir, run: &str, more: &[&str]) -> String {
    let output = dir.run(&without_quiet(run, more));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    stderr(&output)
}

fn bytes_below(folder: &Path) -> Vec<(String, Vec<u8>)> {
    files_below(folder)
        .into_iter()
        .map(|file| (file.display().to_string(), fs::read(&file).unwrap()))
        .collect()
}

fn segments(dir: &TestDir, run: &str) -> Vec<Value> {
    let text = dir.read(format!("{run}/segments.json"));
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_finished_run_keeps_its_own_validation_loss() {
    let dir = TestDir::new();
    let text =
        |word: &str| format!("{word} walked to the river and counted the boats. ").repeat(60);
    dir.write("held.txt", text("Ana"));
    let held = ["--set", r#"data.validation=["held.txt"]"#];
    dir.train("run", &held);
    let own = dir.metrics("run").pop().unwrap()["validation_loss"].clone();
    let resume = ["train", "tiny.toml", "--run", "run", "--resume", "--json"];
    let args = [&resume[..], &held].concat();
    let again = dir.run(&args);
    assert!(!stderr(&again).contains("keeping the validation loss"));
    dir.write("held.txt", text("Bela and Cai"));
    let other = dir.run(&args);
    let stderr = stderr(&other);
    assert!(stderr.contains("keeping the validation loss "), "{stderr}");
    for output in [again, other] {
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let loss = found["validation"]["loss"].as_f64().unwrap();
        assert!((loss - own.as_f64().unwrap()).abs() < 1e-6, "{found} {own}");
    }
}

#[test]
fn modified_segments_are_rejected() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=10"]);
    dir.train("run", &["--resume"]);
    let path = "run/segments.json";
    let whole = dir.read(path);
    let of = segments(&dir, "run");
    assert!(of.iter().all(|segment| segment["sha256"].is_string()));
    let report = ["report", "run", "--format", "json"];
    let before = dir.ok(&report);
    for bit in (3..8 * whole.len()).step_by(211) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        dir.write(path, bytes);
        let output = dir.run(&report);
        match code(&output) {
            0 => assert_eq!(
                String::from_utf8(output.stdout).unwrap(),
                before,
                "bit {bit}"
            ),
            _ => assert!(stderr(&output).contains("segments.json: "), "bit {bit}"),
        }
    }
    for index in 0..of.len() {
        let mut segments = of.clone();
        segments[index].as_object_mut().unwrap().remove("sha256");
        dir.write(path, Value::from(segments).to_string());
        dir.expect_error(1, &report, &["segments.json: an object lacks its checksum"]);
    }
}

#[test]
fn resuming_a_finished_run_writes_nothing() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "log.tensorboard=true"]);
    let before = bytes_below(&dir.path("run"));
    let same = ["--resume", "--set", "log.tensorboard=true"];
    let other = [
        &same[..],
        &["--set", "optimizer.lr=0.5", "--set", "log.layers_every=3"],
        &["--set", "train.keep_checkpoints=1"],
    ]
    .concat();
    let fewer = [&same[..], &["--set", "train.steps=7"]].concat();
    for (more, words) in [
        (&same[..], &["the run is finished: 20 steps"][..]),
        (
            &other[..],
            &[
                "the run is finished",
                "ignored: log.layers_every changed from 10 to 3",
                "ignored: optimizer.lr changed from 0.003 to 0.5",
            ][..],
        ),
        (&fewer[..], &["20 steps completed, train.steps = 7"][..]),
    ] {
        let stderr = train_stderr(&dir, "run", more);
        for word in words {
            assert!(stderr.contains(word), "no {word:?} in\n{stderr}");
        }
        assert!(!stderr.contains("from step"), "{stderr}");
        assert!(bytes_below(&dir.path("run")) == before, "{more:?}");
    }
}

#[test]
fn every_segment_is_recorded_and_old_steps_keep_their_configuration() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=10", "--threads", "2"]);
    let [one] = segments(&dir, "run").try_into().unwrap();
    assert_eq!(
        (&one["after_step"], &one["last_step"]),
        (&0.into(), &10.into())
    );
    assert_eq!(one["threads"], 2);
    for key in ["started", "machine", "version", "data"] {
        assert!(
            one[key].as_str().is_some_and(|text| !text.is_empty()),
            "{key}"
        );
    }
    let more = [
        "--resume",
        "--threads",
        "1",
        "--set",
        "optimizer.lr=1e-3",
        "--set",
        "schedule.kind=constant",
    ];
    let notes = train_stderr(&dir, "run", &more);
    for word in [
        "resuming after step 10",
        "from step 11 on: optimizer.lr changed from 0.003 to 0.001",
        "from step 11 on: schedule.kind changed from \"cosine\" to \"constant\"",
        "from step 11 on: train.steps changed from 10 to 20",
        "the learning rate at step 11 changes from 0.0003 to 0.001 because optimizer.lr changed",
    ] {
        assert!(notes.contains(word), "no {word:?} in\n{notes}");
    }
    let [_, two] = segments(&dir, "run").try_into().unwrap();
    assert_eq!(
        (&two["after_step"], &two["last_step"]),
        (&10.into(), &20.into())
    );
    assert_eq!(two["threads"], 1);
    let keys: Vec<&str> = two["changed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["optimizer.lr", "schedule.kind", "train.steps"]);
    for step in ["9", "17"] {
        let args = ["replay", "run", "--step", step, "--after", "0", "--json"];
        let replay = dir.json(&args);
        for pair in replay["steps"].as_array().unwrap() {
            for key in ["loss", "lr", "grad_norm", "update_norm"] {
                assert_eq!(pair["run"][key], pair["replay"][key], "{step} {key}");
            }
        }
    }
    // A replay across a segment boundary.
    let output = dir.run(&["replay", "run", "--step", "9", "--after", "5", "--out", "x"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[test]
fn resuming_from_an_earlier_checkpoint_truncates_the_history() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=10"]);
    dir.train("run", &["--resume", "--set", "optimizer.lr=1e-3"]);
    for step in ["15", "20"] {
        fs::remove_dir_all(dir.path(format!("run/checkpoints/step-000000{step}"))).unwrap();
    }
    let stderr = train_stderr(&dir, "run", &["--resume", "--set", "train.steps=12"]);
    assert!(
        stderr.contains("from step 11 on: train.steps changed from 10 to 12"),
        "{stderr}"
    );
    assert!(!stderr.contains("optimizer.lr"), "{stderr}");
    let [one, two] = segments(&dir, "run").try_into().unwrap();
    assert_eq!(one["last_step"], 10);
    assert_eq!(
        (&two["after_step"], &two["last_step"]),
        (&10.into(), &12.into())
    );
    assert_eq!(dir.reproducible_metrics("run").len(), 12);
}

#[test]
fn data_may_move_but_not_change() {
    let dir = TestDir::new();
    let text = |word: &str| format!("{word} one two three four five.\n").repeat(500);
    dir.write("a/text.txt", text("zero"));
    let at = |path: &str| format!("data.train=['{path}']");
    dir.train(
        "run",
        &["--set", &at("a/text.txt"), "--set", "train.steps=5"],
    );
    fs::create_dir(dir.path("b")).unwrap();
    fs::rename(dir.path("a/text.txt"), dir.path("b/moved.txt")).unwrap();
    let moved = at("b/moved.txt");
    let stderr = train_stderr(&dir, "run", &["--resume", "--set", &moved]);
    assert!(
        stderr.contains("from step 6 on: data.train changed from"),
        "{stderr}"
    );
    assert_eq!(dir.reproducible_metrics("run").len(), 20);
    // Old steps are replayed from the new path of the data.
    dir.ok(&["replay", "run", "--step", "3", "--after", "0"]);
    dir.write("b/moved.txt", text("null"));
    let more = ["--resume", "--set", &moved, "--set", "train.steps=30"];
    dir.train_fails(2, "run", &more, &["the training data differ from those of"]);
}

#[test]
fn resume_requires_a_run() {
    let dir = TestDir::new();
    dir.train_fails(
        2,
        "none",
        &["--resume"],
        &["a configuration or checkpoint to resume from in none is missing"],
    );
    assert!(!dir.path("none").exists());
    dir.write("notes/a.txt", "x");
    dir.train_fails(
        2,
        "notes",
        &["--resume"],
        &["a configuration or checkpoint to resume from in notes"],
    );
    assert_eq!(files_below(&dir.path("notes")).len(), 1);
}

#[test]
fn a_second_stage_may_have_longer_sequences() {
    let dir = TestDir::new();
    dir.train("first", &[]);
    let from = ["--set", "init.from=\"first\"", "--set", "train.seq_len=48"];
    let long = train_stderr(&dir, "second", &from);
    assert!(long.contains("exceeds max_seq_len = 16"), "{long}");
    let shown = dir.ok(&["inspect", "second"]);
    assert!(shown.contains("max sequence length 48"), "{shown}");
    let more = [&from[..], &["--resume", "--set", "train.steps=25"]].concat();
    dir.train("second", &more);
    assert_eq!(dir.reproducible_metrics("second").len(), 25);
    let given = [&from[..], &["--set", "model.max_seq_len=64"]].concat();
    dir.train("third", &given);
    assert!(
        dir.ok(&["inspect", "third"])
            .contains("max sequence length 64")
    );
    let other = [&from[..], &["--set", "model.d_ff=64"]].concat();
    dir.train_fails(
        2,
        "fourth",
        &other,
        &["[model] differs from the model in first"],
    );
    assert!(!dir.path("fourth").exists());
}
