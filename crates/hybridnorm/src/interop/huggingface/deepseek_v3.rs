//! DeepSeek-V3 (arXiv 2412.19437).

use serde::Deserialize;

use super::super::keys::required_nullable;
use super::config::Common;
use super::family::{Family, read_keys};
use super::weights::{Weights, stacked};
use crate::model::{MlaConfig, ModelConfig, MoeConfig, Scoring};
use crate::placement::{self, HeadNorm, InitScheme, Placement, StdRule};
use crate::tensors::HostTensor;

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "required_nullable")]
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
    #[serde(default = "default_true")]
    rope_interleave: bool,
    n_routed_experts: usize,
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    first_k_dense_replace: usize,
    #[serde(default = "default_moe_layer_freq")]
    moe_layer_freq: usize,
    #[serde(deserialize_with = "required_nullable")]
    n_group: Option<usize>,
    #[serde(deserialize_with = "required_nullable")]
    topk_group: Option<usize>,
    norm_topk_prob: bool,
    /// `qk_nope_head_dim + qk_rope_head_dim`, if given.
    qk_head_dim: Option<usize>,
    routed_scaling_factor: f64,
    #[serde(default = "default_scoring_func")]
    scoring_func: String,
    #[serde(default = "default_topk_method")]
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

fn default_true() -> bool {
    true
}
fn default_moe_layer_freq() -> usize {
    1
}
fn default_topk_method() -> String {
    "noaux_tc".into()
}
fn default_scoring_func() -> String {
    "sigmoid".into()
}

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let (own, common) = read_keys::<Config>(json)?;
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

    fn convert(&self, weights: &mut Weights) -> Result<(), String> {
        omit_mtp_layers(weights, self);
        weights.embedding_norm_and_head(&self.config)?;
        for layer in 0..self.config.n_layers {
            convert_block(weights, self, layer)?;
        }
        Ok(())
    }
}

impl Config {
    fn to_model(&self, common: &Common) -> Result<DeepseekV3, String> {
        common.reject_unsupported()?;
        self.reject_unsupported(common)?;
        if common.rope_scaling()?.is_some() {
            return Err(
                "rope_type is set, expected \"default\": scaled frequencies of latent attention are not supported"
                    .into(),
            );
        }
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
            rope_theta: common.rope_theta()?,
            tie_embeddings: common.tie_word_embeddings,
            moe: (!all_dense).then_some(moe),
            mla: Some(self.mla()),
            placement: self.placement(common),
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

    fn placement(&self, common: &Common) -> Placement {
        let mut placement = placement::named("deepseek-v3").expect("a named placement");
        placement.norm.eps = common.rms_norm_eps;
        let inner = &mut placement.block.attn_inner;
        // DeepSeek's norms on latents use the default eps of their class, not that of the configuration.
        inner.norm_eps = (common.rms_norm_eps != LATENT_EPS).then_some(LATENT_EPS);
        if self.q_lora_rank.is_none() {
            inner.q_norm = HeadNorm::None;
        }
        placement.init.scheme = InitScheme::Normal;
        placement.init.std = StdRule::Const(common.initializer_range);
        placement
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

fn omit_mtp_layers(weights: &mut Weights, model: &DeepseekV3) {
    let n_layers = model.config.n_layers;
    let mtp_layers = n_layers..n_layers.saturating_add(model.mtp_layers);
    let is_mtp = |name: &str| {
        let layer = name.strip_prefix("model.layers.")?.split('.').next()?;
        Some(mtp_layers.contains(&layer.parse().ok()?))
    };
    let reason = "multi-token prediction layers, which are not part of the decoder";
    weights.omit(reason, |name| is_mtp(name).unwrap_or(false));
}

fn convert_block(weights: &mut Weights, model: &DeepseekV3, layer: usize) -> Result<(), String> {
    let (source, block) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
    convert_attention(weights, model, &format!("{source}.self_attn"), &block)?;
    let norm = format!("{source}.post_attention_layernorm.weight");
    weights.rename(&norm, format!("{block}.ffn.in_norm.gain"))?;
    let norm = format!("{source}.input_layernorm.weight");
    weights.rename(&norm, format!("{block}.attn.in_norm.gain"))?;
    let (mlp, feed_forward) = (format!("{source}.mlp"), format!("{block}.feed_forward"));
    match model.config.moe_of_layer(layer) {
        Some(moe) => convert_moe(weights, &model.config, moe, &mlp, &feed_forward),
        None => weights.mlp(&mlp, &feed_forward, model.config.d_ff),
    }
}

fn convert_moe(
    weights: &mut Weights,
    config: &ModelConfig,
    moe: &MoeConfig,
    mlp: &str,
    feed_forward: &str,
) -> Result<(), String> {
    let gate = format!("{mlp}.gate");
    weights.rename(&format!("{gate}.weight"), format!("{feed_forward}.router"))?;
    let bias = format!("{gate}.e_score_correction_bias");
    match moe.bias_rate {
        Some(_) => weights.rename(&bias, format!("{feed_forward}.selection_bias"))?,
        None => {
            let reason = "the balancing bias of the router, which has no effect because all \
                          experts are selected";
            weights.omit(reason, |name| name == bias);
        }
    }
    let experts = format!("{feed_forward}.experts");
    weights.experts(&format!("{mlp}.experts"), &experts, config, moe)?;
    if moe.n_shared > 0 {
        let shared = format!("{feed_forward}.shared");
        weights.mlp(&format!("{mlp}.shared_experts"), &shared, moe.d_shared())?;
    }
    Ok(())
}

fn convert_attention(
    weights: &mut Weights,
    model: &DeepseekV3,
    source: &str,
    block: &str,
) -> Result<(), String> {
    let mla = model.config.mla.expect("this family has latent attention");
    let converted = format!("{block}.attention");
    let name = |field: &str| format!("{source}.{field}.weight");
    let order = |matrix: HostTensor, head: usize| match model.interleaved {
        true => deinterleave_rope(matrix, head, mla.rope_dim),
        false => Ok(matrix),
    };
    let at = |name: String| move |problem: String| format!("tensor {name} {problem}");
    let [q_width, ..] = mla.down_widths(model.config.n_heads);
    let (q, q_name) = match mla.q_rank {
        Some(_) => {
            let name_up = name("q_b_proj");
            let q_up = order(weights.take(&name_up)?, mla.head_dim()).map_err(at(name_up))?;
            weights.insert(format!("{converted}.q_up"), q_up);
            weights.rename(&name("q_a_layernorm"), format!("{converted}.q_norm.gain"))?;
            (
                weights.take_rows(&name("q_a_proj"), q_width)?,
                name("q_a_proj"),
            )
        }
        None => {
            let q = weights.take_rows(&name("q_proj"), q_width)?;
            (
                order(q, mla.head_dim()).map_err(at(name("q_proj")))?,
                name("q_proj"),
            )
        }
    };
    let kv_name = name("kv_a_proj_with_mqa");
    let kv = weights.take_rows(&kv_name, mla.cache_width())?;
    let kv = order(kv, mla.cache_width()).map_err(at(kv_name.clone()))?;
    let latents = stacked(&[q, kv]);
    let latents = latents.map_err(|problem| format!("tensors {q_name} and {kv_name} {problem}"))?;
    weights.insert(format!("{converted}.latents"), latents);
    weights.rename(&name("kv_a_layernorm"), format!("{converted}.v_norm.gain"))?;
    weights.rename(&name("kv_b_proj"), format!("{converted}.kv_up"))?;
    weights.rename(&name("o_proj"), format!("{converted}.out"))
}

/// Reorders the last `rope` of every `head` rows to 0, 2, …, 1, 3, …: interleaved RoPE pairs become pairs half
/// of these rows apart.
fn deinterleave_rope(matrix: HostTensor, head: usize, rope: usize) -> Result<HostTensor, String> {
    let columns = match matrix.shape[..] {
        [rows, columns] if rows.is_multiple_of(head) && columns > 0 => columns,
        _ => {
            return Err(format!(
                "has shape {:?}, expected a multiple of {head} rows",
                matrix.shape
            ));
        }
    };
    let rows: Vec<&[f32]> = matrix.data.chunks(columns).collect();
    let ordered = rows.chunks(head).flat_map(|rows| {
        let (content, rotated) = rows.split_at(head - rope);
        let evens = rotated.iter().step_by(2);
        let odds = rotated.iter().skip(1).step_by(2);
        content.iter().chain(evens).chain(odds).copied()
    });
    let data = ordered.collect::<Vec<_>>().concat();
    Ok(HostTensor {
        shape: matrix.shape,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_become_half_apart_in_every_head() {
        let matrix = |data: Vec<f32>| HostTensor {
            shape: vec![data.len(), 1],
            data,
        };
        let rows = matrix(vec![0., 1., 2., 3., 4., 10., 11., 12., 13., 14.]);
        let expected = matrix(vec![0., 1., 3., 2., 4., 10., 11., 13., 12., 14.]);
        assert_eq!(deinterleave_rope(rows, 5, 4), Ok(expected));
        assert!(deinterleave_rope(matrix(vec![0.0; 7]), 5, 4).is_err());
    }
}
