//! Mixtures of experts in the layout that several families share.

use serde::Deserialize;

use super::layouts;
use super::mapping::Mapping;
use crate::model::{ModelConfig, MoeConfig, Scoring};

/// Differences of a family with experts from the others.
pub(super) struct Mixture {
    /// Key of the number of experts.
    pub(super) count: &'static str,
    /// Key of the experts' inner width.
    pub(super) width: &'static str,
    /// True if gate weights of the selected experts always sum to 1; else `norm_topk_prob` says it.
    pub(super) always_renormalizes: bool,
    /// Default of `router_aux_loss_coef`.
    pub(super) load_balance: f64,
    /// Weight of the router z-loss in the family's training, which `config.json` does not contain.
    pub(super) z_loss: f64,
    /// Path of the feed-forward within a layer of the checkpoint.
    pub(super) path: &'static str,
    /// Names of the gate, up and down projection of an expert.
    pub(super) matrices: [&'static str; 3],
}

/// Keys of mixtures.
#[derive(Deserialize)]
pub(super) struct MixtureKeys {
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    norm_topk_prob: Option<bool>,
    router_aux_loss_coef: Option<f64>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    #[serde(default)]
    router_jitter_noise: f64,
}

impl MixtureKeys {
    /// Returns the mixture; `intermediate_size` is that key's value.
    pub(super) fn to_config(
        &self,
        family: &Mixture,
        intermediate_size: usize,
    ) -> Result<MoeConfig, String> {
        let missing = |key: &str| format!("missing field `{key}`");
        let count = match family.count {
            "num_experts" => self.num_experts.or(self.num_local_experts),
            _ => self.num_local_experts,
        };
        let width = match family.width {
            "intermediate_size" => Some(intermediate_size),
            _ => self.moe_intermediate_size,
        };
        self.reject_unsupported(family)?;
        Ok(MoeConfig {
            n_experts: count.ok_or_else(|| missing(family.count))?,
            top_k: self
                .num_experts_per_tok
                .ok_or_else(|| missing("num_experts_per_tok"))?,
            d_expert: width.ok_or_else(|| missing(family.width))?,
            n_shared: 0,
            first_dense: self.first_dense()?,
            scoring: Scoring::Softmax,
            renormalize: family.always_renormalizes || self.norm_topk_prob.unwrap_or(false),
            n_groups: 1,
            top_groups: 1,
            scaling: 1.0,
            load_balance: self.router_aux_loss_coef.unwrap_or(family.load_balance),
            z_loss: family.z_loss,
            bias_rate: None,
        })
    }

    fn reject_unsupported(&self, family: &Mixture) -> Result<(), String> {
        if self.router_jitter_noise != 0.0 {
            return Err(format!(
                "router_jitter_noise {}, expected 0",
                self.router_jitter_noise
            ));
        }
        if let Some(step) = self.decoder_sparse_step.filter(|step| *step != 1) {
            return Err(format!("decoder_sparse_step {step}, expected 1"));
        }
        match self.moe_intermediate_size {
            Some(width) if family.width == "intermediate_size" => Err(format!(
                "moe_intermediate_size {width}, expected none: this family's experts are intermediate_size wide"
            )),
            _ => Ok(()),
        }
    }

    /// Returns the number of dense layers, which precede all others.
    fn first_dense(&self) -> Result<usize, String> {
        let mut dense = self.mlp_only_layers.clone().unwrap_or_default();
        dense.sort_unstable();
        match dense.iter().copied().eq(0..dense.len()) {
            true => Ok(dense.len()),
            false => Err(format!(
                "mlp_only_layers {dense:?}, expected the first layers of the model"
            )),
        }
    }
}

impl Mixture {
    /// Returns the mappings of the router and the experts of a layer.
    pub(super) fn mappings(
        &self,
        theirs: &str,
        ours: &str,
        config: &ModelConfig,
        moe: &MoeConfig,
    ) -> Vec<Mapping> {
        let path = format!("{theirs}.{}", self.path);
        let router = Mapping::renamed(format!("{path}.gate.weight"), format!("{ours}.router"));
        let experts = layouts::experts(
            &format!("{path}.experts"),
            &format!("{ours}.experts"),
            config.d_model,
            moe,
            self.matrices,
        );
        [vec![router], experts].concat()
    }
}
