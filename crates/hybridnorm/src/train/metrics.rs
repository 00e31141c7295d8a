//! `metrics.jsonl`: one record per step.

use serde::{Deserialize, Deserializer, Serialize};

use super::rows::Row;
use crate::model::Routing;

/// Reads a measured number. Numbers that are not finite, which JSON lacks, are written as `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Metrics of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean cross-entropy of the step's batch before the update, in nats per token.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Global norm of the optimizer's update.
    #[serde(deserialize_with = "number")]
    pub update_norm: f64,
    /// Learning rate of the update.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Throughput of this step, excluding evaluation and saving; NaN if the clock did not advance.
    #[serde(deserialize_with = "number")]
    pub tokens_per_second: f64,
    /// Training objective, if it differs from the loss: with z-loss and router losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<f64>,
    /// Router statistics over the step's tokens, for mixtures of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterMetrics>,
    /// Outcome of QK-clip, if enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_clip: Option<QkClip>,
    /// Mean validation loss after the update, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// Router metrics of one step, averaged over the mixture-of-experts blocks. With gradient accumulation the losses
/// are means over micro-batches, as in the objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterMetrics {
    /// Load-balancing loss, unweighted; 1 if perfectly balanced.
    #[serde(deserialize_with = "number")]
    pub load_balance: f64,
    /// Router z-loss, unweighted.
    #[serde(deserialize_with = "number")]
    pub z: f64,
    /// Entropy of the router scores in nats.
    #[serde(deserialize_with = "number")]
    pub entropy: f64,
    /// Load of the busiest expert over the mean load, maximum over blocks; 1 if perfectly balanced.
    #[serde(deserialize_with = "number")]
    pub imbalance: f64,
    /// Slots (a token at one of its experts) that were dropped.
    pub dropped: u64,
}

/// Outcome of QK-clip in one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkClip {
    /// Max attention logit over all heads in the step's forward pass.
    #[serde(deserialize_with = "number")]
    pub largest_score: f64,
    /// Heads whose queries and keys were scaled down after the update.
    pub clipped_heads: usize,
}

impl RouterMetrics {
    /// Computes the metrics of a step; `None` without a mixture of experts.
    pub fn new(routing: &[Routing]) -> Option<Self> {
        let mean = |f: fn(&Routing) -> f64| {
            let sum: f64 = routing.iter().map(f).sum();
            sum / routing.len() as f64
        };
        let imbalance = routing.iter().map(Routing::imbalance);
        (!routing.is_empty()).then(|| Self {
            load_balance: mean(|routing| routing.load_balance),
            z: mean(|routing| routing.z),
            entropy: mean(|routing| routing.entropy),
            imbalance: imbalance.fold(0.0, f64::max),
            dropped: routing.iter().map(Routing::dropped).sum(),
        })
    }
}

impl Row for Metrics {
    const FILE: &'static str = "metrics.jsonl";
    const EVERY_STEP: bool = true;

    fn step(&self) -> u64 {
        self.step
    }
}
