//! Replays follow the history of a run and report whether its numbers are reproduced.

mod common;

use std::fs;

use common::TestDir;
use serde_json::{Value, json};

/// Trains a run of three segments: the second has more steps, the third another learning rate, batch size and weight
/// decay. Of the first two only the metrics remain.
fn changed_run(dir: &TestDir) {
    let kept = ["--set", "train.keep_checkpoints=1"];
    dir.train("run", &kept);
    // Logging options do not matter.
    let longer = [
        "--resume",
        "--set",
        "train.steps=30",
        "--set",
        "log.layers_every=7",
    ];
    dir.train("run", &[&kept[..], &longer].concat());
    let other = [
        "--resume",
        "--set",
        "train.steps=40",
        "--set",
        "optimizer.lr=1e-3",
        "--set",
        "train.batch_size=6",
        "--set",
        "optimizer.weight_decay=0.3",
    ];
    dir.train("run", &[&kept[..], &other].concat());
    assert_eq!(dir.checkpoints("run"), ["step-00000040"]);
}

fn boundaries(replay: &Value) -> Vec<(u64, Vec<&str>)> {
    let followed = replay["followed"].as_array().unwrap();
    let keys = |one: &Value| -> Vec<u64> { vec![one["after_step"].as_u64().unwrap()] };
    (followed.iter())
        .map(|one| {
            let changed = one["changed"].as_array().unwrap();
            let names = changed.iter().map(|change| change["key"].as_str().unwrap());
            (keys(one)[0], names.collect())
        })
        .collect()
}

fn assert_steps_are_bit_identical(replay: &Value) {
    for pair in replay["steps"].as_array().unwrap() {
        for key in [
            "loss",
            "lr",
            "grad_norm",
            "update_norm",
            "tokens",
            "validation_loss",
        ] {
            assert_eq!(
                pair["run"][key], pair["replay"][key],
                "{} {key}",
                pair["step"]
            );
        }
    }
}

#[test]
fn replays_across_segments_are_bit_identical() {
    let dir = TestDir::new();
    changed_run(&dir);
    let args = ["replay", "run", "--step", "34", "--after", "3"];
    let replay = dir.json(&[&args[..], &["--json"]].concat());
    assert_eq!(replay["from"], 0);
    assert_eq!(replay["changed"], json!([]));
    assert_eq!(
        boundaries(&replay),
        [
            (20, vec!["train.steps"]),
            (
                30,
                vec![
                    "optimizer.lr",
                    "optimizer.weight_decay",
                    "train.batch_size",
                    "train.steps"
                ]
            ),
        ]
    );
    assert_eq!(
        replay["comparison"],
        json!({"steps": 37, "first_difference": null, "other_conditions": []})
    );
    assert_steps_are_bit_identical(&replay);
    // The replay's own history agrees.
    assert_eq!(
        dir.reproducible_metrics("run-replay-34"),
        dir.reproducible_metrics("run")[..37]
    );
    let segments: Value = serde_json::from_slice(&dir.read("run-replay-34/segments.json")).unwrap();
    let after = |at: usize| segments[at]["after_step"].as_u64().unwrap();
    assert_eq!([after(0), after(1), after(2)], [0, 20, 30]);
    let text = dir.ok(&[&args[..], &["--out", "again"]].concat());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "replayed from step 0 with no changes; configuration change of the run after step 20: train.steps changed \
         from 20 to 30; configuration change of the run after step 30: optimizer.lr changed from 0.003 to 0.001, \
         optimizer.weight_decay changed from 0.1 to 0.3, train.batch_size changed from 4 to 6, train.steps changed \
         from 30 to 40"
    );
    assert_eq!(lines[1], "bit-identical to the run at all 37 common steps");
}

#[test]
fn replay_changes_override_the_configuration_of_every_segment() {
    let dir = TestDir::new();
    changed_run(&dir);
    let args = [
        "replay",
        "run",
        "--step",
        "33",
        "--after",
        "0",
        "--json",
        "--set",
        "optimizer.weight_decay=0.2",
        "--set",
        "log.dumps=3",
    ];
    let replay = dir.json(&args);
    assert_eq!(boundaries(&replay)[1].0, 30);
    assert!(!boundaries(&replay)[1].1.contains(&"optimizer.weight_decay"));
    assert_eq!(
        replay["comparison"]["first_difference"],
        json!({"step": 1, "quantity": "update norm"})
    );
    // Fewer steps than the step to replay.
    let short = ["--set", "train.steps=25", "--out", "short"];
    dir.expect_error(
        2,
        &[&args[..7], &short].concat(),
        &["train.steps = 25 ends before step 33"],
    );
    assert!(!dir.path("short").exists());
}

#[test]
fn different_results_are_never_reported_as_identical() {
    let dir = TestDir::new();
    changed_run(&dir);
    // As written by a version that recorded no history.
    fs::remove_file(dir.path("run/segments.json")).unwrap();
    let args = ["replay", "run", "--step", "12", "--after", "0"];
    let text = dir.ok(&args);
    assert!(
        text.contains(
            "differs from the run from step 1 on (first differing metric: learning rate)"
        ),
        "{text}"
    );
    assert!(
        text.contains("the configuration of steps 1 to 12 was not recorded"),
        "{text}"
    );
    let replay = dir.json(&[&args[..], &["--json", "--out", "again"]].concat());
    assert_eq!(replay["comparison"]["first_difference"]["step"], 1);
}

#[test]
fn replays_start_from_the_initial_weights_of_the_run() {
    let dir = TestDir::new();
    dir.train("first", &[]);
    let from = ["--set", "init.from=\"first\""];
    let rare = ["--set", "train.checkpoint_every=0"];
    dir.train("second", &[&from[..], &rare].concat());
    let args = [
        "replay", "second", "--step", "4", "--after", "0", "--json", "--quiet",
    ];
    let replay = dir.json(&args);
    assert_eq!(replay["comparison"]["first_difference"], Value::Null);
    dir.train("first", &["--resume", "--set", "train.steps=25"]);
    let again = [&args[..], &["--out", "again"]].concat();
    dir.expect_error(
        2,
        &again,
        &["have changed since the run started", "SHA-256"],
    );
    assert!(!dir.path("again").exists());
    // Explicitly given initial weights count as a change.
    dir.train("third", &["--set", "seed=8"]);
    let other = [&again[..], &["--set", "init.from=\"third\""]].concat();
    let replay = dir.json(&other);
    assert_eq!(
        replay["comparison"]["first_difference"],
        json!({"step": 1, "quantity": "loss"})
    );
    dir.train(
        "second",
        &[&from[..], &["--resume", "--set", "train.steps=25"]].concat(),
    );
    let late = [
        "replay", "second", "--step", "22", "--out", "late", "--quiet",
    ];
    dir.expect_error(
        2,
        &[&late[..], &["--set", "init.from=\"third\""]].concat(),
        &["init.from has no effect", "step 20"],
    );
}

#[test]
fn a_constant_learning_rate_is_not_attributed_to_the_number_of_steps() {
    let dir = TestDir::new();
    let flat = ["--set", "schedule.kind=constant"];
    dir.train("run", &flat);
    let mut args = common::train_args("run", &flat);
    args.retain(|arg| *arg != "--quiet");
    args.extend([
        "--resume",
        "--set",
        "optimizer.lr=1e-3",
        "--set",
        "train.steps=24",
    ]);
    let stderr = common::stderr(&dir.run(&args));
    let line = stderr
        .lines()
        .find(|line| line.contains("the learning rate at step 21"));
    let line = line.unwrap_or_else(|| panic!("{stderr}"));
    assert!(
        line.ends_with("because optimizer.lr changed from 0.003 to 0.001"),
        "{line}"
    );
}
