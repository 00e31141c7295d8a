//! Decoders with grouped-query attention and gated feed-forwards, in the layout that most families share: separate
//! projections `q_proj`, `k_proj`, `v_proj` and `gate_proj`, `up_proj`. Families differ in their norms.

use serde::Deserialize;

use super::config::Common;
use super::family::{Family, read_keys};
use super::layouts;
use super::mapping::Mapping;
use crate::model::ModelConfig;
use crate::placement::{self, InitScheme, StdRule};

/// Differences of a family from the shared layout.
pub(super) struct Layout {
    /// Name of the placement.
    pub(super) placement: &'static str,
    /// Norms of a block: name in the checkpoint, below `model.layers.N`, and name of this crate, below `blocks.N`.
    pub(super) norms: &'static [(&'static str, &'static str)],
}

/// Keys of the families with this layout, besides the common ones.
#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    mlp_bias: bool,
    /// Width of the attention window, in positions.
    sliding_window: Option<usize>,
    /// Qwen: false if `sliding_window` is not used.
    use_sliding_window: Option<bool>,
    /// Qwen: the first layer that uses the window; `layer_types` decides where it is present.
    #[serde(rename = "max_window_layers")]
    _max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

/// Reads a `config.json` of a family with this layout.
pub(super) fn read(json: &[u8], layout: &'static Layout) -> Result<Box<dyn Family>, String> {
    let (keys, common) = read_keys::<Keys>(json)?;
    common.reject_unsupported()?;
    if keys.mlp_bias {
        return Err("mlp_bias is set, which is not supported".into());
    }
    keys.reject_short_windows(common.max_position_embeddings)?;
    let config = to_config(&common, layout)?;
    Ok(Box::new(Dense { config, layout }))
}

impl Keys {
    /// A window at least as long as the longest sequence is full attention.
    fn reject_short_windows(&self, longest: usize) -> Result<(), String> {
        let types = self.layer_types.as_deref();
        let known = ["full_attention", "sliding_attention"];
        let unknown = |found: &&String| !known.contains(&found.as_str());
        if let Some(other) = types.into_iter().flatten().find(unknown) {
            return Err(format!(
                "layer_types has {other:?}, expected \"full_attention\" or \"sliding_attention\""
            ));
        }
        let is_used = match types {
            Some(types) => types.iter().any(|found| found == "sliding_attention"),
            None => self.use_sliding_window.unwrap_or(true),
        };
        match self.sliding_window {
            Some(window) if is_used && window < longest => Err(format!(
                "sliding_window {window} is shorter than max_position_embeddings {longest}; sliding windows are not \
                 supported"
            )),
            None if types.is_some() && is_used => {
                Err("layer_types has \"sliding_attention\", but sliding_window is missing".into())
            }
            _ => Ok(()),
        }
    }
}

fn to_config(common: &Common, layout: &Layout) -> Result<ModelConfig, String> {
    let mut placement = placement::named(layout.placement).expect("a named placement");
    placement.norm.eps = common.rms_norm_eps;
    placement.init.scheme = InitScheme::Normal;
    placement.init.std = StdRule::Const(common.initializer_range);
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
        rope_theta: common.rope_theta()?,
        rope_scaling: common.rope_scaling()?,
        tie_embeddings: common.tie_word_embeddings,
        placement,
        ..ModelConfig::default()
    })
}

/// A model with this layout.
struct Dense {
    config: ModelConfig,
    layout: &'static Layout,
}

impl Family for Dense {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn mappings(&self) -> Vec<Mapping> {
        let config = &self.config;
        let mut mappings = layouts::ends(config);
        for layer in 0..config.n_layers {
            let (theirs, ours) = (format!("model.layers.{layer}"), format!("blocks.{layer}"));
            let norms = self.layout.norms.iter().map(|(from, to)| {
                Mapping::renamed(format!("{theirs}.{from}.weight"), format!("{ours}.{to}"))
            });
            mappings.extend(norms);
            let [attention, mlp] = ["self_attn", "mlp"].map(|part| format!("{theirs}.{part}"));
            mappings.extend(layouts::attention(
                &attention,
                &format!("{ours}.attention"),
                config,
            ));
            mappings.extend(layouts::mlp(
                &mlp,
                &format!("{ours}.feed_forward"),
                config.d_ff,
            ));
        }
        mappings
    }
}
