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

/// A scalar of a step, as a row of [`SCALARS`].
#[derive(Debug, Clone, Copy)]
pub struct Scalar {
    /// Name in text.
    pub name: &'static str,
    /// Tag in TensorBoard.
    pub tag: &'static str,
    /// Returns its value; `None` where the step does not have it.
    pub of: fn(&Metrics) -> Option<f64>,
    /// True if a bit-identical replay has the same value.
    pub is_reproducible: bool,
}

const fn scalar(name: &'static str, tag: &'static str, of: fn(&Metrics) -> Option<f64>) -> Scalar {
    Scalar {
        name,
        tag,
        of,
        is_reproducible: true,
    }
}

/// The table of scalars. TensorBoard's event files and the comparison of a replay read it; a new metric is a field of
/// [`Metrics`] and a row here.
pub const SCALARS: [Scalar; 15] = [
    scalar("learning rate", "train/lr", |row| Some(row.lr)),
    scalar("tokens", "train/tokens", |row| Some(row.tokens as f64)),
    scalar("loss", "train/loss", |row| Some(row.loss)),
    scalar("gradient norm", "train/grad_norm", |row| {
        Some(row.grad_norm)
    }),
    scalar("update norm", "train/update_norm", |row| {
        Some(row.update_norm)
    }),
    Scalar {
        is_reproducible: false,
        ..scalar("tokens/s", "train/tokens_per_second", |row| {
            Some(row.tokens_per_second)
        })
    },
    scalar("validation loss", "validation/loss", |row| {
        row.validation_loss
    }),
    scalar("training objective", "train/objective", |row| row.objective),
    scalar("load-balancing loss", "router/load_balance", |row| {
        Some(row.router.as_ref()?.load_balance)
    }),
    scalar("router z-loss", "router/z", |row| {
        Some(row.router.as_ref()?.z)
    }),
    scalar("router entropy", "router/entropy", |row| {
        Some(row.router.as_ref()?.entropy)
    }),
    scalar("expert imbalance", "router/imbalance", |row| {
        Some(row.router.as_ref()?.imbalance)
    }),
    scalar("dropped tokens", "router/dropped", |row| {
        Some(row.router.as_ref()?.dropped as f64)
    }),
    scalar("max attention logit", "qk_clip/largest_score", |row| {
        Some(row.qk_clip.as_ref()?.largest_score)
    }),
    scalar("clipped heads", "qk_clip/clipped_heads", |row| {
        Some(row.qk_clip.as_ref()?.clipped_heads as f64)
    }),
];

impl Row for Metrics {
    const FILE: &'static str = "metrics.jsonl";
    const EVERY_STEP: bool = true;

    fn step(&self) -> u64 {
        self.step
    }
}
