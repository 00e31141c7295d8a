//! Changes of the data between the runs of a study.

use super::*;

#[test]
fn changed_data_are_reported_before_training() {
    let dir = test_dir();
    let text = |word: &str| format!("{word} walked to the river. ").repeat(40);
    dir.write("train/a.txt", text("Ana"));
    dir.write("held/a.txt", text("Bela"));
    let begun = |out, more: &[&'static str]| {
        let data = [
            "--set",
            r#"data.train=["train"]"#,
            "--set",
            r#"data.validation=["held"]"#,
        ];
        args(out, &[&data[..], more].concat())
    };
    dir.ok(&begun("out", &["--shard", "1/12"]));
    for (file, kind) in [("train/a.txt", "training"), ("held/a.txt", "validation")] {
        let before = dir.read(file);
        dir.write(file, text("Cai"));
        let words = format!("has {kind} data with fingerprint ");
        let remedy = "restore the original data";
        // Other shards in this folder belong to the study, too.
        for more in [&["--resume"][..], &["--shard", "2/12"]] {
            dir.expect_error(2, &begun("out", more), &[&words, remedy]);
            assert_eq!(records(&dir, "out").len(), 1);
            assert!(files_below(&dir.path("out/work")).is_empty());
        }
        // Parts of a study with different data cannot be merged.
        let other = format!("other {kind}");
        dir.ok(&begun("other", &["--shard", "2/12"]));
        dir.expect_error(
            2,
            &["study", "merge", "out", "other", "--out", &other],
            &[&words, "runs on different data cannot be compared"],
        );
        fs::remove_dir_all(dir.path("other")).unwrap();
        dir.write(file, before);
    }
    dir.ok(&begun("out", &["--resume", "--shard", "2/12"]));
    assert_eq!(records(&dir, "out").len(), 2);
}

#[test]
fn unfinished_runs_are_not_resumed_with_other_validation_data() {
    let dir = test_dir();
    let text = |word: &str| format!("{word} walked to the river. ").repeat(40);
    dir.write("held/a.txt", text("Bela"));
    let more = [
        "--set",
        r#"data.validation=["held"]"#,
        "--set",
        "train.steps=2000",
    ];
    let mut args = args("out", &more);
    let mut child = dir.start(&args);
    args.push("--resume");
    common::wait_until("a checkpoint", || {
        let runs = fs::read_dir(dir.path("out/work")).into_iter().flatten();
        let mut runs = runs.map(|run| run.unwrap().file_name().into_string().unwrap());
        runs.any(|run| {
            let checkpoints = dir.checkpoints_or_none(&format!("out/work/{run}"));
            (checkpoints.iter()).any(|name| !name.contains(".partial"))
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    dir.write("held/a.txt", text("Cai"));
    let words = [
        "validation data changed since its earlier steps",
        "fingerprint",
        "restore the original data",
    ];
    dir.expect_error(2, &args, &words);
}

#[test]
fn changes_without_history_are_reported_as_unknown() {
    let dir = test_dir();
    let short = ["--set", "train.steps=2", "--resume"];
    dir.ok(&args("out", &short[..2]));
    fs::remove_file(dir.path("out/history.json")).unwrap();
    let unknown = |out: &str, records: usize| {
        let text = dir.ok(&["report", out, "--format", "markdown"]);
        let words = format!("changed before {records} of the records were written");
        assert!(text.contains(&words), "{text}");
    };
    unknown("out", 12);
    dir.ok(&["study", "merge", "out", "--out", "joined"]);
    unknown("joined", 12);
    for (shard, out) in [("1/2", "sa"), ("2/2", "sb")] {
        dir.ok(&args(out, &["--set", "train.steps=2", "--shard", shard]));
        fs::remove_file(dir.path(out).join("history.json")).unwrap();
    }
    for _ in 0..2 {
        dir.ok(&["study", "merge", "sa", "sb", "--out", "sj"]);
        unknown("sj", 12);
    }
    // One run is trained again, which starts a history.
    fs::remove_file(files_below(&dir.path("out/runs")).remove(0)).unwrap();
    dir.ok(&args("out", &short));
    assert!(dir.path("out/history.json").exists());
    unknown("out", 11);
}
