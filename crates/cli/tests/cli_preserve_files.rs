//! Existing user files are not lost.

mod common;

use std::fs;

use common::{Damage, TestDir, damage, files_below, train_args, write_official_checkpoint};

#[test]
fn imports_do_not_overwrite_existing_folders() {
    let dir = TestDir::new();
    write_official_checkpoint(&dir, "theirs");
    dir.write("thesis/chapter.txt", "mine");
    dir.train("run", &[]);
    for (out, named) in [("thesis", "thesis"), ("run", "run"), ("theirs", "theirs")] {
        let before = files_below(&dir.path("."));
        dir.expect_error(
            2,
            &["import", "theirs", "--out", out],
            &[named, "already exists"],
        );
        assert_eq!(before, files_below(&dir.path(".")));
    }
    dir.ok(&["import", "theirs", "--out", "theirs/imported"]);
}

#[test]
fn prepared_data_are_replaced_only_when_complete() {
    let dir = TestDir::new();
    dir.prepare("stories:60", "bytes", "p");
    let before = dir.read("p/train-00000.bin");
    dir.write("bad.txt", b"fine\n\xff\n");
    let again = [
        "data",
        "prepare",
        "bad.txt",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
        "--overwrite",
    ];
    dir.expect_error(1, &again, &["bad.txt", "UTF-8"]);
    dir.ok(&["data", "inspect", "p"]);
    assert!(before == dir.read("p/train-00000.bin"));
    assert!(!dir.path("p.partial").exists());
    let mut good = again;
    good[2] = "stories:70";
    dir.ok(&good);
    assert!(before != dir.read("p/train-00000.bin"));
    // A `tokenizer.json` of another program is not mistaken for prepared data.
    dir.write("theirs/tokenizer.json", "{}");
    good[6] = "theirs";
    dir.expect_error(2, &good, &["theirs: contains other files"]);
    assert_eq!(dir.read("theirs/tokenizer.json"), b"{}");
}

#[test]
fn unrelated_files_in_a_run_directory_are_preserved() {
    let dir = TestDir::new();
    let config = String::from_utf8(dir.read("tiny.toml")).unwrap();
    dir.write("a/config.toml", format!("# mine\n{config}"));
    dir.expect_error(
        2,
        &["train", "a/config.toml", "--run", "a"],
        &["config.toml", "another directory"],
    );
    dir.ok(&[
        "train",
        "a/config.toml",
        "--run",
        "a",
        "--resume",
        "--quiet",
    ]);
    assert!(dir.read("a/config.toml").starts_with(b"# mine"));
    dir.write("b/metrics.jsonl", "{\"mine\":1}\n{\"mine\":2}\n");
    dir.train_fails(2, "b", &[], &["metrics.jsonl"]);
    dir.train_fails(
        2,
        "b",
        &["--resume"],
        &["a configuration or checkpoint to resume from in b"],
    );
    assert_eq!(dir.read("b/metrics.jsonl"), b"{\"mine\":1}\n{\"mine\":2}\n");
    assert!(!dir.path("b/config.toml").exists());
    dir.write("c/lock", "mine");
    dir.train("c", &[]);
    assert_eq!(dir.read("c/lock"), b"mine");
}

#[test]
fn a_run_without_its_directory_stops_at_its_next_checkpoint() {
    let dir = TestDir::new();
    let more = [
        "--set",
        "train.steps=1000000",
        "--set",
        "train.checkpoint_every=50",
    ];
    let child = dir.start(&train_args("run", &more));
    common::wait_until("a checkpoint", || {
        !dir.checkpoints_or_none("run").is_empty()
    });
    fs::rename(dir.path("run"), dir.path("moved")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(common::code(&output), 1);
    let stderr = common::stderr(&output);
    assert!(
        stderr.starts_with("error: run") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(!dir.path("run").exists());
    dir.train("moved", &["--resume", "--set", "train.steps=50"]);
}

#[test]
fn a_damaged_cache_is_rebuilt() {
    let dir = TestDir::new();
    dir.train("one", &[]);
    for how in [Damage::FlippedBit, Damage::Truncated, Damage::Deleted] {
        for name in ["manifest.json", "train-00000.bin"] {
            let cached = files_below(&dir.path("cache"));
            let file = cached.iter().find(|file| file.ends_with(name)).unwrap();
            damage(file, how);
            let run = format!("{how:?} {name}");
            dir.train(&run, &[]);
            assert_eq!(
                dir.reproducible_metrics("one"),
                dir.reproducible_metrics(&run)
            );
        }
    }
}

#[test]
fn commands_without_a_cache_work_without_a_home_directory() {
    let dir = TestDir::new();
    dir.prepare("stories:60", "bytes", "p");
    let run = |args: &[&str]| {
        let mut command = dir.command(args);
        command.env_remove("HOME").env_remove("XDG_CACHE_HOME");
        command.output().unwrap()
    };
    let output = run(&train_args("run", &["--set", "data.train=['p']"]));
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
    let output = run(&["eval", "run", "--data", "p", "--json"]);
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
    let output = run(&train_args("text", &[]));
    assert_eq!(common::code(&output), 2);
    assert!(common::stderr(&output).contains("set XDG_CACHE_HOME or HOME"));
}
