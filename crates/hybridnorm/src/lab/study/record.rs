//! What is kept of a finished run.

use serde::{Deserialize, Serialize};

use crate::train::layers::LayersRow;
use crate::train::spikes;

impl RunRecord {
    /// True if two records agree in all but cost, and validation data that only one of them names.
    pub fn is_same(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.validation_data, &other.validation_data);
        let other = Self {
            cost: self.cost.clone(),
            validation_data: ours.clone(),
            ..other.clone()
        };
        *self == other && (ours == theirs || ours.is_none() || theirs.is_none())
    }
}

/// Where a run stands among those of its study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Name of the placement.
    pub placement: String,
    /// Peak learning rate.
    pub lr: f64,
    /// Decides initial values and batches.
    pub seed: u64,
    /// Name of the initialization, where the study compares several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Number of blocks, where the study compares several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Ending {
    /// All steps were done.
    Finished,
    /// It lost what it had learned, or its numbers stopped being finite.
    Diverged {
        /// After this step.
        step: u64,
        /// What was found.
        reason: String,
    },
    /// All steps were done, and the loss never came below that of token frequencies: the budget was too
    /// short to tell anything else.
    NotLearned {
        /// What was found.
        reason: String,
    },
    /// Successive halving left it out.
    Halved {
        /// After this step.
        step: u64,
    },
    /// It is not done yet; no run of a study is recorded so.
    Unfinished {
        /// After this step.
        step: u64,
    },
}

/// A run's course, averaged over equal stretches of steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// The last step of each stretch.
    pub step: Vec<u64>,
    /// Mean training loss, in nats.
    pub loss: Vec<f32>,
    /// Largest gradient norm before clipping.
    pub grad_norm: Vec<f32>,
    /// Largest norm of the update.
    pub update_norm: Vec<f32>,
}

/// Validation loss at a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// After this step.
    pub step: u64,
    /// Mean loss, in nats per token.
    pub loss: f64,
}

/// What it ran on, and how fast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Median over steps; evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// Seconds that the steps took together, evaluation and saving not counted.
    pub seconds: f64,
    /// Peak memory of the process, in bytes, where one run has a process to itself.
    pub peak_memory_bytes: Option<u64>,
    /// What the model, its gradients and moments and the activations are estimated to take, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_memory_bytes: Option<u64>,
    /// The processor. This and what follows are those of the process that trained, or of the last one of
    /// several; absent where the run's directory does not say.
    pub machine: Option<String>,
    /// Threads that computed.
    pub threads: Option<usize>,
    /// Version of this program.
    pub version: Option<String>,
}

/// A finished run: `runs/ID.json` of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// Hash of everything that decides the run's numbers.
    pub id: String,
    /// Where it stands in its study.
    pub cell: Cell,
    /// The whole configuration, as TOML.
    pub config: String,
    /// Hash of the placement.
    pub placement_hash: String,
    /// Equations of the placement at this depth.
    pub equations: String,
    /// Fingerprint of the training data.
    pub data: String,
    /// Fingerprint of the validation data; absent where the run's history does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_data: Option<String>,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of parameters that a token meets, where it does not meet all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_parameters: Option<u64>,
    /// How it ended.
    pub ending: Ending,
    /// Steps done.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Validation loss after the last step of a finished run, in nats per token.
    pub validation_loss: Option<f64>,
    /// Mean training loss over the last twentieth of the steps done.
    pub train_loss: Option<f64>,
    /// Largest gradient norm before clipping.
    pub max_grad_norm: f64,
    /// Spikes.
    pub spikes: spikes::Counts,
    /// The course of training.
    pub curve: Curve,
    /// Validation losses on the way.
    pub validation: Vec<Evaluation>,
    /// The inside of the model on the way.
    pub layers: Vec<LayersRow>,
    /// What it ran on, and how fast.
    pub cost: Cost,
}

impl RunRecord {
    /// Arithmetic of the training, in FLOP: `6 · active parameters · tokens` (arXiv 2001.08361).
    pub fn compute(&self) -> f64 {
        let parameters = self.active_parameters.unwrap_or(self.parameters);
        6.0 * parameters as f64 * self.tokens as f64
    }
}
