//! Two or three concurrent processes on one target: at least one succeeds, the others exit with a message, and nothing
//! is damaged.
//!
//! `RACES=200` runs that many rounds per race; the default is a few.

mod common;

use std::process::{Child, Stdio};

use common::{
    TestDir, code, files_below, quiet, stderr, train_on_prepared_data, write_official_checkpoint,
    write_study_keeping_runs,
};

/// Number of rounds per race without `RACES`.
const ROUNDS: usize = 4;

/// Command run by several processes concurrently.
struct Race {
    set_up: fn(&TestDir),
    command: &'static str,
    /// Path removed before each round.
    target: &'static str,
    /// True if exactly one process may succeed; otherwise all may.
    one_wins: bool,
    /// Expected messages of the losing processes, of which each prints one.
    loser_messages: &'static [&'static str],
    /// Checks the files of the winner.
    assert_complete: fn(&TestDir),
}

impl Race {
    fn run(&self) {
        let dir = TestDir::new();
        (self.set_up)(&dir);
        let rounds = std::env::var("RACES").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
        let mut expected = None;
        for round in 0..rounds {
            let target = dir.path(self.target);
            if target.is_dir() {
                std::fs::remove_dir_all(&target).unwrap();
            }
            let processes = 2 + round % 2;
            let started: Vec<Child> = (0..processes)
                .map(|_| {
                    let mut command = dir.command(&quiet(self.command));
                    command.stdout(Stdio::piped()).stderr(Stdio::piped());
                    command.spawn().unwrap()
                })
                .collect();
            let ended: Vec<_> = started
                .into_iter()
                .map(|child| child.wait_with_output().unwrap())
                .collect();
            let (won, lost): (Vec<_>, Vec<_>) = ended.iter().partition(|output| code(output) == 0);
            let messages: Vec<String> = lost.iter().map(|output| stderr(output)).collect();
            assert!(!won.is_empty(), "round {round}: nobody won; {messages:?}");
            if self.one_wins {
                assert_eq!(won.len(), 1, "round {round}: {messages:?}");
            }
            for message in &messages {
                assert_eq!(message.lines().count(), 1, "round {round}: {message}");
                let known = self
                    .loser_messages
                    .iter()
                    .any(|words| message.contains(words));
                assert!(known, "round {round}: {message}");
            }
            (self.assert_complete)(&dir);
            let left: Vec<_> = files_below(&dir.path("."));
            let expected = expected.get_or_insert_with(|| left.clone());
            assert_eq!(*expected, left, "round {round}: files");
        }
    }
}

#[test]
fn concurrent_preparations_have_one_winner() {
    Race {
        set_up: |_| {},
        command: "data prepare stories:60 --tokenizer bytes --out data",
        target: "data",
        one_wins: true,
        loser_messages: &[
            "was created by another process in the meantime",
            "already holds prepared data",
        ],
        assert_complete: |dir| drop(dir.ok(&["--quiet", "data", "inspect", "data"])),
    }
    .run();
}

#[test]
fn concurrent_replacements_of_prepared_data_leave_one_valid() {
    Race {
        set_up: |dir| dir.prepare("stories:90", "bytes", "data"),
        command: "data prepare stories:60 --tokenizer bytes --out data --overwrite",
        target: "nothing",
        one_wins: false,
        loser_messages: &["another process is replacing this folder"],
        assert_complete: |dir| drop(dir.ok(&["--quiet", "data", "inspect", "data"])),
    }
    .run();
}

#[test]
fn concurrent_training_runs_have_one_winner() {
    Race {
        set_up: |dir| dir.prepare("stories:60", "bytes", "data"),
        command: r#"train tiny.toml --run run --set data.train=["data"]"#,
        target: "run",
        one_wins: true,
        loser_messages: &["another process is training here", "already contains "],
        assert_complete: |dir| {
            assert_eq!(dir.metrics("run").len(), 20);
            dir.ok(&["--quiet", "inspect", "run"]);
        },
    }
    .run();
}

/// One process prepares the text into the cache while the others wait for it.
#[test]
fn concurrent_runs_on_text_share_the_cache_and_have_one_winner() {
    Race {
        set_up: |dir| dir.write("second.toml", dir.read("tiny.toml")),
        command: "train tiny.toml --run cache/run",
        target: "cache",
        one_wins: true,
        loser_messages: &["another process is training here", "already contains "],
        assert_complete: |dir| assert_eq!(dir.metrics("cache/run").len(), 20),
    }
    .run();
}

#[test]
fn concurrent_imports_have_one_winner() {
    Race {
        set_up: |dir| write_official_checkpoint(dir, "theirs"),
        command: "import theirs --out imported",
        target: "imported",
        one_wins: true,
        loser_messages: &[
            "was created by another process in the meantime",
            "already exists",
        ],
        assert_complete: |dir| drop(dir.ok(&["--quiet", "inspect", "imported"])),
    }
    .run();
}

#[test]
fn concurrent_replays_have_one_winner() {
    Race {
        set_up: train_on_prepared_data,
        command: "replay run --step 7 --after 2 --out replay",
        target: "replay",
        one_wins: true,
        loser_messages: &["another process is training here", "already contains "],
        assert_complete: |dir| assert_eq!(dir.metrics("replay").last().unwrap()["step"], 9),
    }
    .run();
}

fn assert_study_complete(dir: &TestDir) {
    for folder in ["study/runs", "study/kept"] {
        assert_eq!(
            std::fs::read_dir(dir.path(folder)).unwrap().count(),
            2,
            "{folder}"
        );
    }
    dir.ok(&["--quiet", "report", "study", "--format", "json"]);
}

#[test]
fn concurrent_studies_have_one_winner() {
    Race {
        set_up: write_study_keeping_runs,
        command: "study study.toml --out study",
        target: "study",
        one_wins: true,
        loser_messages: &["another process", "already holds a study"],
        assert_complete: assert_study_complete,
    }
    .run();
}

#[test]
fn concurrent_reports_leave_a_complete_file() {
    Race {
        set_up: train_on_prepared_data,
        command: "report run --format json --out report.json",
        target: "nothing",
        one_wins: false,
        loser_messages: &[],
        assert_complete: |dir| {
            serde_json::from_slice::<serde_json::Value>(&dir.read("report.json")).unwrap();
        },
    }
    .run();
}

/// Shards of one study may start in one folder at the same time.
#[test]
fn concurrent_shards_complete_the_study() {
    let dir = TestDir::new();
    write_study_keeping_runs(&dir);
    let rounds = std::env::var("RACES").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        if dir.path("study").is_dir() {
            std::fs::remove_dir_all(dir.path("study")).unwrap();
        }
        let shards = ["1/2", "2/2"].map(|shard| {
            let command = format!("study study.toml --out study --shard {shard}");
            dir.start(&quiet(&command))
        });
        for shard in shards {
            let output = shard.wait_with_output().unwrap();
            assert_eq!(code(&output), 0, "round {round}: {}", stderr(&output));
        }
        assert_study_complete(&dir);
    }
}
