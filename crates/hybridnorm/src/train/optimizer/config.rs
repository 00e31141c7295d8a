//! Configuration of the optimizer.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format_number::config_number;
use crate::model::Role;

/// `[optimizer]`: update rule and hyperparameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct OptimizerConfig {
    /// Update rule.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment per step.
    pub betas: (f64, f64),
    /// Term added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// True if norm parameters are decayed: gains, biases, α and shift of DyT and Derf (official
    /// HybridNorm: yes). Learned scales never are.
    pub decay_norms: bool,
    /// True if the embedding is decayed (official: dense no, MoE yes).
    pub decay_embeddings: bool,
    /// Maximum global gradient norm, to which larger gradients are scaled down; 0 disables clipping.
    pub clip_grad_norm: f64,
    /// Muon's momentum; 0.95 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Threshold of QK-clip: after every step, query and key projections of a head whose max attention logit
    /// `scale · q·k` exceeded it in the step are scaled down so that it would not have (MuonClip: 100; arXiv
    /// 2507.20534).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_clip: Option<f64>,
}

/// Update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (arXiv 1711.05101).
    AdamW,
    /// Muon for the matrices within blocks, at the same learning rate and decay (arXiv 2502.16982); AdamW for
    /// all other parameters. Of packed projections, q, k, v, gate, up and every expert's matrices are
    /// orthogonalized separately.
    Muon,
}

impl Default for OptimizerConfig {
    /// Returns the official dense settings.
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            lr: 3e-4,
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            decay_norms: true,
            decay_embeddings: false,
            clip_grad_norm: 1.0,
            momentum: None,
            qk_clip: None,
        }
    }
}

impl OptimizerConfig {
    /// Checks ranges; for values that must not be 0, in single precision, in which updates are computed.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn check(&self) -> Result<()> {
        let (beta1, beta2) = self.betas;
        let below_one = |value: f64| (0.0..1.0).contains(&value);
        let single = |value: f64| value > 0.0 && (value as f32).is_normal();
        let none_or_single = |value: f64| value == 0.0 || single(value);
        let of_share = "at least 0 and below 1";
        let of_single = "above 0, in the range of single precision";
        let of_none_or_single = "that is 0 or above, in the range of single precision";
        let rules = [
            // A learning rate that is infinite in single precision makes the first step fail, like any that is too
            // large.
            (
                "lr",
                self.lr,
                self.lr as f32 > 0.0,
                "above 0 in single precision",
            ),
            ("betas[0]", beta1, below_one(beta1), of_share),
            ("betas[1]", beta2, below_one(beta2), of_share),
            ("eps", self.eps, single(self.eps), of_single),
            (
                "weight_decay",
                self.weight_decay,
                none_or_single(self.weight_decay),
                of_none_or_single,
            ),
            (
                "clip_grad_norm",
                self.clip_grad_norm,
                none_or_single(self.clip_grad_norm),
                of_none_or_single,
            ),
            (
                "momentum",
                self.momentum(),
                below_one(self.momentum()),
                of_share,
            ),
            (
                "qk_clip",
                self.qk_clip.unwrap_or(1.0),
                self.qk_clip.is_none_or(single),
                of_single,
            ),
        ];
        if let (OptimizerKind::AdamW, Some(momentum)) = (self.kind, self.momentum) {
            return Err(Error::no_effect(
                format!("optimizer.momentum = {momentum}"),
                ": it is Muon's, and optimizer.kind is \"adamw\"",
            ));
        }
        match rules
            .iter()
            .find(|(_, value, holds, _)| !(*holds && value.is_finite()))
        {
            Some((key, value, _, expected)) => Err(Error::out_of_range(
                format!("optimizer.{key}"),
                config_number(*value),
                format!("a number {expected}"),
            )),
            None => Ok(()),
        }
    }

    /// Returns Muon's momentum.
    pub(super) fn momentum(&self) -> f64 {
        self.momentum.unwrap_or(0.95)
    }

    /// True if Muon updates parameters of this role.
    pub(super) fn orthogonalizes(&self, role: Role) -> bool {
        self.kind == OptimizerKind::Muon && role.is_inner_matrix()
    }

    pub(super) fn decays(&self, role: Role) -> bool {
        match role {
            Role::Head | Role::Attention | Role::FeedForward | Role::Router => true,
            Role::Embedding => self.decay_embeddings,
            Role::Norm => self.decay_norms,
            // Decay would pull a residual scale towards another placement.
            Role::Scale => false,
            Role::BalancingBias => false,
        }
    }
}
