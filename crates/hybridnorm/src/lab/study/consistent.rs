//! Consistency check of a record.

use super::plan::Planned;
use super::record::{Curve, Ending, RunRecord};
use super::run::ROSE_AGAIN;
use super::summary::STRETCH;

/// Tolerance for the losses of a curve, which are 32-bit numbers.
const SLACK: f64 = 1e-4;

/// Returns the first contradiction or impossible value in a record; `None` if there is none.
pub(super) fn problem(record: &RunRecord, planned: &Planned) -> Option<String> {
    of_steps(record, planned)
        .or_else(|| of_numbers(record))
        .or_else(|| of_validation(record))
        .or_else(|| of_curve(record, planned))
}

/// True if the run did all its steps, according to its status.
fn is_through(record: &RunRecord) -> bool {
    matches!(record.ending, Ending::Finished | Ending::NotLearned { .. })
}

fn of_steps(record: &RunRecord, planned: &Planned) -> Option<String> {
    let steps = planned.config.train.steps as u64;
    let done = record.steps;
    match &record.ending {
        Ending::Unfinished { .. } => Some("is that of a run that is not finished".into()),
        Ending::Finished | Ending::NotLearned { .. } if done != steps => Some(format!(
            "is said to be finished after {done} steps, the plan has {steps}"
        )),
        _ if done > steps => Some(format!("has {done} steps, the plan has {steps}")),
        Ending::Diverged { step, .. } if *step > steps => Some(format!(
            "is said to have diverged after step {step}, the plan has {steps}"
        )),
        Ending::Halved { .. } if !planned.may_be_halved => {
            Some("is said to be left out by successive halving, and the study has none".into())
        }
        Ending::Halved { step } if *step != done => Some(format!(
            "is said to be left out after step {step}, and has {done} steps"
        )),
        _ => None,
    }
}

fn of_numbers(record: &RunRecord) -> Option<String> {
    let is_loss = |loss: f64| loss.is_finite() && loss >= 0.0;
    if is_through(record) {
        for (name, value) in [
            ("validation", record.validation_loss),
            ("training", record.train_loss),
        ] {
            match value {
                None => {
                    return Some(format!(
                        "has no {name} loss, which every finished run of a study has"
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
    (speed.is_nan() || speed < 0.0).then(|| format!("has a speed of {speed} tokens/s"))
}

fn of_validation(record: &RunRecord) -> Option<String> {
    let all = &record.validation;
    let rise = all.windows(2).all(|pair| pair[0].step < pair[1].step);
    if !rise || all.last().is_some_and(|last| last.step > record.steps) {
        return Some("has validation losses at steps that it did not do, or not in order".into());
    }
    let last = all.last().filter(|last| last.step == record.steps);
    match (record.validation_loss, last) {
        (Some(loss), Some(last)) if loss != last.loss => Some(format!(
            "has a validation loss of {loss} nats, but the last of those on the way is {}",
            last.loss
        )),
        (Some(_), None) => Some("has a validation loss that is not among those on the way".into()),
        _ => None,
    }
}

fn of_curve(record: &RunRecord, planned: &Planned) -> Option<String> {
    let curve = &record.curve;
    let steps = &curve.step;
    let lengths = [&curve.loss, &curve.grad_norm, &curve.update_norm].map(Vec::len);
    let further = curve.further.values().map(Vec::len);
    let is_complete = lengths
        .into_iter()
        .chain(further)
        .all(|length| length == steps.len());
    let rises = steps.first() != Some(&0) && steps.windows(2).all(|pair| pair[0] < pair[1]);
    let ends = steps.last().copied().unwrap_or(0);
    if !is_complete || !rises || ends != record.steps {
        return Some(format!(
            "has a curve of training that does not end at its last step, {}, or has gaps",
            record.steps
        ));
    }
    let last = record.train_loss?;
    let stretch = record.steps.div_ceil(STRETCH as u64).max(1);
    let (low, high) = mean(
        curve,
        record.steps - stretch.min(record.steps),
        record.steps,
    );
    if last < low - SLACK * (1.0 + low) || last > high + SLACK * (1.0 + high) {
        return Some(format!(
            "has a training loss of {last} nats at its end, and its curve ends between {low:.4} and \
             {high:.4}"
        ));
    }
    let windows = || (0..record.steps / stretch).map(|index| index * stretch);
    let bounds = |after: u64| mean(curve, after, after + stretch);
    let limit = last - planned.diverged_above;
    let slack = SLACK * (1.0 + last);
    match &record.ending {
        Ending::Finished if windows().any(|after| bounds(after).1 < limit - slack) => {
            Some(format!(
                "is said to be finished, but its training loss rose by more than {} nats to {last:.4}",
                planned.diverged_above
            ))
        }
        Ending::Diverged { reason, .. }
            if reason.starts_with(ROSE_AGAIN)
                && !windows().any(|after| bounds(after).0 < limit + slack) =>
        {
            Some(format!(
                "is said to have lost what it had learned, but its training loss never was {} nats \
                 below {last:.4}, where it ended",
                planned.diverged_above
            ))
        }
        _ => None,
    }
}

/// Returns bounds of the mean loss over the steps after `from` up to `to`: a curve holds means of intervals that
/// may only partly lie in that range. Losses are not negative.
fn mean(curve: &Curve, from: u64, to: u64) -> (f64, f64) {
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
