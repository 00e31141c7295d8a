//! Record of a run that ended: finished, diverged, not learned yet, or eliminated.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::summary::rounded;
use crate::train::layers::LayerRecord;
use crate::train::metrics::{Aggregate, TaskScores};
use crate::train::spikes;

impl RunRecord {
    /// True if two records are equal, ignoring cost, and ignoring validation data and additional curves if one
    /// record lacks them.
    pub fn eq_ignoring_cost(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.validation_data, &other.validation_data);
        let mut other = Self {
            cost: self.cost.clone(),
            validation_data: ours.clone(),
            ..other.clone()
        };
        if self.curve.other_metrics.is_empty() || other.curve.other_metrics.is_empty() {
            other.curve.other_metrics = self.curve.other_metrics.clone();
        }
        *self == other && (ours == theirs || ours.is_none() || theirs.is_none())
    }
}

/// Position of a run in the grid of its study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GridPoint {
    /// Name of the placement.
    pub placement: String,
    /// Peak learning rate.
    pub lr: f64,
    /// Random seed for initial weights and batches.
    pub seed: u64,
    /// Name of the initialization, if the study compares several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Number of blocks, if the study compares several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
}

/// Status of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
#[non_exhaustive]
pub enum RunStatus {
    /// All steps were done.
    Finished,
    /// The training loss rose again, or values became non-finite.
    Diverged {
        /// Step after which it diverged.
        step: u64,
        /// Reason, as text.
        reason: String,
    },
    /// All steps were done, but the training loss never fell at least 0.1 nats below the unigram loss.
    NotLearned {
        /// Reason, as text.
        reason: String,
    },
    /// Eliminated by successive halving.
    #[serde(rename = "halved")]
    Eliminated {
        /// Step after which it was eliminated.
        step: u64,
    },
    /// Unfinished; never recorded for a run of a study.
    Unfinished {
        /// Last step done.
        step: u64,
    },
}

/// Training curves, aggregated over equal intervals of steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Curve {
    /// Last step of each interval.
    pub step: Vec<u64>,
    /// Mean training loss, in nats.
    pub loss: Vec<f32>,
    /// Largest gradient norm before clipping.
    pub grad_norm: Vec<f32>,
    /// Largest norm of the update.
    pub update_norm: Vec<f32>,
    /// Further metrics by key, of steps that have any; `None` for intervals without a value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(rename = "further")]
    pub other_metrics: BTreeMap<String, Vec<Option<f32>>>,
}

impl Curve {
    /// Appends the value of an interval to the series of a metric.
    pub(super) fn push(
        &mut self,
        key: &str,
        aggregate: Aggregate,
        values: impl Iterator<Item = f64>,
    ) {
        if aggregate == Aggregate::Evaluations {
            return;
        }
        let value = aggregate.of(values).map(|value| match aggregate {
            // A value that overflows would be read as missing.
            Aggregate::Max => rounded(value.clamp(f32::MIN.into(), f32::MAX.into()) as f32),
            _ => value as f32,
        });
        let series = match key {
            "loss" => &mut self.loss,
            "grad_norm" => &mut self.grad_norm,
            "update_norm" => &mut self.update_norm,
            _ => {
                let value = value.filter(|value| value.is_finite());
                self.other_metrics
                    .entry(key.to_owned())
                    .or_default()
                    .push(value);
                return;
            }
        };
        series.push(value.unwrap_or(f32::NAN));
    }

    /// Returns the series of a metric, one value per interval; empty if the run does not have it.
    pub fn series(&self, key: &str) -> Vec<f32> {
        match key {
            "loss" => self.loss.clone(),
            "grad_norm" => self.grad_norm.clone(),
            "update_norm" => self.update_norm.clone(),
            _ => {
                let series = self.other_metrics.get(key).into_iter().flatten();
                series.map(|value| value.unwrap_or(f32::NAN)).collect()
            }
        }
    }
}

/// Validation loss at a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ValidationLoss {
    /// Step after which it was measured.
    pub step: u64,
    /// Mean loss, in nats per token.
    pub loss: f64,
}

/// Hardware and throughput of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Cost {
    /// Training throughput, median over steps, without evaluation and checkpointing.
    pub tokens_per_second: f64,
    /// Total time of the steps in seconds, without evaluation and checkpointing.
    pub seconds: f64,
    /// Peak memory of the process, in bytes, if it trains one run at a time.
    pub peak_memory_bytes: Option<u64>,
    /// Estimated memory of parameters, gradients, optimizer moments and activations, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_memory_bytes: Option<u64>,
    /// Processor. This and the following fields are those of the process that trained, or of the last one of
    /// several; absent if the run directory does not record them.
    pub machine: Option<String>,
    /// Unit of the matmuls, if they are in bfloat16, where results depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16_unit: Option<String>,
    /// Number of compute threads.
    pub threads: Option<usize>,
    /// Program version.
    pub version: Option<String>,
}

/// Record of a run that ended: `runs/ID.json` of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RunRecord {
    /// Hash of everything that determines the results of the run.
    pub id: String,
    /// Position in the grid of its study.
    #[serde(rename = "cell")]
    pub grid_point: GridPoint,
    /// Full configuration, as TOML.
    pub config: String,
    /// Hash of the placement.
    pub placement_hash: String,
    /// Equations of the placement at this depth.
    pub equations: String,
    /// Fingerprint of the training data.
    pub data: String,
    /// Fingerprint of the validation data; absent if the run's history does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_data: Option<String>,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of active parameters per token, if not all are active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_parameters: Option<u64>,
    /// Status at its end.
    #[serde(rename = "ending")]
    pub status: RunStatus,
    /// Number of steps done.
    pub steps: u64,
    /// Number of training tokens.
    pub tokens: u64,
    /// Validation loss after the last step of a finished run, in nats per token.
    pub validation_loss: Option<f64>,
    /// Scores on downstream tasks after the last step of a finished run, by task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, TaskScores>,
    /// Mean training loss over the last 5 % of the steps done.
    pub train_loss: Option<f64>,
    /// Largest gradient norm before clipping.
    pub max_grad_norm: f64,
    /// Number of spikes of the loss, the gradient norm and the update norm.
    pub spikes: spikes::SpikeCounts,
    /// Training curves.
    pub curve: Curve,
    /// Validation losses during training.
    pub validation: Vec<ValidationLoss>,
    /// Layer statistics during training.
    pub layers: Vec<LayerRecord>,
    /// Hardware and throughput.
    pub cost: Cost,
}

impl RunRecord {
    /// Returns the training compute in FLOPs: `6 · active parameters · tokens` (arXiv 2001.08361).
    pub fn compute(&self) -> f64 {
        let parameters = self.active_parameters.unwrap_or(self.parameters);
        6.0 * parameters as f64 * self.tokens as f64
    }
}
