//! Models as GGUF files, for the families that llama.cpp knows.
//!
//! A configuration is translated to a `config.json` and compared with what the importer reads from it; only a family
//! with which nothing is lost is written.

mod header;
mod quantize;
mod tokenizer;

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::super::huggingface::{self, mapping::Mapping};
use super::families::{FAMILIES, Family, Stored};
use super::gemma::Gemma;
use super::{rope, tensors};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files::AtomicFile;
use crate::model::{Model, ModelConfig, RopeScaling};
use crate::tensors::HostTensor;
use header::{ALIGNMENT, Described, Value};

pub use quantize::MatrixType;

/// Writes a model as a GGUF file, with its tokenizer; without one, other programs can only process token ids.
///
/// # Errors
/// If llama.cpp has no architecture for the model, the tokenizer cannot be represented, a weight is outside the range
/// of half precision, or the file cannot be written.
pub fn write(
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    path: &Path,
    kind: MatrixType,
) -> Result<()> {
    let config = model.config();
    let (family, mappings) = family(config)?;
    let mut keys = keys(family, config, kind);
    let of_tokenizer = tokenizer::keys(tokenizer, config.vocab_size)
        .map_err(|problem| Error::invalid_value("tokenizer", problem))?;
    keys.extend(of_tokenizer);
    let tensors = Tensors {
        model,
        family,
        mappings: &mappings,
        kind,
    };
    let described = tensors.described();
    let mut file = AtomicFile::create(path)?;
    file.write_all(&header::header(&keys, &described))
        .map_err(Error::io(path))?;
    tensors.for_each(|description, tensor| {
        let mut bytes = description.kind.convert(&tensor.data).map_err(|problem| {
            Error::conflict(
                ["weights", "type"],
                format!("tensor {}: {problem}", description.name),
            )
        })?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        file.write_all(&bytes).map_err(Error::io(path))
    })?;
    file.commit().map(drop)
}

/// Checks that a model can be written.
///
/// # Errors
/// If llama.cpp has no architecture for it; the message says which it has.
pub fn check(config: &ModelConfig) -> Result<()> {
    family(config).map(drop)
}

/// Returns what keeps llama.cpp's architecture for a `model_type` of `transformers` from computing a model; `None` if
/// there is no such architecture here.
pub(in crate::interop) fn problem_of(
    model_type: &str,
    config: &ModelConfig,
) -> Option<std::result::Result<(), String>> {
    let mut families = FAMILIES.iter();
    let family = families.find(|family| family.model_type == model_type)?;
    let problem = |problem: String| format!("its {}: {problem}", family.architecture);
    Some(mappings(family, config).map(drop).map_err(problem))
}

/// Returns the family of a configuration, and its tensors in Hugging Face's format.
fn family(config: &ModelConfig) -> Result<(&'static Family, Vec<Mapping>)> {
    let mut problems = Vec::new();
    for family in &FAMILIES {
        match mappings(family, config) {
            Ok(mappings) => return Ok((family, mappings)),
            Err(problem) => problems.push(format!("{}: {problem}", family.architecture)),
        }
    }
    Err(Error::invalid_value(
        "model",
        format!(
            "no architecture of llama.cpp computes this model ({})",
            problems.join("; ")
        ),
    ))
}

/// Returns the tensors of a configuration in this family, if the family has all its settings.
fn mappings(family: &Family, config: &ModelConfig) -> std::result::Result<Vec<Mapping>, String> {
    if let Some(problem) = family.problem(config) {
        return Err(problem);
    }
    let json = config_json(family, config).to_string();
    let (mut expected, mappings) = huggingface::translate(json.as_bytes())?;
    // The initialization does not matter to a trained model.
    expected.placement.init = config.placement.init.clone();
    match difference(config, &expected) {
        None => Ok(mappings),
        Some(key) => Err(format!("{key} differs")),
    }
}

/// Returns the first key in which two configurations differ.
fn difference(a: &ModelConfig, b: &ModelConfig) -> Option<String> {
    if a == b {
        return None;
    }
    let [a, b] = [a, b].map(|config| serde_json::to_value(config).unwrap_or_default());
    let found = first_difference(&a, &b, String::new());
    Some(found.unwrap_or_else(|| "a setting".into()))
}

fn first_difference(a: &Json, b: &Json, at: String) -> Option<String> {
    let (Json::Object(x), Json::Object(y)) = (a, b) else {
        return (a != b).then_some(at);
    };
    let keys = x.keys().chain(y.keys().filter(|key| !x.contains_key(*key)));
    keys.into_iter().find_map(|key| {
        let at = match at.as_str() {
            "" => key.clone(),
            at => format!("{at}.{key}"),
        };
        first_difference(&a[key.as_str()], &b[key.as_str()], at)
    })
}

/// Returns the `config.json` of a configuration as a model of this family.
fn config_json(family: &Family, config: &ModelConfig) -> Json {
    let mut json = Map::new();
    for (key, value) in [
        ("model_type", json!(family.model_type)),
        ("hidden_size", json!(config.d_model)),
        ("num_hidden_layers", json!(config.n_layers)),
        ("num_attention_heads", json!(config.n_heads)),
        ("num_key_value_heads", json!(config.n_kv_heads)),
        ("head_dim", json!(config.head_dim())),
        ("intermediate_size", json!(config.d_ff)),
        ("max_position_embeddings", json!(config.max_seq_len)),
        ("rms_norm_eps", json!(config.placement.norm.eps)),
        ("vocab_size", json!(config.vocab_size)),
        ("tie_word_embeddings", json!(config.tie_embeddings)),
        ("rope_parameters", rope::to_parameters(config)),
    ] {
        json.insert(key.to_owned(), value);
    }
    let own = family.gemma.map(|gemma| gemma.config_json(config));
    for (key, value) in own.into_iter().flatten() {
        json.insert(key.to_owned(), value);
    }
    Gemma::split_rope(&mut json);
    Json::Object(json)
}

/// Returns the keys of a model.
fn keys(family: &Family, config: &ModelConfig, kind: MatrixType) -> Vec<(String, Value)> {
    let integer = |value: usize| Value::Integer(u32::try_from(value).unwrap_or(u32::MAX));
    let general = |key: &str, value: Value| (format!("general.{key}"), value);
    let own = |key: &str, value: Value| (format!("{}.{key}", family.architecture), value);
    let mut keys = vec![
        general("architecture", Value::Text(family.architecture.into())),
        general("type", Value::Text("model".into())),
        general("file_type", Value::Integer(kind.file_type())),
        general("quantization_version", Value::Integer(2)),
        own("block_count", integer(config.n_layers)),
        own("context_length", integer(config.max_seq_len)),
        own("embedding_length", integer(config.d_model)),
        own("feed_forward_length", integer(config.d_ff)),
        own("attention.head_count", integer(config.n_heads)),
        own("attention.head_count_kv", integer(config.n_kv_heads)),
        own("attention.key_length", integer(config.head_dim())),
        own("attention.value_length", integer(config.head_dim())),
        own(
            "attention.layer_norm_rms_epsilon",
            Value::Number(config.placement.norm.eps as f32),
        ),
        own("vocab_size", integer(config.vocab_size)),
        own("rope.dimension_count", integer(config.head_dim())),
        own("rope.freq_base", Value::Number(config.rope_theta as f32)),
    ];
    let of_gemma = family.gemma.map(|gemma| gemma.keys(config));
    for (key, value) in of_gemma.into_iter().flatten() {
        let value = match value.as_u64() {
            Some(value) => integer(value as usize),
            None => Value::Number(value.as_f64().unwrap_or_default() as f32),
        };
        keys.push(own(key, value));
    }
    let scaling = |key: &str, value: Value| own(&format!("rope.scaling.{key}"), value);
    match config.rope_scaling {
        None | Some(RopeScaling::Llama3 { .. }) => {}
        Some(RopeScaling::Linear { factor }) => {
            keys.push(scaling("type", Value::Text("linear".into())));
            keys.push(scaling("factor", Value::Number(factor as f32)));
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_seq_len,
            ..
        }) => {
            keys.push(scaling("type", Value::Text("yarn".into())));
            keys.push(scaling("factor", Value::Number(factor as f32)));
            keys.push(scaling(
                "original_context_length",
                integer(original_max_seq_len),
            ));
            keys.push(scaling("yarn_beta_fast", Value::Number(beta_fast as f32)));
            keys.push(scaling("yarn_beta_slow", Value::Number(beta_slow as f32)));
        }
    }
    keys
}

/// The tensors of a model in the order of the file.
struct Tensors<'a> {
    model: &'a Model,
    family: &'a Family,
    mappings: &'a [Mapping],
    kind: MatrixType,
}

impl Tensors<'_> {
    /// Passes every tensor to `each`, one at a time.
    fn for_each(&self, mut each: impl FnMut(Described, HostTensor) -> Result<()>) -> Result<()> {
        let config = self.model.config();
        let heads = [config.n_heads, config.n_kv_heads];
        let registry = self.model.decoder().registry();
        for mapping in self.mappings {
            let spec = registry
                .get(&mapping.ours)
                .expect("mappings are of parameters of the model");
            let ours = HostTensor {
                shape: spec.shape.clone(),
                data: self.model.read(spec),
            };
            for (theirs, tensor) in mapping.split(ours) {
                let (name, stored) = self
                    .family
                    .written(&theirs, heads)
                    .expect("a family has names for all its tensors");
                let mut tensor = tensor;
                let tensor = match stored {
                    Stored::Unchanged => tensor,
                    Stored::PlusOne => {
                        tensor.data.iter_mut().for_each(|value| *value += 1.0);
                        tensor
                    }
                    Stored::Interleaved { heads } => tensors::interleave(&tensor, heads),
                };
                each(self.describe(name, &tensor.shape), tensor)?;
            }
        }
        if let Some(scaling @ RopeScaling::Llama3 { .. }) = &config.rope_scaling {
            let factors = rope::factors_of(scaling, config.rope_theta, config.head_dim());
            let tensor = HostTensor {
                shape: vec![factors.len()],
                data: factors.into_iter().map(|factor| factor as f32).collect(),
            };
            each(
                self.describe(rope::FACTORS.to_owned(), &tensor.shape),
                tensor,
            )?;
        }
        Ok(())
    }

    fn describe(&self, name: String, shape: &[usize]) -> Described {
        Described {
            name,
            shape: shape.to_vec(),
            kind: self.kind.of(shape),
        }
    }

    fn described(&self) -> Vec<Described> {
        let mut all = Vec::new();
        let collected = self.for_each(|description, _| {
            all.push(description);
            Ok(())
        });
        collected.expect("collecting descriptions does not fail");
        all
    }
}
