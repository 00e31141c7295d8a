//! Start, state, events and outcome of a run.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::{Cursor, Progress};
use crate::eval;
use crate::files::Locking;
use crate::omissions::LeftOut;
use crate::train::checkpoint::Checkpoint;
use crate::train::layers::LayersRow;
use crate::train::metrics::Metrics;
use crate::train::sources::DataUse;
use crate::train::spikes::{Counts, Scores, Spike};

/// State of a run; with weights and moments, it determines all further steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
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
pub enum Event<'a> {
    /// Something worth a line.
    Note(String),
    /// Text is being tokenized.
    Progress(Progress),
    /// The data were opened.
    Data(&'a DataUse),
    /// A step was done.
    Step(&'a Metrics),
    /// Validation loss was measured.
    Evaluated {
        /// After this step.
        step: u64,
        /// Loss on the validation data.
        loss: eval::Loss,
    },
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// True if all steps were done; otherwise the run was stopped.
    pub finished: bool,
    /// Steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Validation loss after the last step, where there are validation data.
    pub validation: Option<eval::Loss>,
    /// Tokens of the data that are used and left out.
    pub data: DataUse,
    /// Omissions from them, by reason.
    pub left_out: LeftOut,
    /// Largest gradient norm of all steps.
    pub max_grad_norm: f64,
    /// Spikes of all steps.
    pub spikes: Counts,
    /// Shares of the last steps that spiked.
    pub spike_scores: Scores,
    /// Throughput of the steps done by this process, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// Result of an optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The numbers of the step.
    pub metrics: Metrics,
    /// Activations, gradients and updates by block, where they were due.
    pub layers: Option<LayersRow>,
    /// Spikes of the step.
    pub spikes: Vec<Spike>,
    /// Wall time of the step, in seconds.
    pub seconds: f64,
}

/// The state that a run starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// From the beginning; the run directory must not hold a run.
    Fresh,
    /// From the newest valid checkpoint, or from the beginning where none was written yet. Where all
    /// are broken, or there is no run, it is an error.
    Resume,
    /// As [`Start::Resume`], but where there is no run yet, one is begun.
    ResumeOrFresh,
    /// From the checkpoint of another run on the same data, in a directory that must not hold a run.
    /// Parameters that the checkpoint does not have begin with their initial values.
    Branch(Checkpoint),
}

/// Options for opening a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Locking of the run directory.
    pub locking: Locking,
    /// Purpose of a run that is started anew unless it is finished: until [`Trainer::finish`](super::Trainer::finish) a file in the
    /// directory says so, and the next run for the same purpose replaces this one.
    pub unfinished: Option<String>,
}
