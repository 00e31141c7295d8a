//! DeepSeek-V3 (arXiv 2412.19437).

use serde::Deserialize;

use super::super::keys::required_nullable;
use super::config::{ActivationKey, Common};
use super::family::{Defaults, Family, read_keys};
use super::layouts;
use super::mapping::{Mapping, Part};
use super::weights::Weights;
use crate::model::{MlaConfig, ModelConfig, MoeConfig, Scoring};
use crate::placement::{self, AttnScale, HeadNorm, InitScheme, Placement, StdRule};

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "required_nullable")]
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
    rope_interleave: bool,
    n_routed_experts: usize,
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    first_k_dense_replace: usize,
    moe_layer_freq: usize,
    #[serde(deserialize_with = "required_nullable")]
    n_group: Option<usize>,
    #[serde(deserialize_with = "required_nullable")]
    topk_group: Option<usize>,
    norm_topk_prob: bool,
    /// `qk_nope_head_dim + qk_rope_head_dim`, if given.
    qk_head_dim: Option<usize>,
    routed_scaling_factor: f64,
    scoring_func: String,
    topk_method: String,
    /// Number of multi-token prediction layers, which follow the decoder layers in the checkpoint.
    #[serde(default)]
    num_nextn_predict_layers: usize,
    /// DeepSeek's loss is per sequence, this crate's over all tokens of a micro-batch.
    #[serde(default)]
    aux_loss_alpha: f64,
}

/// eps of the norms on latents (MLA).
const LATENT_EPS: f64 = 1e-6;

/// The class has neither `moe_layer_freq` nor `scoring_func` nor `topk_method`, but computes these.
const DEFAULTS: Defaults = Defaults {
    keys: r#""moe_layer_freq": 1, "num_key_value_heads": 128, "rope_interleave": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc""#,
    ..Defaults::NONE
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let (own, common) = read_keys::<Config>(json, &DEFAULTS)?;
    Ok(Box::new(own.to_model(&common)?))
}

/// A model of this family, with the details of its weight layout.
struct DeepseekV3 {
    config: ModelConfig,
    /// True if rotated channels are pairs (2i, 2i + 1) instead of (i, i + r/2).
    interleaved: bool,
    /// Number of multi-token prediction layers, which are omitted, as in `transformers`.
    mtp_layers: usize,
}

impl Family for DeepseekV3 {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn mappings(&self) -> Vec<Mapping> {
        let blocks = (0..self.config.n_layers).flat_map(|layer| self.block(layer));
        layouts::ends(&self.config)
            .into_iter()
            .chain(blocks)
            .collect()
    }

    fn omit(&self, weights: &mut Weights) {
        self.omit_mtp_layers(weights);
        self.omit_ineffective_biases(weights);
    }
}

impl Config {
    fn to_model(&self, common: &Common) -> Result<DeepseekV3, String> {
        common.reject_unsupported()?;
        self.reject_unsupported(common)?;
        if common.attention_bias == Some(true) {
            return Err("attention_bias is set, which is not supported".into());
        }
        let (rope_theta, rope_scaling) = common.uniform_rope()?;
        let moe = self.moe();
        let all_dense = moe.first_dense >= common.num_hidden_layers;
        let d_ff = match moe.first_dense {
            0 => 0,
            _ => common.intermediate_size,
        };
        let config = ModelConfig {
            d_model: common.hidden_size,
            n_layers: common.num_hidden_layers,
            n_heads: common.num_attention_heads,
            n_kv_heads: common.num_attention_heads,
            d_ff,
            vocab_size: common.vocab_size,
            max_seq_len: common.max_position_embeddings,
            rope_theta,
            rope_scaling,
            activation: common.gated_activation(ActivationKey::HiddenAct)?,
            tie_embeddings: common.tie_word_embeddings,
            moe: (!all_dense).then_some(moe),
            mla: Some(self.mla()),
            placement: self.placement(common)?,
            ..ModelConfig::default()
        };
        Ok(DeepseekV3 {
            config,
            interleaved: self.rope_interleave,
            mtp_layers: self.num_nextn_predict_layers,
        })
    }

    fn reject_unsupported(&self, common: &Common) -> Result<(), String> {
        if self.moe_layer_freq != 1 {
            return Err(format!(
                "moe_layer_freq {}, expected 1",
                self.moe_layer_freq
            ));
        }
        if self.scoring_func != "sigmoid" {
            return Err(format!(
                "scoring_func {:?}, expected \"sigmoid\"",
                self.scoring_func
            ));
        }
        if self.topk_method != "noaux_tc" {
            return Err(format!(
                "topk_method {:?}, expected \"noaux_tc\"",
                self.topk_method
            ));
        }
        let head_dim = self.qk_nope_head_dim.saturating_add(self.qk_rope_head_dim);
        if let Some(other) = self.qk_head_dim.filter(|dim| *dim != head_dim) {
            return Err(format!("qk_head_dim {other}, expected {head_dim}"));
        }
        let heads = common.num_attention_heads;
        if let Some(other) = common.num_key_value_heads.filter(|n| *n != heads) {
            return Err(format!("num_key_value_heads {other}, expected {heads}"));
        }
        Ok(())
    }

    fn placement(&self, common: &Common) -> Result<Placement, String> {
        let mut placement = placement::named("deepseek-v3").expect("a named placement");
        let eps = common.rms_norm_eps()?;
        placement.norm.eps = eps;
        let inner = &mut placement.block.attn_inner;
        // DeepSeek's norms on latents use the default eps of their class, not that of the configuration.
        inner.norm_eps = (eps != LATENT_EPS).then_some(LATENT_EPS);
        if self.q_lora_rank.is_none() {
            inner.q_norm = HeadNorm::None;
        }
        let factor = common.yarn_logit_factor();
        if factor != 1.0 {
            let head_dim = self.qk_nope_head_dim.saturating_add(self.qk_rope_head_dim);
            inner.attn_scale = AttnScale::Const(factor / (head_dim as f64).sqrt());
        }
        placement.init.scheme = InitScheme::Normal;
        placement.init.std = StdRule::Const(common.initializer_range);
        Ok(placement)
    }

    fn moe(&self) -> MoeConfig {
        // If all groups are selected, group limits have no effect.
        let [n_groups, top_groups] = match [self.n_group, self.topk_group].map(|n| n.unwrap_or(1)) {
            [all, selected] if all == selected => [1, 1],
            groups => groups,
        };
        MoeConfig {
            n_experts: self.n_routed_experts,
            top_k: self.num_experts_per_tok,
            d_expert: self.moe_intermediate_size,
            n_shared: self.n_shared_experts,
            first_dense: self.first_k_dense_replace,
            scoring: Scoring::Sigmoid,
            renormalize: self.norm_topk_prob,
            n_groups,
            top_groups,
            scaling: self.routed_scaling_factor,
            load_balance: self.aux_loss_alpha,
            z_loss: 0.0,
            // The paper's value for most of the training; if all experts are selected, there is nothing to balance.
            bias_rate: (self.num_experts_per_tok < self.n_routed_experts).then_some(1e-3),
        }
    }

    fn mla(&self) -> MlaConfig {
        MlaConfig {
            q_rank: self.q_lora_rank,
            kv_rank: self.kv_lora_rank,
            nope_dim: self.qk_nope_head_dim,
            rope_dim: self.qk_rope_head_dim,
            v_dim: self.v_head_dim,
        }
    }
}

impl DeepseekV3 {
    fn omit_mtp_layers(&self, weights: &mut Weights) {
        let n_layers = self.config.n_layers;
        let mtp_layers = n_layers..n_layers.saturating_add(self.mtp_layers);
        let is_mtp = |name: &str| {
            let layer = name.strip_prefix("model.layers.")?.split('.').next()?;
            Some(mtp_layers.contains(&layer.parse().ok()?))
        };
        let reason = "multi-token prediction layers, which are not part of the decoder";
        weights.omit(reason, |name| is_mtp(name).unwrap_or(false));
    }

    fn omit_ineffective_biases(&self, weights: &mut Weights) {
        let selects_all = |moe: &MoeConfig| moe.bias_rate.is_none();
        if self.config.moe.as_ref().is_some_and(selects_all) {
            let reason = "the balancing bias of the router, which has no effect because all experts are selected";
            weights.omit(reason, |name| {
                name.ends_with(".mlp.gate.e_score_correction_bias")
            });
        }
    }

    fn block(&self, layer: usize) -> Vec<Mapping> {
        let (theirs, ours) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
        let norm = |name: &str, site: &str| {
            Mapping::renamed(
                format!("{theirs}.{name}.weight"),
                format!("{ours}.{site}.gain"),
            )
        };
        let mut mappings =
            self.attention(&format!("{theirs}.self_attn"), &format!("{ours}.attention"));
        mappings.push(norm("input_layernorm", "attn.in_norm"));
        mappings.push(norm("post_attention_layernorm", "ffn.in_norm"));
        let (mlp, feed_forward) = (format!("{theirs}.mlp"), format!("{ours}.feed_forward"));
        mappings.extend(match self.config.moe_of_layer(layer) {
            Some(moe) => self.mixture(moe, &mlp, &feed_forward),
            None => layouts::mlp(&mlp, &feed_forward, self.config.d_ff),
        });
        mappings
    }

    fn mixture(&self, moe: &MoeConfig, theirs: &str, ours: &str) -> Vec<Mapping> {
        let gate = format!("{theirs}.gate");
        let mut mappings = vec![Mapping::renamed(
            format!("{gate}.weight"),
            format!("{ours}.router"),
        )];
        if moe.bias_rate.is_some() {
            let bias = format!("{gate}.e_score_correction_bias");
            mappings.push(Mapping::renamed(bias, format!("{ours}.selection_bias")));
        }
        mappings.extend(layouts::experts(
            &format!("{theirs}.experts"),
            &format!("{ours}.experts"),
            self.config.d_model,
            moe,
            ["gate_proj", "up_proj", "down_proj"],
        ));
        if moe.n_shared > 0 {
            let (theirs, ours) = (format!("{theirs}.shared_experts"), format!("{ours}.shared"));
            mappings.extend(layouts::mlp(&theirs, &ours, moe.d_shared()));
        }
        mappings
    }

    fn attention(&self, theirs: &str, ours: &str) -> Vec<Mapping> {
        let mla = self.config.mla.expect("this family has latent attention");
        let name = |field: &str| format!("{theirs}.{field}.weight");
        let renamed = |from: &str, to: &str| Mapping::renamed(name(from), format!("{ours}.{to}"));
        let mut mappings = vec![
            renamed("kv_a_layernorm", "v_norm.gain"),
            renamed("kv_b_proj", "kv_up"),
            renamed("o_proj", "out"),
        ];
        let [q_width, ..] = mla.down_widths(self.config.n_heads);
        let heads = self.rope_pairs(self.config.n_heads * mla.head_dim(), mla.head_dim());
        let (q_name, q_rows) = match mla.q_rank {
            Some(_) => {
                mappings.push(renamed("q_b_proj", "q_up").with_order(heads));
                mappings.push(renamed("q_a_layernorm", "q_norm.gain"));
                ("q_a_proj", (0..q_width).collect())
            }
            None => ("q_proj", heads),
        };
        let kv_rows = self.rope_pairs(mla.cache_width(), mla.cache_width());
        let latents = vec![
            Part::rows(name(q_name), q_width),
            Part::rows(name("kv_a_proj_with_mqa"), mla.cache_width()),
        ];
        let order = q_rows
            .into_iter()
            .chain(kv_rows.iter().map(|row| q_width + row));
        let order = order.collect();
        mappings.push(Mapping::stack(latents, format!("{ours}.latents")).with_order(order));
        mappings
    }

    /// Returns the order of `rows` rows in which the last `rope_dim` of every `head` rows are 0, 2, …, 1, 3, …, so that
    /// interleaved RoPE pairs become pairs half of these rows apart.
    fn rope_pairs(&self, rows: usize, head: usize) -> Vec<usize> {
        let rope = self.config.rope_dim();
        let within = |row: usize| match (row % head).checked_sub(head - rope) {
            Some(at) if self.interleaved => {
                let source = if at < rope / 2 {
                    2 * at
                } else {
                    2 * (at - rope / 2) + 1
                };
                row - at + source
            }
            _ => row,
        };
        (0..rows).map(within).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_become_half_apart_in_every_head() {
        let mla = MlaConfig {
            q_rank: None,
            kv_rank: 8,
            nope_dim: 1,
            rope_dim: 4,
            v_dim: 4,
        };
        let mut model = DeepseekV3 {
            config: ModelConfig {
                mla: Some(mla),
                ..ModelConfig::default()
            },
            interleaved: true,
            mtp_layers: 0,
        };
        assert_eq!(model.rope_pairs(10, 5), [0, 1, 3, 2, 4, 5, 6, 8, 7, 9]);
        model.interleaved = false;
        assert_eq!(model.rope_pairs(4, 4), [0, 1, 2, 3]);
    }
}
