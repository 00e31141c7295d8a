//! One run of a study, from its configuration to its record.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::plan::Planned;
use super::record::{Cell, Cost, Curve, Ending, Evaluation, RunRecord};
use crate::data;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::inventory::inventory;
use crate::model::{ModelConfig, Recompute};
use crate::ops;
use crate::placement::{Explanation, PlacementChoice, canonical_hash};
use crate::train::layers::LayersRow;
use crate::train::metrics::Metrics;
use crate::train::spikes::{Detector, Quantity};
use crate::train::{
    Config, Event, Start, State, Trainer, checkpoint, recorder, rows, run_directory,
};
use crate::{Device, machine, threads};

/// Points of a [`Curve`].
const POINTS: usize = 128;
/// Steps at which the inside of the model is kept.
const LOOKS: usize = 16;
/// Losses are averaged over this share of the steps.
const STRETCH: usize = 20;
/// A run is stuck if its loss came near what token frequencies alone give before half time, and has not
/// fallen by this much since, in nats, nor is it this much below that.
const STUCK: f64 = 0.1;

/// How far a run came.
#[derive(Debug)]
pub enum Came {
    /// To its end.
    Through(Box<RunRecord>),
    /// To the step it was to go to first.
    To(u64),
    /// It was asked to stop.
    Stopped,
}

/// How to take a run along.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// See [`StudySection::diverged_above`](super::StudySection::diverged_above).
    pub diverged_above: f64,
    /// Stop at this step for now.
    pub limit: Option<u64>,
    /// Whether the process does nothing else, so that its memory is the run's.
    pub is_alone: bool,
    /// Where to compute.
    pub device: &'a Device,
    /// Becomes true when the run is to stop.
    pub stop: &'a AtomicBool,
}

/// Trains until the end or until `options.limit`, going on from what stands in `work`.
///
/// # Errors
/// If something is wrong with data or files. That a run diverges is no error.
pub fn execute(
    planned: &Planned,
    work: &Path,
    options: Options<'_>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Came> {
    let Options {
        diverged_above,
        limit,
        is_alone,
        device,
        stop,
    } = options;
    let config = planned.config.clone();
    let mut trainer = Trainer::open(config, work, Start::Resume, device, &mut |event| {
        // Whether it goes on or begins is not worth a line for each of a hundred runs.
        if !matches!(event, Event::Note(_)) {
            on_event(event);
        }
    })?;
    if !trainer.has_validation() {
        return Err(Error::config(
            "a study compares validation losses, and the data hold out less than one sequence; \
             name some in data.validation",
        ));
    }
    if is_alone {
        memory::reset_peak();
    }
    let ended = trainer.run_to(limit.unwrap_or(u64::MAX), stop, on_event);
    let (ending, outcome) = match ended {
        Ok(outcome) if outcome.finished => (Ending::Finished, Some(outcome)),
        Ok(outcome) if limit.is_some_and(|limit| outcome.step >= limit) => {
            return Ok(Came::To(outcome.step));
        }
        Ok(_) => return Ok(Came::Stopped),
        Err(Error::Diverged { step, problem }) => {
            let step = step.unwrap_or(trainer.state().step);
            // The rest of the line is about this machine's files.
            let reason = problem.split(';').next().unwrap_or_default().to_owned();
            (Ending::Diverged { step, reason }, None)
        }
        Err(error) => return Err(error),
    };
    let of = Of::new(&planned.id, &planned.cell, &planned.config, &trainer);
    let validation = outcome.and_then(|outcome| Some(outcome.validation?.loss));
    let mut record = record(of, work, ending, validation)?;
    if record.ending == Ending::Finished {
        record.ending = judge(&trainer, work, &record, diverged_above)?;
    }
    // The next run may have other shapes.
    ops::pool::clear();
    if is_alone {
        record.cost.peak_memory_bytes = memory::peak_bytes();
    }
    Ok(Came::Through(Box::new(record)))
}

/// The record of a run that successive halving leaves out after `step` steps.
///
/// # Errors
/// If its files cannot be read.
pub fn leave_out(planned: &Planned, work: &Path, step: u64, device: &Device) -> Result<RunRecord> {
    let config = planned.config.clone();
    let trainer = Trainer::open(config, work, Start::Resume, device, &mut |_| {})?;
    let of = Of::new(&planned.id, &planned.cell, &planned.config, &trainer);
    record(of, work, Ending::Halved { step }, None)
}

/// The record of a run directory as it stands.
///
/// # Errors
/// If it holds no run, or its files cannot be read.
pub fn of_directory(run: &Path) -> Result<RunRecord> {
    let config = Config::load(run.join(run_directory::CONFIG), &[])?;
    let rows: Vec<Metrics> = rows::read(run)?;
    let step = rows.last().map_or(0, |row| row.step);
    let newest = checkpoint::newest(run)?.checkpoint;
    let (model, data) = match &newest {
        Some((_, checkpoint)) => {
            let (state, _): (State, _) = checkpoint.training()?;
            (checkpoint.config()?, state.data)
        }
        None => (
            config.model_config()?,
            "unknown before the first checkpoint".into(),
        ),
    };
    let ending = match recorder::failure(run, step)? {
        _ if step >= config.train.steps as u64 => Ending::Finished,
        Some(dump) => Ending::Diverged {
            step: dump.step,
            reason: dump.reasons.join("; "),
        },
        None => Ending::Unfinished { step },
    };
    let placement = match &config.model {
        Some(section) => PlacementChoice::from_value(&section.placement)?.label(),
        None => model.placement.hash(),
    };
    let cell = Cell {
        placement,
        lr: config.optimizer.lr,
        seed: config.seed,
        init: None,
        depth: None,
    };
    let validation = rows.last().and_then(|row| row.validation_loss);
    let id = canonical_hash(&(&config, run));
    let of = Of {
        id: &id,
        cell: &cell,
        config: &config,
        model: &model,
        data: &data,
    };
    record(of, run, ending, validation)
}

/// Mean training loss over the last twentieth of the first `step` steps of a run in `work`.
///
/// # Errors
/// If its metrics cannot be read.
pub fn loss_at(work: &Path, step: u64) -> Result<Option<f64>> {
    let mut rows: Vec<Metrics> = rows::read(work)?;
    rows.retain(|row| row.step <= step);
    Ok(last_stretch(&rows))
}

/// What a record is of.
struct Of<'a> {
    id: &'a str,
    cell: &'a Cell,
    config: &'a Config,
    model: &'a ModelConfig,
    data: &'a str,
}

impl<'a> Of<'a> {
    fn new(id: &'a str, cell: &'a Cell, config: &'a Config, trainer: &'a Trainer) -> Self {
        Self {
            id,
            cell,
            config,
            model: trainer.model().config(),
            data: &trainer.state().data,
        }
    }
}

fn record(
    of: Of<'_>,
    work: &Path,
    ending: Ending,
    validation_loss: Option<f64>,
) -> Result<RunRecord> {
    let rows: Vec<Metrics> = rows::read(work)?;
    let model = of.model;
    let explanation = Explanation::new(&model.placement, model.n_layers, &model.facts())?;
    let mut detector = Detector::default();
    for row in &rows {
        detector.push(row);
    }
    let largest = |quantity: Quantity| rows.iter().map(move |row| quantity.of(row));
    let train = &of.config.train;
    let micro = train.batch_size / train.grad_accum_steps;
    let tokens_per_step = (train.batch_size * train.seq_len) as f64;
    let mut speeds: Vec<f64> = rows.iter().map(|row| row.tokens_per_second).collect();
    speeds.sort_by(f64::total_cmp);
    Ok(RunRecord {
        id: of.id.to_owned(),
        cell: of.cell.clone(),
        config: of.config.to_toml(),
        placement_hash: model.placement.hash(),
        equations: explanation
            .named(&of.cell.placement)
            .to_text()
            .trim_end()
            .to_owned(),
        data: of.data.to_owned(),
        parameters: inventory(model, 1, 1, Recompute::None)?.total,
        ending,
        steps: rows.len() as u64,
        tokens: rows.last().map_or(0, |row| row.tokens),
        validation_loss,
        train_loss: last_stretch(&rows),
        max_grad_norm: largest(Quantity::GradNorm).fold(0.0, f64::max),
        spikes: detector.counts(),
        curve: curve(&rows),
        validation: rows
            .iter()
            .filter_map(|row| {
                Some(Evaluation {
                    step: row.step,
                    loss: row.validation_loss?,
                })
            })
            .collect(),
        layers: thin(rows::read(work)?),
        cost: Cost {
            tokens_per_second: speeds.get(speeds.len() / 2).copied().unwrap_or(0.0),
            seconds: speeds.iter().map(|speed| tokens_per_step / speed).sum(),
            peak_memory_bytes: None,
            estimated_memory_bytes: Some(
                inventory(model, micro, train.seq_len, train.recompute)?
                    .memory
                    .total(),
            ),
            machine: machine::name(),
            threads: threads::count(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    })
}

/// A run that did all its steps has diverged all the same if it lost what it had learned, or is stuck
/// where token frequencies alone lead.
fn judge(trainer: &Trainer, work: &Path, record: &RunRecord, above: f64) -> Result<Ending> {
    let rows: Vec<Metrics> = rows::read(work)?;
    let stretch = rows.len().div_ceil(STRETCH).max(1);
    let means: Vec<(u64, f64)> = rows
        .chunks_exact(stretch)
        .map(|rows| (rows[rows.len() - 1].step, mean(rows)))
        .collect();
    let best = means.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some((step, best)), Some(last)) = (best, record.train_loss)
        && last > best + above
    {
        let reason = format!("the training loss rose again from {best:.3} to {last:.3} nats");
        return Ok(Ending::Diverged { step, reason });
    }
    let halfway = means.get(means.len() / 2).map(|half| half.1);
    // Of ready tokens nobody knows the frequencies.
    let ([folder], Some(halfway), Some(last)) = (trainer.folders(), halfway, record.train_loss)
    else {
        return Ok(Ending::Finished);
    };
    let split = data::inspect(folder)?.train;
    let (low, high) = (split.unigram_nats - STUCK, split.unigram_nats + 2.0 * STUCK);
    if last > low && halfway < high && last > halfway - STUCK {
        let reason = format!(
            "stuck at {last:.3} nats, where token frequencies alone give {:.3}",
            split.unigram_nats
        );
        return Ok(Ending::Diverged {
            step: record.steps,
            reason,
        });
    }
    Ok(Ending::Finished)
}

fn mean(rows: &[Metrics]) -> f64 {
    rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64
}

fn last_stretch(rows: &[Metrics]) -> Option<f64> {
    let stretch = rows.len().div_ceil(STRETCH);
    (stretch > 0).then(|| mean(&rows[rows.len() - stretch..]))
}

fn curve(rows: &[Metrics]) -> Curve {
    let mut curve = Curve::default();
    let stretch = rows.len().div_ceil(POINTS).max(1);
    for rows in rows.chunks(stretch) {
        let largest = |quantity: Quantity| {
            let values = rows.iter().map(|row| quantity.of(row));
            // What does not fit would be read as nothing.
            rounded(values.fold(0.0, f64::max).min(f32::MAX.into()) as f32)
        };
        curve.step.push(rows[rows.len() - 1].step);
        curve.loss.push(mean(rows) as f32);
        curve.grad_norm.push(largest(Quantity::GradNorm));
        curve.update_norm.push(largest(Quantity::UpdateNorm));
    }
    curve
}

/// Some of the rows, the first and the last among them, with fewer digits.
fn thin(rows: Vec<LayersRow>) -> Vec<LayersRow> {
    let stride = rows.len().div_ceil(LOOKS).max(1);
    let last = rows.len().saturating_sub(1);
    let kept =
        |&(index, _): &(usize, LayersRow)| index == 0 || (last - index).is_multiple_of(stride);
    let rows = rows.into_iter().enumerate().filter(kept);
    rows.map(|(_, row)| row.map(rounded)).collect()
}

/// To four significant digits.
fn rounded(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
