//! Record of a run from its files.

use std::collections::BTreeMap;
use std::path::Path;

use super::record::{Cost, Curve, GridPoint, RunRecord, RunStatus, ValidationLoss};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::placement::{Explanation, PlacementConfig, canonical_hash};
use crate::plan::Precision;
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
/// Approximate maximum number of steps whose layer statistics are kept.
const MAX_LAYER_RECORDS: usize = 16;
/// Losses are averaged over windows of one `LOSS_WINDOW_DIVISOR`-th of the steps.
pub(super) const LOSS_WINDOW_DIVISOR: usize = 20;

/// Returns the record of a run directory in its current state.
///
/// # Errors
/// If it holds no run, or its files cannot be read.
pub fn read_run_record(run: &Path) -> Result<RunRecord> {
    read_run_record_with_checkpoint(run).map(|(record, _)| record)
}

/// Returns the record of a run directory, and the newest checkpoint if there is one.
///
/// # Errors
/// As [`read_run_record`].
pub fn read_run_record_with_checkpoint(run: &Path) -> Result<(RunRecord, Option<Checkpoint>)> {
    let config = Config::load(run.join(run_directory::CONFIG), &[])?;
    let records: Vec<Metrics> = records::read(run)?;
    let step = records.last().map_or(0, |record| record.step);
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
    let validation = records.last().and_then(|record| record.validation_loss);
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
    Ok(match recorder::find_failure_dump(run, step)? {
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
        Some(section) => PlacementConfig::from_value(&section.placement)?.label(),
        None => PlacementConfig::from_checkpoint(model.placement.clone()).label(),
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

/// Replaces the hardware of this process with that of the run, which is recorded only in its history.
fn with_recorded_hardware(cost: Cost, segments: &[Segment]) -> Cost {
    let last = segments.last();
    let peaks: Option<Vec<u64>> = (segments.iter())
        .map(|segment| segment.peak_memory_bytes)
        .collect();
    Cost {
        peak_memory_bytes: peaks.and_then(|peaks| peaks.into_iter().max()),
        machine: last.map(|segment| segment.machine.clone()),
        bf16_unit: last.and_then(|segment| segment.bf16_unit.clone()),
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
    status: RunStatus,
    validation_loss: Option<f64>,
) -> Result<RunRecord> {
    let records = deduplicate_steps(records::read(work)?);
    let model = info.model;
    let explanation = Explanation::new(&model.placement, model.n_layers, &model.facts())?;
    let train = &info.config.train;
    let estimated = inventory(model, train.step_shape(), &info.config.optimizer)?;
    let counts = &estimated.counts;
    let mut detector = Detector::default();
    for record in &records {
        detector.push(record);
    }
    let grad_norms = records
        .iter()
        .map(|record| Quantity::GradNorm.value(record));
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
        status,
        steps: records.len() as u64,
        tokens: records.last().map_or(0, |record| record.tokens),
        validation_loss,
        tasks: records
            .last()
            .map_or_else(Default::default, |record| record.tasks.clone()),
        train_loss: final_loss(&records),
        max_grad_norm: grad_norms.fold(0.0, f64::max),
        spikes: detector.counts(),
        curve: curve(&records),
        validation: evaluations(&records),
        layers: subsample(records::read(work)?),
        cost: cost(
            &records,
            tokens_per_step,
            estimated.memory.total(),
            info.config.train.program_precision(),
        ),
    })
}

fn evaluations(records: &[Metrics]) -> Vec<ValidationLoss> {
    let evaluation = |record: &Metrics| {
        Some(ValidationLoss {
            step: record.step,
            loss: record.validation_loss?,
        })
    };
    records.iter().filter_map(evaluation).collect()
}

/// Returns the throughput of a run, and the hardware of this process.
fn cost(
    records: &[Metrics],
    tokens_per_step: usize,
    estimated_memory: u64,
    precision: Precision,
) -> Cost {
    let mut throughputs: Vec<f64> = records
        .iter()
        .map(|record| record.tokens_per_second)
        .collect();
    throughputs.sort_by(f64::total_cmp);
    let seconds = throughputs
        .iter()
        .map(|throughput| tokens_per_step as f64 / throughput);
    Cost {
        tokens_per_second: throughputs
            .get(throughputs.len() / 2)
            .copied()
            .unwrap_or(0.0),
        seconds: seconds.sum(),
        peak_memory_bytes: None,
        estimated_memory_bytes: Some(estimated_memory),
        machine: Some(machine::cpu_name()),
        bf16_unit: precision.bf16_unit(),
        threads: Some(threads::count()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
    }
}

/// Returns the records in the order of their steps; of duplicates, the last.
fn deduplicate_steps(records: Vec<Metrics>) -> Vec<Metrics> {
    let by_step: BTreeMap<u64, Metrics> = records
        .into_iter()
        .map(|record| (record.step, record))
        .collect();
    by_step.into_values().collect()
}

/// Returns the mean training loss.
pub(super) fn mean(records: &[Metrics]) -> f64 {
    records.iter().map(|record| record.loss).sum::<f64>() / records.len() as f64
}

/// Returns the mean training loss over the last window of steps.
pub(super) fn final_loss(records: &[Metrics]) -> Option<f64> {
    let window = records.len().div_ceil(LOSS_WINDOW_DIVISOR);
    (window > 0).then(|| mean(&records[records.len() - window..]))
}

fn curve(records: &[Metrics]) -> Curve {
    let mut curve = Curve::default();
    let window = records.len().div_ceil(MAX_CURVE_POINTS).max(1);
    for records in records.chunks(window) {
        curve.step.push(records[records.len() - 1].step);
        for (metric, plotted) in metrics::curves() {
            let values = records.iter().filter_map(metric.value);
            curve.push(plotted.key, plotted.aggregate, values);
        }
    }
    curve
        .other_metrics
        .retain(|_, series| series.iter().any(Option::is_some));
    curve
}

/// Returns a subset of the records, including the first and the last, rounded to fewer digits.
fn subsample(records: Vec<LayerRecord>) -> Vec<LayerRecord> {
    let stride = records.len().div_ceil(MAX_LAYER_RECORDS).max(1);
    let last = records.len().saturating_sub(1);
    let kept =
        |&(index, _): &(usize, LayerRecord)| index == 0 || (last - index).is_multiple_of(stride);
    let records = records.into_iter().enumerate().filter(kept);
    records.map(|(_, record)| record.map(rounded)).collect()
}

/// Rounds to four significant digits.
pub(super) fn rounded(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
