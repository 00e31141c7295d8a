//! Handling of Ctrl-C and termination signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hybridnorm::Error;
use hybridnorm::train::Event;

use crate::console;

/// Handler of termination signals. They stop the process at once, with exit code 130, until a command calls
/// [`Stop::wait_for_me`]. After that, the first signal sets a flag, so that the command can save, and a second one
/// stops the process.
pub struct Stop {
    raised: Arc<AtomicBool>,
    patient: Arc<AtomicBool>,
}

impl Stop {
    /// Installs the signal handler.
    pub fn listen() -> Result<Self, Error> {
        let stop = Self {
            raised: Arc::default(),
            patient: Arc::default(),
        };
        let (raised, patient) = (stop.raised.clone(), stop.patient.clone());
        on_signal(move || {
            if raised.swap(true, Ordering::Relaxed) || !patient.load(Ordering::Relaxed) {
                console::to_stderr("stopped");
                std::process::exit(130);
            }
        })
        .map_err(|error| Error::External(format!("cannot listen for signals: {error}")))?;
        Ok(stop)
    }

    /// Returns the flag.
    pub fn flag(&self) -> &AtomicBool {
        &self.raised
    }

    /// Makes the first signal only set the flag, from the first training step on.
    pub fn hear(&self, event: &Event<'_>) {
        if matches!(event, Event::Step(_)) {
            self.wait_for_me();
        }
    }

    /// Makes the first signal only set the flag from now on; returns the flag.
    pub fn wait_for_me(&self) -> &AtomicBool {
        self.patient.store(true, Ordering::Relaxed);
        &self.raised
    }
}

/// Turns a write beyond the file size limit (`ulimit -f`) into an error with a message, instead of a silent end of
/// the process.
pub fn outlive_file_limits() {
    // An error is ignored: the process then ends as without this handler.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

#[cfg(unix)]
fn on_signal(act: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut wanted = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(|_| act()))?;
    Ok(())
}

/// True if this process was started with `signal` ignored, as `nohup` does with the hangup signal of a closing
/// terminal. Only Linux reports this; false elsewhere.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn on_signal(act: impl Fn() + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(act).map_err(std::io::Error::other)
}
