//! Comparison of the metrics of a run and its replay.

use serde::Serialize;

use super::StepPair;
use crate::train::metrics::{METRICS, Metric, Metrics};
use crate::train::segments::Segment;

/// Comparison of a run with its replay, step by step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Number of steps that both completed.
    pub steps: u64,
    /// First difference; `None` if all metrics are bit-identical.
    pub first_difference: Option<Difference>,
    /// Other conditions that changed and may explain a difference, as text.
    pub other_conditions: Vec<String>,
}

/// Difference between a run and its replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Step at which they differ.
    pub step: u64,
    /// Metric that differs.
    pub quantity: &'static str,
}

impl Comparison {
    /// Compares the steps after step `from`; `history` is that of the run, `now` the segment of the replay.
    pub(super) fn new(steps: &[StepPair], from: u64, history: &[Segment], now: &Segment) -> Self {
        let of_both = || {
            let pairs = steps.iter();
            pairs.filter_map(|pair| Some((pair.step, pair.run.as_ref()?, &pair.replay)))
        };
        let last = of_both().map(|(step, ..)| step).max().unwrap_or(from);
        Self {
            steps: of_both().count() as u64,
            first_difference: of_both().find_map(|(step, run, replay)| {
                let quantity = difference(run, replay)?;
                Some(Difference { step, quantity })
            }),
            other_conditions: other_conditions(history, from, last, now),
        }
    }
}

/// Returns the first metric of a step that differs.
fn difference(run: &Metrics, replay: &Metrics) -> Option<&'static str> {
    let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
    // A value that only one of them has, such as a validation loss, was not measured by the other.
    let differs = |metric: &&Metric| match ((metric.value)(run), (metric.value)(replay)) {
        (Some(a), Some(b)) => metric.is_reproducible && !same(a, b),
        _ => false,
    };
    METRICS.iter().find(differs).map(|metric| metric.name)
}

/// Lists the conditions of steps `from + 1` to `last` of the run that differ from `now`.
fn other_conditions(history: &[Segment], from: u64, last: u64, now: &Segment) -> Vec<String> {
    let mut found = Vec::new();
    let recorded_from = history.first().map_or(u64::MAX, |first| first.after_step);
    if recorded_from > from {
        let steps = match recorded_from.min(last) {
            last if last <= from + 1 => format!("step {}", from + 1),
            last => format!("steps {} to {last}", from + 1),
        };
        found.push(format!(
            "the configuration of {steps} was not recorded and may have differed"
        ));
    }
    for (at, segment) in history.iter().enumerate() {
        let next = history.get(at + 1).map_or(u64::MAX, |next| next.after_step);
        if segment.after_step >= last || next <= from {
            continue;
        }
        let changed = changed_conditions(segment, now);
        if !changed.is_empty() {
            found.push(format!(
                "after step {} the run had {}",
                segment.after_step,
                changed.join("; ")
            ));
        }
    }
    found
}

/// Lists the conditions of a segment of the run that differ from `now`.
fn changed_conditions(segment: &Segment, now: &Segment) -> Vec<String> {
    let texts = [
        ("version", &segment.version, &now.version),
        ("machine", &segment.machine, &now.machine),
    ];
    let differing = texts.into_iter().filter(|(_, then, now)| then != now);
    let mut changed: Vec<String> = differing
        .map(|(name, then, now)| format!("{name} {then}, now {now}"))
        .collect();
    if let (Some(then), Some(now)) = (&segment.bf16_unit, &now.bf16_unit)
        && then != now
    {
        changed.push(format!("bf16 matmuls with {then}, now with {now}"));
    }
    if segment.threads != now.threads {
        changed.push(format!("threads {}, now {}", segment.threads, now.threads));
    }
    if segment.validation.is_some() && segment.validation != now.validation {
        changed.push("different validation data".to_owned());
    }
    changed
}
