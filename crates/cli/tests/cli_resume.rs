//! A stopped, killed or damaged run resumes as if it had not been interrupted.

mod common;

use std::fs;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::{
    DAMAGES, Damage, TestDir, code, copy_folder, damage, files_below, signal, stderr, train_args,
};

const LAST: &str = "checkpoints/step-00000020";
/// Settings of a run long enough to be interrupted in the middle.
const SLOW: [&str; 4] = ["--set", "train.batch_size=32", "--set", "train.seq_len=32"];

fn slow_config<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SLOW, more].concat()
}

fn assert_same(dir: &TestDir, expected: &str, found: &str) {
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let bytes = |run: &str| dir.read(format!("{run}/{LAST}/{file}"));
        assert!(bytes(expected) == bytes(found), "{file} of {found} differs");
    }
    assert_eq!(
        dir.reproducible_metrics(expected),
        dir.reproducible_metrics(found),
        "{found}"
    );
}

/// Trains and interrupts after some steps; returns the output.
fn interrupted(dir: &TestDir, run: &str, more: &[&str]) -> Output {
    let mut args = train_args(run, &slow_config(more));
    args.retain(|arg| *arg != "--quiet");
    let child = dir.start(&args);
    let metrics = dir.path(run).join("metrics.jsonl");
    common::wait_until("three steps", || {
        fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() >= 3)
    });
    signal(&child, "INT");
    child.wait_with_output().unwrap()
}

#[test]
fn resumed_runs_are_bit_identical_for_any_thread_count() {
    let dir = TestDir::new();
    dir.train("whole", &slow_config(&["--threads", "1"]));
    assert_eq!(dir.reproducible_metrics("whole").len(), 20);
    dir.train("whole-2", &slow_config(&["--threads", "2"]));
    assert_same(&dir, "whole", "whole-2");
    for threads in ["1", "2"] {
        let run = format!("stopped {threads}");
        let output = interrupted(&dir, &run, &["--threads", threads]);
        let stderr = stderr(&output);
        assert_eq!(code(&output), 130, "{stderr}");
        let hint = stderr
            .lines()
            .find(|line| line.starts_with("interrupted after step "))
            .unwrap_or_else(|| panic!("{stderr}"));
        assert!(
            hint.ends_with(&format!(
                "resume with: hybridnorm train tiny.toml --run '{run}' --set train.batch_size=32 \
                 --set train.seq_len=32 --threads {threads} --resume"
            )),
            "{hint}"
        );
        assert!(dir.reproducible_metrics(&run).len() < 20);
        dir.train(&run, &slow_config(&["--threads", threads, "--resume"]));
        assert_same(&dir, "whole", &run);
    }
}

/// Waits for the first record of metrics in `run`.
fn wait_for_a_step(dir: &TestDir) {
    let metrics = dir.path("run/metrics.jsonl");
    common::wait_until("a step", || metrics.metadata().is_ok_and(|m| m.len() > 0));
}

/// Kills at times spread over the whole run, many of them during a checkpoint write.
fn train_with_repeated_kills(threads: &str) {
    let dir = TestDir::new();
    dir.train("whole", &SLOW);
    let all = [
        "--set",
        "train.checkpoint_every=1",
        "--set",
        "train.keep_checkpoints=2",
    ];
    let more = slow_config(&[&all[..], &["--threads", threads]].concat());
    // Before anything is written there is nothing to resume.
    let again = |run: &str| {
        let resume = match dir.path(run).join("config.toml").exists() {
            true => &["--resume"][..],
            false => &[],
        };
        [&more[..], resume].concat()
    };
    let timed = || {
        let started = Instant::now();
        dir.train("timing", &again("timing"));
        started.elapsed()
    };
    let (all_steps, no_step) = (timed(), timed());
    let steps = all_steps.saturating_sub(no_step);
    let mut kills = 0;
    for attempt in 0..60_u32 {
        let mut child = dir.start(&train_args("killed", &again("killed")));
        // Spread by the golden ratio, so that no time is tried twice.
        let part = f64::from(attempt + 1) * 0.618_034 % 1.0;
        std::thread::sleep(no_step.mul_f64(0.5) + steps.mul_f64(0.3 * part));
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), None, "{}", stderr(&output));
        kills += 1;
    }
    println!("killed {kills} times");
    assert!(kills > 0, "the run was over before the first kill");
    dir.train("killed", &again("killed"));
    assert_same(&dir, "whole", "killed");
    assert_eq!(
        dir.checkpoints("killed"),
        ["step-00000019", "step-00000020"]
    );
}

#[test]
fn repeatedly_killed_runs_are_bit_identical_on_one_thread() {
    train_with_repeated_kills("1");
}

#[test]
fn repeatedly_killed_runs_are_bit_identical_on_two_threads() {
    train_with_repeated_kills("2");
}

#[test]
fn sigterm_stops_a_run_like_sigint() {
    let dir = TestDir::new();
    let more = slow_config(&["--set", "train.steps=100000"]);
    let child = dir.start(&train_args("run", &more));
    wait_for_a_step(&dir);
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130);
    assert_eq!(stderr(&output), "", "quiet says nothing");
}

#[cfg(target_os = "linux")]
#[test]
fn runs_under_nohup_survive_sighup() {
    let dir = TestDir::new();
    let mut command = dir.command_through("nohup", &train_args("run", &SLOW));
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for_a_step(&dir);
    signal(&child, "HUP");
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0);
    assert_eq!(dir.reproducible_metrics("run").len(), 20);
}

#[test]
fn a_damaged_newest_checkpoint_is_skipped_and_reported() {
    let dir = TestDir::new();
    dir.train("whole", &[]);
    let newest = dir.path("whole").join(LAST);
    for file in files_below(&newest) {
        let name = file.strip_prefix(&newest).unwrap();
        for how in DAMAGES {
            let _ = fs::remove_dir_all(dir.path("run"));
            copy_folder(&dir.path("whole"), &dir.path("run"));
            damage(&dir.path("run").join(LAST).join(name), how);
            let output = dir.run(&["train", "tiny.toml", "--run", "run", "--resume"]);
            let stderr = stderr(&output);
            assert_eq!(code(&output), 0, "{stderr}");
            let note = stderr
                .lines()
                .find(|line| line.starts_with("skipped a corrupt checkpoint: "))
                .unwrap_or_else(|| panic!("{name:?} {how:?}: {stderr}"));
            assert!(note.contains("step-00000020"), "{note}");
            assert!(note.contains(name.to_str().unwrap()), "{note}");
            assert!(stderr.contains("resuming after step 15"), "{stderr}");
            assert_same(&dir, "whole", "run");
        }
    }
}

#[test]
fn damaged_newer_checkpoints_do_not_displace_a_valid_one() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.keep_checkpoints=4"]);
    for step in ["10", "15", "20"] {
        fs::write(
            dir.path(format!("run/checkpoints/step-000000{step}/config.json")),
            "{}",
        )
        .unwrap();
    }
    let one = [
        "--resume",
        "--set",
        "train.keep_checkpoints=1",
        "--set",
        "train.steps=12",
    ];
    dir.train("run", &one);
    assert_eq!(dir.column("run", "step").len(), 12);
    assert_eq!(
        dir.checkpoints("run"),
        ["step-00000012", "step-00000015", "step-00000020"]
    );
    dir.ok(&["inspect", "run/checkpoints/step-00000012"]);
    let all = ["--resume", "--set", "train.keep_checkpoints=1"];
    dir.train("run", &all);
    assert_eq!(dir.checkpoints("run"), ["step-00000020"]);
}

#[test]
fn a_run_with_only_damaged_checkpoints_is_not_restarted() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=10"]);
    for name in dir.checkpoints("run") {
        dir.write(&format!("run/checkpoints/{name}/config.json"), "{}");
    }
    let before = dir.read("run/metrics.jsonl");
    dir.train_fails(
        1,
        "run",
        &["--resume"],
        &["run/checkpoints", "no valid checkpoint", "config.json"],
    );
    assert!(dir.read("run/metrics.jsonl") == before);
}

#[test]
fn partially_written_files_of_a_killed_run_are_removed() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=10"]);
    dir.write(
        "run/checkpoints/step-00000007.0123456789abcdef.partial/model.safetensors",
        "half",
    );
    dir.train("run", &["--resume", "--set", "train.steps=12"]);
    assert_eq!(
        dir.checkpoints("run"),
        ["step-00000005", "step-00000010", "step-00000012"]
    );
}

#[test]
fn keep_checkpoints_limits_the_number_of_checkpoints() {
    let dir = TestDir::new();
    dir.train(
        "run",
        &[
            "--set",
            "train.checkpoint_every=3",
            "--set",
            "train.keep_checkpoints=2",
        ],
    );
    assert_eq!(dir.checkpoints("run"), ["step-00000018", "step-00000020"]);
    dir.train("end", &["--set", "train.checkpoint_every=0"]);
    assert_eq!(dir.checkpoints("end"), ["step-00000020"]);
}

#[test]
fn runs_are_not_overwritten_or_resumed_with_another_configuration() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let before = dir.read(format!("run/{LAST}/model.safetensors"));
    dir.train_fails(2, "run", &[], &["run already contains a run", "--resume"]);
    for (setting, key) in [
        ("seed=4", "seed changed from 3 to 4"),
        ("model.d_ff=64", "model.d_ff changed from 32 to 64"),
        ("data.order=sequential", "data.order"),
        ("train.seq_len=8", "train.seq_len changed from 16 to 8"),
    ] {
        dir.train_fails(
            2,
            "run",
            &["--resume", "--set", setting],
            &[key, "must keep it"],
        );
    }
    let other = ["--resume", "--set", "data.train=['stories:50']"];
    dir.train_fails(
        2,
        "run",
        &other,
        &["the training data differ from those of"],
    );
    fs::remove_file(dir.path("run/config.toml")).unwrap();
    dir.train_fails(2, "run", &[], &["run already contains a run"]);
    assert!(before == dir.read(format!("run/{LAST}/model.safetensors")));
}

#[test]
fn changed_data_are_rejected() {
    let dir = TestDir::new();
    let text = |word: &str| format!("{word} one two three four five.\n").repeat(500);
    dir.write("a.txt", text("zero"));
    let more = ["--set", "data.train=['a.txt']", "--set", "train.steps=5"];
    dir.train("run", &more);
    dir.write("a.txt", text("null"));
    let again = [&more[..], &["--resume"]].concat();
    dir.train_fails(
        2,
        "run",
        &again,
        &["the training data differ from those of", "step-00000005"],
    );
}

#[test]
fn concurrent_runs_in_one_folder_are_rejected() {
    let dir = TestDir::new();
    let more = slow_config(&["--set", "train.steps=100000"]);
    let mut child = dir.start(&train_args("run", &more));
    wait_for_a_step(&dir);
    for resume in [&[][..], &["--resume"]] {
        let again = [&more[..], resume].concat();
        dir.train_fails(
            2,
            "run",
            &again,
            &["run", "another process is training here"],
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn gradient_accumulation_changes_losses_only_by_rounding() {
    let dir = TestDir::new();
    dir.train("one", &[]);
    dir.train("four", &["--set", "train.grad_accum_steps=4"]);
    let (one, four) = (dir.column("one", "loss"), dir.column("four", "loss"));
    for (a, b) in one.iter().zip(&four) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    assert_eq!(dir.column("one", "tokens"), dir.column("four", "tokens"));
}

#[test]
fn ctrl_c_during_tokenization_stops_at_once_and_allows_a_restart() {
    let dir = TestDir::new();
    let many = ["--set", "data.train=['stories:3000000']"];
    let started = Instant::now();
    let child = dir.start(&train_args("run", &many));
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130);
    assert_eq!(stderr(&output), "interrupted\n");
    assert!(started.elapsed() < Duration::from_secs(5));
    let prepare = [
        "data",
        "prepare",
        "stories:3000000",
        "--tokenizer",
        "bytes",
        "--validation-fraction",
        "0",
        "--out",
        "p",
    ];
    let child = dir.start(&prepare);
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, "INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    dir.expect_error(1, &["data", "inspect", "p"], &["p: no such file"]);
    dir.prepare("stories:30", "bytes", "p");
    dir.ok(&["data", "inspect", "p"]);
    dir.train("run", &[]);
}

#[test]
fn commands_that_use_an_older_checkpoint_report_the_damaged_one() {
    let dir = TestDir::new();
    dir.write("text.txt", "A sentence to measure a model on. ".repeat(9));
    dir.train("run", &[]);
    damage(
        &dir.path("run").join(LAST).join("model.safetensors"),
        Damage::FlippedBit,
    );
    for args in [
        &["eval", "run", "--data", "text.txt"][..],
        &["generate", "run", "--prompt", "A", "--max-tokens", "1"],
        &["inspect", "run"],
        &["replay", "run", "--step", "21", "--set", "train.steps=22"],
        &[
            "train",
            "tiny.toml",
            "--run",
            "more",
            "--set",
            "init.from=run",
        ],
    ] {
        let output = dir.run(args);
        let stderr = stderr(&output);
        assert_eq!(code(&output), 0, "{args:?}: {stderr}");
        assert!(
            stderr.contains("skipped a corrupt checkpoint: ") && stderr.contains("step-00000020"),
            "{args:?}: {stderr}"
        );
    }
    let measured = dir.json(&["eval", "run", "--data", "text.txt", "--json"]);
    let note = measured["notes"][0].as_str().unwrap();
    assert!(note.contains("step-00000020"), "{note}");
}

#[test]
fn resume_is_rejected_if_metrics_are_missing() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let rows = String::from_utf8(dir.read("run/metrics.jsonl")).unwrap();
    let lines: Vec<&str> = rows.lines().collect();
    let swapped = [&lines[..1], &lines[2..4], &lines[1..2], &lines[4..]].concat();
    let more = ["--resume", "--set", "train.steps=25"];
    for (kept, words) in [
        ([&lines[..6], &lines[7..]].concat(), "line 7 is for step 8"),
        (swapped, "line 2 is for step 3"),
        (lines[..12].to_vec(), "ends with step 12"),
        (lines[2..].to_vec(), "starts at step 3"),
    ] {
        let damaged = kept.join("\n") + "\n";
        dir.write("run/metrics.jsonl", &damaged);
        dir.train_fails(1, "run", &more, &["metrics.jsonl", words]);
        assert_eq!(dir.read("run/metrics.jsonl"), damaged.as_bytes());
    }
    dir.write("run/metrics.jsonl", &rows);
    dir.train("run", &more);
    assert_eq!(dir.column("run", "step").len(), 25);
}
