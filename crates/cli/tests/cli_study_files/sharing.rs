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
fn shards_may_share_a_folder_but_not_full_studies() {
    let lab = lab();
    lab.write(
        "changed.toml",
        STUDY.replace("seeds = [5]", "seeds = [5, 6]"),
    );
    for round in 0..3 {
        if round > 0 {
            fs::remove_dir_all(lab.path("out")).unwrap();
        }
        let shards = ["1/3", "2/3", "3/3"].map(|shard| lab.start(&args(&["--shard", shard])));
        let ended = ended(shards.into());
        assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
        assert_eq!(names(&lab, "out/kept").len(), 4);
        assert_eq!(names(&lab, "out/runs").len(), 4);
        assert!(names(&lab, "out/work").is_empty());
        let left = names(&lab, "out");
        assert!(
            left.iter()
                .all(|name| !name.contains("begin") && !name.contains("partial")),
            "{left:?}"
        );
    }
    // Again, although all runs are finished.
    lab.ok(&args(&["--shard", "1/3"]));
    let before = lab.read("out/study.toml");
    let other = [
        "study",
        "changed.toml",
        "--out",
        "out",
        "--quiet",
        "--shard",
        "1/3",
    ];
    lab.expect_error(2, &other, &["already holds another study"]);
    assert_eq!(lab.read("out/study.toml"), before);
}

#[test]
fn rejected_studies_write_nothing() {
    let lab = lab();
    let long = args(&["--set", "train.steps=4000"]);
    let mut first = lab.start(&long);
    common::wait_until("the study is begun", || lab.path("out/study.toml").exists());
    let before = lab.read("out/study.toml");
    let words = ["another process works on this study"];
    lab.expect_error(2, &args(&["--resume"]), &words);
    lab.expect_error(2, &args(&[]), &words);
    lab.expect_error(2, &args(&["--shard", "1/2", "--resume"]), &words);
    lab.expect_error(2, &args(&["--no-lock", "--resume"]), &words);
    lab.ok(&[
        "--threads",
        "1",
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "done",
    ]);
    lab.expect_error(2, &["study", "merge", "done", "--out", "out"], &words);
    assert_eq!(lab.read("out/study.toml"), before);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(
        names(&lab, "out")
            .iter()
            .filter(|name| name.contains("begin"))
            .count(),
        0
    );
    lab.ok(&args(&["--resume", "--no-lock"]));
}

#[test]
fn merges_are_exclusive_and_do_not_modify_sources() {
    let lab = lab();
    for (shard, out) in [("1/2", "one"), ("2/2", "two")] {
        lab.ok(&[
            "--threads",
            "1",
            "--quiet",
            "study",
            "study.toml",
            "--out",
            out,
            "--shard",
            shard,
        ]);
    }
    let sources = || -> Vec<_> {
        ["one", "two"]
            .iter()
            .flat_map(|folder| files_below(&lab.path(folder)))
            .collect()
    };
    let before = sources();
    let merge = ["study", "merge", "one", "two", "--out", "joined", "--json"];
    for round in 0..3 {
        let merges = [0; 2].map(|_| lab.start(&merge)).into();
        let ended = ended(merges);
        assert!(ended.iter().any(|(code, _)| *code == 0), "{ended:?}");
        for (code, said) in &ended {
            assert!(
                *code == 0 || said.contains("another process works on this study"),
                "{said}"
            );
        }
        assert_eq!(names(&lab, "joined/runs").len(), 4);
        assert_eq!(
            names(&lab, "joined"),
            ["history.json", "runs", "study.toml", "work"]
        );
        assert_eq!(sources(), before);
        // Killed before the last record, and before the study file.
        let last = names(&lab, "joined/runs").remove(round);
        fs::remove_file(lab.path(format!("joined/runs/{last}"))).unwrap();
        lab.write(&format!("joined/runs/{last}.00112233445566aa.partial"), "{");
        if round == 1 {
            fs::remove_file(lab.path("joined/study.toml")).unwrap();
        }
    }
}
