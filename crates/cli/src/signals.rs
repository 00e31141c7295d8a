//! Handling of Ctrl-C and termination signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hybridnorm::Error;
use hybridnorm::train::Event;

use crate::console;

/// Handler of termination signals. They stop the process at once, with exit code 130, until a command calls
/// [`Signals::defer`]. After that, the first signal sets a flag, so that the command can save, and a second one
/// stops the process.
pub struct Signals {
    interrupted: Arc<AtomicBool>,
    deferred: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the signal handler.
    pub fn install() -> Result<Self, Error> {
        let handler = Self {
            interrupted: Arc::default(),
            deferred: Arc::default(),
        };
        let (interrupted, deferred) = (handler.interrupted.clone(), handler.deferred.clone());
        on_signal(move || {
            if interrupted.swap(true, Ordering::Relaxed) || !deferred.load(Ordering::Relaxed) {
                console::to_stderr("interrupted");
                std::process::exit(130);
            }
        })
        .map_err(|error| Error::External(format!("cannot listen for signals: {error}")))?;
        Ok(handler)
    }

    /// Returns the flag that the first signal sets.
    pub fn flag(&self) -> &AtomicBool {
        &self.interrupted
    }

    /// Makes the first signal only set the flag, from the first training step on.
    pub fn defer_from_first_step(&self, event: &Event<'_>) {
        if matches!(event, Event::Step(_)) {
            self.defer();
        }
    }

    /// Makes the first signal only set the flag from now on; returns the flag.
    pub fn defer(&self) -> &AtomicBool {
        self.deferred.store(true, Ordering::Relaxed);
        &self.interrupted
    }
}

/// Turns a write beyond the file size limit (`ulimit -f`) into an error with a message, instead of a silent end of
/// the process.
pub fn ignore_file_size_signal() {
    // An error is ignored: the process then ends as without this handler.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

#[cfg(unix)]
fn on_signal(handle: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut wanted = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(|_| handle()))?;
    Ok(())
}

/// True if this process was started with `signal` ignored, as `nohup` does with SIGHUP. Always false on systems other
/// than Linux, which do not report it.
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
fn on_signal(handle: impl Fn() + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(handle).map_err(std::io::Error::other)
}
