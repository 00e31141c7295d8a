//! Reports distinguish runs by their initial weights and validation data, not by paths.

mod common;

use std::fs;

use common::{TestDir, copy_folder, stderr, train_args};
use serde_json::Value;

/// Like `tiny.toml`, with the model of a checkpoint.
const FROM: &str = r#"
[init]
from = "first"
[data]
train = ["stories:60"]
tokenizer = "bytes"
[train]
steps = 6
batch_size = 4
seq_len = 16
eval_sequences = 0
"#;

fn report(dir: &TestDir, runs: &[&str]) -> Value {
    dir.json(&[&["report", "--format", "json"], runs].concat())
}

fn markdown(dir: &TestDir, runs: &[&str]) -> String {
    dir.ok(&[&["report", "--format", "markdown"], runs].concat())
}

fn labels(document: &Value) -> Vec<String> {
    let runs = document["runs"].as_array().unwrap();
    (runs.iter())
        .map(|run| run["directory"]["label"].as_str().unwrap().to_owned())
        .collect()
}

fn sets(document: &Value) -> Vec<u64> {
    let runs = document["runs"].as_array().unwrap();
    (runs.iter())
        .map(|run| run["directory"]["set"].as_u64().unwrap())
        .collect()
}

fn is_averaged(text: &str) -> bool {
    let mut after = text.split("± ").skip(1);
    after.any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Removes a key from the segments, as if written by a version that did not record it.
fn remove_segment_key(dir: &TestDir, run: &str, key: &str) {
    let path = format!("{run}/segments.json");
    let mut segments: Value = serde_json::from_slice(&dir.read(&path)).unwrap();
    for segment in segments.as_array_mut().unwrap() {
        let segment = segment.as_object_mut().unwrap();
        segment.remove(key);
        segment.remove("sha256");
    }
    dir.write(&path, segments.to_string());
}

#[test]
fn runs_with_different_initial_weights_are_not_seeds_of_one_another() {
    let dir = TestDir::new();
    dir.write("from.toml", FROM);
    let train = |run: &str, seed: &str, more: &[&str]| {
        let seed = format!("seed={seed}");
        let args = [
            "train",
            "from.toml",
            "--quiet",
            "--run",
            run,
            "--set",
            &seed,
        ];
        dir.ok(&[&args[..], more].concat());
    };
    dir.train("first", &[]);
    train("a", "3", &[]);
    dir.train("first", &["--resume", "--set", "train.steps=30"]);
    train("b", "9", &[]);
    let document = report(&dir, &["a", "b"]);
    let found = labels(&document);
    assert_ne!(found[0], found[1]);
    for label in &found {
        assert!(label.starts_with("hybridnorm-star, weights "), "{label}");
    }
    assert!(!is_averaged(&markdown(&dir, &["a", "b"])));
    // Equal weights under another path are the same.
    copy_folder(&dir.path("first"), &dir.path("copy"));
    train("c", "10", &["--set", "init.from=\"copy\""]);
    let document = report(&dir, &["b", "c"]);
    assert_eq!(labels(&document), ["hybridnorm-star", "hybridnorm-star"]);
    assert!(is_averaged(&markdown(&dir, &["b", "c"])));
    // A replay's checkpoint counts as initial weights, too.
    dir.ok(&[
        "replay", "first", "--step", "28", "--quiet", "--out", "late",
    ]);
    dir.ok(&[
        "replay", "first", "--step", "23", "--quiet", "--out", "early",
    ]);
    let found = labels(&report(&dir, &["late", "early"]));
    assert!(
        found[0].contains("after step 25") && found[1].contains("after step 20"),
        "{found:?}"
    );
    // Of older runs only the path is known.
    for run in ["a", "b"] {
        remove_segment_key(&dir, run, "weights");
    }
    let text = markdown(&dir, &["a", "b"]);
    for run in ["(seed 3, a)", "(seed 9, b)"] {
        let line = format!("{run}: the content of the initial weights first was not recorded");
        assert!(text.contains(&line), "{text}");
    }
    remove_segment_key(&dir, "c", "weights");
    assert!(labels(&report(&dir, &["a", "c"]))[1].contains("from copy"));
}

#[test]
fn a_run_resumes_without_its_initial_checkpoint() {
    let dir = TestDir::new();
    dir.write("from.toml", FROM);
    dir.train("first", &[]);
    let run = |more: &[&str]| {
        let args = ["train", "from.toml", "--quiet", "--run", "a"];
        dir.run(&[&args[..], more].concat())
    };
    assert!(run(&[]).status.success());
    copy_folder(&dir.path("first"), &dir.path("moved"));
    dir.train("other", &["--set", "seed=9"]);
    fs::remove_dir_all(dir.path("first")).unwrap();
    let longer = ["--resume", "--set", "train.steps=8"];
    let output = run(&longer);
    assert!(output.status.success(), "{}", stderr(&output));
    let from = |path: &str, steps: &str| {
        let from = format!("init.from=\"{path}\"");
        let steps = format!("train.steps={steps}");
        run(&["--resume", "--set", &steps, "--set", &from])
    };
    let output = from("moved", "9");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(dir.column("a", "step").len(), 9);
    let stderr = stderr(&from("other", "10"));
    assert!(
        stderr.contains(r#"init.from changed from "moved" to "other""#),
        "{stderr}"
    );
    let replay = ["replay", "a", "--step", "9", "--quiet"];
    dir.ok(&replay);
}

#[test]
fn runs_with_different_validation_data_are_reported_separately() {
    let dir = TestDir::new();
    let text =
        |word: &str| format!("{word} walked to the river and counted the boats. ").repeat(60);
    let train = |run: &str, seed: &str, folder: &str| {
        let (seed, data) = (
            format!("seed={seed}"),
            format!("data.validation=[\"{folder}\"]"),
        );
        dir.train(run, &["--set", &seed, "--set", &data]);
    };
    dir.write("held/a.txt", text("Ana"));
    train("a", "1", "held");
    dir.write("held/a.txt", text("Bela"));
    train("b", "2", "held");
    dir.write("there/a.txt", text("Bela"));
    train("c", "3", "there");
    let runs = ["a", "b", "c"];
    // The current content of the folder does not matter.
    fs::remove_dir_all(dir.path("held")).unwrap();
    let document = report(&dir, &runs);
    assert_eq!(sets(&document), [0, 1, 1]);
    let text = markdown(&dir, &runs);
    assert!(text.contains("validation data held ("), "{text}");
    assert!(is_averaged(&markdown(&dir, &["b", "c"])));
    assert!(!is_averaged(&markdown(&dir, &["a", "b"])));
    // Of older runs the validation data are unknown.
    for run in ["a", "b"] {
        remove_segment_key(&dir, run, "validation");
    }
    let document = report(&dir, &runs);
    assert_eq!(sets(&document), [0, 0, 1]);
    let text = markdown(&dir, &runs);
    assert!(
        text.contains("validation data held (not recorded)"),
        "{text}"
    );
    assert!(
        text.contains("the content of the validation data held was not recorded"),
        "{text}"
    );
}

#[test]
fn validation_data_are_identified_by_content() {
    let dir = TestDir::new();
    dir.prepare("stories:80", "bytes", "here");
    copy_folder(&dir.path("here"), &dir.path("moved/there"));
    for (run, folder, seed) in [("a", "here", "1"), ("b", "moved/there", "2")] {
        let data = format!("data.train=[\"{folder}\"]");
        let seed = format!("seed={seed}");
        dir.train(run, &["--set", &data, "--set", &seed]);
    }
    assert_eq!(sets(&report(&dir, &["a", "b"])), [0, 0]);
    assert!(is_averaged(&markdown(&dir, &["a", "b"])));
    // Without validation data there is nothing to compare.
    dir.write("words.u16", [7_u8, 0].repeat(4000));
    let pretokenized = [
        "--set",
        "data.train=[\"words.u16\"]",
        "--set",
        "train.eval_every=0",
    ];
    dir.train("c", &pretokenized);
    let document = report(&dir, &["a", "c"]);
    assert_eq!(document["sets"][1]["validation"], "none");
    assert!(
        document["sets"][1]["name"]
            .as_str()
            .unwrap()
            .contains("no validation data")
    );
}

#[test]
fn changed_validation_data_are_reported() {
    let dir = TestDir::new();
    for (path, word) in [("v.txt", "north"), ("w.txt", "south")] {
        dir.write(
            path,
            format!("the wind came from the {word} that day. ").repeat(60),
        );
    }
    dir.train("run", &["--set", "data.validation=[\"v.txt\"]"]);
    // Other data under the same path.
    dir.write("v.txt", dir.read("w.txt"));
    let more = ["--resume", "--set", "train.steps=30", "--set"];
    let more = [&more[..], &["data.validation=[\"v.txt\"]"]].concat();
    let mut args = train_args("run", &more);
    args.retain(|arg| *arg != "--quiet");
    let stderr = stderr(&dir.run(&args));
    for words in [
        "the validation data changed",
        "validation losses from step 21 on",
    ] {
        assert!(stderr.contains(words), "{stderr}");
    }
    let text = markdown(&dir, &["run"]);
    assert!(
        text.contains(
            "the validation data changed after step 20; its validation losses before and after"
        ),
        "{text}"
    );
    // A replay across the change reports that it used other validation data.
    let args = ["replay", "run", "--step", "14", "--after", "0"];
    let stdout = dir.ok(&[&args[..], &["--quiet"]].concat());
    assert!(
        stdout.contains("(first differing metric: validation loss)"),
        "{stdout}"
    );
    assert!(stdout.contains("different validation data"), "{stdout}");
}
