//! Commands, one file each: convert arguments, call the library, print results.

pub mod bench;
pub mod data;
pub mod devices;
pub mod eval;
pub mod eval_tasks;
pub mod export;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod placement;
pub mod probe;
pub mod quickstart;
pub mod replay;
pub mod report;
pub mod serve;
pub mod study;
pub mod train;

use std::path::{Path, PathBuf};

use hybridnorm::Error;
use hybridnorm::data::Tokenizer;
use hybridnorm::plan::Precision;
use hybridnorm::train::{Checkpoint, run_directory};

use crate::args::Command;
use crate::console::Console;

/// Outcome of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Completed.
    Completed,
    /// Interrupted by a signal.
    Interrupted,
}

/// Runs a command.
pub fn run(command: Command, console: &Console) -> Result<Outcome, Error> {
    let outcome = match command {
        Command::Quickstart(args) => quickstart::run(args, console),
        Command::Train(args) => train::run(args, console),
        Command::Probe(args) => probe::run(args, console),
        Command::Replay(args) => replay::run(args, console),
        Command::Study(args) => study::run(args, console),
        Command::Report(args) => report::run(args, console),
        Command::Eval(args) => eval::run(args, console),
        Command::Generate(args) => generate::run(args, console),
        Command::Serve(args) => serve::run(args, console),
        Command::Data { command } => data::run(command, console),
        Command::Devices(args) => devices::run(&args),
        Command::Placement { command } => placement::run(command),
        Command::Inspect(args) => inspect::run(args, console),
        Command::Bench { command } => bench::run(command, console),
        Command::Import(args) => import::run(args, console),
        Command::Export(args) => export::run(args, console),
    };
    outcome.map_err(with_no_lock)
}

/// Prints a note with the precision of a program and the unit of its matmuls, unless it is single precision.
fn note_precision(precision: Precision, console: &Console) {
    if precision != Precision::F32 {
        let unit = precision.matmul_unit();
        console.note(&format!("computed in {precision}, matmuls with {unit}"));
    }
}

/// Opens the checkpoint at `path`, or the newest valid one of the run directory there; prints a note for each newer
/// checkpoint that is corrupt.
fn open_checkpoint(path: &Path, console: &Console) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(path)?;
    for problem in checkpoint.skipped_checkpoints() {
        console.note(&run_directory::skipped_checkpoint_note(problem));
    }
    Ok(checkpoint)
}

/// Returns the tokenizer of a checkpoint for a command that reads or writes text.
fn require_tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    checkpoint.tokenizer()?.ok_or_else(|| {
        Error::invalid_value(
            "checkpoint",
            format!(
                "{}: {}",
                checkpoint.path().display(),
                hybridnorm::train::checkpoint::NO_TOKENIZER
            ),
        )
    })
}

/// Appends the flags that resolve the conflict to an [`Error::Exists`] of the library.
fn with_flags(error: Error, flags: &str) -> Error {
    match error {
        Error::Exists { path, problem, .. } => {
            Error::exists(path, format!("{problem} (see {flags})"))
        }
        error => error,
    }
}

/// Adds the flag that turns locking off to the library's error about a file system without locks.
fn with_no_lock(error: Error) -> Error {
    match error {
        Error::NoFileLocks { .. } => Error::External(format!("{error} (--no-lock)")),
        error => error,
    }
}

/// Returns this command line with `--resume`, quoted for a POSIX shell.
fn resume_command() -> String {
    let args = std::env::args_os().skip(1);
    with_resume(args.map(|arg| arg.to_string_lossy().into_owned()))
}

fn with_resume(args: impl Iterator<Item = String>) -> String {
    let mut words = vec!["hybridnorm".to_owned()];
    words.extend(args.filter(|arg| arg != "--resume"));
    words.push("--resume".to_owned());
    let words: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    words.join(" ")
}

/// Quotes a word for a POSIX shell.
fn shell_word(word: &str) -> String {
    let is_safe = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_safe) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Returns the default run directory or study folder of a configuration file.
fn default_directory(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_an_error_that_names_the_flag() {
        let path = PathBuf::from("runs");
        let message = with_no_lock(Error::NoFileLocks { path }).to_string();
        assert!(message.starts_with("runs: "), "{message}");
        assert!(message.ends_with("(--no-lock)"), "{message}");
        let locked = Error::locked("runs", "is in use").to_string();
        assert_eq!(
            with_no_lock(Error::locked("runs", "is in use")).to_string(),
            locked
        );
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(shell_word("train.steps=3"), "train.steps=3");
        assert_eq!(shell_word("my run"), "'my run'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn resume_commands_repeat_the_command_line() {
        let command = |args: &[&str]| with_resume(args.iter().map(|arg| (*arg).to_owned()));
        assert_eq!(
            command(&["train", "a b.toml", "--no-lock"]),
            "hybridnorm train 'a b.toml' --no-lock --resume"
        );
        assert_eq!(
            command(&["train", "--resume", "a.toml"]),
            "hybridnorm train a.toml --resume"
        );
    }
}
