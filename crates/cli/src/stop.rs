//! What Ctrl-C and the signals to end do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hybridnorm::Error;
use hybridnorm::train::Event;

use crate::console;

/// Signals to end stop the process at once, with exit code 130, until a command says
/// [`Stop::wait_for_me`]. From then on the first one raises a flag, so that the command can save,
/// and a second one ends the process.
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
        on_signal(move || {
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

    /// From the first step of a training on, the first signal raises the flag only.
    pub fn hear(&self, event: &Event<'_>) {
        if matches!(event, Event::Step(_)) {
            self.wait_for_me();
        }
    }

    /// From now on the first signal raises the flag only.
    pub fn wait_for_me(&self) -> &AtomicBool {
        self.patient.store(true, Ordering::Relaxed);
        &self.raised
    }
}

/// A file that may not become larger (`ulimit -f`) is then an error of writing, with a message, and not
/// the end of the process without one.
pub fn outlive_file_limits() {
    // Where it cannot be had, the process ends as it would have without.
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

/// Whether this process was started with a signal ignored, as `nohup` does with the one that a
/// closing terminal sends. Linux alone tells; elsewhere the answer is no.
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
