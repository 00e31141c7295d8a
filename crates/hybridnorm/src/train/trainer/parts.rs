//! Start, state, events and outcome of a run.

use std::path::{Path, PathBuf};

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::data::{Cursor, Progress};
use crate::files::Locking;
use crate::loss::Loss;
use crate::omissions::Omissions;
use crate::train::checkpoint::Checkpoint;
use crate::train::layers::LayerRecord;
use crate::train::metrics::Metrics;
use crate::train::sources::DataCoverage;
use crate::train::spikes::{Spike, SpikeCounts, SpikeScores};

/// State of a run; together with weights and moments, it determines all further steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct State {
    /// Completed optimizer steps.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Position of the batch stream.
    pub cursor: Cursor,
    /// Fingerprint of the training data.
    pub data: String,
    /// Largest gradient norm so far.
    pub max_grad_norm: f64,
}

/// Progress of a run, reported as it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A note to the user.
    Note(String),
    /// Progress of tokenization.
    Progress(Progress),
    /// Data were opened.
    Data(&'a DataCoverage),
    /// A step was completed.
    Step(&'a Metrics),
    /// Validation loss was measured.
    Evaluated {
        /// Step after which it was measured.
        step: u64,
        /// Loss on the validation data.
        loss: Loss,
    },
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// True if all steps were done; otherwise the run was stopped.
    pub finished: bool,
    /// Completed steps.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Validation loss after the last step, if there is validation data.
    pub validation: Option<Loss>,
    /// Counts of used and omitted tokens of the data.
    pub data: DataCoverage,
    /// Omissions from the data, by reason.
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
    /// Largest gradient norm of all steps.
    pub max_grad_norm: f64,
    /// Spikes of all steps.
    pub spikes: SpikeCounts,
    /// Fractions of the last steps that spiked.
    pub spike_scores: SpikeScores,
    /// Throughput of the steps of this process, excluding evaluation and saving.
    pub tokens_per_second: f64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Result of an optimizer step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Metrics of the step.
    pub metrics: Metrics,
    /// Activations, gradients and updates by block, if due at this step.
    pub layers: Option<LayerRecord>,
    /// Spikes of the step.
    pub spikes: Vec<Spike>,
    /// Wall time of the step, in seconds.
    pub seconds: f64,
}

/// Initial state of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// From the beginning; the run directory must not contain a run.
    Fresh,
    /// From the newest valid checkpoint, or from the beginning if none was written yet. It is an error if all
    /// are broken or there is no run.
    Resume,
    /// As [`Start::Resume`], but starts a new run if there is none.
    ResumeOrFresh,
    /// From the checkpoint of another run on the same data, in a directory that must not contain a run.
    /// Parameters missing from the checkpoint start with their initial values.
    Branch(Checkpoint),
}

/// Options for opening a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Locking of the run directory.
    pub locking: Locking,
    /// Purpose of a run that is replaced by the next run for the same purpose unless it is finished. A file in the
    /// directory marks it as unfinished until [`Trainer::mark_finished`](super::Trainer::mark_finished).
    pub restart_purpose: Option<String>,
}
