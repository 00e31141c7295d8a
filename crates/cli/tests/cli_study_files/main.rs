//! Files of a study: states left by kills, forged and damaged records, several processes in one folder.

#[path = "../common/mod.rs"]
mod common;
mod kills;
mod records;
mod sharing;

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use common::{TestDir, code, copy_folder, files_below, stderr, update_checksum};
use serde_json::Value;

const STUDY: &str = r#"
[study]
placements = ["pre-norm", "sandwich"]
lr = [1e-3, 2e-3]
seeds = [5]
keep_runs = true
[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
[data]
train = ["data"]
[train]
steps = 6
batch_size = 4
seq_len = 16
eval_sequences = 4
checkpoint_every = 3
"#;

fn test_dir() -> TestDir {
    let dir = TestDir::new();
    dir.write("study.toml", STUDY);
    dir.prepare("stories:60", "bytes", "data");
    dir
}

/// Arguments of the study in the folder `out`.
fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    args_into("out", more)
}

fn args_into<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["--threads", "1", "--quiet", "study", "study.toml", "--out"];
    [&base[..], &[out], more].concat()
}

fn names(dir: &TestDir, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(dir.path(folder)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn record(dir: &TestDir, out: &str, id: &str) -> Value {
    let mut value: Value =
        serde_json::from_slice(&dir.read(format!("{out}/runs/{id}.json"))).unwrap();
    let object = value.as_object_mut().unwrap();
    object.remove("cost");
    object.remove("sha256").expect("a checksum");
    value
}

fn move_to(dir: &TestDir, from: &str, to: &str) {
    fs::rename(dir.path(from), dir.path(to)).unwrap();
}

/// Reads every file of a run.
fn run_files(dir: &TestDir, run: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let root = dir.path(run);
    files_below(&root)
        .into_iter()
        .map(|file| {
            (
                file.strip_prefix(&root).unwrap().to_path_buf(),
                fs::read(file).unwrap(),
            )
        })
        .collect()
}

#[test]
fn keep_runs_can_be_changed() {
    let dir = test_dir();
    dir.ok(&args(&["--set", "study.keep_runs=false"]));
    assert_eq!(
        names(&dir, "out"),
        ["history.json", "lock", "runs", "study.toml", "work"]
    );
    assert!(names(&dir, "out/work").is_empty());
    let id = names(&dir, "out/runs")[0]
        .trim_end_matches(".json")
        .to_owned();
    // An incomplete run with a record is not a kept run.
    dir.write(&format!("out/work/{id}/checkpoints/x"), "y");
    let output = dir.run(&[
        "study",
        "study.toml",
        "--out",
        "out",
        "--resume",
        "--threads",
        "1",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("holds 0 of the 6 steps"),
        "{}",
        stderr(&output)
    );
    assert!(dir.path(format!("out/work/{id}/checkpoints/x")).exists());
    dir.ok(&args(&["--resume", "--set", "study.keep_runs=false"]));
    assert!(names(&dir, "out/work").is_empty());
}
