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
use hybridnorm::eval::TextOverrides;
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

/// Options of text as they were given.
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

/// Locking as `--no-lock` asks for.
pub fn locking(no_lock: bool) -> Locking {
    match no_lock {
        true => Locking::Off,
        false => Locking::Required,
    }
}
