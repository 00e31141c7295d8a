//! Killed studies lose no run.

use super::*;

#[test]
fn kills_between_record_and_rename_neither_lose_nor_repeat_runs() {
    let lab = lab();
    lab.ok(&args(&[]));
    let ids = names(&lab, "out/kept");
    assert_eq!(ids.len(), 4);
    let before: Vec<_> = ids
        .iter()
        .map(|id| trained(&lab, &format!("out/kept/{id}")))
        .collect();
    let records: Vec<_> = ids.iter().map(|id| record(&lab, "out", id)).collect();
    // A record was written, but its run not moved, as in earlier versions.
    move_to(
        &lab,
        &format!("out/kept/{}", ids[0]),
        &format!("out/work/{}", ids[0]),
    );
    // A run was moved, but its record not written.
    fs::remove_file(lab.path(format!("out/runs/{}.json", ids[1]))).unwrap();
    // A run was finished, but neither recorded nor moved.
    move_to(
        &lab,
        &format!("out/kept/{}", ids[2]),
        &format!("out/work/{}", ids[2]),
    );
    fs::remove_file(lab.path(format!("out/runs/{}.json", ids[2]))).unwrap();
    // Leftovers of killed writers.
    for name in ["study.toml", "runs/x.json", "kept/x"] {
        lab.write(&format!("out/{name}.00112233445566aa.partial"), "{");
    }
    lab.expect_error(2, &args(&[]), &["already holds a study"]);
    lab.ok(&args(&["--resume"]));
    assert_eq!(names(&lab, "out/kept"), ids);
    assert!(names(&lab, "out/work").is_empty());
    assert_eq!(
        names(&lab, "out"),
        ["history.json", "kept", "lock", "runs", "study.toml", "work"]
    );
    assert_eq!(names(&lab, "out/runs").len(), 4);
    for ((id, before), old) in ids.iter().zip(before).zip(records) {
        assert_eq!(record(&lab, "out", id), old, "{id}");
        let after = trained(&lab, &format!("out/kept/{id}"));
        let weights = |files: &[(PathBuf, Vec<u8>)]| -> Vec<_> {
            let found = files.iter().filter(|(name, _)| {
                name.starts_with("checkpoints") || name.ends_with("metrics.jsonl")
            });
            found.cloned().collect()
        };
        assert!(weights(&before).len() > 2);
        assert!(
            weights(&before) == weights(&after),
            "{id} was trained again"
        );
    }
}

#[test]
fn duplicate_run_directories_are_rejected_and_preserved() {
    let lab = lab();
    lab.ok(&args(&[]));
    let ids = names(&lab, "out/kept");
    copy_folder(
        &lab.path(format!("out/kept/{}", ids[3])),
        &lab.path(format!("out/work/{}", ids[3])),
    );
    fs::remove_file(lab.path(format!("out/runs/{}.json", ids[3]))).unwrap();
    lab.expect_error(
        1,
        &args(&["--resume"]),
        &["two directories of the same run", "move one of them away"],
    );
    assert!(lab.path(format!("out/work/{}", ids[3])).exists());
    assert!(lab.path(format!("out/kept/{}", ids[3])).exists());
}

#[test]
fn killed_first_start_can_be_repeated() {
    let lab = lab();
    fs::create_dir_all(lab.path("out/runs")).unwrap();
    lab.write("out/lock", "");
    lab.write("out/study.toml.00112233445566aa.partial", "[stu");
    lab.ok(&args(&[]));
    assert_eq!(names(&lab, "out/kept").len(), 4);
    // The study file exists, with user comments, but no run was started.
    fs::create_dir(lab.path("other")).unwrap();
    lab.write("other/study.toml", format!("# Mine.\n{STUDY}"));
    lab.ok(&[
        "--threads",
        "1",
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "other",
    ]);
    assert!(lab.read("other/study.toml").starts_with(b"# Mine."));
    // Missing data: the study can be started again.
    let missing = [
        "study",
        "study.toml",
        "--out",
        "third",
        "--quiet",
        "--set",
        "data.train=[\"none\"]",
    ];
    lab.expect_error(1, &missing, &["none"]);
    lab.prepare("stories:60", "bytes", "none");
    lab.ok(&missing);
}

/// Two runs, each renamed and moved some dozen times.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs strace"]
fn kills_at_any_rename_lose_no_run() {
    let lab = lab();
    let short = args(&["--set", "study.lr=[1e-3]"]);
    let killed_at = |nth: usize| {
        let inject = format!("inject=rename:signal=SIGKILL:when={nth}");
        let mut command = lab.command_through("strace", &short);
        let starter = [
            "-f",
            "-qq",
            "-o",
            "log",
            "-e",
            "trace=rename",
            "-e",
            &inject,
        ];
        let program: Vec<_> = std::iter::once(command.get_program().to_owned())
            .chain(starter.iter().map(Into::into))
            .chain(command.get_args().map(ToOwned::to_owned))
            .collect();
        let mut whole = std::process::Command::new(&program[0]);
        whole.args(&program[1..]).current_dir(lab.path("."));
        whole.env("XDG_CACHE_HOME", lab.path("cache"));
        command = whole;
        code(&command.output().expect("strace is installed"))
    };
    lab.ok(&short);
    let expected: Vec<_> = names(&lab, "out/kept");
    for nth in 1.. {
        fs::remove_dir_all(lab.path("out")).unwrap();
        let is_through = killed_at(nth) == 0;
        let recorded = match lab.path("out/runs").is_dir() {
            true => names(&lab, "out/runs"),
            false => Vec::new(),
        };
        for id in recorded
            .iter()
            .filter_map(|name| name.strip_suffix(".json"))
        {
            assert!(lab.path(format!("out/kept/{id}")).is_dir(), "{nth}: {id}");
        }
        lab.ok(&[&short[..], &["--resume"]].concat());
        assert_eq!(names(&lab, "out/kept"), expected, "{nth}");
        assert_eq!(names(&lab, "out/runs").len(), expected.len(), "{nth}");
        assert_eq!(
            names(&lab, "out"),
            ["history.json", "kept", "lock", "runs", "study.toml", "work"]
        );
        assert!(names(&lab, "out/work").is_empty(), "{nth}");
        if is_through {
            assert!(nth > 8);
            break;
        }
    }
}
