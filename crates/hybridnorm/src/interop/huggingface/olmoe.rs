//! OLMoE (arXiv 2409.02060).

use serde::Deserialize;

use super::config::Common;
use super::weights::Weights;
use crate::model::{ModelConfig, MoeConfig, Scoring};
use crate::placement::{self, InitScheme, StdRule};

#[derive(Deserialize)]
pub(super) struct Config {
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "aux_loss")]
    router_aux_loss_coef: f64,
    clip_qkv: Option<f64>,
}

fn aux_loss() -> f64 {
    0.01
}

impl Config {
    pub(super) fn to_config(&self, common: &Common) -> Result<ModelConfig, String> {
        common.refuse_what_is_not_there()?;
        if let Some(clip) = self.clip_qkv {
            return Err(format!(
                "clip_qkv {clip}, expected none: this family clips after the norms, which ours does before"
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
            tie_embeddings: common.tie_word_embeddings,
            moe: Some(MoeConfig {
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
                // OLMoE was trained with one, which its configuration does not contain.
                z_loss: 1e-3,
                bias_rate: None,
            }),
            placement,
            ..ModelConfig::default()
        })
    }
}

pub(super) fn translate(weights: &mut Weights, config: &ModelConfig) -> Result<(), String> {
    weights.ends(config)?;
    for layer in 0..config.n_layers {
        let (theirs, ours) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
        let attention = |field: &str| format!("{theirs}.self_attn.{field}.weight");
        let mut rename =
            |theirs: String, field: &str| weights.rename(&theirs, format!("{ours}.{field}"));
        rename(
            format!("{theirs}.input_layernorm.weight"),
            "attn.in_norm.gain",
        )?;
        rename(
            format!("{theirs}.post_attention_layernorm.weight"),
            "ffn.in_norm.gain",
        )?;
        rename(attention("q_norm"), "attention.q_norm.gain")?;
        rename(attention("k_norm"), "attention.k_norm.gain")?;
        rename(attention("o_proj"), "attention.out")?;
        rename(format!("{theirs}.mlp.gate.weight"), "feed_forward.router")?;
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(attention);
        let queries = config.n_heads * config.head_dim();
        let keys = config.n_kv_heads * config.head_dim();
        weights.stack(
            &[(&q, queries), (&k, keys), (&v, keys)],
            format!("{ours}.attention.qkv"),
        )?;
        let moe = config.moe_at(layer).expect("every block is a mixture");
        weights.experts(
            &format!("{theirs}.mlp.experts"),
            &format!("{ours}.feed_forward.experts"),
            config,
            moe,
        )?;
    }
    Ok(())
}
