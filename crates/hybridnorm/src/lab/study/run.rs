//! Training of one run of a study, to its end or to a step limit.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use super::plan::PlannedRun;
use super::record::{RunRecord, RunStatus};
use super::records::DataFingerprints;
use super::summary::{LOSS_WINDOW_DIVISOR, RunInfo, final_loss, mean, record};
use crate::Device;
use crate::error::{Error, Result};
use crate::files::Locking;
use crate::memory;
use crate::train::metrics::Metrics;
use crate::train::{Event, OpenOptions, Start, Trainer, no_validation, records, segments};

/// Margin below the unigram loss that the training loss of a run must reach to count as learned, in nats.
pub const LEARNED_MARGIN: f64 = 0.1;
/// Prefix of the reason of a run that diverged because its training loss rose again.
pub(super) const LOSS_ROSE_PREFIX: &str = "the training loss rose again";

/// Result of training a run up to a step limit.
#[derive(Debug)]
pub enum RunProgress {
    /// The run ended.
    Ended(Box<RunRecord>),
    /// The step limit was reached.
    LimitReached,
    /// The run was stopped.
    Stopped,
}

/// Options for training a run.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Divergence threshold; see [`StudySettings::diverged_above`](super::StudySettings::diverged_above).
    pub diverged_above: f64,
    /// Step limit of this call: a rung of successive halving.
    pub limit: Option<u64>,
    /// True if the process trains one run at a time, so that its peak memory is that of the run.
    pub exclusive_process: bool,
    /// Compute device.
    pub device: Device,
    /// Locking of the run directory.
    pub locking: Locking,
    /// Set to true to stop the run.
    pub stop: &'a AtomicBool,
    /// Loss of a unigram model, once it is computed: the runs of a study have the same data.
    pub unigram_loss: &'a OnceLock<f64>,
}

/// Trains to the end or to `options.limit`, resuming from `work`. Returns an error if `data_mismatch` finds a
/// difference from the data of the other runs.
///
/// # Errors
/// If data or files are invalid. A diverged run is not an error.
pub(super) fn execute(
    planned: &PlannedRun,
    work: &Path,
    options: Options<'_>,
    data_mismatch: &dyn Fn(DataFingerprints) -> Option<String>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<RunProgress> {
    let Options {
        limit,
        exclusive_process,
        device,
        locking,
        stop,
        ..
    } = options;
    let mut trainer = open(planned, work, device, locking, &mut |event| {
        // A note on resuming or starting is not useful for each of a hundred runs.
        if !matches!(event, Event::Note(_)) {
            on_event(event);
        }
    })?;
    if !trainer.has_validation() {
        return Err(no_validation());
    }
    // Before training, not after it.
    check_data(planned, work, &trainer, data_mismatch)?;
    if exclusive_process {
        memory::reset_peak();
    }
    let ended = trainer.run_to(limit.unwrap_or(u64::MAX), stop, on_event);
    let (status, outcome) = match ended {
        Ok(outcome) if outcome.finished => (RunStatus::Finished, Some(outcome)),
        Ok(outcome) if limit.is_some_and(|limit| outcome.step >= limit) => {
            return Ok(RunProgress::LimitReached);
        }
        Ok(_) => return Ok(RunProgress::Stopped),
        Err(Error::Diverged { step, problem }) => {
            let step = step.unwrap_or(trainer.state().step);
            (diverged(step, &problem), None)
        }
        Err(error) => return Err(error),
    };
    let info = RunInfo::new(&planned.id, &planned.grid_point, &planned.config, &trainer);
    let validation = outcome.and_then(|outcome| Some(outcome.validation?.loss));
    let mut record = record(info, work, status, validation)?;
    if record.status == RunStatus::Finished {
        record.status = final_status(&trainer, work, &record, options)?;
    }
    // With concurrent runs, the peak of the process is not that of this run.
    if exclusive_process {
        record.cost.peak_memory_bytes = memory::peak_bytes();
    }
    Ok(RunProgress::Ended(Box::new(record)))
}

/// Returns the status of a run that diverged because of `problem`.
fn diverged(step: u64, problem: &str) -> RunStatus {
    // The rest of the line refers to files of this machine.
    let reason = problem.split(';').next().unwrap_or_default().to_owned();
    RunStatus::Diverged { step, reason }
}

/// Checks that a run still has the data that it started with, and those of the other runs.
fn check_data(
    planned: &PlannedRun,
    work: &Path,
    trainer: &Trainer,
    data_mismatch: &dyn Fn(DataFingerprints) -> Option<String>,
) -> Result<()> {
    let own = DataFingerprints {
        run: planned.grid_point.label(),
        training: trainer.state().data.clone(),
        validation: trainer.segment().validation.clone(),
    };
    // Resuming checks the training data itself.
    let has_changed = |known: &String| Some(known) != own.validation.as_ref();
    let segments = segments::read(work)?;
    let known = segments
        .iter()
        .filter_map(|segment| segment.validation.as_ref());
    let problem = match known.clone().find(|known| has_changed(known)) {
        Some(known) => Some(format!(
            "{}: validation data changed since its earlier steps (fingerprint {}, was {known})",
            own.run,
            own.validation.as_deref().unwrap_or("none")
        )),
        None => data_mismatch(own),
    };
    problem.map_or(Ok(()), |problem| {
        Err(Error::conflict(
            ["data.train", "data.validation"],
            format!("{problem}; restore the original data, or start a new study in another folder"),
        ))
    })
}

fn open(
    planned: &PlannedRun,
    work: &Path,
    device: Device,
    locking: Locking,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Trainer> {
    let options = OpenOptions::default().with_locking(locking);
    let config = planned.config.clone();
    Trainer::open_with(
        config,
        work,
        Start::ResumeOrFresh,
        &options,
        device,
        on_event,
    )
}

/// Returns the record of a run that successive halving eliminates after `step` steps.
///
/// # Errors
/// If its files cannot be read.
pub fn eliminated_record(
    planned: &PlannedRun,
    work: &Path,
    step: u64,
    device: Device,
    locking: Locking,
) -> Result<RunRecord> {
    let trainer = open(planned, work, device, locking, &mut |_| {})?;
    let info = RunInfo::new(&planned.id, &planned.grid_point, &planned.config, &trainer);
    record(info, work, RunStatus::Eliminated { step }, None)
}

/// Returns the mean training loss over the last 5 % of the first `step` steps of a run in `work`.
///
/// # Errors
/// If its metrics cannot be read.
pub fn loss_at(work: &Path, step: u64) -> Result<Option<f64>> {
    let mut metrics: Vec<Metrics> = records::read(work)?;
    metrics.retain(|record| record.step <= step);
    Ok(final_loss(&metrics))
}

/// Returns the status of a run that completed all steps: diverged if its training loss rose again, not learned yet if
/// its loss never fell at least 0.1 nats below the unigram loss. Divergence relative to other runs is left to the
/// analysis.
fn final_status(
    trainer: &Trainer,
    work: &Path,
    record: &RunRecord,
    options: Options<'_>,
) -> Result<RunStatus> {
    let metrics: Vec<Metrics> = records::read(work)?;
    let window = metrics.len().div_ceil(LOSS_WINDOW_DIVISOR).max(1);
    let means: Vec<(u64, f64)> = metrics
        .chunks_exact(window)
        .map(|window| (window[window.len() - 1].step, mean(window)))
        .collect();
    let best = means.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some((step, best)), Some(last)) = (best, record.train_loss)
        && last > best + options.diverged_above
    {
        let reason = format!("{LOSS_ROSE_PREFIX} from {best:.3} to {last:.3} nats");
        return Ok(RunStatus::Diverged { step, reason });
    }
    let Some((_, best)) = best else {
        return Ok(RunStatus::Finished);
    };
    let unigram_loss = match options.unigram_loss.get() {
        Some(&known) => known,
        None => {
            let found = trainer.training_data().unigram_nats()?;
            *options.unigram_loss.get_or_init(|| found)
        }
    };
    // If the data are nearly all one token, there is nothing more to learn.
    match unigram_loss > LEARNED_MARGIN && best > unigram_loss - LEARNED_MARGIN {
        true => Ok(RunStatus::NotLearned {
            // As in the records of earlier versions, which must stay equal.
            reason: format!(
                "the training loss came down to {best:.3} nats only; token frequencies alone give \
                 {unigram_loss:.3}"
            ),
        }),
        false => Ok(RunStatus::Finished),
    }
}
