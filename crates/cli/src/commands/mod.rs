//! One file a command: arguments in, a call of the library, results out.

pub mod data;
pub mod eval;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod placement;
pub mod quickstart;
pub mod train;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hybridnorm::Error;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All was done.
    Done,
    /// It was asked to stop.
    Interrupted,
}

/// A flag that becomes true on Ctrl-C or a termination signal. A second signal ends the process
/// at once; nothing is lost but the steps since the last checkpoint.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|error| Error::External(format!("cannot listen for signals: {error}")))?;
    Ok(flag)
}
