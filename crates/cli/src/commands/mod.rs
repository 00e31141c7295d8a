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

use hybridnorm::files::Locking;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All was done.
    Done,
    /// It was asked to stop.
    Interrupted,
}

/// Locking as `--no-lock` asks for.
pub fn locking(no_lock: bool) -> Locking {
    match no_lock {
        true => Locking::Off,
        false => Locking::Required,
    }
}
