//! One file a command: arguments in, a call of the library, results out.

pub mod bench;
pub mod data;
pub mod eval;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod placement;
pub mod probe;
pub mod quickstart;
pub mod replay;
pub mod report;
pub mod study;
pub mod train;

use std::path::Path;

use hybridnorm::Error;
use hybridnorm::data::{InvalidUtf8, SourceOptions};
use hybridnorm::files::Locking;
use hybridnorm::train::{Checkpoint, run_directory};

use crate::args::TextArgs;
use crate::console::Console;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All was done.
    Done,
    /// It was asked to stop.
    Interrupted,
}

/// The checkpoint at `path`, or the newest valid one of the run directory there. Broken ones that are
/// newer are named.
fn open_checkpoint(path: &Path, console: &Console) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(path)?;
    for problem in checkpoint.passed_over() {
        console.note(&run_directory::passed_over(problem));
    }
    Ok(checkpoint)
}

/// Locking as `--no-lock` asks for.
pub fn locking(no_lock: bool) -> Locking {
    match no_lock {
        true => Locking::Off,
        false => Locking::Required,
    }
}

/// Puts what was given in the place of what holds otherwise; says whether anything was.
fn set_text_options(options: &mut SourceOptions, given: TextArgs) -> bool {
    let before = options.clone();
    let TextArgs {
        text_field,
        separator,
        document_chars,
        include,
        exclude,
        skip_bad,
        replace_invalid_utf8,
    } = given;
    if let Some(field) = text_field {
        options.text_field = field;
    }
    // The one excludes the other.
    if separator.is_some() {
        options.separator = separator;
        options.document_chars = SourceOptions::default().document_chars;
    }
    if let Some(chars) = document_chars {
        options.document_chars = chars;
        options.separator = None;
    }
    if !include.is_empty() {
        options.include = include;
    }
    if !exclude.is_empty() {
        options.exclude = exclude;
    }
    options.skip_bad |= skip_bad;
    if replace_invalid_utf8 {
        options.invalid_utf8 = InvalidUtf8::Replace;
    }
    *options != before
}
