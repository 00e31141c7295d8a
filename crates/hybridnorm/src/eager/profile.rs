//! Where the time of a step goes, by op.
//!
//! Off unless a benchmark turns it on; then every fused op adds its wall time under its name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<BTreeMap<&'static str, Duration>> = Mutex::new(BTreeMap::new());

/// Starts from nothing.
pub fn start() {
    times().clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops; wall time by op since [`start`].
pub fn stop() -> BTreeMap<&'static str, Duration> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut *times())
}

/// Runs `work`, whose time belongs to `op`.
pub(crate) fn timed<T>(op: &'static str, work: impl FnOnce() -> T) -> T {
    if !ON.load(Ordering::Relaxed) {
        return work();
    }
    let started = Instant::now();
    let result = work();
    *times().entry(op).or_default() += started.elapsed();
    result
}

fn times() -> std::sync::MutexGuard<'static, BTreeMap<&'static str, Duration>> {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner)
}
