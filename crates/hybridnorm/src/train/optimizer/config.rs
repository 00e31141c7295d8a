//! Configuration of the optimizer.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format_number::config_number;
use crate::model::Role;
use crate::ops::{self, MuonParameter};

/// Newton-Schulz iterations of Muon.
const NEWTON_SCHULZ_STEPS: usize = 5;

/// `[optimizer]`: update rule and hyperparameters.
///
/// ```
/// use hybridnorm::train::{OptimizerConfig, OptimizerKind};
///
/// let config = OptimizerConfig::default()
///     .with_lr(1e-3)
///     .with_kind(OptimizerKind::Muon)
///     .with_momentum(0.9);
/// config.check()?;
/// let error = config.with_kind(OptimizerKind::AdamW).check().unwrap_err();
/// assert!(error.to_string().contains("optimizer.momentum = 0.9"));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
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
    /// Decoupled weight decay: each step multiplies weights by `1 - lr · weight_decay`.
    pub weight_decay: f64,
    /// True if norm parameters are decayed: gains, biases, α and shift of DyT and Derf (official
    /// HybridNorm: yes). Learned scales never are.
    pub decay_norms: bool,
    /// True if the embedding is decayed (official: dense no, MoE yes).
    pub decay_embeddings: bool,
    /// Maximum global gradient norm, to which larger gradients are scaled down, as by
    /// `torch.nn.utils.clip_grad_norm_`; 0 disables clipping. Applied in the update op ([`AdamW`](crate::ops::AdamW),
    /// [`Muon`](crate::ops::Muon)).
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
#[non_exhaustive]
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
    /// Checks ranges. Values that must not be 0 are checked in single precision, in which updates are computed.
    ///
    /// # Errors
    /// [`Error::NoEffect`] or [`Error::OutOfRange`] naming the key.
    pub fn check(&self) -> Result<()> {
        if let (OptimizerKind::AdamW, Some(momentum)) = (self.kind, self.momentum) {
            return Err(Error::no_effect(
                format!("optimizer.momentum = {momentum}"),
                ": only optimizer.kind = \"muon\" uses it",
            ));
        }
        let rules = self.range_rules();
        match rules.iter().find(|rule| !rule.holds()) {
            Some(rule) => Err(Error::out_of_range(
                format!("optimizer.{}", rule.key),
                config_number(rule.value),
                format!("a number {}", rule.expected),
            )),
            None => Ok(()),
        }
    }

    /// Returns a rule for the range of each number.
    fn range_rules(&self) -> [RangeRule; 8] {
        let (beta1, beta2) = self.betas;
        let fraction = |key, value: f64| RangeRule {
            key,
            value,
            is_in_range: (0.0..1.0).contains(&value),
            expected: "at least 0 and below 1",
        };
        let positive = |key, value: f64| RangeRule {
            key,
            value,
            is_in_range: is_positive_f32(value),
            expected: "above 0, in the range of single precision",
        };
        let zero_or_positive = |key, value: f64| RangeRule {
            key,
            value,
            is_in_range: value == 0.0 || is_positive_f32(value),
            expected: "that is 0 or above, in the range of single precision",
        };
        [
            // A learning rate that is infinite in single precision makes the first step fail, like any that is too
            // large.
            RangeRule {
                key: "lr",
                value: self.lr,
                is_in_range: self.lr as f32 > 0.0,
                expected: "above 0 in single precision",
            },
            fraction("betas[0]", beta1),
            fraction("betas[1]", beta2),
            positive("eps", self.eps),
            zero_or_positive("weight_decay", self.weight_decay),
            zero_or_positive("clip_grad_norm", self.clip_grad_norm),
            fraction("momentum", self.momentum()),
            positive("qk_clip", self.qk_clip.unwrap_or(1.0)),
        ]
    }

    /// Returns Muon's momentum.
    pub(super) fn momentum(&self) -> f64 {
        self.momentum.unwrap_or(0.95)
    }

    /// True if Muon updates parameters of this role.
    pub(super) fn orthogonalizes(&self, role: Role) -> bool {
        self.kind == OptimizerKind::Muon && role.is_block_matrix()
    }

    /// Returns the AdamW op for parameters with these weight decays.
    pub(super) fn adamw(&self, weight_decay: Vec<f64>) -> ops::AdamW {
        let (beta1, beta2) = self.betas;
        ops::AdamW {
            beta1,
            beta2,
            eps: self.eps,
            max_grad_norm: self.clip_grad_norm,
            weight_decay,
        }
    }

    /// Returns the Muon op for these parameters.
    pub(super) fn muon(&self, parameters: Vec<MuonParameter>) -> ops::Muon {
        ops::Muon {
            momentum: self.momentum(),
            nesterov: true,
            iterations: NEWTON_SCHULZ_STEPS,
            max_grad_norm: self.clip_grad_norm,
            parameters,
        }
    }

    /// Returns the weight decay of parameters of this role.
    pub(super) fn weight_decay_of(&self, role: Role) -> f64 {
        let decays = match role {
            Role::Head | Role::Attention | Role::FeedForward | Role::Router => true,
            Role::Embedding => self.decay_embeddings,
            Role::Norm => self.decay_norms,
            // Decay would pull a residual scale towards another placement.
            Role::Scale | Role::Bias => false,
            Role::BalancingBias => false,
        };
        if decays { self.weight_decay } else { 0.0 }
    }
}

/// Range of a number of the configuration.
struct RangeRule {
    key: &'static str,
    value: f64,
    is_in_range: bool,
    expected: &'static str,
}

impl RangeRule {
    fn holds(&self) -> bool {
        self.is_in_range && self.value.is_finite()
    }
}

/// True if a number is above 0 and normal in single precision.
fn is_positive_f32(value: f64) -> bool {
    value > 0.0 && (value as f32).is_normal()
}
