//! Temporary folder with the configuration of a tiny model, and the program to run in it.
#![allow(dead_code)] // Each test file uses only a part.

pub mod import;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hybridnorm");

/// Configuration that trains in a fraction of a second.
const CONFIG: &str = r#"
seed = 3
[model]
d_model = 16
n_layers = 2
n_heads = 2
n_kv_heads = 1
d_ff = 32
placement = "hybridnorm-star"
[data]
train = ["stories:60"]
tokenizer = "bytes"
[optimizer]
lr = 3e-3
[schedule]
kind = "cosine"
warmup_steps = 4
[train]
steps = 20
batch_size = 4
seq_len = 16
eval_every = 10
eval_sequences = 0
checkpoint_every = 5
keep_checkpoints = 3
"#;

/// Study of two runs that are kept, on the prepared folder `data`.
pub const STUDY_KEEPING_RUNS: &str = r#"
[study]
placements = ["pre-norm", "hybridnorm"]
lr = [1e-3]
seeds = [1]
keep_runs = true
[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
[data]
train = ["data"]
[train]
steps = 4
batch_size = 4
seq_len = 16
eval_sequences = 4
checkpoint_every = 2
"#;

/// Working folder of a test.
pub struct TestDir {
    folder: TempDir,
}

impl TestDir {
    /// Creates a folder that contains `tiny.toml`.
    pub fn new() -> Self {
        let dir = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        dir.write("tiny.toml", CONFIG);
        dir
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Returns a command of the program, run in the folder with its own cache.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args);
        self.in_test_env(command)
    }

    /// Returns a command that runs the program through another program, such as `nohup`.
    pub fn command_through(&self, starter: &str, args: &[&str]) -> Command {
        let mut command = Command::new(starter);
        command.arg(PROGRAM).args(args);
        self.in_test_env(command)
    }

    pub fn in_test_env(&self, mut command: Command) -> Command {
        command
            .current_dir(self.folder.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed and returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}\n{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the HTML report of a folder.
    pub fn html_report(&self, of: &str) -> String {
        self.ok(&["report", of, "--out", "page.html"]);
        String::from_utf8(self.read("page.html")).unwrap()
    }

    /// Runs a command that must succeed and print exactly one JSON document.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}\n{text}"))
    }

    /// Runs a command that must fail with one line on standard error that contains all of `words`.
    pub fn expect_error(&self, expected: i32, args: &[&str], words: &[&str]) -> String {
        let output = self.run(args);
        let text = stderr(&output);
        assert_eq!(code(&output), expected, "{args:?}\n{text}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
        assert!(text.starts_with("error: "), "{args:?}\n{text}");
        assert_eq!(text.lines().count(), 1, "{args:?}\n{text}");
        for word in words {
            assert!(text.contains(word), "{args:?}: no {word:?} in\n{text}");
        }
        for word in ["panicked", "backtrace", "internal error"] {
            assert!(!text.contains(word), "{args:?}\n{text}");
        }
        text
    }

    /// Like [`TestDir::expect_error`], with any exit code.
    pub fn expect_any_error(&self, args: &[&str], words: &[&str]) -> String {
        let status = code(&self.run(args));
        assert_ne!(status, 0, "{args:?}");
        self.expect_error(status, args, words)
    }

    /// Prepares text in the folder `out`.
    pub fn prepare(&self, text: &str, tokenizer: &str, out: &str) {
        self.ok(&[
            "data",
            "prepare",
            text,
            "--tokenizer",
            tokenizer,
            "--out",
            out,
        ]);
    }

    /// Trains `tiny.toml` in `run` quietly, with additional arguments.
    pub fn train(&self, run: &str, more: &[&str]) {
        self.ok(&train_args(run, more));
    }

    pub fn train_fails(&self, expected: i32, run: &str, more: &[&str], words: &[&str]) -> String {
        self.expect_error(expected, &train_args(run, more), words)
    }

    pub fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Reads the records of `metrics.jsonl`.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        self.read_jsonl(&format!("{run}/metrics.jsonl"))
    }

    /// Reads the records of a JSON Lines file.
    pub fn read_jsonl(&self, file: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(file)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Returns, per record, the values that every repetition of a step must reproduce.
    pub fn reproducible_metrics(&self, run: &str) -> Vec<String> {
        let keys = [
            "step",
            "loss",
            "grad_norm",
            "update_norm",
            "lr",
            "tokens",
            "validation_loss",
        ];
        self.metrics(run)
            .iter()
            .map(|row| keys.map(|key| row[key].to_string()).join(" "))
            .collect()
    }

    pub fn column(&self, run: &str, key: &str) -> Vec<f64> {
        let number = |row: &Value| row[key].as_f64().unwrap();
        self.metrics(run).iter().map(number).collect()
    }

    /// Like [`TestDir::checkpoints`], but empty if there is no folder yet.
    pub fn checkpoints_or_none(&self, run: &str) -> Vec<String> {
        match self.path(run).join("checkpoints").is_dir() {
            true => self.checkpoints(run),
            false => Vec::new(),
        }
    }

    /// Returns the names of the checkpoints.
    pub fn checkpoints(&self, run: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(run).join("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn train_args<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "tiny.toml", "--quiet", "--run", run];
    args.extend(more);
    args
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends a signal, e.g. `INT`.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid])
        .status();
    assert!(sent.unwrap().success());
}

/// Waits until `holds` returns true, at most 30 seconds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Updates the checksum of a study record to its content.
pub fn update_checksum(record: &mut Value) {
    record.as_object_mut().unwrap().remove("sha256");
    let sum = hybridnorm::files::sha256(record.to_string().as_bytes());
    record["sha256"] = sum.into();
}

/// Returns all files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

pub fn copy_folder(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// Ways to damage a file.
#[derive(Debug, Clone, Copy)]
pub enum Damage {
    Truncated,
    FlippedBit,
    Deleted,
}

pub const DAMAGES: [Damage; 3] = [Damage::Truncated, Damage::FlippedBit, Damage::Deleted];

pub fn damage(file: &Path, how: Damage) {
    let mut bytes = fs::read(file).unwrap();
    match how {
        Damage::Truncated => bytes.truncate(bytes.len() * 2 / 3),
        Damage::FlippedBit => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }
        Damage::Deleted => return fs::remove_file(file).unwrap(),
    }
    fs::write(file, bytes).unwrap();
}

/// Returns the bytes of a `.npy` file of u16 with the given shape, `(5,)` or `(2, 3)`.
pub fn numpy(shape: &str, values: &[u16]) -> Vec<u8> {
    let header = format!("{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

/// Returns the arguments, which contain no spaces, of a quiet command on one thread.
pub fn quiet(command: &str) -> Vec<&str> {
    let quiet = ["--threads", "1", "--quiet"];
    quiet.into_iter().chain(command.split(' ')).collect()
}

/// Creates a study whose runs are kept, and the prepared folder that it trains on.
pub fn write_study_keeping_runs(dir: &TestDir) {
    dir.write("study.toml", STUDY_KEEPING_RUNS);
    dir.prepare("stories:60", "bytes", "data");
}

/// Trains `run` on the prepared folder `data`.
pub fn train_on_prepared_data(dir: &TestDir) {
    dir.prepare("stories:60", "bytes", "data");
    dir.train("run", &["--set", "data.train=[\"data\"]"]);
}

/// Creates a checkpoint folder as the official code writes it.
pub fn write_official_checkpoint(dir: &TestDir, name: &str) {
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../hybridnorm/tests/fixtures/official");
    let json = fs::read(fixtures.join("hybridnorm-star.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let config = serde_json::json!({ "model": json["model"] });
    dir.write(&format!("{name}/config.yaml"), config.to_string());
    let torch = fs::read(fixtures.join("hybridnorm-star.pt")).unwrap();
    dir.write(&format!("{name}/model.pt"), torch);
}
