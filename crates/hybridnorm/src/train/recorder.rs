//! Flight recorder: layer statistics, TensorBoard events and dumps of a run, besides its metrics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::LogSection;
use super::layers::{BLOCK_METRICS, FiniteOrNone, LayerRecord, finite_or_none};
use super::metrics::{METRICS, Metric, Metrics};
use super::optimizer::ParameterNorms;
use super::records::{self, RecordFile};
use super::run_directory;
use super::spikes::{Detector, Spike, SpikeCounts, SpikeScores};
use super::tensorboard::EventFile;
use crate::error::{Error, Result};
use crate::files;

/// Folder of a run that contains its [`Dump`]s.
pub const FLIGHT: &str = "flight";

/// State of the model at a spike, or at a value that is not finite: `flight/step-N.json` of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Dump {
    /// The step, counted from 1.
    pub step: u64,
    /// The reason for the dump.
    pub kind: DumpReason,
    /// The spikes, or the values that are not finite, one line each.
    pub reasons: Vec<String>,
    /// Mean cross-entropy of the batch before the update.
    pub loss: FiniteOrNone,
    /// Global norm of the gradients before clipping.
    pub grad_norm: FiniteOrNone,
    /// Global norm of the update; 0 if there was none.
    pub update_norm: FiniteOrNone,
    /// Learning rate.
    pub lr: f64,
    /// Ids of the batch's instances.
    pub instances: Vec<u64>,
    /// Weights that produced the activations: those before the step's update or after it.
    pub weights: WeightsVersion,
    /// All blocks, for the micro-batch with the largest loss.
    pub layers: LayerRecord,
    /// Norms of every parameter, by name.
    pub parameters: BTreeMap<String, DumpedNorms>,
}

/// Returns the dump of the failure that ended a run after `step` steps, if any.
///
/// # Errors
/// If a dump cannot be read.
pub fn find_failure_dump(run: &Path, step: u64) -> Result<Option<Dump>> {
    for (dump_step, path) in dumps(run)?.into_iter().rev() {
        let bytes = files::read_small(&path, DUMP_LIMIT)?;
        let dump: Dump = serde_json::from_slice(&bytes)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        if dump_step >= step && dump.kind == DumpReason::NotFinite {
            return Ok(Some(dump));
        }
    }
    Ok(None)
}

/// Lists the dumps of a run by step.
fn dumps(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(FLIGHT);
    let mut found = Vec::new();
    if !files::exists(&folder)? {
        return Ok(found);
    }
    for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
        let path = entry.map_err(Error::io(&folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix("step-")?.strip_suffix(".json"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Size limit of a dump.
const DUMP_LIMIT: u64 = 16 << 20;

fn dump_path(run: &Path, step: u64) -> PathBuf {
    run.join(FLIGHT).join(format!("step-{step:08}.json"))
}

/// Reason for a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DumpReason {
    /// A value far above its recent mean; the run continued.
    Spike,
    /// A value that is not finite; the run ended.
    NotFinite,
}

/// Weights before or after a step's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightsVersion {
    /// Before the update.
    Before,
    /// After the update.
    After,
}

/// Euclidean norms of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DumpedNorms {
    /// Norm of the gradient before clipping.
    pub grad_norm: FiniteOrNone,
    /// Norm of the step's update.
    pub update_norm: FiniteOrNone,
}

impl From<&ParameterNorms> for DumpedNorms {
    fn from(norms: &ParameterNorms) -> Self {
        Self {
            grad_norm: finite_or_none(norms.gradient),
            update_norm: finite_or_none(norms.update),
        }
    }
}

/// Removes dumps of steps after `step`, which will be run again; returns the number of dumps left.
fn remove_dumps_after(run: &Path, step: u64) -> Result<usize> {
    let (later, left): (Vec<_>, Vec<_>) = dumps(run)?
        .into_iter()
        .partition(|(dump_step, _)| *dump_step > step);
    for (_, path) in later {
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    Ok(left.len())
}

/// Removes the dumps of a run, and their folder if it is then empty.
///
/// # Errors
/// If one cannot be removed.
pub(super) fn remove_dumps(run: &Path) -> Result<()> {
    for (_, path) in dumps(run)? {
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    let folder = run.join(FLIGHT);
    files::remove_stale_in(&folder);
    run_directory::remove_empty(&folder)
}

/// Writer of layer statistics, event files and dumps of a run, with spike detection.
pub(super) struct Recorder {
    log: LogSection,
    run: PathBuf,
    files: Option<Files>,
    detector: Detector,
    dumps: usize,
    missing_records: u64,
    first_record_step: Option<u64>,
}

/// Files that the run appends to.
struct Files {
    layers: RecordFile<LayerRecord>,
    events: Option<EventFile>,
}

impl Recorder {
    /// Reads the metrics of the first `step` steps of a run, without changing any file.
    pub(super) fn open(run: &Path, log: &LogSection, step: u64) -> Result<Self> {
        RecordFile::<Metrics>::check(run, step)?;
        RecordFile::<LayerRecord>::check(run, step)?;
        let mut detector = Detector::default();
        let records = records::read_up_to::<Metrics>(run, step)?;
        for metrics in &records {
            detector.push(metrics);
        }
        let first_record_step = records.first().map(|metrics| metrics.step);
        let first = first_record_step.unwrap_or(1);
        Ok(Self {
            first_record_step,
            missing_records: (step + 1).saturating_sub(first + records.len() as u64),
            files: None,
            log: log.clone(),
            run: run.to_path_buf(),
            detector,
            dumps: 0,
        })
    }

    /// Opens the files of a run that continues after `step` steps; removes records and dumps of later steps, which
    /// will be run again.
    pub(super) fn open_files(&mut self, step: u64) -> Result<()> {
        let resumed = (step > 0).then_some(step);
        self.dumps = remove_dumps_after(&self.run, step)?;
        self.files = Some(Files {
            layers: RecordFile::open(&self.run, step)?,
            events: match self.log.tensorboard {
                true => Some(EventFile::create(&self.run, resumed)?),
                false => None,
            },
        });
        Ok(())
    }

    /// Flushes all files to disk.
    pub(super) fn sync(&self) -> Result<()> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        files.layers.sync()?;
        files.events.as_ref().map_or(Ok(()), EventFile::sync)
    }

    /// Returns the run directory.
    pub(super) fn run(&self) -> &Path {
        &self.run
    }

    fn events(&mut self) -> Option<&mut EventFile> {
        self.files.as_mut()?.events.as_mut()
    }

    /// Returns the step of the first metrics record of the run.
    pub(super) fn first_record_step(&self) -> Option<u64> {
        self.first_record_step
    }

    /// Returns the number of completed steps that lack a metrics record, counted from the first record if there is one.
    pub(super) fn missing_records(&self) -> u64 {
        self.missing_records
    }

    /// True if activations are recorded in this step.
    pub(super) fn is_due(&self, step: u64) -> bool {
        self.log.layers_every > 0 && step.is_multiple_of(self.log.layers_every as u64)
    }

    /// Compares a step with the preceding ones; returns its spikes.
    pub(super) fn detect_spikes(&mut self, metrics: &Metrics) -> Vec<Spike> {
        self.detector.push(metrics)
    }

    pub(super) fn spikes(&self) -> SpikeCounts {
        self.detector.counts()
    }

    pub(super) fn spike_scores(&self) -> SpikeScores {
        self.detector.scores()
    }

    /// Appends a record to `layers.jsonl`, and its scalars to the TensorBoard events.
    pub(super) fn append(&mut self, layers: &LayerRecord) -> Result<()> {
        if let Some(files) = &mut self.files {
            files.layers.append(layers)?;
        }
        let Some(events) = self.events() else {
            return Ok(());
        };
        let mut scalars = Vec::new();
        for (index, block) in layers.blocks.iter().enumerate() {
            for metric in BLOCK_METRICS {
                if let (Some(tag), Some(value)) = (metric.tag, (metric.value)(block)) {
                    scalars.push((format!("blocks/{tag}/{index:02}"), to_scalar(value)));
                }
            }
            if let Some(experts) = &block.experts {
                for (expert, load) in experts.load.iter().enumerate() {
                    scalars.push((format!("load/{index:02}/{expert:03}"), to_scalar(*load)));
                }
            }
        }
        let scalars = scalars.iter().map(|(tag, value)| (tag.as_str(), *value));
        events.scalars(layers.step, scalars)
    }

    /// Writes a step's metrics to the TensorBoard events.
    pub(super) fn log_scalars(&mut self, metrics: &Metrics) -> Result<()> {
        let scores = self.spike_scores();
        let Some(events) = self.events() else {
            return Ok(());
        };
        let scalar = |metric: &Metric| Some((metric.tag, (metric.value)(metrics)?));
        let scalars = METRICS.iter().filter_map(scalar);
        let spike_scores = [
            ("spike_score/loss", scores.loss),
            ("spike_score/grad_norm", scores.grad_norm),
            ("spike_score/update_norm", scores.update_norm),
        ];
        events.scalars(metrics.step, scalars.chain(spike_scores))?;
        let tasks = metrics.tasks.iter().flat_map(|(task, scores)| {
            let values = scores.values.iter();
            values.map(move |(metric, &value)| (format!("tasks/{task}/{metric}"), value))
        });
        let tasks: Vec<(String, f64)> = tasks.collect();
        match tasks.is_empty() {
            true => Ok(()),
            false => events.scalars(
                metrics.step,
                tasks.iter().map(|(tag, value)| (tag.as_str(), *value)),
            ),
        }
    }

    /// True if the limit on dumps allows another spike dump.
    pub(super) fn may_dump(&self) -> bool {
        self.dumps < self.log.dumps
    }

    /// Writes a dump; returns its path.
    pub(super) fn dump(&mut self, dump: &Dump) -> Result<PathBuf> {
        files::create_new_dir(self.run.join(FLIGHT))?;
        let path = dump_path(&self.run, dump.step);
        let text = serde_json::to_vec_pretty(dump)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(&path, &text)?;
        self.dumps += 1;
        Ok(path)
    }
}

/// Converts a measured number for TensorBoard; NaN if absent.
fn to_scalar(value: FiniteOrNone) -> f64 {
    value.map_or(f64::NAN, f64::from)
}
