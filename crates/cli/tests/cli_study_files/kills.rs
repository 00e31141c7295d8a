//! Killed studies lose no run.

use super::*;

#[test]
fn kills_between_record_and_rename_neither_lose_nor_repeat_runs() {
    let dir = test_dir();
    dir.ok(&args(&[]));
    let ids = names(&dir, "out/kept");
    assert_eq!(ids.len(), 4);
    let before: Vec<_> = ids
        .iter()
        .map(|id| run_files(&dir, &format!("out/kept/{id}")))
        .collect();
    let records: Vec<_> = ids.iter().map(|id| record(&dir, "out", id)).collect();
    // A record was written, but its run not moved, as in earlier versions.
    move_to(
        &dir,
        &format!("out/kept/{}", ids[0]),
        &format!("out/work/{}", ids[0]),
    );
    // A run was moved, but its record not written.
    fs::remove_file(dir.path(format!("out/runs/{}.json", ids[1]))).unwrap();
    // A run was finished, but neither recorded nor moved.
    move_to(
        &dir,
        &format!("out/kept/{}", ids[2]),
        &format!("out/work/{}", ids[2]),
    );
    fs::remove_file(dir.path(format!("out/runs/{}.json", ids[2]))).unwrap();
    // Leftovers of killed writers.
    for name in ["study.toml", "runs/x.json", "kept/x"] {
        dir.write(&format!("out/{name}.00112233445566aa.partial"), "{");
    }
    dir.expect_error(2, &args(&[]), &["already holds a study"]);
    dir.ok(&args(&["--resume"]));
    assert_eq!(names(&dir, "out/kept"), ids);
    assert!(names(&dir, "out/work").is_empty());
    assert_eq!(
        names(&dir, "out"),
        ["history.json", "kept", "lock", "runs", "study.toml", "work"]
    );
    assert_eq!(names(&dir, "out/runs").len(), 4);
    for ((id, before), old) in ids.iter().zip(before).zip(records) {
        assert_eq!(record(&dir, "out", id), old, "{id}");
        let after = run_files(&dir, &format!("out/kept/{id}"));
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
    let dir = test_dir();
    dir.ok(&args(&[]));
    let ids = names(&dir, "out/kept");
    copy_folder(
        &dir.path(format!("out/kept/{}", ids[3])),
        &dir.path(format!("out/work/{}", ids[3])),
    );
    fs::remove_file(dir.path(format!("out/runs/{}.json", ids[3]))).unwrap();
    dir.expect_error(
        1,
        &args(&["--resume"]),
        &["hold the same run", "move one of them elsewhere"],
    );
    assert!(dir.path(format!("out/work/{}", ids[3])).exists());
    assert!(dir.path(format!("out/kept/{}", ids[3])).exists());
}

#[test]
fn killed_first_start_can_be_repeated() {
    let dir = test_dir();
    fs::create_dir_all(dir.path("out/runs")).unwrap();
    dir.write("out/lock", "");
    dir.write("out/study.toml.00112233445566aa.partial", "[stu");
    dir.ok(&args(&[]));
    assert_eq!(names(&dir, "out/kept").len(), 4);
    // The study file exists, with user comments, but no run was started.
    fs::create_dir(dir.path("other")).unwrap();
    dir.write("other/study.toml", format!("# Mine.\n{STUDY}"));
    dir.ok(&args_into("other", &[]));
    assert!(dir.read("other/study.toml").starts_with(b"# Mine."));
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
    dir.expect_error(1, &missing, &["none"]);
    dir.prepare("stories:60", "bytes", "none");
    dir.ok(&missing);
}

/// Two runs, each renamed and moved some dozen times.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs strace"]
fn kills_at_any_rename_lose_no_run() {
    let dir = test_dir();
    let short = args(&["--set", "study.lr=[1e-3]"]);
    let killed_at = |nth: usize| {
        let inject = format!("inject=rename:signal=SIGKILL:when={nth}");
        let mut command = dir.command_through("strace", &short);
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
        whole.args(&program[1..]).current_dir(dir.path("."));
        whole.env("XDG_CACHE_HOME", dir.path("cache"));
        command = whole;
        code(&command.output().expect("strace is installed"))
    };
    dir.ok(&short);
    let expected: Vec<_> = names(&dir, "out/kept");
    for nth in 1.. {
        fs::remove_dir_all(dir.path("out")).unwrap();
        let is_finished = killed_at(nth) == 0;
        let recorded = match dir.path("out/runs").is_dir() {
            true => names(&dir, "out/runs"),
            false => Vec::new(),
        };
        for id in recorded
            .iter()
            .filter_map(|name| name.strip_suffix(".json"))
        {
            assert!(dir.path(format!("out/kept/{id}")).is_dir(), "{nth}: {id}");
        }
        dir.ok(&[&short[..], &["--resume"]].concat());
        assert_eq!(names(&dir, "out/kept"), expected, "{nth}");
        assert_eq!(names(&dir, "out/runs").len(), expected.len(), "{nth}");
        assert_eq!(
            names(&dir, "out"),
            ["history.json", "kept", "lock", "runs", "study.toml", "work"]
        );
        assert!(names(&dir, "out/work").is_empty(), "{nth}");
        if is_finished {
            assert!(nth > 8);
            break;
        }
    }
}
