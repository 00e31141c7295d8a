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

use crate::console;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All was done.
    Done,
    /// It was asked to stop.
    Interrupted,
}

/// What Ctrl-C and termination signals do: they end the process at once, with exit code 130, until
/// a command says [`Stop::wait_for_me`]. From then on the first signal raises a flag, so that the
/// command can save, and a second one ends the process.
pub struct Stop {
    raised: Arc<AtomicBool>,
    patient: Arc<AtomicBool>,
}

impl Stop {
    /// Begins to listen.
    pub fn listen() -> Result<Self, Error> {
        let stop = Self {
            raised: Arc::default(),
            patient: Arc::default(),
        };
        let (raised, patient) = (stop.raised.clone(), stop.patient.clone());
        ctrlc::set_handler(move || {
            if raised.swap(true, Ordering::Relaxed) || !patient.load(Ordering::Relaxed) {
                console::to_stderr("stopped");
                std::process::exit(130);
            }
        })
        .map_err(|error| Error::External(format!("cannot listen for signals: {error}")))?;
        Ok(stop)
    }

    /// The flag.
    pub fn flag(&self) -> &AtomicBool {
        &self.raised
    }

    /// From now on the first signal raises the flag only.
    pub fn wait_for_me(&self) -> &AtomicBool {
        self.patient.store(true, Ordering::Relaxed);
        &self.raised
    }
}
