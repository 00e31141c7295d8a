//! The `model:` section of an official `config.yaml`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::python_dict;
use crate::model::{Activation, ModelConfig, MoeConfig, Scoring};
use crate::placement::{
    AttnInner, Block, Gain, HeadNorm, Init, InitScheme, NormFn, NormSpec, Override, Placement,
    Scale, Selector, Skip, StdRule,
};

#[derive(Deserialize)]
pub(super) struct ConfigFile {
    pub(super) model: Official,
}

/// Keys of the official `model:` section that do not affect the model's output: implementation, initialization details,
/// token ids.
pub(super) const IGNORED_KEYS: [&str; 16] = [
    "alibi_bias_max",
    "block_group_size",
    "emb_init_std",
    "eos_token_id",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "moe_capacity_factor",
    "moe_lbl_in_fp32",
    "moe_log_expert_assignment",
    "moe_mlp_impl",
    "moe_parallel",
    "moe_zloss_in_fp32",
    "pad_token_id",
    "precision",
    "rope_full_precision",
];

/// Keys of the official `model:` section that affect the computation.
#[derive(Deserialize)]
pub(super) struct Official {
    d_model: usize,
    n_heads: usize,
    n_layers: usize,
    n_kv_heads: Option<usize>,
    #[serde(default)]
    multi_query_attention: Option<bool>,
    mlp_hidden_size: Option<usize>,
    #[serde(default = "default_mlp_ratio")]
    mlp_ratio: usize,
    #[serde(default = "default_activation_type")]
    activation_type: String,
    #[serde(default = "default_block_type")]
    block_type: String,
    #[serde(default)]
    alibi: bool,
    #[serde(default)]
    rope: bool,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    #[serde(default)]
    attention_dropout: f64,
    #[serde(default)]
    residual_dropout: f64,
    #[serde(default)]
    embedding_dropout: f64,
    #[serde(default)]
    include_bias: bool,
    bias_for_layer_norm: Option<bool>,
    #[serde(default = "default_layer_norm_type")]
    layer_norm_type: String,
    #[serde(default = "default_true")]
    layer_norm_with_affine: bool,
    #[serde(default = "default_norm_eps")]
    layer_norm_eps: f64,
    #[serde(default)]
    attention_layer_norm: bool,
    #[serde(default = "default_true")]
    attention_layer_norm_with_affine: bool,
    clip_qkv: Option<f64>,
    #[serde(default)]
    scale_logits: bool,
    #[serde(default)]
    embedding_layer_norm: bool,
    #[serde(default)]
    scale_emb_init: bool,
    #[serde(default = "default_true")]
    weight_tying: bool,
    max_sequence_length: usize,
    vocab_size: usize,
    embedding_size: Option<usize>,
    #[serde(default)]
    init_fn: String,
    #[serde(default = "default_init_std")]
    init_std: f64,
    #[serde(default)]
    attn_norm: bool,
    #[serde(default)]
    ffn_norm: bool,
    #[serde(default)]
    attn_residual_after_norm: bool,
    #[serde(default)]
    ffn_residual_after_norm: bool,
    #[serde(default)]
    use_query_norm: bool,
    #[serde(default)]
    use_key_norm: bool,
    #[serde(default)]
    use_value_norm: bool,
    #[serde(default)]
    use_context_norm: bool,
    #[serde(default)]
    norm_pos_special_config: Option<String>,
    #[serde(default)]
    norm_after: bool,
    #[serde(default)]
    moe_num_experts: Option<usize>,
    #[serde(default = "default_top_k")]
    moe_top_k: usize,
    moe_expert_hidden_size: Option<usize>,
    #[serde(default = "default_true")]
    moe_dropless: bool,
    #[serde(default)]
    moe_shared_expert: bool,
    #[serde(default)]
    moe_interleave: bool,
    #[serde(default)]
    moe_normalize_expert_weights: Option<f64>,
    #[serde(default = "default_moe_loss_weight")]
    moe_loss_weight: f64,
    #[serde(default)]
    moe_zloss_weight: Option<f64>,
}

fn default_mlp_ratio() -> usize {
    4
}
fn default_top_k() -> usize {
    2
}
fn default_moe_loss_weight() -> f64 {
    0.1
}
fn default_true() -> bool {
    true
}
fn default_norm_eps() -> f64 {
    1e-5
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_init_std() -> f64 {
    0.02
}
fn default_activation_type() -> String {
    "swiglu".into()
}
fn default_block_type() -> String {
    "sequential".into()
}
fn default_layer_norm_type() -> String {
    "default".into()
}

impl Official {
    pub(super) fn to_config(&self) -> Result<ModelConfig, String> {
        self.reject_unsupported()?;
        let (activation, n_projections) = match self.activation_type.as_str() {
            "swiglu" => (Activation::Swiglu, 2),
            other => return Err(format!("activation_type {other:?}, expected \"swiglu\"")),
        };
        let hidden = match self.mlp_hidden_size {
            Some(size) => size,
            None => self
                .mlp_ratio
                .checked_mul(self.d_model)
                .ok_or_else(|| format!("mlp_ratio {} is too large", self.mlp_ratio))?,
        };
        if !hidden.is_multiple_of(n_projections) {
            return Err(format!("mlp_hidden_size {hidden} is odd"));
        }
        let moe = self.moe(hidden / n_projections)?;
        let n_kv_heads = match (self.n_kv_heads, self.multi_query_attention) {
            (Some(heads), _) => heads,
            (None, Some(true)) => 1,
            (None, _) => self.n_heads,
        };
        Ok(ModelConfig {
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads,
            d_ff: if moe.is_some() {
                0
            } else {
                hidden / n_projections
            },
            vocab_size: self.embedding_size.unwrap_or(self.vocab_size),
            max_seq_len: self.max_sequence_length,
            rope_theta: self.rope_theta,
            tie_embeddings: self.weight_tying,
            activation,
            moe,
            placement: self.placement()?,
            ..ModelConfig::default()
        })
    }

    fn reject_unsupported(&self) -> Result<(), String> {
        let unsupported = [
            ("alibi", self.alibi),
            ("include_bias", self.include_bias),
            ("scale_logits", self.scale_logits),
            ("embedding_layer_norm", self.embedding_layer_norm),
            ("scale_emb_init", self.scale_emb_init),
            // From the OLMo version that the official code was forked from.
            ("norm_after", self.norm_after),
            ("moe_shared_expert", self.moe_shared_expert),
            ("moe_interleave", self.moe_interleave),
            ("attention_dropout", self.attention_dropout != 0.0),
            ("residual_dropout", self.residual_dropout != 0.0),
            ("embedding_dropout", self.embedding_dropout != 0.0),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(format!("{key} is set, which is not supported"));
        }
        if !self.rope {
            return Err("rope is off, expected on".into());
        }
        match self.block_type.as_str() {
            "sequential" | "moe" => Ok(()),
            other => Err(format!(
                "block_type {other:?}, expected \"sequential\" or \"moe\""
            )),
        }
    }

    /// Returns the mixture of experts; `hidden` is the experts' inner width unless `moe_expert_hidden_size` is set.
    fn moe(&self, hidden: usize) -> Result<Option<MoeConfig>, String> {
        if self.block_type != "moe" {
            return Ok(None);
        }
        if !self.moe_dropless {
            return Err("moe_dropless is off, expected on".into());
        }
        let renormalize = match self.moe_normalize_expert_weights {
            None => false,
            Some(1.0) => true,
            Some(norm) => {
                return Err(format!(
                    "moe_normalize_expert_weights {norm}, expected 1 or none"
                ));
            }
        };
        Ok(Some(MoeConfig {
            n_experts: self
                .moe_num_experts
                .ok_or("moe_num_experts is missing, which block_type \"moe\" requires")?,
            top_k: self.moe_top_k,
            d_expert: self.moe_expert_hidden_size.unwrap_or(hidden),
            n_shared: 0,
            first_dense: 0,
            scoring: Scoring::Softmax,
            renormalize,
            n_groups: 1,
            top_groups: 1,
            scaling: 1.0,
            load_balance: self.moe_loss_weight,
            z_loss: self.moe_zloss_weight.unwrap_or(0.0),
            bias_rate: None,
        }))
    }

    fn placement(&self) -> Result<Placement, String> {
        let flags = Flags {
            attn_norm: self.attn_norm,
            attn_residual: self.attn_residual_after_norm,
            ffn_norm: self.ffn_norm,
            ffn_residual: self.ffn_residual_after_norm,
        };
        let mut block: Block<Scale> = Block::default();
        flags.write(&mut block);
        block.attn_inner = self.attn_inner();
        Ok(Placement {
            block,
            norm: self.norm()?,
            overrides: self.overrides(flags)?,
            init: self.init(),
            ..Placement::default()
        })
    }

    fn norm(&self) -> Result<NormSpec, String> {
        let kind = match self.layer_norm_type.as_str() {
            "default" => NormFn::Layernorm,
            "rms" => NormFn::Rmsnorm,
            other => {
                return Err(format!(
                    "layer_norm_type {other:?}, expected rms or default"
                ));
            }
        };
        let gain = match self.layer_norm_with_affine {
            true => Gain::Plain,
            false => Gain::None,
        };
        Ok(NormSpec {
            kind: Some(kind),
            eps: self.layer_norm_eps,
            gain,
            bias: self.bias_for_layer_norm.unwrap_or(self.include_bias),
            alpha_init: None,
        })
    }

    fn init(&self) -> Init {
        let scheme = match self.init_fn.as_str() {
            "full_megatron" => InitScheme::Megatron,
            "mitchell" => InitScheme::DepthScaled,
            _ => InitScheme::Normal,
        };
        Init {
            scheme,
            std: StdRule::Const(self.init_std),
            ..Init::default()
        }
    }

    fn attn_inner(&self) -> AttnInner<Scale> {
        let per_head = |wanted: bool| match (wanted, self.attention_layer_norm_with_affine) {
            (true, true) => HeadNorm::PerHead,
            (true, false) => HeadNorm::PerHeadNoGain,
            (false, _) => HeadNorm::None,
        };
        // `attention_layer_norm` is over all heads, unless a norm per head is wanted.
        let query_or_key = |wanted: bool| {
            let full = self.attention_layer_norm && !wanted;
            match (full, self.attention_layer_norm_with_affine) {
                (true, true) => HeadNorm::Full,
                (true, false) => HeadNorm::FullNoGain,
                (false, _) => per_head(wanted),
            }
        };
        AttnInner {
            clip_qkv: self.clip_qkv,
            q_norm: query_or_key(self.use_query_norm),
            k_norm: query_or_key(self.use_key_norm),
            v_norm: per_head(self.use_value_norm),
            ctx_norm: per_head(self.use_context_norm),
            ..AttnInner::default()
        }
    }

    /// Returns the overrides for the layers in `norm_pos_special_config`.
    fn overrides(&self, base: Flags) -> Result<Vec<Override>, String> {
        let text = self.norm_pos_special_config.as_deref().unwrap_or_default();
        let layer_flags = python_dict::parse(text)
            .map_err(|problem| format!("norm_pos_special_config: {problem}"))?;
        layer_flags
            .into_iter()
            .map(|(layers, flags)| Ok(base.patched(&flags)?.as_override(layers)))
            .collect()
    }
}

/// Per-layer flags of the official code.
#[derive(Clone, Copy)]
struct Flags {
    attn_norm: bool,
    attn_residual: bool,
    ffn_norm: bool,
    ffn_residual: bool,
}

impl Flags {
    fn patched(mut self, patch: &BTreeMap<String, bool>) -> Result<Self, String> {
        for (name, &value) in patch {
            let slot = match name.as_str() {
                "attn_norm" => &mut self.attn_norm,
                "attn_residual" => &mut self.attn_residual,
                "ffn_norm" => &mut self.ffn_norm,
                "ffn_residual" => &mut self.ffn_residual,
                _ => {
                    return Err(format!(
                        "norm_pos_special_config: unknown flag {name:?}, expected attn_norm, \
                         attn_residual, ffn_norm or ffn_residual"
                    ));
                }
            };
            *slot = value;
        }
        Ok(self)
    }

    fn skips(self) -> [Skip; 2] {
        // A residual "after the norm" without a norm is the plain residual.
        [
            self.attn_norm && self.attn_residual,
            self.ffn_norm && self.ffn_residual,
        ]
        .map(|normed| if normed { Skip::Normed } else { Skip::Raw })
    }

    fn write(self, block: &mut Block<Scale>) {
        let [attn, ffn] = self.skips();
        block.attn.in_norm = self.attn_norm;
        block.attn.skip = attn;
        block.ffn.in_norm = self.ffn_norm;
        block.ffn.skip = ffn;
    }

    fn as_override(self, layers: Vec<usize>) -> Override {
        let [attn, ffn] = self.skips();
        Override {
            layers: Selector::Indices(layers),
            set: serde_json::json!({
                "attn": { "in_norm": self.attn_norm, "skip": attn },
                "ffn": { "in_norm": self.ffn_norm, "skip": ffn },
            }),
        }
    }
}
