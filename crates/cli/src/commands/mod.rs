//! Commands, one file each: convert arguments, call the library, print results.

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
use hybridnorm::eval::TextOverrides;
use hybridnorm::files::Locking;
use hybridnorm::train::{Checkpoint, run_directory};

use crate::args::TextArgs;
use crate::console::Console;

/// Outcome of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Completed.
    Done,
    /// Interrupted by a signal.
    Interrupted,
}

/// Opens the checkpoint at `path`, or the newest valid one of the run directory there; prints a note on each broken
/// newer one.
fn open_checkpoint(path: &Path, console: &Console) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(path)?;
    for problem in checkpoint.passed_over() {
        console.note(&run_directory::passed_over(problem));
    }
    Ok(checkpoint)
}

/// Returns the text options given on the command line.
fn text_overrides(args: TextArgs) -> TextOverrides {
    let TextArgs {
        text_field,
        separator,
        document_chars,
        include,
        exclude,
        skip_bad,
        replace_invalid_utf8,
    } = args;
    TextOverrides {
        text_field,
        separator,
        document_chars,
        include,
        exclude,
        skip_bad,
        replace_invalid_utf8,
    }
}

/// Returns the locking mode for `--no-lock`.
pub fn locking(no_lock: bool) -> Locking {
    match no_lock {
        true => Locking::Off,
        false => Locking::Required,
    }
}
