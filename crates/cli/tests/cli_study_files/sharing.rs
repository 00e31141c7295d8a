//! Processes that share a study folder.

use super::*;

fn ended(children: Vec<Child>) -> Vec<(i32, String)> {
    let ended = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    ended
        .map(|output| (code(&output), stderr(&output)))
        .collect()
}

#[test]
fn only_shards_of_the_same_study_share_a_folder() {
    let dir = test_dir();
    dir.write(
        "changed.toml",
        STUDY.replace("seeds = [5]", "seeds = [5, 6]"),
    );
    for round in 0..3 {
        if round > 0 {
            fs::remove_dir_all(dir.path("out")).unwrap();
        }
        let shards = ["1/3", "2/3", "3/3"].map(|shard| dir.start(&args(&["--shard", shard])));
        let ended = ended(shards.into());
        assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
        assert_eq!(names(&dir, "out/kept").len(), 4);
        assert_eq!(names(&dir, "out/runs").len(), 4);
        assert!(names(&dir, "out/work").is_empty());
        let left = names(&dir, "out");
        assert!(
            left.iter()
                .all(|name| !name.contains("begin") && !name.contains("partial")),
            "{left:?}"
        );
    }
    // Again, although all runs are finished.
    dir.ok(&args(&["--shard", "1/3"]));
    let before = dir.read("out/study.toml");
    let other = [
        "study",
        "changed.toml",
        "--out",
        "out",
        "--quiet",
        "--shard",
        "1/3",
    ];
    dir.expect_error(2, &other, &["already holds another study"]);
    assert_eq!(dir.read("out/study.toml"), before);
}

#[test]
fn rejected_studies_write_nothing() {
    let dir = test_dir();
    let long = args(&["--set", "train.steps=4000"]);
    let mut first = dir.start(&long);
    common::wait_until("the study is begun", || dir.path("out/study.toml").exists());
    let before = dir.read("out/study.toml");
    let words = ["another process is working on this study"];
    dir.expect_error(2, &args(&["--resume"]), &words);
    dir.expect_error(2, &args(&[]), &words);
    dir.expect_error(2, &args(&["--shard", "1/2", "--resume"]), &words);
    dir.expect_error(2, &args(&["--no-lock", "--resume"]), &words);
    dir.ok(&args_into("done", &[]));
    dir.expect_error(2, &["study", "merge", "done", "--out", "out"], &words);
    assert_eq!(dir.read("out/study.toml"), before);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(
        names(&dir, "out")
            .iter()
            .filter(|name| name.contains("begin"))
            .count(),
        0
    );
    dir.ok(&args(&["--resume", "--no-lock"]));
}

#[test]
fn merges_are_exclusive_and_do_not_modify_sources() {
    let dir = test_dir();
    for (shard, out) in [("1/2", "one"), ("2/2", "two")] {
        dir.ok(&args_into(out, &["--shard", shard]));
    }
    let sources = || -> Vec<_> {
        ["one", "two"]
            .iter()
            .flat_map(|folder| files_below(&dir.path(folder)))
            .collect()
    };
    let before = sources();
    let merge = ["study", "merge", "one", "two", "--out", "joined", "--json"];
    for round in 0..3 {
        let merges = [0; 2].map(|_| dir.start(&merge)).into();
        let ended = ended(merges);
        assert!(ended.iter().any(|(code, _)| *code == 0), "{ended:?}");
        for (code, message) in &ended {
            assert!(
                *code == 0 || message.contains("another process is working on this study"),
                "{message}"
            );
        }
        assert_eq!(names(&dir, "joined/runs").len(), 4);
        assert_eq!(
            names(&dir, "joined"),
            ["history.json", "runs", "study.toml", "work"]
        );
        assert_eq!(sources(), before);
        // Killed before the last record, and before the study file.
        let last = names(&dir, "joined/runs").remove(round);
        fs::remove_file(dir.path(format!("joined/runs/{last}"))).unwrap();
        dir.write(&format!("joined/runs/{last}.00112233445566aa.partial"), "{");
        if round == 1 {
            fs::remove_file(dir.path("joined/study.toml")).unwrap();
        }
    }
}
