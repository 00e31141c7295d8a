//! Run directories: existing files are kept, nothing is left behind, and killed commands can be started again.

mod common;

use std::fs;

use common::{TestDir, code, files_below, signal, stderr, train_args, wait_until};

#[test]
fn a_run_that_cannot_start_writes_nothing() {
    let dir = TestDir::new();
    let bad = ["--set", "data.train=['no such file.txt']"];
    let args = train_args("deep/er/run", &bad);
    assert_ne!(code(&dir.run(&args)), 0);
    assert!(!dir.path("deep").exists());
    dir.write("mine/notes.txt", "x");
    assert_ne!(code(&dir.run(&train_args("mine", &bad))), 0);
    assert_eq!(files_below(&dir.path("mine")).len(), 1);
    assert!(!dir.path("mine/checkpoints").exists());
}

#[test]
fn a_run_killed_before_its_first_step_is_restarted_by_the_same_command() {
    let dir = TestDir::new();
    dir.train("whole", &[]);
    // The state after a kill, for each of the files written before the first step.
    let files = ["lock", "segments.json", "config.toml", "metrics.jsonl"];
    for count in 0..=files.len() {
        let run = format!("killed-{count}");
        fs::create_dir_all(dir.path(format!("{run}/checkpoints"))).unwrap();
        for name in &files[..count] {
            let content = match *name {
                "lock" | "metrics.jsonl" => Vec::new(),
                name => dir.read(format!("whole/{name}")),
            };
            dir.write(&format!("{run}/{name}"), content);
        }
        dir.train(&run, &[]);
        assert_eq!(
            dir.reproducible_metrics(&run),
            dir.reproducible_metrics("whole")
        );
    }
    // A user's own configuration is not mistaken for it.
    dir.write("own/config.toml", "seed = 1\n");
    dir.train_fails(2, "own", &[], &["own already contains config.toml"]);
    assert_eq!(dir.read("own/config.toml"), b"seed = 1\n");
    // Metrics, which were expensive to compute, are not overwritten either.
    fs::create_dir(dir.path("rows")).unwrap();
    for name in ["metrics.jsonl", "config.toml", "segments.json"] {
        fs::copy(
            dir.path(format!("whole/{name}")),
            dir.path(format!("rows/{name}")),
        )
        .unwrap();
    }
    dir.train_fails(2, "rows", &[], &["resume the run to restart it"]);
    dir.train("rows", &["--resume"]);
    assert_eq!(
        dir.reproducible_metrics("rows"),
        dir.reproducible_metrics("whole")
    );
}

#[test]
fn of_two_concurrent_runs_one_succeeds() {
    let dir = TestDir::new();
    dir.train("whole", &[]);
    for round in 0..8 {
        let run = format!("run-{round}");
        let args = train_args(&run, &[]);
        let children = [(); 3].map(|()| dir.start(&args));
        let outputs = children.map(|child| child.wait_with_output().unwrap());
        let won = outputs.iter().filter(|output| code(output) == 0).count();
        assert_eq!(won, 1);
        for output in outputs.iter().filter(|output| code(output) != 0) {
            let stderr = stderr(output);
            let expected = ["another process is training here", "already contains "];
            assert!(
                expected.iter().any(|word| stderr.contains(word)),
                "{stderr}"
            );
        }
        assert_eq!(
            dir.reproducible_metrics(&run),
            dir.reproducible_metrics("whole")
        );
    }
}

#[test]
fn a_killed_replay_is_restarted_by_the_same_command() {
    let dir = TestDir::new();
    // Long enough for a signal to arrive before the end, even on a busy machine.
    let slow = [
        "--set",
        "train.batch_size=1024",
        "--set",
        "train.seq_len=64",
    ];
    dir.train("run", &slow);
    let args = [
        "replay", "run", "--step", "9", "--after", "11", "--quiet", "--json",
    ];
    for name in ["KILL", "INT"] {
        let mut child = dir.start(&args);
        let metrics = dir.path("run-replay-9/metrics.jsonl");
        wait_until("a step", || metrics.metadata().is_ok_and(|m| m.len() > 0));
        signal(&child, name);
        child.wait().unwrap();
    }
    // A different replay is not replaced.
    let other = ["replay", "run", "--step", "7", "--out", "run-replay-9"];
    let output = dir.run(&other);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    let stderr = stderr(&output);
    assert!(
        stderr.contains("an unfinished run with a different purpose"),
        "{stderr}"
    );
    let replay = dir.json(&args);
    assert_eq!(replay["steps"].as_array().unwrap().len(), 20);
    assert!(!dir.path("run-replay-9/unfinished.txt").exists());
    dir.expect_error(2, &args, &["run-replay-9 already contains a run"]);
}

#[test]
fn quickstart_preserves_other_files() {
    let dir = TestDir::new();
    let args = [
        "quickstart",
        "--quiet",
        "--data",
        "stories:60",
        "--steps",
        "2",
        "--out",
        "q",
    ];
    dir.ok(&args);
    let note = "q/pre-norm/checkpoints/notes/why.txt";
    dir.write(note, "mine");
    dir.write("q/pre-norm/flight/notes.txt", "mine");
    dir.ok(&args);
    assert_eq!(dir.read(note), b"mine");
    assert_eq!(dir.read("q/pre-norm/flight/notes.txt"), b"mine");
    let children = [(); 2].map(|()| dir.start(&args));
    let mut codes = children.map(|child| code(&child.wait_with_output().unwrap()));
    codes.sort();
    assert!(codes == [0, 2] || codes == [0, 0], "{codes:?}");
    dir.ok(&["inspect", "q/pre-norm"]);
}

#[test]
fn runs_resume_after_damaged_metrics() {
    let dir = TestDir::new();
    let ten = ["--set", "train.steps=10"];
    dir.train("whole", &[]);
    for tail in ["\0\0\0\0\0", "{\"step\":11,\"lo", "\0\0\0\n{\"step\":12"] {
        let _ = fs::remove_dir_all(dir.path("run"));
        dir.train("run", &ten);
        for name in ["metrics.jsonl", "layers.jsonl"] {
            let mut rows = dir.read(format!("run/{name}"));
            rows.extend(tail.as_bytes());
            dir.write(&format!("run/{name}"), rows);
        }
        dir.train("run", &["--resume"]);
        let steps = dir.column("run", "step");
        assert_eq!(steps, (1..=20).map(f64::from).collect::<Vec<_>>());
    }
    // A step without a measured time.
    let text = String::from_utf8(dir.read("run/metrics.jsonl")).unwrap();
    let (head, tail) = text.split_once("\"tokens_per_second\":").unwrap();
    let (_, tail) = tail.split_once('}').unwrap();
    let rows = format!("{head}\"tokens_per_second\":null}}{tail}");
    dir.write("run/metrics.jsonl", rows);
    dir.train("run", &["--resume", "--set", "train.steps=24"]);
    assert_eq!(dir.reproducible_metrics("run").len(), 24);
}

/// A run resumed without its earlier records could not be resumed again.
#[test]
fn a_rejected_resume_changes_nothing() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "log.layers_every=5"]);
    let names = [
        "config.toml",
        "segments.json",
        "metrics.jsonl",
        "layers.jsonl",
    ];
    let whole = names.map(|name| dir.read(format!("run/{name}")));
    let longer = [
        "--resume",
        "--set",
        "train.steps=25",
        "--set",
        "optimizer.lr=1",
    ];
    let metrics = whole[2].split_inclusive(|byte| *byte == b'\n');
    let few: Vec<u8> = metrics.take(12).flatten().copied().collect();
    let mut layers = whole[3].clone();
    layers[2] = b'X';
    for (name, damaged, words) in [
        ("metrics.jsonl", Some(few), "ends with step 12"),
        (
            "metrics.jsonl",
            Some(Vec::new()),
            "no records of steps 1 to 20",
        ),
        ("metrics.jsonl", None, "no records of steps 1 to 20"),
        ("layers.jsonl", Some(layers), "line 1 is not a valid record"),
    ] {
        match &damaged {
            Some(bytes) => dir.write(&format!("run/{name}"), bytes),
            None => fs::remove_file(dir.path("run").join(name)).unwrap(),
        }
        dir.train_fails(1, "run", &longer, &[name, words]);
        for (other, whole) in names.iter().zip(&whole) {
            if *other != name {
                assert!(dir.read(format!("run/{other}")) == *whole, "{other}");
            }
        }
        let left = fs::read(dir.path("run").join(name)).ok();
        assert!(left == damaged, "{name}");
        for (name, whole) in names.iter().zip(&whole) {
            dir.write(&format!("run/{name}"), whole);
        }
    }
    dir.train("run", &longer);
    assert_eq!(dir.column("run", "step").len(), 25);
}

#[cfg(unix)]
#[test]
fn run_directory_symlinks_are_followed_and_failed_runs_removed() {
    let dir = TestDir::new();
    std::os::unix::fs::symlink("there", dir.path("link")).unwrap();
    let missing = ["--set", r#"data.train=["missing.txt"]"#];
    dir.train_fails(1, "link", &missing, &["missing.txt"]);
    assert!(!dir.path("there").exists() && dir.path("link").is_symlink());
    dir.train("link", &[]);
    assert!(dir.path("there/config.toml").exists() && dir.path("link").is_symlink());
}

#[cfg(unix)]
#[test]
fn pipes_do_not_block_a_run() {
    let dir = TestDir::new();
    let pipe = |name: &str| {
        let made = std::process::Command::new("mkfifo")
            .arg(dir.path(name))
            .status();
        assert!(made.unwrap().success());
    };
    dir.train("run", &["--set", "train.steps=10"]);
    let model = "checkpoints/step-00000010/model.safetensors";
    for name in [
        "config.toml",
        "metrics.jsonl",
        "layers.jsonl",
        "segments.json",
        "lock",
        model,
    ] {
        let _ = fs::remove_dir_all(dir.path("piped"));
        common::copy_folder(&dir.path("run"), &dir.path("piped"));
        fs::remove_file(dir.path(format!("piped/{name}"))).unwrap();
        pipe(&format!("piped/{name}"));
        let output = dir.run(&train_args("piped", &["--resume"]));
        // A corrupt checkpoint is skipped.
        let expected = i32::from(name != model);
        assert_eq!(code(&output), expected, "{name}: {}", stderr(&output));
    }
    pipe("pipe.toml");
    dir.expect_error(1, &["train", "pipe.toml"], &["pipe.toml", "is a pipe"]);
}

#[cfg(unix)]
#[test]
fn exceeding_the_file_size_limit_has_a_message() {
    let dir = TestDir::new();
    let limited = format!(
        "ulimit -f 64; exec \"$0\" {}",
        train_args("run", &["--set", "model.d_ff=2048"]).join(" ")
    );
    let program = dir.command(&[]).get_program().to_owned();
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(limited).arg(program);
    command.current_dir(dir.path(""));
    command.env("XDG_CACHE_HOME", dir.path("cache"));
    let output = command.output().unwrap();
    let stderr = stderr(&output);
    assert_eq!(code(&output), 1, "{stderr}");
    assert!(stderr.contains("exceeds the maximum file size"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn training_works_without_file_locks() {
    let dir = TestDir::new();
    dir.train("locked", &[]);
    dir.train("run", &["--no-lock"]);
    assert_eq!(
        dir.reproducible_metrics("run"),
        dir.reproducible_metrics("locked")
    );
}
