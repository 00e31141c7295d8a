//! `metrics.jsonl`: one row a step.

use serde::{Deserialize, Deserializer, Serialize};

use super::rows::Row;
use crate::model::Routing;

/// A measured number. JSON has no others than finite ones, so that these are written as `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// One optimizer step.
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
    /// Throughput of this step, evaluation and saving not counted; not a number where the clock saw no time
    /// pass.
    #[serde(deserialize_with = "number")]
    pub tokens_per_second: f64,
    /// Training objective, where it is more than the loss: with z-loss and the routers' losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<f64>,
    /// Router statistics of the step's tokens, in a mixture of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterMetrics>,
    /// Outcome of QK-clip, where it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_clip: Option<QkClip>,
    /// Mean validation loss after the update, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// Routers of one step, means over the blocks that are mixtures of experts. With gradient accumulation
/// the losses are means over micro-batches, as they are minimized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterMetrics {
    /// Load-balancing loss, unweighted; 1 where all is even.
    #[serde(deserialize_with = "number")]
    pub load_balance: f64,
    /// z-loss, unweighted.
    #[serde(deserialize_with = "number")]
    pub z: f64,
    /// Entropy of the scores in nats.
    #[serde(deserialize_with = "number")]
    pub entropy: f64,
    /// Load of the busiest expert over the mean load, the largest of all blocks; 1 where all is even.
    #[serde(deserialize_with = "number")]
    pub imbalance: f64,
    /// Slots (a token in one of its experts) that no expert computed.
    pub dropped: u64,
}

/// QK-clip at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkClip {
    /// The largest score of all heads in the step's forward pass.
    #[serde(deserialize_with = "number")]
    pub largest_score: f64,
    /// Heads whose queries and keys were scaled down after the update.
    pub clipped_heads: usize,
}

impl RouterMetrics {
    /// The metrics of a step; nothing where there is no mixture.
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
