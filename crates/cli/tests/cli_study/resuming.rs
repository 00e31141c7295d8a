//! Interrupted and distributed studies.

use super::*;

#[test]
fn repeatedly_killed_studies_end_with_the_same_files() {
    let dir = test_dir();
    let long = ["--set", "train.steps=120"];
    dir.ok(&args("whole", &long));
    let whole = content(&dir, "whole");
    // Records, study file, history, lock.
    assert_eq!(whole.len(), 12 + 3, "{:?}", whole.keys());
    for round in 0..10u64 {
        let mut more = long.to_vec();
        more.extend([
            "--threads",
            "2",
            "--jobs",
            if round % 2 == 0 { "1" } else { "2" },
        ]);
        if round > 0 {
            more.push("--resume");
        }
        let mut child = dir.start(&args("killed", &more));
        // Its inputs are checked before.
        common::wait_until("the study", || dir.path("killed/study.toml").exists());
        std::thread::sleep(Duration::from_millis(20 + 23 * (round * round % 7)));
        assert!(
            child.try_wait().unwrap().is_none(),
            "finished before it was killed"
        );
        signal(&child, if round % 3 == 2 { "TERM" } else { "KILL" });
        child.wait_with_output().unwrap();
    }
    let mut rest = long.to_vec();
    rest.push("--resume");
    dir.ok(&args("killed", &rest));
    assert_eq!(whole, content(&dir, "killed"));
}

#[test]
fn finished_runs_are_never_repeated() {
    let dir = test_dir();
    dir.ok(&args("out", &[]));
    let stamp = |name: &str| fs::metadata(dir.path(name)).unwrap().modified().unwrap();
    let record = content(&dir, "out")
        .into_keys()
        .find(|name| name.starts_with("runs"));
    let record = format!("out/{}", record.unwrap());
    let before = stamp(&record);
    dir.expect_error(2, &args("out", &[]), &["already holds a study", "--resume"]);
    let output = dir.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert!(stderr(&output).contains("12 runs of 40 steps, 12 of them finished"));
    assert_eq!(before, stamp(&record));
    // A study file with equal content keeps its comments.
    dir.write("out/study.toml", format!("# Mine.\n{STUDY}"));
    dir.ok(&args("out", &["--resume"]));
    assert!(dir.read("out/study.toml").starts_with(b"# Mine."));
    // Another seed: only its runs are new.
    let more = ["--resume", "--set", "study.seeds=[1,2,3]"];
    dir.ok(&args("out", &more));
    assert_eq!(before, stamp(&record));
    assert_eq!(content(&dir, "out").len(), 18 + 3);
}

#[test]
fn merged_shards_equal_the_full_study() {
    let dir = test_dir();
    dir.ok(&args("whole", &[]));
    for shard in ["1/3", "2/3", "3/3"] {
        let out = format!("part {}", &shard[..1]);
        dir.ok(&args(&out, &["--shard", shard]));
        assert_eq!(content(&dir, &out).len(), 4 + 2);
    }
    let merge = [
        "study", "merge", "part 1", "part 2", "part 3", "--out", "joined", "--json",
    ];
    let merged = dir.json(&merge);
    fs::remove_file(dir.path("whole/lock")).unwrap();
    assert_eq!(content(&dir, "whole"), content(&dir, "joined"));
    let placements = merged[0]["analysis"]["placements"].as_array().unwrap();
    let names: Vec<_> = placements
        .iter()
        .map(|found| found["placement"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["pre-norm", "hybridnorm", "mine"]);
    // Contradictory records, and another study.
    let record = files_below(&dir.path("part 1/runs")).remove(0);
    let text = fs::read_to_string(&record).unwrap();
    let at = text.find("\"validation_loss\":").unwrap() + "\"validation_loss\":".len();
    let changed = format!("{}9{}", &text[..at], &text[at + 1..]);
    let contradiction = ["study", "merge", "part 1", "--out", "joined"];
    fs::write(&record, &changed).unwrap();
    dir.expect_error(1, &contradiction, &["checksum"]);
    let mut value: Value = serde_json::from_str(&changed).unwrap();
    value.as_object_mut().unwrap().remove("sha256").unwrap();
    fs::write(&record, value.to_string()).unwrap();
    dir.expect_error(1, &contradiction, &["has no checksum"]);
    // As a version without checksums would have written it.
    fs::remove_file(dir.path("part 1/history.json")).unwrap();
    dir.expect_error(1, &contradiction, &["the last one during training"]);
    let last = value["validation"].as_array().unwrap().len() - 1;
    value["validation"][last]["loss"] = value["validation_loss"].clone();
    fs::write(&record, value.to_string()).unwrap();
    dir.expect_error(
        1,
        &contradiction,
        &["has different results in another folder"],
    );
    dir.ok(&args(
        "other",
        &["--shard", "1/12", "--set", "train.steps=5"],
    ));
    let other = ["study", "merge", "other", "--out", "joined"];
    dir.expect_error(
        2,
        &other,
        &["other and joined hold different studies: train.steps from 5 to "],
    );
}

#[test]
fn resume_needs_an_existing_study() {
    let dir = test_dir();
    let words = ["typo: folder not found", "start a new one instead"];
    dir.expect_error(1, &args("typo", &["--resume"]), &words);
    assert!(!dir.path("typo").exists());
    // A missing study file is restored.
    let short = ["--set", "train.steps=2", "--shard", "1/12"];
    dir.ok(&args("out", &short));
    fs::remove_file(dir.path("out/study.toml")).unwrap();
    dir.ok(&args("out", &short));
    assert!(dir.path("out/study.toml").exists());
}
