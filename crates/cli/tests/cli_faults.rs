//! Kills and failing system calls wherever a command accesses files.
//!
//! A command runs once without faults under `strace`, which counts its system calls. Then it runs again for each of
//! these calls: killed there, or with an injected error. After each run
//!
//! - existing data are unchanged or completely replaced by their successor;
//! - no error is reported as an internal error, and an error that the command survives has changed nothing;
//! - the same command, started again, succeeds and leaves exactly the files of a run without faults.
//!
//! `FAULTS=all cargo test --release -p hybridnorm-cli --test cli_faults -- --ignored` tests every call, which takes
//! an hour; without `FAULTS`, some of them, evenly spaced.
#![cfg(target_os = "linux")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{
    TestDir, code, copy_folder, quiet, stderr, write_official_checkpoint, write_study_keeping_runs,
};

/// System calls that find, open, write, rename, flush or remove files.
const CALLS: &str = "openat,statx,newfstatat,fstat,read,write,rename,renameat,renameat2,fsync,fdatasync,\
                     ftruncate,mkdir,unlink,unlinkat,rmdir,getdents64,flock,readlink";
const FAULTS: [&str; 4] = [
    "signal=SIGKILL",
    "error=EIO",
    "error=ENOSPC",
    "error=ESTALE",
];
/// Number of tested occurrences per system call and fault, unless all are tested.
const OCCURRENCES_PER_FAULT: usize = 3;

/// Log file of `strace`.
const TRACE: &str = "trace.log";

/// Command with the data that it must not lose.
struct Scenario {
    /// Creates the initial state.
    set_up: fn(&TestDir),
    command: &'static str,
    /// Additional arguments if the command refuses to start again without them.
    retry_args: &'static [&'static str],
    /// Folders that the command writes to; their file names are compared with those of a run without faults.
    written_folders: &'static [&'static str],
    /// Checks that the initial data still exist.
    assert_preserved: fn(&TestDir),
}

struct Fault {
    call: String,
    what: &'static str,
    nth: usize,
}

impl Scenario {
    fn check(&self) {
        let template = TestDir::new();
        (self.set_up)(&template);
        let fault_free = copy(&template);
        let command = quiet(self.command);
        let counts = calls(&fault_free, &command);
        assert!(counts.len() > 5, "{counts:?}");
        let expected = self.written(&fault_free);
        let all = std::env::var("FAULTS").is_ok_and(|value| value == "all");
        let faults: Vec<Fault> = counts
            .iter()
            .flat_map(|(call, &count)| {
                let step = if all {
                    1
                } else {
                    count.div_ceil(OCCURRENCES_PER_FAULT)
                };
                FAULTS
                    .into_iter()
                    .enumerate()
                    .flat_map(move |(index, what)| {
                        // Each fault at different occurrences.
                        (1 + index % step..=count)
                            .step_by(step)
                            .map(move |nth| Fault {
                                call: call.clone(),
                                what,
                                nth,
                            })
                    })
            })
            .collect();
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(problem) = self.try_one(&template, fault, &expected) {
                            let Fault { call, what, nth } = fault;
                            let line = format!("{call} {nth} {what}: {problem}");
                            println!("{line}");
                            failed.lock().unwrap().push(line);
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap();
        println!("{} faults, {} failed", faults.len(), failed.len());
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    fn try_one(
        &self,
        template: &TestDir,
        fault: &Fault,
        expected: &BTreeSet<PathBuf>,
    ) -> Result<(), String> {
        let Fault { call, what, nth } = fault;
        let command = quiet(self.command);
        let dir = copy(template);
        let inject = format!("inject={call}:{what}:when={nth}");
        let faulted = traced(
            &dir,
            &["-e", &format!("trace={call}"), "-e", &inject],
            &command,
        );
        let message = stderr(&faulted);
        if message.contains("internal error") || message.contains("panicked") {
            return Err(format!("reported as an internal error: {message}"));
        }
        let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (self.assert_preserved)(&dir)
        }));
        if kept.is_err() {
            return Err(format!(
                "existing data were lost; the command printed {message:?}"
            ));
        }
        // Old files that could not be removed are removed by the next writer.
        let mut found = self.written(&dir);
        found.retain(|name| expected.contains(name) || !is_temporary(name));
        if code(&faulted) == 0 && found != *expected {
            return Err(format!(
                "exited with code 0, but its files differ: {}",
                difference(&found, expected)
            ));
        }
        let mut retried = dir.run(&command);
        if code(&retried) != 0 && !self.retry_args.is_empty() {
            retried = dir.run(&[&command[..], self.retry_args].concat());
        }
        // A retry may be refused if the work was already complete.
        let is_done = code(&faulted) == 0 || found == *expected;
        if code(&retried) != 0 && !is_done {
            return Err(format!(
                "the retry failed: {:?} after {message:?}",
                stderr(&retried)
            ));
        }
        let found = self.written(&dir);
        match found == *expected {
            true => Ok(()),
            false => Err(format!(
                "files differ after the retry: {}",
                difference(&found, expected)
            )),
        }
    }

    /// Returns the names of everything below the folders that the command writes to.
    fn written(&self, dir: &TestDir) -> BTreeSet<PathBuf> {
        let mut names = BTreeSet::new();
        for folder in self.written_folders {
            walk(&dir.path(folder), &dir.path("."), &mut names);
        }
        names
    }
}

fn walk(folder: &Path, root: &Path, names: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap_or(&path);
        if name == Path::new(TRACE) || name == Path::new("cache") {
            continue;
        }
        names.insert(name.to_path_buf());
        if path.is_dir() {
            walk(&path, root, names);
        }
    }
}

fn is_temporary(name: &Path) -> bool {
    let name = name.to_string_lossy();
    name.contains(".partial") || name.contains(".replaced")
}

fn difference(found: &BTreeSet<PathBuf>, expected: &BTreeSet<PathBuf>) -> String {
    let more: Vec<_> = found.difference(expected).collect();
    let less: Vec<_> = expected.difference(found).collect();
    format!("unexpected {more:?}, missing {less:?}")
}

fn copy(template: &TestDir) -> TestDir {
    let dir = TestDir::new();
    copy_folder(&template.path("."), &dir.path("."));
    dir
}

fn traced(dir: &TestDir, options: &[&str], args: &[&str]) -> Output {
    let log = dir.path(TRACE);
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-qq", "-o"]).arg(&log);
    command
        .args(options)
        .arg(env!("CARGO_BIN_EXE_hybridnorm"))
        .args(args);
    dir.in_test_env(command)
        .output()
        .expect("strace is installed")
}

/// Counts each system call, as the maximum over threads.
fn calls(dir: &TestDir, args: &[&str]) -> BTreeMap<String, usize> {
    let output = traced(dir, &["-e", &format!("trace={CALLS}")], args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let log = String::from_utf8_lossy(&dir.read(TRACE)).into_owned();
    let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if CALLS.split(',').any(|name| name.trim() == call) {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let known = most.entry(call.to_owned()).or_insert(0);
        *known = count.max(*known);
    }
    most
}

fn assert_complete(dir: &TestDir, prepared: &str) {
    dir.ok(&["data", "inspect", prepared, "--quiet"]);
}

/// Trains six steps, with checkpoints at steps 3 and 6.
fn six_steps(dir: &TestDir) {
    dir.prepare("stories:20", "bytes", "data");
    dir.ok(&quiet(
        r#"train tiny.toml --run run --set train.steps=6 --set train.checkpoint_every=3 --set data.train=["data"]"#,
    ));
}

#[test]
#[ignore = "needs strace"]
fn interrupted_training_can_be_repeated_or_resumed() {
    Scenario {
        set_up: |dir| dir.prepare("stories:20", "bytes", "data"),
        command: r#"train tiny.toml --run run --set train.steps=6 --set train.checkpoint_every=3 --set train.eval_every=3 --set log.layers_every=2 --set data.train=["data"]"#,
        retry_args: &["--resume"],
        written_folders: &["run", "data"],
        assert_preserved: |dir| assert_complete(dir, "data"),
    }
    .check();
}

#[test]
#[ignore = "needs strace"]
fn interrupted_resume_keeps_checkpoints_and_metrics() {
    Scenario {
        set_up: six_steps,
        command: r#"train tiny.toml --run run --resume --set train.steps=9 --set train.checkpoint_every=3 --set data.train=["data"]"#,
        retry_args: &[],
        written_folders: &["run", "data"],
        assert_preserved: |dir| {
            let checkpoints = dir.checkpoints("run");
            let whole = checkpoints.iter().filter(|name| !name.contains(".partial"));
            let last = whole.max().expect("a checkpoint");
            assert!(last.as_str() >= "step-00000006", "{last}");
            dir.ok(&["inspect", &format!("run/checkpoints/{last}"), "--quiet"]);
            let rows = dir.metrics("run");
            let steps: Vec<u64> = rows
                .iter()
                .map(|row| row["step"].as_u64().unwrap())
                .collect();
            assert!((1..=6).all(|step| steps.contains(&step)), "{steps:?}");
        },
    }
    .check();
}

#[test]
#[ignore = "needs strace"]
fn interrupted_replacement_leaves_complete_prepared_data() {
    Scenario {
        set_up: |dir| {
            dir.write("text.txt", "Some text of mine. ".repeat(50));
            dir.prepare("stories:20", "bytes", "data");
        },
        command: "data prepare text.txt stories:9 --tokenizer bpe:280 --out data --overwrite",
        retry_args: &[],
        written_folders: &["."],
        assert_preserved: |dir| {
            assert_complete(dir, "data");
            assert_eq!(dir.read("text.txt").len(), 19 * 50);
        },
    }
    .check();
}

#[test]
#[ignore = "needs strace"]
fn interrupted_import_can_be_repeated() {
    Scenario {
        set_up: |dir| write_official_checkpoint(dir, "theirs"),
        command: "import theirs --out imported/model",
        retry_args: &[],
        written_folders: &["theirs", "imported"],
        assert_preserved: |dir| assert!(dir.read("theirs/model.pt").len() > 100),
    }
    .check();
}

#[test]
#[ignore = "needs strace"]
fn interrupted_replay_can_be_repeated() {
    Scenario {
        set_up: six_steps,
        command: "replay run --step 5 --after 1 --set optimizer.lr=1e-3",
        retry_args: &[],
        written_folders: &["run", "run-replay-5"],
        assert_preserved: |dir| {
            assert_eq!(dir.checkpoints("run"), ["step-00000003", "step-00000006"]);
            dir.ok(&["inspect", "run", "--quiet"]);
            assert_eq!(dir.metrics("run").len(), 6);
        },
    }
    .check();
}

#[test]
#[ignore = "needs strace"]
fn interrupted_study_loses_no_run() {
    Scenario {
        set_up: write_study_keeping_runs,
        command: "study study.toml --out study",
        retry_args: &["--resume"],
        written_folders: &["study", "data"],
        assert_preserved: |dir| {
            assert_complete(dir, "data");
            // A record without its run is a lost run.
            let names = |folder: &str| -> Vec<String> {
                let entries = fs::read_dir(dir.path(folder)).into_iter().flatten();
                let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                names.collect()
            };
            let runs = [names("study/kept"), names("study/work")].concat();
            for record in names("study/runs") {
                if let Some(id) = record.strip_suffix(".json") {
                    assert!(runs.iter().any(|run| run == id), "{id} of {runs:?}");
                }
            }
        },
    }
    .check();
}

const REPORT: &str = "report run --format markdown --out report.md";

#[test]
#[ignore = "needs strace"]
fn interrupted_report_leaves_a_complete_report() {
    Scenario {
        set_up: |dir| {
            six_steps(dir);
            dir.ok(&quiet(REPORT));
            dir.write("before.md", dir.read("report.md"));
        },
        command: REPORT,
        retry_args: &[],
        written_folders: &["."],
        assert_preserved: |dir| {
            let report = String::from_utf8(dir.read("report.md")).unwrap();
            assert!(
                report.len() * 10 > dir.read("before.md").len() * 9,
                "{report}"
            );
        },
    }
    .check();
}
