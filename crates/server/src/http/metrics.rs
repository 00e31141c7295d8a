//! Metrics in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;

use crate::engine::{Counters, EngineHandle};

/// Upper bounds of the buckets of a histogram, in seconds.
const BOUNDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0,
];

/// Histogram of durations.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            bucket.fetch_add(u64::from(seconds <= bound), Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.nanoseconds
            .fetch_add(duration.as_nanos() as u64, Relaxed);
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        header(name, help, "histogram", out);
        let count = self.count.load(Relaxed);
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            let _ = writeln!(
                out,
                "{name}_bucket{{le=\"{bound}\"}} {}",
                bucket.load(Relaxed)
            );
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let seconds = Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {count}");
    }
}

/// Metrics of the HTTP layer.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Time from the request to its first new token.
    pub(super) first_token: Histogram,
    /// Time from the request to the end of its result.
    pub(super) duration: Histogram,
    responses: Mutex<BTreeMap<u16, u64>>,
}

impl Metrics {
    /// Counts a response.
    pub(super) fn count_response(&self, status: StatusCode) {
        let mut responses = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *responses.entry(status.as_u16()).or_default() += 1;
    }

    /// Returns the metrics, with those of the engine.
    pub(super) fn text(&self, engine: &EngineHandle) -> String {
        let mut out = String::new();
        header(
            "hybridnorm_responses_total",
            "Responses by status code.",
            "counter",
            &mut out,
        );
        for (status, count) in &*self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            let _ = writeln!(
                out,
                "hybridnorm_responses_total{{status=\"{status}\"}} {count}"
            );
        }
        write_counters(engine.counters(), &mut out);
        let help = "Time from a request to its first new token.";
        self.first_token
            .write("hybridnorm_first_token_seconds", help, &mut out);
        let help = "Time from a request to the end of its result.";
        self.duration
            .write("hybridnorm_request_seconds", help, &mut out);
        if let Some(bytes) = resident_bytes() {
            header(
                "process_resident_memory_bytes",
                "Resident memory.",
                "gauge",
                &mut out,
            );
            let _ = writeln!(out, "process_resident_memory_bytes {bytes}");
        }
        out
    }
}

fn header(name: &str, help: &str, kind: &str, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes the counters of an engine.
fn write_counters(counters: &Counters, out: &mut String) {
    for (name, kind, help, value) in [
        (
            "requests",
            "gauge",
            "Requests that wait or run.",
            &counters.requests,
        ),
        (
            "active_sequences",
            "gauge",
            "Sequences in slots.",
            &counters.active,
        ),
        (
            "prompt_tokens_total",
            "counter",
            "Evaluated tokens of prompts.",
            &counters.prompt_tokens,
        ),
        (
            "generated_tokens_total",
            "counter",
            "New tokens.",
            &counters.generated_tokens,
        ),
        (
            "steps_total",
            "counter",
            "Steps of one token of every sequence.",
            &counters.steps,
        ),
        (
            "cancelled_total",
            "counter",
            "Requests whose client disconnected.",
            &counters.cancelled,
        ),
    ] {
        let name = format!("hybridnorm_{name}");
        header(&name, help, kind, out);
        let _ = writeln!(out, "{name} {}", value.load(Relaxed));
    }
}

/// Returns the resident memory of this process, where the system reports it (Linux).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        for milliseconds in [5, 20, 20, 700_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let mut out = String::new();
        histogram.write("x", "Help.", &mut out);
        for line in [
            "x_bucket{le=\"0.01\"} 1",
            "x_bucket{le=\"600\"} 3",
            "x_bucket{le=\"+Inf\"} 4",
            "x_count 4",
        ] {
            assert!(out.lines().any(|found| found == line), "{line}\n{out}");
        }
    }
}
