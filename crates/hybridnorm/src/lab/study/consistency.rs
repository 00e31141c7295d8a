//! Consistency check of a record.

use super::plan::PlannedRun;
use super::record::{Curve, RunRecord, RunStatus};
use super::run::LOSS_ROSE_PREFIX;
use super::summary::LOSS_WINDOW_DIVISOR;

/// Relative tolerance for the losses of a curve, which are stored as `f32`.
const TOLERANCE: f64 = 1e-4;

/// Returns the first contradiction or impossible value in a record; `None` if there is none.
pub(super) fn problem(record: &RunRecord, planned: &PlannedRun) -> Option<String> {
    check_steps(record, planned)
        .or_else(|| check_losses(record))
        .or_else(|| check_validation(record))
        .or_else(|| check_curve(record, planned))
}

/// True if the run did all its steps, according to its status.
fn completed_all_steps(record: &RunRecord) -> bool {
    matches!(
        record.status,
        RunStatus::Finished | RunStatus::NotLearned { .. }
    )
}

fn check_steps(record: &RunRecord, planned: &PlannedRun) -> Option<String> {
    let steps = planned.config.train.steps as u64;
    let done = record.steps;
    match &record.status {
        RunStatus::Unfinished { .. } => Some("belongs to an unfinished run".into()),
        RunStatus::Finished | RunStatus::NotLearned { .. } if done != steps => Some(format!(
            "has status finished after {done} steps, expected {steps}"
        )),
        _ if done > steps => Some(format!("has {done} steps, expected at most {steps}")),
        RunStatus::Diverged { step, .. } if *step > steps => Some(format!(
            "has status diverged after step {step}, expected at most {steps}"
        )),
        RunStatus::Eliminated { .. } if !planned.uses_halving => Some(
            "has status eliminated by successive halving, but the study does not use it".into(),
        ),
        RunStatus::Eliminated { step } if *step != done => Some(format!(
            "has status eliminated after step {step}, but {done} steps"
        )),
        _ => None,
    }
}

fn check_losses(record: &RunRecord) -> Option<String> {
    let is_loss = |loss: f64| loss.is_finite() && loss >= 0.0;
    if completed_all_steps(record) {
        for (name, value) in [
            ("validation", record.validation_loss),
            ("training", record.train_loss),
        ] {
            match value {
                None => {
                    return Some(format!(
                        "has no {name} loss, although every run that completes all steps has one"
                    ));
                }
                Some(loss) if !is_loss(loss) => {
                    return Some(format!("has a {name} loss of {loss} nats"));
                }
                Some(_) => {}
            }
        }
    }
    let speed = record.cost.tokens_per_second;
    (speed.is_nan() || speed < 0.0).then(|| format!("has a throughput of {speed} tokens/s"))
}

fn check_validation(record: &RunRecord) -> Option<String> {
    let all = &record.validation;
    let rise = all.windows(2).all(|pair| pair[0].step < pair[1].step);
    if !rise || all.last().is_some_and(|last| last.step > record.steps) {
        return Some("has validation losses after its last step or out of order".into());
    }
    let last = all.last().filter(|last| last.step == record.steps);
    match (record.validation_loss, last) {
        (Some(loss), Some(last)) if loss != last.loss => Some(format!(
            "has a final validation loss of {loss} nats, but the last one during training is {}",
            last.loss
        )),
        (Some(_), None) => {
            Some("has a final validation loss that was not recorded during training".into())
        }
        _ => None,
    }
}

fn check_curve(record: &RunRecord, planned: &PlannedRun) -> Option<String> {
    let curve = &record.curve;
    let steps = &curve.step;
    let lengths = [&curve.loss, &curve.grad_norm, &curve.update_norm].map(Vec::len);
    let further = curve.other_metrics.values().map(Vec::len);
    let is_complete = lengths
        .into_iter()
        .chain(further)
        .all(|length| length == steps.len());
    let rises = steps.first() != Some(&0) && steps.windows(2).all(|pair| pair[0] < pair[1]);
    let last_step = steps.last().copied().unwrap_or(0);
    if !is_complete || !rises || last_step != record.steps {
        return Some(format!(
            "has a training curve that does not end at its last step, {}, or has gaps",
            record.steps
        ));
    }
    let last = record.train_loss?;
    let window = record.steps.div_ceil(LOSS_WINDOW_DIVISOR as u64).max(1);
    let (low, high) = mean_bounds(curve, record.steps - window.min(record.steps), record.steps);
    if last < low - TOLERANCE * (1.0 + low) || last > high + TOLERANCE * (1.0 + high) {
        return Some(format!(
            "has a final training loss of {last} nats, but its curve ends between {low:.4} and {high:.4}"
        ));
    }
    check_rise(record, planned, last, window)
}

/// Checks that the rise of the training loss to `last` agrees with the status of the run.
fn check_rise(record: &RunRecord, planned: &PlannedRun, last: f64, window: u64) -> Option<String> {
    let starts = || (0..record.steps / window).map(|index| index * window);
    let bounds = |after: u64| mean_bounds(&record.curve, after, after + window);
    let limit = last - planned.diverged_above;
    let tolerance = TOLERANCE * (1.0 + last);
    match &record.status {
        RunStatus::Finished if starts().any(|after| bounds(after).1 < limit - tolerance) => {
            Some(format!(
                "has status finished, but its training loss rose by more than {} nats to {last:.4}",
                planned.diverged_above
            ))
        }
        RunStatus::Diverged { reason, .. }
            if reason.starts_with(LOSS_ROSE_PREFIX)
                && !starts().any(|after| bounds(after).0 < limit + tolerance) =>
        {
            Some(format!(
                "has status diverged (loss rose again), but its training loss was never {} nats below its final \
                 value, {last:.4}",
                planned.diverged_above
            ))
        }
        _ => None,
    }
}

/// Returns bounds of the mean loss over the steps after `from` up to `to`: a curve holds means of intervals that
/// may only partly lie in that range. Losses are not negative.
fn mean_bounds(curve: &Curve, from: u64, to: u64) -> (f64, f64) {
    let (mut low, mut high, mut before) = (0.0, 0.0, 0);
    for (&step, &loss) in curve.step.iter().zip(&curve.loss) {
        let sum = f64::from(loss) * (step - before) as f64;
        if before < to && step > from {
            high += sum;
            if before >= from && step <= to {
                low += sum;
            }
        }
        before = step;
    }
    let count = (to - from).max(1) as f64;
    (low / count, high / count)
}
