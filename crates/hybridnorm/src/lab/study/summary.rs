//! Record of a run from its files.

use std::collections::BTreeMap;
use std::path::Path;

use super::record::{Cost, Curve, Evaluation, GridPoint, RunRecord, RunStatus};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::placement::{Explanation, PlacementChoice, canonical_hash};
use crate::train::inventory::inventory;
use crate::train::layers::LayerRecord;
use crate::train::metrics::{self, Metrics};
use crate::train::segments::{self, Segment};
use crate::train::spikes::{Detector, Quantity};
use crate::train::{
    Checkpoint, Config, State, Trainer, checkpoint, recorder, records, run_directory,
};
use crate::{machine, threads};

/// Maximum number of points of a [`Curve`].
const MAX_CURVE_POINTS: usize = 128;
/// Approximate number of steps whose layer statistics are kept.
const MAX_LAYER_ROWS: usize = 16;
/// Losses are averaged over windows of one `LOSS_WINDOW_DIVISOR`-th of the steps.
pub(super) const LOSS_WINDOW_DIVISOR: usize = 20;

/// Returns the record of a run directory in its current state.
///
/// # Errors
/// If it holds no run, or its files cannot be read.
pub fn of_directory(run: &Path) -> Result<RunRecord> {
    with_checkpoint(run).map(|(record, _)| record)
}

/// Returns the record of a run directory, and the newest checkpoint if there is one.
///
/// # Errors
/// As [`of_directory`].
pub fn with_checkpoint(run: &Path) -> Result<(RunRecord, Option<Checkpoint>)> {
    let config = Config::load(run.join(run_directory::CONFIG), &[])?;
    let rows: Vec<Metrics> = records::read(run)?;
    let step = rows.last().map_or(0, |row| row.step);
    let segments = segments::read(run)?;
    let newest = checkpoint::newest(run)?.checkpoint;
    let newest = newest.map(|(_, checkpoint)| checkpoint);
    let (model, data) = match &newest {
        Some(checkpoint) => {
            let state: State = checkpoint.state()?;
            let model = checkpoint.config()?;
            check_placement(run, &config, &model)?;
            (model, state.data)
        }
        None => (
            config.model_config()?,
            segments.last().map_or_else(
                || "unknown before the first checkpoint".into(),
                |segment| segment.data.clone(),
            ),
        ),
    };
    let grid_point = grid_point(&config, &model)?;
    let validation = rows.last().and_then(|row| row.validation_loss);
    let id = canonical_hash(&(&config, run));
    let info = RunInfo {
        id: &id,
        grid_point: &grid_point,
        config: &config,
        model: &model,
        data: &data,
    };
    let mut record = record(info, run, status(run, step, &config)?, validation)?;
    record.steps = step;
    record.cost = with_recorded_hardware(record.cost, &segments);
    Ok((record, newest))
}

/// Returns the status of a run after `step` steps.
fn status(run: &Path, step: u64, config: &Config) -> Result<RunStatus> {
    Ok(match recorder::failure(run, step)? {
        _ if step >= config.train.steps as u64 => RunStatus::Finished,
        Some(dump) => RunStatus::Diverged {
            step: dump.step,
            reason: dump.reasons.join("; "),
        },
        None => RunStatus::Unfinished { step },
    })
}

/// Returns the position of a run that is not part of a study.
fn grid_point(config: &Config, model: &ModelConfig) -> Result<GridPoint> {
    let placement = match &config.model {
        Some(section) => PlacementChoice::from_value(&section.placement)?.label(),
        None => PlacementChoice::from_checkpoint(model.placement.clone()).label(),
    };
    Ok(GridPoint {
        placement,
        lr: config.optimizer.lr,
        seed: config.seed,
        init: None,
        depth: None,
    })
}

/// Checks that the configuration has the placement of the checkpoint.
fn check_placement(run: &Path, config: &Config, model: &ModelConfig) -> Result<()> {
    let Some(section) = &config.model else {
        return Ok(());
    };
    let configured = section.resolve(config.train.seq_len, Some(model.vocab_size))?;
    match configured.placement.hash() == model.placement.hash() {
        true => Ok(()),
        false => Err(Error::format(
            run.join(run_directory::CONFIG),
            "placement differs from that of the run's checkpoint: one of them was modified; restore it",
        )),
    }
}

/// Replaces the hardware of this process by that of the run, which only its history records.
fn with_recorded_hardware(cost: Cost, segments: &[Segment]) -> Cost {
    let last = segments.last();
    let peaks: Option<Vec<u64>> = (segments.iter())
        .map(|segment| segment.peak_memory_bytes)
        .collect();
    Cost {
        peak_memory_bytes: peaks.and_then(|peaks| peaks.into_iter().max()),
        machine: last.map(|segment| segment.machine.clone()),
        threads: last.map(|segment| segment.threads),
        version: last.map(|segment| segment.version.clone()),
        ..cost
    }
}

/// Run that a record describes.
pub(super) struct RunInfo<'a> {
    id: &'a str,
    grid_point: &'a GridPoint,
    config: &'a Config,
    model: &'a ModelConfig,
    data: &'a str,
}

impl<'a> RunInfo<'a> {
    pub(super) fn new(
        id: &'a str,
        grid_point: &'a GridPoint,
        config: &'a Config,
        trainer: &'a Trainer,
    ) -> Self {
        Self {
            id,
            grid_point,
            config,
            model: trainer.model().config(),
            data: &trainer.state().data,
        }
    }
}

/// Returns the record of a run from the files in `work`.
pub(super) fn record(
    info: RunInfo<'_>,
    work: &Path,
    ending: RunStatus,
    validation_loss: Option<f64>,
) -> Result<RunRecord> {
    let rows = deduplicate_steps(records::read(work)?);
    let model = info.model;
    let explanation = Explanation::new(&model.placement, model.n_layers, &model.facts())?;
    let train = &info.config.train;
    let estimated = inventory(model, train.step_shape(), &info.config.optimizer)?;
    let counts = &estimated.counts;
    let mut detector = Detector::default();
    for row in &rows {
        detector.push(row);
    }
    let grad_norms = rows.iter().map(|row| Quantity::GradNorm.of(row));
    let tokens_per_step = train.batch_size * train.seq_len;
    Ok(RunRecord {
        id: info.id.to_owned(),
        grid_point: info.grid_point.clone(),
        config: info.config.to_toml(),
        placement_hash: model.placement.hash(),
        equations: explanation
            .named(&info.grid_point.placement)
            .to_text()
            .trim_end()
            .to_owned(),
        data: info.data.to_owned(),
        validation_data: segments::read(work)?.pop().and_then(|last| last.validation),
        parameters: counts.total,
        active_parameters: (counts.active != counts.total).then_some(counts.active),
        status: ending,
        steps: rows.len() as u64,
        tokens: rows.last().map_or(0, |row| row.tokens),
        validation_loss,
        train_loss: final_loss(&rows),
        max_grad_norm: grad_norms.fold(0.0, f64::max),
        spikes: detector.counts(),
        curve: curve(&rows),
        validation: evaluations(&rows),
        layers: subsample(records::read(work)?),
        cost: cost(&rows, tokens_per_step, estimated.memory.total()),
    })
}

fn evaluations(rows: &[Metrics]) -> Vec<Evaluation> {
    let evaluation = |row: &Metrics| {
        Some(Evaluation {
            step: row.step,
            loss: row.validation_loss?,
        })
    };
    rows.iter().filter_map(evaluation).collect()
}

/// Returns the speed of a run, and the hardware of this process.
fn cost(rows: &[Metrics], tokens_per_step: usize, estimated_memory: u64) -> Cost {
    let mut speeds: Vec<f64> = rows.iter().map(|row| row.tokens_per_second).collect();
    speeds.sort_by(f64::total_cmp);
    let seconds = speeds.iter().map(|speed| tokens_per_step as f64 / speed);
    Cost {
        tokens_per_second: speeds.get(speeds.len() / 2).copied().unwrap_or(0.0),
        seconds: seconds.sum(),
        peak_memory_bytes: None,
        estimated_memory_bytes: Some(estimated_memory),
        machine: Some(machine::name()),
        threads: Some(threads::count()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
    }
}

/// Returns the rows in the order of their steps; of duplicates, the last.
fn deduplicate_steps(rows: Vec<Metrics>) -> Vec<Metrics> {
    let by_step: BTreeMap<u64, Metrics> = rows.into_iter().map(|row| (row.step, row)).collect();
    by_step.into_values().collect()
}

/// Returns the mean training loss.
pub(super) fn mean(rows: &[Metrics]) -> f64 {
    rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64
}

/// Returns the mean training loss over the last window of steps.
pub(super) fn final_loss(rows: &[Metrics]) -> Option<f64> {
    let window = rows.len().div_ceil(LOSS_WINDOW_DIVISOR);
    (window > 0).then(|| mean(&rows[rows.len() - window..]))
}

fn curve(rows: &[Metrics]) -> Curve {
    let mut curve = Curve::default();
    let window = rows.len().div_ceil(MAX_CURVE_POINTS).max(1);
    for rows in rows.chunks(window) {
        curve.step.push(rows[rows.len() - 1].step);
        for (metric, plotted) in metrics::curves() {
            let values = rows.iter().filter_map(metric.value);
            curve.push(plotted.key, plotted.aggregate, values);
        }
    }
    curve
        .further
        .retain(|_, series| series.iter().any(Option::is_some));
    curve
}

/// Returns a subset of the rows, including the first and the last, with fewer digits.
fn subsample(rows: Vec<LayerRecord>) -> Vec<LayerRecord> {
    let stride = rows.len().div_ceil(MAX_LAYER_ROWS).max(1);
    let last = rows.len().saturating_sub(1);
    let kept =
        |&(index, _): &(usize, LayerRecord)| index == 0 || (last - index).is_multiple_of(stride);
    let rows = rows.into_iter().enumerate().filter(kept);
    rows.map(|(_, row)| row.map(rounded)).collect()
}

/// Rounds to four significant digits.
pub(super) fn rounded(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
