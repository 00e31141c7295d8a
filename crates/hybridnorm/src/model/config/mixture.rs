//! Configuration of a mixture of experts.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::{MAX_WIDTH, is_zero};
use crate::error::{Error, Result};
use hybridnorm_kernels::router::Router;
pub use hybridnorm_kernels::router::Scoring;

/// Maximum number of experts per block.
const MAX_EXPERTS: usize = 4096;

/// `[model.moe]`: mixture-of-experts feed-forwards.
///
/// Routing is dropless. The defaults are OLMoE's (arXiv 2409.02060).
///
/// ```
/// use hybridnorm::model::MoeConfig;
///
/// // 8 experts of width 64, top-2 routing, and one shared expert.
/// let moe = MoeConfig::new(8, 2, 64).with_n_shared(1).with_bias_rate(1e-3);
/// assert_eq!(moe.d_shared(), 64);
/// assert_eq!(moe.load_balance, 0.01);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
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
    /// Number of leading blocks with a dense feed-forward, of inner width `model.d_ff`.
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
    /// Creates the default settings of `n_experts` experts of inner width `d_expert`, `top_k` of them per token.
    pub fn new(n_experts: usize, top_k: usize, d_expert: usize) -> Self {
        Self {
            n_experts,
            top_k,
            d_expert,
            n_shared: 0,
            first_dense: 0,
            scoring: Scoring::default(),
            renormalize: false,
            n_groups: one(),
            top_groups: one(),
            scaling: unit(),
            load_balance: load_balance(),
            z_loss: z_loss(),
            bias_rate: None,
        }
    }

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
    pub fn applies_to_layer(&self, layer: usize) -> bool {
        layer >= self.first_dense
    }

    /// Checks the configuration for a model of `n_layers` blocks.
    pub(super) fn check(&self, n_layers: usize) -> Result<()> {
        self.check_sizes(n_layers)?;
        self.check_factors()?;
        self.check_effects()
    }

    fn check_sizes(&self, n_layers: usize) -> Result<()> {
        let range = |key: &str, value: usize, min: usize, max: usize| match value {
            value if (min..=max).contains(&value) => Ok(()),
            _ => Err(invalid(key, value, format!("{min} to {max}"))),
        };
        range("n_experts", self.n_experts, 1, MAX_EXPERTS)?;
        range("top_k", self.top_k, 1, self.n_experts)?;
        range("d_expert", self.d_expert, 1, MAX_WIDTH)?;
        range("n_shared", self.n_shared, 0, MAX_WIDTH / self.d_expert)?;
        range("first_dense", self.first_dense, 0, n_layers - 1)?;
        range("n_groups", self.n_groups, 1, self.n_experts)?;
        if !self.n_experts.is_multiple_of(self.n_groups) {
            let expected = format!("a divisor of model.moe.n_experts = {}", self.n_experts);
            return Err(invalid("n_groups", self.n_groups, expected));
        }
        let group_size = self.n_experts / self.n_groups;
        let min_groups = self.top_k.div_ceil(group_size);
        range("top_groups", self.top_groups, min_groups, self.n_groups)?;
        if self.n_experts * self.d_expert > MAX_WIDTH {
            let expected = format!("at most {MAX_WIDTH} channels in all experts together");
            return Err(invalid("n_experts", self.n_experts, expected));
        }
        Ok(())
    }

    /// Checks the numbers that are used in single precision.
    fn check_factors(&self) -> Result<()> {
        let bias_rate = self.bias_rate.unwrap_or(0.0);
        let numbers = [
            ("scaling", self.scaling, self.scaling as f32 > 0.0),
            ("load_balance", self.load_balance, self.load_balance >= 0.0),
            ("z_loss", self.z_loss, self.z_loss >= 0.0),
            ("bias_rate", bias_rate, bias_rate >= 0.0),
        ];
        for (key, value, is_in_range) in numbers {
            if is_in_range && (value as f32).is_finite() {
                continue;
            }
            let expected = match key {
                "scaling" => "a finite number above 0",
                _ => "a finite non-negative number",
            };
            return Err(invalid(key, value, expected));
        }
        Ok(())
    }

    /// Rejects settings without effect.
    fn check_effects(&self) -> Result<()> {
        if self.n_groups > 1 && self.top_groups == self.n_groups {
            return Err(Error::no_effect(
                format!("model.moe.n_groups = {}", self.n_groups),
                ": model.moe.top_groups selects all groups",
            ));
        }
        match self.bias_rate {
            Some(rate) if self.top_k == self.n_experts => Err(Error::no_effect(
                format!("model.moe.bias_rate = {rate}"),
                ": every token is routed to every expert",
            )),
            _ => Ok(()),
        }
    }
}

fn invalid(key: &str, value: impl ToString, expected: impl Into<String>) -> Error {
    Error::out_of_range(format!("model.moe.{key}"), value, expected)
}
