//! GPT-NeoX (arXiv 2204.06745), Pythia: LayerNorms with bias, attention and feed-forward in parallel or in sequence,
//! biases on all projections, and rotation of a part of the channels.

use serde::Deserialize;

use super::config::Common;
use super::family::{Defaults, Family, read_keys};
use super::layout::shape;
use super::layouts::rope_channel;
use super::mapping::Mapping;
use super::weights::Weights;
use crate::model::{Activation, Bias, ModelConfig};
use crate::placement::{self, InitScheme, NormFn, StdRule};

#[derive(Deserialize)]
struct Keys {
    layer_norm_eps: f64,
    use_parallel_residual: bool,
    /// Share of a head's channels that is rotated, in older files.
    rotary_pct: Option<f64>,
    /// Base of the rotary embedding, in older files.
    rotary_emb_base: Option<f64>,
    hidden_dropout: f64,
    /// Of classifiers, which are another model.
    #[serde(rename = "classifier_dropout")]
    _classifier_dropout: Option<f64>,
}

const DEFAULTS: Defaults = Defaults {
    keys: r#""attention_bias": true, "hidden_act": "gelu", "hidden_dropout": 0.0, "use_parallel_residual": true"#,
    ..Defaults::NONE
};

/// Share of a head's channels that is rotated.
const ROTARY_PCT: f64 = 0.25;

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let (keys, common) = read_keys::<Keys>(json, &DEFAULTS)?;
    Ok(Box::new(GptNeox(keys.to_config(&common)?)))
}

impl Keys {
    fn to_config(&self, common: &Common) -> Result<ModelConfig, String> {
        common.reject_unsupported()?;
        if self.hidden_dropout != 0.0 {
            return Err(format!(
                "hidden_dropout {}, expected 0: dropout is not supported",
                self.hidden_dropout
            ));
        }
        let name = match self.use_parallel_residual {
            true => "neox-parallel",
            false => "pre-norm",
        };
        let mut placement = placement::named(name).expect("a named placement");
        placement.norm.kind = Some(NormFn::Layernorm);
        placement.norm.bias = true;
        placement.norm.eps = self.layer_norm_eps;
        placement.init.scheme = InitScheme::Normal;
        placement.init.std = StdRule::Const(common.initializer_range);
        let has_attention_bias = common.attention_bias.unwrap_or(true);
        let mut config = ModelConfig {
            activation: activation(common.hidden_act.as_deref().unwrap_or_default())?,
            bias: Bias {
                qkv: has_attention_bias,
                out: has_attention_bias,
                feed_forward: true,
            },
            placement,
            ..shape(common)?
        };
        self.set_rope(common, &mut config)?;
        Ok(config)
    }

    /// The tables of the rotary embedding and the older keys precede those of other families, without effect here.
    fn set_rope(&self, common: &Common, config: &mut ModelConfig) -> Result<(), String> {
        common.reject_rope_by_layer_type()?;
        let tables = || common.rope_parameters.iter().chain(&common.rope_scaling);
        config.rope_theta = one_of(
            ("rotary_emb_base", self.rotary_emb_base),
            tables().find_map(|table| table.rope_theta),
            ("rope_theta", common.rope_theta),
            common.default_rope_theta,
        )?;
        (_, config.rope_scaling) = common.rope()?;
        let share = one_of(
            ("rotary_pct", self.rotary_pct),
            tables().find_map(|table| table.partial_rotary_factor),
            ("partial_rotary_factor", common.partial_rotary_factor),
            ROTARY_PCT,
        )?;
        if !(share > 0.0 && share <= 1.0) {
            return Err(format!("rotary_pct {share}, expected a number up to 1"));
        }
        if share != 1.0 {
            config.rope_dim = Some((config.head_dim() as f64 * share) as usize);
        }
        Ok(())
    }
}

/// Returns the value of `key`, which may be in a table instead, or the default; `other` has no effect, so that it must
/// have the same value.
fn one_of(
    (key, own): (&str, Option<f64>),
    in_table: Option<f64>,
    (other_key, other): (&str, Option<f64>),
    default: f64,
) -> Result<f64, String> {
    let value = in_table.or(own).unwrap_or(default);
    for (name, found) in [(key, own), (other_key, other)] {
        if let Some(found) = found.filter(|found| *found != value) {
            return Err(format!(
                "{name} is {found}, but {key} or the table of the rotary embedding {value}"
            ));
        }
    }
    Ok(value)
}

/// Returns the activation of a feed-forward without gate.
pub(super) fn activation(name: &str) -> Result<Activation, String> {
    match name {
        "gelu" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::Gelu),
        "relu2" => Ok(Activation::Relu2),
        other => Err(format!(
            "the activation is {other:?}, expected \"gelu\", \"gelu_new\", \"gelu_fast\", \"gelu_pytorch_tanh\" or \
             \"relu2\""
        )),
    }
}

/// A model of this family.
struct GptNeox(ModelConfig);

impl Family for GptNeox {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn mappings(&self) -> Vec<Mapping> {
        let mut mappings = vec![Mapping::renamed("gpt_neox.embed_in.weight", "embedding")];
        mappings.extend(norm("gpt_neox.final_layer_norm", "final_norm"));
        if !self.0.tie_embeddings {
            mappings.push(Mapping::renamed("embed_out.weight", "head"));
        }
        mappings.extend((0..self.0.n_layers).flat_map(|layer| self.block(layer)));
        mappings
    }

    fn omit(&self, weights: &mut Weights) {
        let reason = "masks of attention, which follow from the configuration";
        weights.omit(reason, |name| {
            name.ends_with(".attention.bias") || name.ends_with(".attention.masked_bias")
        });
    }
}

impl GptNeox {
    fn block(&self, layer: usize) -> Vec<Mapping> {
        let (theirs, ours) = (
            format!("gpt_neox.layers.{layer}"),
            format!("blocks.{layer}"),
        );
        let bias = self.0.bias;
        let projections = [
            ("attention.dense", "attention.out", bias.out),
            ("mlp.dense_h_to_4h", "feed_forward.up", bias.feed_forward),
            ("mlp.dense_4h_to_h", "feed_forward.down", bias.feed_forward),
        ];
        let mut mappings: Vec<Mapping> = projections
            .into_iter()
            .flat_map(|(from, to, has_bias)| {
                projection(
                    &format!("{theirs}.{from}"),
                    &format!("{ours}.{to}"),
                    has_bias,
                )
            })
            .collect();
        let qkv = projection(
            &format!("{theirs}.attention.query_key_value"),
            &format!("{ours}.attention.qkv"),
            bias.qkv,
        );
        mappings.extend(
            qkv.into_iter()
                .map(|mapping| mapping.with_order(self.qkv_order())),
        );
        mappings.extend(norm(
            &format!("{theirs}.input_layernorm"),
            &format!("{ours}.attn.in_norm"),
        ));
        mappings.extend(norm(
            &format!("{theirs}.post_attention_layernorm"),
            &format!("{ours}.ffn.in_norm"),
        ));
        mappings
    }

    /// The checkpoint has query, key and value of a head next to each other.
    fn qkv_order(&self) -> Vec<usize> {
        let (heads, width, rotary) = (self.0.n_heads, self.0.head_dim(), self.0.rope_dim());
        let row = |row: usize| {
            let (part, head, channel) = (row / (heads * width), row / width % heads, row % width);
            let channel = match part {
                2 => channel,
                _ => rope_channel(channel, width, rotary),
            };
            (3 * head + part) * width + channel
        };
        (0..3 * heads * width).map(row).collect()
    }
}

/// Returns the mappings of a norm with gain and bias.
pub(super) fn norm(theirs: &str, ours: &str) -> [Mapping; 2] {
    [("weight", "gain"), ("bias", "bias")]
        .map(|(from, to)| Mapping::renamed(format!("{theirs}.{from}"), format!("{ours}.{to}")))
}

/// Returns the mappings of a projection and of its bias.
pub(super) fn projection(theirs: &str, ours: &str, has_bias: bool) -> Vec<Mapping> {
    let mut mappings = vec![Mapping::renamed(format!("{theirs}.weight"), ours)];
    if has_bias {
        mappings.push(Mapping::renamed(
            format!("{theirs}.bias"),
            format!("{ours}_bias"),
        ));
    }
    mappings
}
