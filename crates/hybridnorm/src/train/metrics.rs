//! `metrics.jsonl`: one row a step.

use serde::{Deserialize, Serialize};

use super::rows::Row;

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean cross-entropy of the step's batch before the update, in nats per token.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Global norm of what the optimizer added to the weights.
    pub update_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Throughput of this step, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// Mean validation loss after the update, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

impl Row for Metrics {
    const FILE: &'static str = "metrics.jsonl";

    fn step(&self) -> u64 {
        self.step
    }
}
