//! Decoders with grouped-query attention and gated feed-forwards or experts, in the layout that most families share.
//! Families differ in their norms, biases, windows, experts, and the packing of projections.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::{ActivationKey, Common};
use super::family::{Defaults, Family, read_key_groups};
use super::layer_types::{WindowKeys, Windows};
use super::layouts;
use super::mapping::{Mapping, Part};
use super::mixture::{Mixture, MixtureKeys};
use crate::model::{Bias, ModelConfig, Rope};
use crate::placement::{self, InitScheme, MAX_LAYERS, StdRule};

/// Differences of a family from the shared layout.
pub(super) struct Layout {
    /// Name of the placement.
    pub(super) placement: &'static str,
    /// Norms of a block: name in the checkpoint, below `model.layers.N`, and name of this crate, below `blocks.N`.
    pub(super) norms: &'static [(&'static str, &'static str)],
    /// Values of keys that a file lacks.
    pub(super) defaults: Defaults,
    /// Key of the activation.
    pub(super) activation: ActivationKey,
    /// Projections of attention with a bias.
    pub(super) attention_bias: AttentionBias,
    /// True if `mlp_bias` gives the projections of feed-forwards a bias; else they have none.
    pub(super) has_mlp_bias_key: bool,
    /// Layers with a sliding window.
    pub(super) windows: Windows,
    /// True if q, k and v are one tensor `qkv_proj`, gate and up projection one `gate_up_proj`.
    pub(super) is_packed: bool,
    /// Experts instead of dense feed-forwards.
    pub(super) mixture: Option<Mixture>,
}

/// Projections of attention with a bias in a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionBias {
    /// None.
    Never,
    /// Queries, keys and values.
    Qkv,
    /// All of them if `attention_bias` is true, else none.
    Key,
}

impl Layout {
    /// Pre-Norm without biases, windows and experts.
    pub(super) const PRE_NORM: Self = Self {
        placement: "pre-norm",
        norms: &[
            ("input_layernorm", "attn.in_norm.gain"),
            ("post_attention_layernorm", "ffn.in_norm.gain"),
        ],
        defaults: Defaults::NONE,
        activation: ActivationKey::HiddenAct,
        attention_bias: AttentionBias::Key,
        has_mlp_bias_key: false,
        windows: Windows::Never,
        is_packed: false,
        mixture: None,
    };
    /// [`Layout::PRE_NORM`] with norms on queries and keys.
    pub(super) const PRE_NORM_QK: Self = Self {
        placement: "pre-norm-qk",
        norms: &[
            ("input_layernorm", "attn.in_norm.gain"),
            ("self_attn.q_norm", "attention.q_norm.gain"),
            ("self_attn.k_norm", "attention.k_norm.gain"),
            ("post_attention_layernorm", "ffn.in_norm.gain"),
        ],
        ..Self::PRE_NORM
    };
}

impl Layout {
    /// Returns which projections have a bias. The others have none whatever a key says.
    fn bias(&self, common: &Common, keys: &Keys) -> Result<Bias, String> {
        let has_attention_bias = common.attention_bias.unwrap_or(false);
        let without_effect = match self {
            _ if has_attention_bias && self.attention_bias != AttentionBias::Key => {
                Some("attention_bias")
            }
            _ if keys.mlp_bias && !self.has_mlp_bias_key => Some("mlp_bias"),
            _ => None,
        };
        match without_effect {
            Some(key) => Err(format!(
                "{key} is true, expected false: this family does not have it"
            )),
            None => Ok(Bias {
                qkv: has_attention_bias || self.attention_bias == AttentionBias::Qkv,
                out: has_attention_bias,
                feed_forward: keys.mlp_bias,
            }),
        }
    }
}

/// Keys of all families with this layout, besides the common ones.
#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    mlp_bias: bool,
}

/// Keys of a family without keys of its own.
#[derive(Deserialize)]
pub(super) struct NoKeys {}

/// A configuration in the making, with what decides about the rest of it.
pub(super) struct Draft<'a> {
    pub(super) common: &'a Common,
    pub(super) config: &'a mut ModelConfig,
    /// Rotary embedding of layers with a window, in families that have one for each type of layer.
    pub(super) sliding_rope: Option<Rope>,
    /// Layers with a window.
    pub(super) windows: Windows,
}

/// Reads a `config.json` of a family with this layout and no keys of its own.
pub(super) fn read(json: &[u8], layout: &'static Layout) -> Result<Box<dyn Family>, String> {
    read_with(json, layout, |_: NoKeys, _| Ok(()))
}

/// Reads a `config.json` of a family with this layout; `adapt` applies the family's own keys `K`.
pub(super) fn read_with<K: DeserializeOwned>(
    json: &[u8],
    layout: &'static Layout,
    adapt: impl FnOnce(K, &mut Draft) -> Result<(), String>,
) -> Result<Box<dyn Family>, String> {
    let mut groups = read_key_groups(json, &layout.defaults)?;
    let common = groups.read_common()?;
    let keys: Keys = groups.read()?;
    let windows: WindowKeys = groups.read()?;
    let own: K = groups.read()?;
    let mixture = match &layout.mixture {
        Some(mixture) => {
            let keys: MixtureKeys = groups.read()?;
            Some(keys.to_config(mixture, common.intermediate_size)?)
        }
        None => None,
    };
    groups.reject_unread()?;
    common.reject_unsupported()?;
    let mut config = ModelConfig {
        activation: common.gated_activation(layout.activation)?,
        bias: layout.bias(&common, &keys)?,
        ..shape(&common)?
    };
    let dense_layers = mixture
        .as_ref()
        .map_or(config.n_layers, |moe| moe.first_dense);
    if dense_layers == 0 {
        config.d_ff = 0;
    }
    config.moe = mixture.filter(|moe| moe.first_dense < config.n_layers);
    config.placement = placement::named(layout.placement).expect("a named placement");
    config.placement.norm.eps = common.rms_norm_eps()?;
    config.placement.init.scheme = InitScheme::Normal;
    config.placement.init.std = StdRule::Const(common.initializer_range);
    let mut draft = Draft {
        common: &common,
        config: &mut config,
        sliding_rope: None,
        windows: layout.windows,
    };
    adapt(own, &mut draft)?;
    let Draft {
        sliding_rope,
        windows: rule,
        ..
    } = draft;
    if config.rope_dim.is_none() {
        common.reject_partial_rotation()?;
    }
    let types = windows.layer_types(rule, config.n_layers)?;
    windows.apply(&types, &common, sliding_rope, &mut config)?;
    Ok(Box::new(SharedLayout { config, layout }))
}

/// Returns a configuration of the common sizes.
///
/// The number of layers is checked here: families list their layers before the configuration is checked as a whole.
pub(super) fn shape(common: &Common) -> Result<ModelConfig, String> {
    if common.num_hidden_layers > MAX_LAYERS {
        return Err(format!(
            "num_hidden_layers {}, expected at most {MAX_LAYERS}",
            common.num_hidden_layers
        ));
    }
    let heads = common.num_attention_heads;
    // Where the width of the heads follows from the others, it is not stored.
    let head_dim = common
        .head_dim
        .filter(|dim| heads.checked_mul(*dim) != Some(common.hidden_size));
    Ok(ModelConfig {
        d_model: common.hidden_size,
        n_layers: common.num_hidden_layers,
        n_heads: heads,
        head_dim,
        n_kv_heads: common.num_key_value_heads.unwrap_or(heads),
        d_ff: common.intermediate_size,
        vocab_size: common.vocab_size,
        max_seq_len: common.max_position_embeddings,
        tie_embeddings: common.tie_word_embeddings,
        ..ModelConfig::default()
    })
}

/// A model with this layout.
struct SharedLayout {
    config: ModelConfig,
    layout: &'static Layout,
}

impl Family for SharedLayout {
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
}

impl SharedLayout {
    fn block(&self, layer: usize) -> Vec<Mapping> {
        let config = &self.config;
        let (theirs, ours) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
        let norms = self.layout.norms.iter().map(|(from, to)| {
            Mapping::renamed(format!("{theirs}.{from}.weight"), format!("{ours}.{to}"))
        });
        let mut mappings: Vec<Mapping> = norms.collect();
        mappings
            .extend(self.attention(&format!("{theirs}.self_attn"), &format!("{ours}.attention")));
        let feed_forward = format!("{ours}.feed_forward");
        mappings.extend(match (&self.layout.mixture, config.moe_of_layer(layer)) {
            (Some(mixture), Some(moe)) => mixture.mappings(&theirs, &feed_forward, config, moe),
            _ => self.mlp(&format!("{theirs}.mlp"), &feed_forward),
        });
        mappings
    }

    fn attention(&self, theirs: &str, ours: &str) -> Vec<Mapping> {
        let config = &self.config;
        if self.layout.is_packed {
            let order = layouts::packed_rope_order(config);
            let qkv = Mapping::renamed(format!("{theirs}.qkv_proj.weight"), format!("{ours}.qkv"));
            let out = Mapping::renamed(format!("{theirs}.o_proj.weight"), format!("{ours}.out"));
            return vec![qkv.with_order(order), out];
        }
        layouts::attention(theirs, ours, config)
    }

    fn mlp(&self, theirs: &str, ours: &str) -> Vec<Mapping> {
        let config = &self.config;
        if self.layout.is_packed {
            return vec![
                Mapping::renamed(
                    format!("{theirs}.gate_up_proj.weight"),
                    format!("{ours}.up"),
                ),
                Mapping::renamed(format!("{theirs}.down_proj.weight"), format!("{ours}.down")),
            ];
        }
        let mut mappings = layouts::mlp(theirs, ours, config.d_ff);
        if config.bias.feed_forward {
            let [gate, up, down] =
                ["gate", "up", "down"].map(|name| format!("{theirs}.{name}_proj.bias"));
            let parts = vec![Part::rows(gate, config.d_ff), Part::rows(up, config.d_ff)];
            mappings.push(Mapping::stack(parts, format!("{ours}.up_bias")));
            mappings.push(Mapping::renamed(down, format!("{ours}.down_bias")));
        }
        mappings
    }
}
