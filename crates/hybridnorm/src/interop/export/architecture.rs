//! Choice of the architecture that computes a model: one of `transformers` with the same equations, or generated
//! Python.

use serde_json::{Value, json};

use super::super::huggingface::family::{self, Family};
use super::super::huggingface::hybridnorm::{self, MODEL_TYPE};
use super::super::huggingface::mapping::Mapping;
use super::super::huggingface::stock;
use crate::error::Result;
use crate::model::{ModelConfig, PositionEmbedding};
use crate::placement::HeadNorm;

/// Architecture of an exported folder.
pub(super) struct Architecture {
    /// Value of `model_type`.
    pub(super) model_type: String,
    /// `config.json` of an architecture of `transformers`; `None` for generated Python.
    pub(super) stock: Option<Value>,
    /// Correspondence of the tensors.
    pub(super) mappings: Vec<Mapping>,
}

/// Chooses the architecture by comparing equations: names of placements play no part.
///
/// # Errors
/// If the configuration is invalid.
pub(super) fn choose(config: &ModelConfig) -> Result<Architecture> {
    let equations = equations(config)?;
    for candidate in candidates(config) {
        if self::equations(candidate.family.config())? == equations {
            return Ok(Architecture {
                model_type: candidate.model_type.to_owned(),
                mappings: candidate.family.mappings(),
                stock: Some(candidate.json),
            });
        }
    }
    Ok(Architecture {
        model_type: MODEL_TYPE.to_owned(),
        stock: None,
        mappings: hybridnorm::mappings(config)?,
    })
}

struct Candidate {
    model_type: &'static str,
    json: Value,
    family: Box<dyn Family>,
}

/// Returns the models of all families of these sizes, as their importer reads them.
fn candidates(config: &ModelConfig) -> Vec<Candidate> {
    let read = |(model_type, json): (&'static str, Value)| {
        let family = family::read(json.to_string().as_bytes()).ok()?;
        family.config().resolve().ok()?;
        Some(Candidate {
            model_type,
            json,
            family,
        })
    };
    stock::candidates(config)
        .into_iter()
        .filter_map(read)
        .collect()
}

/// Returns the architecture of `transformers` whose equations differ in the fewest places, and these places.
///
/// # Errors
/// If the configuration is invalid.
pub(super) fn nearest(config: &ModelConfig) -> Result<Option<(&'static str, Vec<String>)>> {
    let ours = equations(config)?;
    let mut nearest: Option<(&'static str, Vec<String>)> = None;
    for candidate in candidates(config) {
        let mut paths = Vec::new();
        differences(
            "",
            &ours,
            &equations(candidate.family.config())?,
            &mut paths,
        );
        // Blocks usually differ in the same places.
        paths
            .iter_mut()
            .for_each(|path| *path = without_indices(path));
        paths.sort();
        paths.dedup();
        if nearest
            .as_ref()
            .is_none_or(|(_, best)| paths.len() < best.len())
        {
            nearest = Some((candidate.model_type, paths));
        }
    }
    Ok(nearest)
}

fn without_indices(path: &str) -> String {
    let parts = path
        .split('.')
        .filter(|part| part.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

/// Appends the paths of the values that differ.
fn differences(path: &str, a: &Value, b: &Value, paths: &mut Vec<String>) {
    let join = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys {
                let null = &Value::Null;
                let [a, b] = [a, b].map(|object| object.get(key).unwrap_or(null));
                differences(&join(key), a, b, paths);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&join(&i.to_string()), a, b, paths);
            }
        }
        (a, b) if a != b => paths.push(path.to_owned()),
        _ => {}
    }
}

/// Returns what determines the function that a model computes: its sizes and resolved blocks, without names, initial
/// values and settings of training.
fn equations(config: &ModelConfig) -> Result<Value> {
    let (mut resolved, _) = config.resolve()?;
    let norm_eps = resolved.norm.eps;
    for block in &mut resolved.blocks {
        let inner = &mut block.attn_inner;
        let norms = [&mut inner.q_norm, &mut inner.k_norm, &mut inner.v_norm];
        let has_norm =
            norms.iter().any(|norm| **norm != HeadNorm::None) || inner.ctx_norm != HeadNorm::None;
        if config.mla.is_some_and(|mla| mla.q_rank.is_some()) {
            // Latents are one vector.
            for norm in norms {
                *norm = match *norm {
                    HeadNorm::PerHeadOwn | HeadNorm::Full => HeadNorm::PerHead,
                    HeadNorm::FullNoGain => HeadNorm::PerHeadNoGain,
                    norm => norm,
                };
            }
        }
        inner.norm_eps = has_norm.then(|| inner.norm_eps.unwrap_or(norm_eps));
    }
    let mut blocks = serde_json::to_value(&resolved.blocks).expect("a block has a JSON form");
    for block in blocks.as_array_mut().into_iter().flatten() {
        for sub_layer in ["attn", "ffn"] {
            let out_norm = &mut block[sub_layer]["out_norm"];
            *out_norm = json!(*out_norm != json!(false));
        }
    }
    let norm = &resolved.norm;
    let mut model = serde_json::to_value(config).expect("a configuration has a JSON form");
    if let Some(model) = model.as_object_mut() {
        model.remove("placement");
        for key in [
            "position_embedding",
            "rope_theta",
            "rope_scaling",
            "attention_overrides",
        ] {
            model.remove(key);
        }
        model.insert("head_dim".into(), json!(config.head_dim()));
        model.insert("rope_dim".into(), json!(config.rope_dim()));
        let has_positions = config.position_embedding == PositionEmbedding::Learned;
        model.insert("learned_positions".into(), json!(has_positions));
        let attention = (0..config.n_layers).map(|layer| {
            let rope = format!("{:?}", config.rope_of_layer(layer));
            json!({ "window": config.window_of_layer(layer), "rope": rope })
        });
        model.insert("attention".into(), attention.collect());
        if let Some(Value::Object(moe)) = model.get_mut("moe") {
            for of_training in ["load_balance", "z_loss", "bias_rate"] {
                moe.remove(of_training);
            }
            let has_bias = config
                .moe
                .as_ref()
                .is_some_and(|moe| moe.bias_rate.is_some());
            moe.insert("has_selection_bias".into(), json!(has_bias));
        }
    }
    Ok(json!({
        "model": model,
        "streams": resolved.streams,
        "norm": { "kind": format!("{:?}", norm.kind), "eps": norm.eps, "gain": norm.gain, "bias": norm.bias },
        "embed": { "scale": scale(resolved.embed_scale), "norm": resolved.embed_norm },
        "merge_norm": resolved.merge_norm,
        "final_norm": resolved.final_norm,
        "logits": { "scale": scale(resolved.logits.scale), "softcap": resolved.logits.softcap },
        "block": blocks,
    }))
}

fn scale(scale: crate::placement::ResolvedScale) -> Value {
    serde_json::to_value(scale).expect("a scale has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_once() {
        let a = json!({ "block": [{ "a": 1, "b": 2 }, { "a": 1 }], "c": 1 });
        let b = json!({ "block": [{ "a": 2, "b": 2 }, { "a": 2 }], "c": 1, "d": true });
        let mut paths = Vec::new();
        differences("", &a, &b, &mut paths);
        assert_eq!(paths, ["block.0.a", "block.1.a", "d"]);
        assert_eq!(without_indices("block.0.a"), "block.a");
    }
}
