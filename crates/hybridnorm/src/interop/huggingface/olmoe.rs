//! OLMoE (arXiv 2409.02060).

use serde::Deserialize;

use super::config::Common;
use super::family::{Family, read_keys};
use super::layouts;
use super::mapping::Mapping;
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

    fn mappings(&self) -> Vec<Mapping> {
        let config = &self.0;
        let blocks = (0..config.n_layers).flat_map(|layer| block(config, layer));
        layouts::ends(config).into_iter().chain(blocks).collect()
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

fn block(config: &ModelConfig, layer: usize) -> Vec<Mapping> {
    let (theirs, ours) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
    let moe = config
        .moe
        .as_ref()
        .expect("every block is a mixture of experts");
    let tensors = [
        ("input_layernorm", "attn.in_norm.gain"),
        ("post_attention_layernorm", "ffn.in_norm.gain"),
        ("self_attn.q_norm", "attention.q_norm.gain"),
        ("self_attn.k_norm", "attention.k_norm.gain"),
        ("mlp.gate", "feed_forward.router"),
    ];
    let renamed = tensors.map(|(from, to)| {
        Mapping::renamed(format!("{theirs}.{from}.weight"), format!("{ours}.{to}"))
    });
    let mut mappings = renamed.to_vec();
    mappings.extend(layouts::attention(
        &format!("{theirs}.self_attn"),
        &format!("{ours}.attention"),
        config,
    ));
    mappings.extend(layouts::experts(
        &format!("{theirs}.mlp.experts"),
        &format!("{ours}.feed_forward.experts"),
        config.d_model,
        moe,
        ["gate_proj", "up_proj", "down_proj"],
    ));
    mappings
}
