//! Wall time of ops.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Wall time by op name, while profiling.
#[derive(Debug, Default)]
pub(super) struct Profile(Option<BTreeMap<&'static str, Duration>>);

impl Profile {
    pub(super) fn start(&mut self) {
        self.0 = Some(BTreeMap::new());
    }

    /// True while profiling.
    pub(super) fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// Ends profiling; returns the wall times.
    pub(super) fn finish(&mut self) -> BTreeMap<&'static str, Duration> {
        self.0.take().unwrap_or_default()
    }

    /// Runs an op; measures it while profiling.
    pub(super) fn run(&mut self, name: &'static str, op: impl FnOnce()) {
        let Some(times) = &mut self.0 else {
            return op();
        };
        let started = Instant::now();
        op();
        *times.entry(name).or_default() += started.elapsed();
    }
}
