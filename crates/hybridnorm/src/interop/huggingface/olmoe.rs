//! OLMoE (arXiv 2409.02060).

use serde::Deserialize;

use super::config::Common;
use super::family::{Family, read_keys};
use super::weights::Weights;
use crate::model::{ModelConfig, MoeConfig, Scoring};
use crate::placement::{self, InitScheme, StdRule};

#[derive(Deserialize)]
struct Config {
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "default_router_aux_loss_coef")]
    router_aux_loss_coef: f64,
    clip_qkv: Option<f64>,
}

fn default_router_aux_loss_coef() -> f64 {
    0.01
}

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let (own, common) = read_keys::<Config>(json)?;
    Ok(Box::new(Olmoe(own.to_config(&common)?)))
}

/// A model of this family.
struct Olmoe(ModelConfig);

impl Family for Olmoe {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn convert(&self, weights: &mut Weights) -> Result<(), String> {
        convert(weights, &self.0)
    }
}

impl Config {
    fn to_config(&self, common: &Common) -> Result<ModelConfig, String> {
        common.reject_unsupported()?;
        if let Some(clip) = self.clip_qkv {
            return Err(format!(
                "clip_qkv {clip}, expected none: this family clips after the norms, this crate before them"
            ));
        }
        let head_dim = common.hidden_size / common.num_attention_heads.max(1);
        if let Some(other) = common.head_dim.filter(|dim| *dim != head_dim) {
            return Err(format!("head_dim {other}, expected {head_dim}"));
        }
        let mut placement = placement::named("pre-norm-qk-full").expect("a named placement");
        placement.norm.eps = common.rms_norm_eps;
        placement.init.scheme = InitScheme::Normal;
        placement.init.std = StdRule::Const(common.initializer_range);
        Ok(ModelConfig {
            d_model: common.hidden_size,
            n_layers: common.num_hidden_layers,
            n_heads: common.num_attention_heads,
            n_kv_heads: common
                .num_key_value_heads
                .unwrap_or(common.num_attention_heads),
            vocab_size: common.vocab_size,
            max_seq_len: common.max_position_embeddings,
            rope_theta: common.rope_theta()?,
            rope_scaling: common.rope_scaling()?,
            tie_embeddings: common.tie_word_embeddings,
            moe: Some(self.moe(common)),
            placement,
            ..ModelConfig::default()
        })
    }

    fn moe(&self, common: &Common) -> MoeConfig {
        MoeConfig {
            n_experts: self.num_experts,
            top_k: self.num_experts_per_tok,
            d_expert: common.intermediate_size,
            n_shared: 0,
            first_dense: 0,
            scoring: Scoring::Softmax,
            renormalize: self.norm_topk_prob,
            n_groups: 1,
            top_groups: 1,
            scaling: 1.0,
            load_balance: self.router_aux_loss_coef,
            // OLMoE was trained with this router z-loss weight, which its configuration does not contain.
            z_loss: 1e-3,
            bias_rate: None,
        }
    }
}

fn convert(weights: &mut Weights, config: &ModelConfig) -> Result<(), String> {
    weights.embedding_norm_and_head(config)?;
    for layer in 0..config.n_layers {
        let (source, block) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
        let attention = |field: &str| format!("{source}.self_attn.{field}.weight");
        let mut rename =
            |name: String, field: &str| weights.rename(&name, format!("{block}.{field}"));
        rename(
            format!("{source}.input_layernorm.weight"),
            "attn.in_norm.gain",
        )?;
        rename(
            format!("{source}.post_attention_layernorm.weight"),
            "ffn.in_norm.gain",
        )?;
        rename(attention("q_norm"), "attention.q_norm.gain")?;
        rename(attention("k_norm"), "attention.k_norm.gain")?;
        rename(format!("{source}.mlp.gate.weight"), "feed_forward.router")?;
        weights.attention(
            &format!("{source}.self_attn"),
            &format!("{block}.attention"),
            config,
        )?;
        let moe = config
            .moe_of_layer(layer)
            .expect("every block is a mixture of experts");
        weights.experts(
            &format!("{source}.mlp.experts"),
            &format!("{block}.feed_forward.experts"),
            config,
            moe,
        )?;
    }
    Ok(())
}
