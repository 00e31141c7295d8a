//! GPT-2: LayerNorms with bias, Pre-Norm, learned positions, biases on all projections.

use serde::Deserialize;

use super::family::{Defaults, Family, read_key_groups};
use super::gpt_neox::{activation, norm, projection};
use super::mapping::Mapping;
use super::weights::Weights;
use crate::model::{Bias, ModelConfig, PositionEmbedding};
use crate::placement::{self, InitScheme, NormFn, StdRule};

/// Prefix of tensor names, which some files lack.
const PREFIX: &str = "transformer.";

#[derive(Deserialize)]
struct Keys {
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    n_positions: usize,
    vocab_size: usize,
    layer_norm_epsilon: f64,
    activation_function: String,
    initializer_range: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
    embd_pdrop: f64,
    resid_pdrop: f64,
    attn_pdrop: f64,
    /// Older name of `n_positions`.
    #[serde(rename = "n_ctx")]
    _n_ctx: Option<usize>,
}

const DEFAULTS: Defaults = Defaults {
    keys: r#""attn_pdrop": 0.1, "embd_pdrop": 0.1, "initializer_range": 0.02, "resid_pdrop": 0.1,
        "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true, "tie_word_embeddings": true"#,
    ..Defaults::NONE
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let mut groups = read_key_groups(json, &DEFAULTS)?;
    let keys: Keys = groups.read()?;
    groups.reject_unread()?;
    Ok(Box::new(Gpt2 {
        config: keys.to_config()?,
        dropout: keys.dropout(),
    }))
}

impl Keys {
    fn to_config(&self) -> Result<ModelConfig, String> {
        if !self.scale_attn_weights {
            return Err("scale_attn_weights is false, expected true".into());
        }
        if self.scale_attn_by_inverse_layer_idx {
            return Err("scale_attn_by_inverse_layer_idx is true, expected false".into());
        }
        let mut placement = placement::named("pre-norm").expect("a named placement");
        placement.norm.kind = Some(NormFn::Layernorm);
        placement.norm.bias = true;
        placement.norm.eps = self.layer_norm_epsilon;
        placement.init.scheme = InitScheme::Normal;
        placement.init.std = StdRule::Const(self.initializer_range);
        let inner = self.n_embd.checked_mul(4).ok_or("n_embd is too large")?;
        Ok(ModelConfig {
            d_model: self.n_embd,
            n_layers: self.n_layer,
            n_heads: self.n_head,
            n_kv_heads: self.n_head,
            d_ff: self.n_inner.unwrap_or(inner),
            vocab_size: self.vocab_size,
            max_seq_len: self.n_positions,
            position_embedding: PositionEmbedding::Learned,
            tie_embeddings: self.tie_word_embeddings,
            activation: activation(&self.activation_function)?,
            bias: Bias {
                qkv: true,
                out: true,
                feed_forward: true,
            },
            placement,
            ..ModelConfig::default()
        })
    }

    /// Returns the key and the value of a dropout, if there is one.
    fn dropout(&self) -> Option<(&'static str, f64)> {
        let keys = [
            ("embd_pdrop", self.embd_pdrop),
            ("resid_pdrop", self.resid_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ];
        keys.into_iter().find(|(_, value)| *value != 0.0)
    }
}

/// A model of this family.
struct Gpt2 {
    config: ModelConfig,
    dropout: Option<(&'static str, f64)>,
}

impl Family for Gpt2 {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn mappings(&self) -> Vec<Mapping> {
        let mut mappings = vec![
            Mapping::renamed(format!("{PREFIX}wte.weight"), "embedding"),
            Mapping::renamed(format!("{PREFIX}wpe.weight"), "position_embedding"),
        ];
        mappings.extend(norm(&format!("{PREFIX}ln_f"), "final_norm"));
        if !self.config.tie_embeddings {
            mappings.push(Mapping::renamed(super::layouts::HEAD, "head"));
        }
        mappings.extend((0..self.config.n_layers).flat_map(block));
        mappings
    }

    fn optional_prefix(&self) -> Option<&'static str> {
        Some(PREFIX)
    }

    fn omit(&self, weights: &mut Weights) {
        let reason = "masks of attention, which follow from the configuration";
        weights.omit(reason, |name| {
            name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
        });
    }

    fn notes(&self) -> Vec<String> {
        let note = |(key, value): (&str, f64)| {
            format!(
                "{key} is {value}: dropout, which affects training only, is not applied in further training"
            )
        };
        self.dropout.map(note).into_iter().collect()
    }
}

/// Matrices are (in, out) in the checkpoint.
fn block(layer: usize) -> Vec<Mapping> {
    let (theirs, ours) = (format!("{PREFIX}h.{layer}"), format!("blocks.{layer}"));
    let projections = [
        ("attn.c_attn", "attention.qkv"),
        ("attn.c_proj", "attention.out"),
        ("mlp.c_fc", "feed_forward.up"),
        ("mlp.c_proj", "feed_forward.down"),
    ];
    let mut mappings = Vec::new();
    for (from, to) in projections {
        let [matrix, bias] = projection(&format!("{theirs}.{from}"), &format!("{ours}.{to}"), true)
            .try_into()
            .expect("a matrix and a bias");
        mappings.extend([matrix.transposed(), bias]);
    }
    mappings.extend(norm(
        &format!("{theirs}.ln_1"),
        &format!("{ours}.attn.in_norm"),
    ));
    mappings.extend(norm(
        &format!("{theirs}.ln_2"),
        &format!("{ours}.ffn.in_norm"),
    ));
    mappings
}
