//! Folders written by [`export`](super::super::export): any placement, with the configuration of this crate in
//! `config.json`.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::super::export::fields;
use super::super::keys;
use super::family::{Family, IGNORED_KEYS};
use super::mapping::{Mapping, Part};
use crate::model::{Decoder, ModelConfig, ParamSpec};

/// Value of `model_type`, and key of this crate's configuration in `config.json`.
pub(in crate::interop) const MODEL_TYPE: &str = "hybridnorm";

#[derive(Deserialize)]
struct Config {
    hybridnorm: Own,
}

/// This crate's part of the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    placement_hash: String,
    model: ModelConfig,
}

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let problem = |error: serde_json::Error| error.to_string();
    let Config { hybridnorm: own } = serde_json::from_slice(json).map_err(problem)?;
    let hash = own.model.placement.hash();
    if hash != own.placement_hash {
        return Err(format!(
            "hybridnorm.placement_hash is {}, but the placement hashes to {hash}",
            own.placement_hash
        ));
    }
    let all: Value = serde_json::from_slice(json).map_err(problem)?;
    let expected = fields(&own.model);
    for (name, expected) in &expected {
        match all.get(name) {
            Some(found) if is_equal(found, expected) => {}
            found => {
                let found = found.map_or("missing".into(), Value::to_string);
                return Err(format!(
                    "{name} is {found}, expected {expected}, as hybridnorm.model has it"
                ));
            }
        }
    }
    let known = |key: &&String| key.as_str() == MODEL_TYPE || expected.contains_key(*key);
    let others = all.as_object().into_iter().flat_map(|object| object.keys());
    let unread: BTreeSet<keys::Key> = others
        .filter(|key| !known(key))
        .map(|key| vec![key.clone()])
        .collect();
    keys::reject_unread_keys(&all, &unread, &IGNORED_KEYS)?;
    let mappings = mappings(&own.model).map_err(|error| error.to_string())?;
    Ok(Box::new(Exported {
        config: own.model,
        mappings,
    }))
}

/// True for equal values; numbers are compared as numbers, since other tools write 10000 for 10000.0.
fn is_equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A model of this family.
struct Exported {
    config: ModelConfig,
    mappings: Vec<Mapping>,
}

impl Family for Exported {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn mappings(&self) -> Vec<Mapping> {
        self.mappings.clone()
    }
}

/// Returns the correspondence of all tensors to those of the generated Python classes.
///
/// # Errors
/// If the configuration is invalid.
pub(in crate::interop) fn mappings(config: &ModelConfig) -> crate::Result<Vec<Mapping>> {
    let decoder = Decoder::new(config)?;
    let all = decoder.registry().iter();
    Ok(all.map(|spec| mapping(config, spec)).collect())
}

fn mapping(config: &ModelConfig, spec: &ParamSpec) -> Mapping {
    let name = spec.name.as_str();
    let in_block = name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'));
    let Some((layer, path)) = in_block else {
        let theirs = match name {
            "embedding" => "model.embed_tokens.weight".to_owned(),
            "head" => "lm_head.weight".to_owned(),
            "position_embedding" => "model.embed_positions.weight".to_owned(),
            "logit_scale.factor" => "logit_scale".to_owned(),
            "final_norm.gain" => "model.norm.weight".to_owned(),
            name => match name.strip_prefix("final_norm.") {
                Some(rest) => format!("model.norm.{rest}"),
                None => format!("model.{}", leaf(name)),
            },
        };
        return Mapping::renamed(theirs, name);
    };
    let block = format!("model.layers.{layer}");
    match path.split_once('.') {
        Some((sub @ ("attn" | "ffn"), site)) => {
            Mapping::renamed(format!("{block}.{sub}_{}", leaf(site)), name)
        }
        Some(("attention", site)) => attention(config, name, &format!("{block}.self_attn"), site),
        Some(("feed_forward", site)) => {
            feed_forward(config, name, &format!("{block}.mlp"), site, spec)
        }
        _ => unreachable!("{name} is a parameter of a sub-layer or a function"),
    }
}

/// Returns the name of a vector: `PATH.weight` for a gain, `PATH` for a factor.
fn leaf(site: &str) -> String {
    match site.rsplit_once('.') {
        Some((path, "gain")) => format!("{path}.weight"),
        Some((path, "factor")) => path.to_owned(),
        _ => site.to_owned(),
    }
}

fn attention(config: &ModelConfig, name: &str, theirs: &str, site: &str) -> Mapping {
    let part = |field: &str, rows: usize| Part::rows(format!("{theirs}.{field}.weight"), rows);
    match (site, &config.mla) {
        ("qkv" | "qkv_bias", _) => {
            let leaf = if site == "qkv" { "weight" } else { "bias" };
            let part = |field: &str, heads: usize| {
                Part::rows(
                    format!("{theirs}.{field}.{leaf}"),
                    heads * config.head_dim(),
                )
            };
            let (h, g) = (config.n_heads, config.n_kv_heads);
            Mapping::stack(
                vec![part("q_proj", h), part("k_proj", g), part("v_proj", g)],
                name,
            )
        }
        ("latents", Some(mla)) => {
            let [q, kv, key] = mla.down_widths(config.n_heads);
            let q_name = if mla.q_rank.is_some() {
                "q_a_proj"
            } else {
                "q_proj"
            };
            let parts = vec![part(q_name, q), part("kv_a_proj_with_mqa", kv + key)];
            Mapping::stack(parts, name)
        }
        ("q_up", _) => Mapping::renamed(format!("{theirs}.q_b_proj.weight"), name),
        ("kv_up", _) => Mapping::renamed(format!("{theirs}.kv_b_proj.weight"), name),
        ("out_bias", _) => Mapping::renamed(format!("{theirs}.o_proj.bias"), name),
        ("out", _) => Mapping::renamed(format!("{theirs}.o_proj.weight"), name),
        _ => Mapping::renamed(format!("{theirs}.{}", leaf(site)), name),
    }
}

fn feed_forward(
    config: &ModelConfig,
    name: &str,
    theirs: &str,
    site: &str,
    spec: &ParamSpec,
) -> Mapping {
    let (module, site) = match site.split_once('.') {
        Some(("experts", site)) => (None, site),
        Some(("shared", site)) => (Some(format!("{theirs}.shared_experts")), site),
        _ => (Some(theirs.to_owned()), site),
    };
    let (site, leaf_of_linear) = match site {
        "up_bias" => ("up", "bias"),
        "down_bias" => ("down", "bias"),
        site => (site, "weight"),
    };
    let is_matrix = matches!(site, "up" | "down");
    let modules = match module {
        Some(module) => vec![module],
        // Norms and scales are shared by all experts.
        None if !is_matrix => vec![theirs.to_owned()],
        None => (0..spec.experts)
            .map(|expert| format!("{theirs}.experts.{expert}"))
            .collect(),
    };
    let rows = spec.shape[0] / spec.experts;
    let of_module = |module: &String| match (site, config.activation.is_gated()) {
        ("up", true) => ["gate_proj", "up_proj"]
            .map(|field| Part::rows(format!("{module}.{field}.{leaf_of_linear}"), rows / 2))
            .to_vec(),
        (site, _) => vec![Part::rows(
            format!("{module}.{site}_proj.{leaf_of_linear}"),
            rows,
        )],
    };
    match (site, &modules[..]) {
        ("router", _) => Mapping::renamed(format!("{theirs}.gate.weight"), name),
        ("up" | "down", modules) => {
            Mapping::stack(modules.iter().flat_map(of_module).collect(), name)
        }
        (site, [module, ..]) => Mapping::renamed(format!("{module}.{}", leaf(site)), name),
        (_, []) => unreachable!("there is at least one expert"),
    }
}
