//! Files of a study: states left by kills, forged and damaged records, several processes in one folder.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use common::{Lab, code, copy_folder, files_below, seal, stderr};
use serde_json::Value;

const STUDY: &str = r#"
[study]
placements = ["pre-norm", "sandwich"]
lr = [1e-3, 2e-3]
seeds = [5]
keep_runs = true
[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
[data]
train = ["data"]
[train]
steps = 6
batch_size = 4
seq_len = 16
eval_sequences = 4
checkpoint_every = 3
"#;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("study.toml", STUDY);
    lab.prepare("stories:60", "bytes", "data");
    lab
}

const BASE: [&str; 7] = [
    "--threads",
    "1",
    "--quiet",
    "study",
    "study.toml",
    "--out",
    "out",
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&BASE, more].concat()
}

fn names(lab: &Lab, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(lab.path(folder)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn record(lab: &Lab, out: &str, id: &str) -> Value {
    let mut value: Value =
        serde_json::from_slice(&lab.read(format!("{out}/runs/{id}.json"))).unwrap();
    let object = value.as_object_mut().unwrap();
    object.remove("cost");
    object.remove("sha256").expect("a checksum");
    value
}

fn move_to(lab: &Lab, from: &str, to: &str) {
    fs::rename(lab.path(from), lab.path(to)).unwrap();
}

/// Reads every file of a run.
fn trained(lab: &Lab, run: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let root = lab.path(run);
    files_below(&root)
        .into_iter()
        .map(|file| {
            (
                file.strip_prefix(&root).unwrap().to_path_buf(),
                fs::read(file).unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_kill_between_record_and_move_loses_no_run_and_trains_none_twice() {
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
    lab.fails(2, &args(&[]), &["already holds a study"]);
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
    // A run that exists twice is left to the user.
    copy_folder(
        &lab.path(format!("out/kept/{}", ids[3])),
        &lab.path(format!("out/work/{}", ids[3])),
    );
    fs::remove_file(lab.path(format!("out/runs/{}.json", ids[3]))).unwrap();
    lab.fails(
        1,
        &args(&["--resume"]),
        &["two directories of the same run", "move one of them away"],
    );
    assert!(lab.path(format!("out/work/{}", ids[3])).exists());
    assert!(lab.path(format!("out/kept/{}", ids[3])).exists());
}

#[test]
fn runs_are_kept_from_now_on_or_no_longer() {
    let lab = lab();
    lab.ok(&args(&["--set", "study.keep_runs=false"]));
    assert_eq!(
        names(&lab, "out"),
        ["history.json", "lock", "runs", "study.toml", "work"]
    );
    assert!(names(&lab, "out/work").is_empty());
    let id = names(&lab, "out/runs")[0]
        .trim_end_matches(".json")
        .to_owned();
    // An incomplete run with a record is not a kept run.
    lab.write(&format!("out/work/{id}/checkpoints/x"), "y");
    let output = lab.run(&[
        "study",
        "study.toml",
        "--out",
        "out",
        "--resume",
        "--threads",
        "1",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("holds 0 of the 6 steps"),
        "{}",
        stderr(&output)
    );
    assert!(lab.path(format!("out/work/{id}/checkpoints/x")).exists());
    lab.ok(&args(&["--resume", "--set", "study.keep_runs=false"]));
    assert!(names(&lab, "out/work").is_empty());
}

#[test]
fn a_first_begin_that_was_killed_can_be_tried_again() {
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
    lab.fails(1, &missing, &["none"]);
    lab.prepare("stories:60", "bytes", "none");
    lab.ok(&missing);
}

#[test]
fn false_and_damaged_records_are_refused_and_stay() {
    let lab = lab();
    lab.ok(&args(&[]));
    let ids = names(&lab, "out/runs");
    let (own, other) = (
        format!("out/runs/{}", ids[0]),
        format!("out/runs/{}", ids[1]),
    );
    let whole = String::from_utf8(lab.read(&own)).unwrap();
    let parsed = |text: &[u8]| -> Value { serde_json::from_slice(text).unwrap() };
    let other = parsed(&lab.read(&other));
    let changed = |change: &dyn Fn(&mut Value)| {
        // Recomputes the checksum, as a forger would.
        let mut value = parsed(whole.as_bytes());
        change(&mut value);
        seal(&mut value);
        value.to_string()
    };
    let unsealed = || {
        let mut value = parsed(whole.as_bytes());
        value.as_object_mut().unwrap().remove("sha256");
        value.to_string()
    };
    let mut flipped = whole.clone().into_bytes();
    let at = whole.find("\"validation_loss\":").unwrap() + "\"validation_loss\":".len();
    flipped[at] ^= 1;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (flipped, "checksum"),
        (whole.as_bytes()[..whole.len() / 2].to_vec(), "EOF"),
        (
            changed(&|value| value["config"] = other["config"].clone()).into(),
            "expected",
        ),
        (
            changed(&|value| {
                let mut id = other.clone();
                id["id"] = value["id"].clone();
                *value = id;
            })
            .into(),
            "does not match run",
        ),
        (
            changed(&|value| value["placement_hash"] = "0011223344556677".into()).into(),
            "placement_hash 0011223344556677",
        ),
        (
            changed(&|value| value["steps"] = 5.into()).into(),
            "after 5 steps, expected 6",
        ),
        (
            changed(&|value| value["cell"]["seed"] = 6.into()).into(),
            "is labelled",
        ),
        (
            changed(&|value| value["id"] = other["id"].clone()).into(),
            "expected",
        ),
        (
            changed(&|value| value["validation_loss"] = 1.5.into()).into(),
            "validation loss of 1.5 nats, but the last",
        ),
        (
            changed(&|value| {
                value["ending"] = serde_json::json!({ "kind": "halved", "step": 6 });
            })
            .into(),
            "the study does not use it",
        ),
        (
            changed(&|value| value["train_loss"] = 0.5.into()).into(),
            "final training loss of 0.5 nats",
        ),
        (unsealed().into(), "has no checksum"),
    ];
    for (bytes, words) in cases {
        lab.write(&own, &bytes);
        let name = ids[0].as_str();
        lab.fails(1, &args(&["--resume"]), &[words, name]);
        lab.fails(1, &["report", "out", "--format", "json"], &[words, name]);
        lab.fails(
            1,
            &["study", "merge", "out", "--out", "merged"],
            &[words, name],
        );
        assert!(!lab.path("merged").exists());
        assert_eq!(lab.read(&own), bytes);
        assert_eq!(names(&lab, "out/kept").len(), 4);
    }
    // A record of an earlier version is accepted, and every output reports it from then on.
    let history = lab.read("out/history.json");
    fs::remove_file(lab.path("out/history.json")).unwrap();
    lab.write(&own, unsealed());
    let output = lab.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert_eq!(code(&output), 0);
    assert!(
        stderr(&output).contains("1 of 4 records have no checksum"),
        "{}",
        stderr(&output)
    );
    let words = "Not verified: 1 of 4 records have no checksum";
    lab.ok(&["study", "merge", "out", "--out", "joined"]);
    lab.ok(&["study", "merge", "out", "joined", "--out", "twice"]);
    for folder in ["out", "joined", "twice"] {
        for format in ["json", "markdown"] {
            let text = lab.ok(&["report", folder, "--format", format]);
            assert!(text.contains(words), "{folder} {format}: {text}");
        }
        assert!(lab.page(folder).contains(words), "{folder}");
    }
    let table = lab.ok(&args(&["--resume"]));
    assert!(table.contains(words), "{table}");
    assert!(table.contains("Unknown: whether rules or plan changed"));
    let groups = lab.json(&args(&["--resume", "--json"]));
    assert_eq!(groups[0]["without_checksum"], 1, "{groups}");
    lab.write("out/history.json", history);
    // JSON formatting does not matter.
    lab.write(
        &own,
        serde_json::to_string_pretty(&parsed(whole.as_bytes())).unwrap(),
    );
    let output = lab.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert!(
        !stderr(&output).contains("no checksum"),
        "{}",
        stderr(&output)
    );
}

#[cfg(unix)]
#[test]
fn pipes_and_huge_files_are_refused_at_once() {
    let lab = lab();
    lab.ok(&args(&[]));
    let id = names(&lab, "out/runs").remove(0);
    for name in ["out/study.toml".to_owned(), format!("out/runs/{id}")] {
        let path = lab.path(&name);
        let whole = lab.read(&name);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        for command in [
            args(&["--resume"]),
            vec!["report", "out", "--format", "json"],
            vec!["study", "merge", "out", "--out", "m"],
        ] {
            lab.fails(
                1,
                &command,
                &[name.rsplit('/').next().unwrap(), "is a pipe"],
            );
        }
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 33).unwrap();
        lab.fails(
            1,
            &args(&["--resume"]),
            &["8589934592 bytes, expected at most"],
        );
        fs::remove_file(&path).unwrap();
        lab.write(&name, whole);
    }
    lab.ok(&args(&["--resume"]));
}

fn ended(children: Vec<Child>) -> Vec<(i32, String)> {
    let ended = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    ended
        .map(|output| (code(&output), stderr(&output)))
        .collect()
}

#[test]
fn shards_may_share_a_folder_and_whole_studies_may_not() {
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
    lab.fails(2, &other, &["already holds another study"]);
    assert_eq!(lab.read("out/study.toml"), before);
}

#[test]
fn a_study_that_is_refused_has_written_nothing() {
    let lab = lab();
    let long = args(&["--set", "train.steps=4000"]);
    let mut first = lab.start(&long);
    common::wait_until("the study is begun", || lab.path("out/study.toml").exists());
    let before = lab.read("out/study.toml");
    let words = ["another process works on this study"];
    lab.fails(2, &args(&["--resume"]), &words);
    lab.fails(2, &args(&[]), &words);
    lab.fails(2, &args(&["--shard", "1/2", "--resume"]), &words);
    lab.fails(2, &args(&["--no-lock", "--resume"]), &words);
    lab.ok(&[
        "--threads",
        "1",
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "done",
    ]);
    lab.fails(2, &["study", "merge", "done", "--out", "out"], &words);
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
fn folders_are_joined_by_one_at_a_time_and_read_only_sources_stay_clean() {
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

/// Two runs, each renamed and moved some dozen times.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs strace"]
fn killed_at_every_renaming_no_run_is_lost() {
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
