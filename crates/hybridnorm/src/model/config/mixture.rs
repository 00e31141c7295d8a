//! Configuration of a mixture of experts.

use serde::{Deserialize, Serialize};

use super::{WIDEST, is_zero};
use crate::error::{Error, Result};
use hybridnorm_kernels::router::Router;
pub use hybridnorm_kernels::router::Scoring;

/// Maximum number of experts per block.
const MOST_EXPERTS: usize = 4096;

/// `[model.moe]`: mixture-of-experts feed-forwards.
///
/// Routing is dropless. The defaults are OLMoE's (arXiv 2409.02060).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Number of experts per block, e.
    pub n_experts: usize,
    /// Number of experts per token.
    pub top_k: usize,
    /// Inner width of an expert.
    pub d_expert: usize,
    /// Number of shared experts, applied to every token besides the routed ones: one feed-forward of inner width
    /// `n_shared · d_expert` (DeepSeek, arXiv 2401.06066).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_shared: usize,
    /// Number of first blocks with a dense feed-forward, of inner width `model.d_ff`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_dense: usize,
    /// Function from router logits to scores.
    #[serde(default)]
    pub scoring: Scoring,
    /// True if the gate weights of a token's experts are divided by their sum.
    #[serde(default)]
    pub renormalize: bool,
    /// Number of expert groups of equal size.
    #[serde(default = "one")]
    pub n_groups: usize,
    /// Number of groups that a token's experts are selected from (DeepSeek-V3, arXiv 2412.19437).
    #[serde(default = "one")]
    pub top_groups: usize,
    /// Scale of the gate weights (DeepSeek-V3: 2.5).
    #[serde(default = "unit")]
    pub scaling: f64,
    /// Weight of the load-balancing loss (Switch Transformer, arXiv 2101.03961), averaged over blocks.
    #[serde(default = "load_balance")]
    pub load_balance: f64,
    /// Weight of the router z-loss (ST-MoE, arXiv 2202.08906), averaged over blocks.
    #[serde(default = "z_loss")]
    pub z_loss: f64,
    /// Update rate of the aux-loss-free balancing bias on the scores, which affects expert selection but not gate
    /// weights: after every step it rises by this for experts with fewer tokens than the mean and falls for those
    /// with more (arXiv 2408.15664; DeepSeek-V3: 0.001). Without it there is no bias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias_rate: Option<f64>,
}

fn one() -> usize {
    1
}
fn unit() -> f64 {
    1.0
}
fn load_balance() -> f64 {
    1e-2
}
fn z_loss() -> f64 {
    1e-3
}

impl MoeConfig {
    /// Returns the settings of the router op.
    pub fn router(&self) -> Router {
        Router {
            experts: self.n_experts,
            top_k: self.top_k,
            scoring: self.scoring,
            renormalize: self.renormalize,
            groups: self.n_groups,
            top_groups: self.top_groups,
            scaling: self.scaling as f32,
        }
    }

    /// Returns the inner width of all shared experts together.
    pub fn d_shared(&self) -> usize {
        self.n_shared * self.d_expert
    }

    /// True if block `layer` (0-based) is a mixture of experts.
    pub fn is_at(&self, layer: usize) -> bool {
        layer >= self.first_dense
    }

    /// Checks the configuration for a model of `n_layers` blocks.
    pub(super) fn check(&self, n_layers: usize) -> Result<()> {
        let wrong = |key: &str, value: String, expected: String| {
            Err(Error::config(format!(
                "model.moe.{key} = {value}, expected {expected}"
            )))
        };
        let range = |key: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            wrong(key, value.to_string(), format!("{least} to {most}"))
        };
        range("n_experts", self.n_experts, 1, MOST_EXPERTS)?;
        range("top_k", self.top_k, 1, self.n_experts)?;
        range("d_expert", self.d_expert, 1, WIDEST)?;
        range("n_shared", self.n_shared, 0, WIDEST / self.d_expert)?;
        range("first_dense", self.first_dense, 0, n_layers - 1)?;
        range("n_groups", self.n_groups, 1, self.n_experts)?;
        if !self.n_experts.is_multiple_of(self.n_groups) {
            let expected = format!("a divisor of model.moe.n_experts = {}", self.n_experts);
            return wrong("n_groups", self.n_groups.to_string(), expected);
        }
        let in_group = self.n_experts / self.n_groups;
        let fewest = self.top_k.div_ceil(in_group);
        range("top_groups", self.top_groups, fewest, self.n_groups)?;
        if self.n_experts * self.d_expert > WIDEST {
            return wrong(
                "n_experts",
                self.n_experts.to_string(),
                format!("at most {WIDEST} channels in all experts together"),
            );
        }
        let numbers = [
            ("scaling", self.scaling, self.scaling as f32 > 0.0),
            ("load_balance", self.load_balance, self.load_balance >= 0.0),
            ("z_loss", self.z_loss, self.z_loss >= 0.0),
            (
                "bias_rate",
                self.bias_rate.unwrap_or(0.0),
                self.bias_rate.is_none_or(|rate| rate >= 0.0),
            ),
        ];
        let found = numbers
            .iter()
            .find(|(_, value, holds)| !(*holds && (*value as f32).is_finite()));
        if let Some((key, value, _)) = found {
            let least = if *key == "scaling" {
                "above 0"
            } else {
                "of at least 0"
            };
            return wrong(key, value.to_string(), format!("a finite number {least}"));
        }
        self.check_effects()
    }

    /// Rejects settings without effect.
    fn check_effects(&self) -> Result<()> {
        let without = |what: String, why: &str| {
            Err(Error::config(format!(
                "model.moe.{what} has no effect: {why}"
            )))
        };
        if self.n_groups > 1 && self.top_groups == self.n_groups {
            let what = format!("n_groups = {}", self.n_groups);
            return without(what, "model.moe.top_groups leaves all of them open");
        }
        match self.bias_rate {
            Some(rate) if self.top_k == self.n_experts => {
                let why = "every token passes through every expert";
                without(format!("bias_rate = {rate}"), why)
            }
            _ => Ok(()),
        }
    }
}
