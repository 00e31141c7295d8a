//! Interrupted and distributed studies.

use super::*;

#[test]
fn repeatedly_killed_studies_end_with_the_same_files() {
    let lab = lab();
    let long = ["--set", "train.steps=120"];
    lab.ok(&args("whole", &long));
    let whole = content(&lab, "whole");
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
        let mut child = lab.start(&args("killed", &more));
        std::thread::sleep(Duration::from_millis(20 + 23 * (round * round % 7)));
        assert!(
            child.try_wait().unwrap().is_none(),
            "through before it was killed"
        );
        signal(&child, if round % 3 == 2 { "TERM" } else { "KILL" });
        child.wait_with_output().unwrap();
    }
    let mut rest = long.to_vec();
    rest.push("--resume");
    lab.ok(&args("killed", &rest));
    assert_eq!(whole, content(&lab, "killed"));
}

#[test]
fn finished_runs_are_never_repeated() {
    let lab = lab();
    lab.ok(&args("out", &[]));
    let stamp = |name: &str| fs::metadata(lab.path(name)).unwrap().modified().unwrap();
    let record = content(&lab, "out")
        .into_keys()
        .find(|name| name.starts_with("runs"));
    let record = format!("out/{}", record.unwrap());
    let before = stamp(&record);
    lab.expect_error(2, &args("out", &[]), &["already holds a study", "--resume"]);
    let output = lab.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert!(stderr(&output).contains("12 runs of 40 steps, 12 of them finished"));
    assert_eq!(before, stamp(&record));
    // A study file with equal content keeps its comments.
    lab.write("out/study.toml", format!("# Mine.\n{STUDY}"));
    lab.ok(&args("out", &["--resume"]));
    assert!(lab.read("out/study.toml").starts_with(b"# Mine."));
    // Another seed: only its runs are new.
    let more = ["--resume", "--set", "study.seeds=[1,2,3]"];
    lab.ok(&args("out", &more));
    assert_eq!(before, stamp(&record));
    assert_eq!(content(&lab, "out").len(), 18 + 3);
}

#[test]
fn merged_shards_equal_the_full_study() {
    let lab = lab();
    lab.ok(&args("whole", &[]));
    for shard in ["1/3", "2/3", "3/3"] {
        let out = format!("part {}", &shard[..1]);
        lab.ok(&args(&out, &["--shard", shard]));
        assert_eq!(content(&lab, &out).len(), 4 + 2);
    }
    let merge = [
        "study", "merge", "part 1", "part 2", "part 3", "--out", "joined", "--json",
    ];
    let merged = lab.json(&merge);
    fs::remove_file(lab.path("whole/lock")).unwrap();
    assert_eq!(content(&lab, "whole"), content(&lab, "joined"));
    let placements = merged[0]["analysis"]["placements"].as_array().unwrap();
    let names: Vec<_> = placements
        .iter()
        .map(|found| found["placement"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["pre-norm", "hybridnorm", "mine"]);
    // Contradictory records, and another study.
    let record = files_below(&lab.path("part 1/runs")).remove(0);
    let text = fs::read_to_string(&record).unwrap();
    let at = text.find("\"validation_loss\":").unwrap() + "\"validation_loss\":".len();
    let changed = format!("{}9{}", &text[..at], &text[at + 1..]);
    let contradiction = ["study", "merge", "part 1", "--out", "joined"];
    fs::write(&record, &changed).unwrap();
    lab.expect_error(1, &contradiction, &["checksum"]);
    let mut value: Value = serde_json::from_str(&changed).unwrap();
    value.as_object_mut().unwrap().remove("sha256").unwrap();
    fs::write(&record, value.to_string()).unwrap();
    lab.expect_error(1, &contradiction, &["has no checksum"]);
    // As a version without checksums would have written it.
    fs::remove_file(lab.path("part 1/history.json")).unwrap();
    lab.expect_error(1, &contradiction, &["the last one during training"]);
    let last = value["validation"].as_array().unwrap().len() - 1;
    value["validation"][last]["loss"] = value["validation_loss"].clone();
    fs::write(&record, value.to_string()).unwrap();
    lab.expect_error(
        1,
        &contradiction,
        &["has different results in another folder"],
    );
    lab.ok(&args(
        "other",
        &["--shard", "1/12", "--set", "train.steps=5"],
    ));
    let other = ["study", "merge", "other", "--out", "joined"];
    lab.expect_error(
        2,
        &other,
        &["other and joined hold different studies: train.steps from 5 to "],
    );
}

#[test]
fn resume_needs_an_existing_study() {
    let lab = lab();
    let words = ["typo: folder not found", "start one without --resume"];
    lab.expect_error(1, &args("typo", &["--resume"]), &words);
    assert!(!lab.path("typo").exists());
    // A missing study file is restored.
    let short = ["--set", "train.steps=2", "--shard", "1/12"];
    lab.ok(&args("out", &short));
    fs::remove_file(lab.path("out/study.toml")).unwrap();
    lab.ok(&args("out", &short));
    assert!(lab.path("out/study.toml").exists());
}
