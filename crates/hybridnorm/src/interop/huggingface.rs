//! Checkpoints in Hugging Face format: a folder with `config.json` and `model.safetensors`, or several
//! files and `model.safetensors.index.json`.

mod config;
mod deepseek_v3;
mod olmoe;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Device;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Imported;
use super::keys;
use super::source::{self, Source};
use crate::error::{Error, Result};
use crate::files;
use crate::memory;
use crate::model::inventory;
use crate::model::{Model, ModelConfig};
use crate::tensors::TensorFile;
use config::Common;
use weights::{Taken, Weights};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TEXT_LIMIT: u64 = 64 << 20;

/// True if a folder is in this format.
///
/// # Errors
/// If the folder cannot be accessed.
pub fn is_folder(folder: &Path) -> Result<bool> {
    files::exists(folder.join(CONFIG))
}

/// Reads a checkpoint of one of the families `olmoe` and `deepseek_v3`.
///
/// # Errors
/// If a file is missing or broken, the configuration has an unsupported feature, or the weights do not match
/// the configuration.
pub fn import(folder: &Path, device: Device) -> Result<Model> {
    read(folder, device).map(|imported| imported.model)
}

/// Reads a checkpoint as [`import`] does; returns an account of the tensors, too.
///
/// # Errors
/// As [`import`].
pub fn read(folder: &Path, device: Device) -> Result<Imported> {
    let family = Family::read(&folder.join(CONFIG))?;
    let config = family.config();
    let (path, source) = open_tensors(folder)?;
    let mut files = source.files();
    files.push(CONFIG.to_owned());
    files.extend(
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned()),
    );
    let notes: Vec<String> = source.note().into_iter().collect();
    // The converted tensors, the tensors in conversion, and the model.
    let weights = 4 * inventory::parameters(config)?;
    memory::require(weights.saturating_mul(3), "reading the checkpoint")?;
    let wrapper = source.wrapper().to_owned();
    let broken = |problem: String| Error::format(&path, source::without(&wrapper, problem));
    let taken = family.translate(source).map_err(broken)?;
    // Allocated after them, so that a small folder cannot request a large model.
    let mut model = Model::uninitialized(config, device)?;
    model
        .load(taken.ours)
        .map_err(|error| broken(error.to_string()))?;
    Ok(Imported {
        model,
        tensors: taken.tensors,
        left_out: taken.left_out,
        files,
        notes,
    })
}

/// Reads a `config.json`.
///
/// # Errors
/// If it is not such a file, or has an unsupported feature.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    Ok(Family::read(path)?.config().clone())
}

/// Returns the error message with the key of the value.
fn at_key(json: &[u8], error: &serde_json::Error) -> String {
    let message = error.to_string();
    if error.line() == 0 || error.classify() != serde_json::error::Category::Data {
        return message;
    }
    // For a missing key the position is the end of the table, and the message has its name.
    if message.starts_with("missing field") {
        return message;
    }
    let lines = json.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(error.line() - 1).map(<[u8]>::len).sum();
    let end = (before + error.column()).min(json.len());
    let text = String::from_utf8_lossy(&json[..end]);
    let key = text
        .rsplit_once("\":")
        .and_then(|(head, _)| head.rsplit('"').next());
    match key.filter(|key| !key.is_empty()) {
        Some(key) => format!("{key}: {message}"),
        None => message,
    }
}

/// Keys that do not affect the computation, or only in a way that is checked elsewhere.
const HARMLESS: [&str; 30] = [
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "ep_size",
    "id2label",
    "is_decoder",
    "label2id",
    "max_length",
    "min_length",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "seq_aux",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
];

/// Reads the keys of a family and those of all families. An unknown key is rejected.
fn parts<T: DeserializeOwned>(
    bytes: &[u8],
    broken: impl Fn(String) -> Error,
) -> Result<(T, Common)> {
    let json = |error: serde_json::Error| broken(at_key(bytes, &error));
    let reader = || serde_json::Deserializer::from_slice(bytes);
    let (own, unread): (T, _) = keys::read(&mut reader()).map_err(json)?;
    let (common, others): (Common, _) = keys::read(&mut reader()).map_err(json)?;
    let unread = keys::unread_by_both(&unread, &others);
    let all = serde_json::from_slice(bytes).map_err(json)?;
    keys::refuse_unread(&all, &unread, &HARMLESS).map_err(&broken)?;
    Ok((own, common))
}

/// A family of models, with the parsed configuration.
enum Family {
    Olmoe(ModelConfig),
    DeepseekV3(deepseek_v3::Model),
}

#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

impl Family {
    fn read(path: &Path) -> Result<Self> {
        let bytes = files::read_small(path, TEXT_LIMIT)?;
        let broken = |problem: String| Error::format(path, problem);
        let json = |error: serde_json::Error| broken(at_key(&bytes, &error));
        let Kind { model_type } = serde_json::from_slice(&bytes).map_err(json)?;
        let family = match model_type.as_str() {
            "olmoe" => {
                let (found, common) = parts::<olmoe::Config>(&bytes, broken)?;
                Self::Olmoe(found.to_config(&common).map_err(broken)?)
            }
            "deepseek_v3" => {
                let (found, common) = parts::<deepseek_v3::Config>(&bytes, broken)?;
                Self::DeepseekV3(found.to_model(&common).map_err(broken)?)
            }
            other => {
                return Err(broken(format!(
                    "model_type {other:?}, expected \"olmoe\" or \"deepseek_v3\""
                )));
            }
        };
        family
            .config()
            .resolve()
            .map_err(|error| broken(error.to_string()))?;
        Ok(family)
    }

    fn config(&self) -> &ModelConfig {
        match self {
            Self::Olmoe(config) => config,
            Self::DeepseekV3(model) => &model.config,
        }
    }

    /// Converts the tensors to this crate's names and layout.
    fn translate(&self, source: Source) -> Result<Taken, String> {
        let all = source.len();
        let mut weights = Weights::new(source);
        match self {
            Self::Olmoe(config) => olmoe::translate(&mut weights, config)?,
            Self::DeepseekV3(model) => deepseek_v3::translate(&mut weights, model)?,
        }
        weights.finish(all)
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the tensors; also returns the file to name in errors about them.
fn open_tensors(folder: &Path) -> Result<(PathBuf, Source)> {
    let whole = folder.join(WEIGHTS);
    if files::exists(&whole)? {
        let source = Source::new(vec![TensorFile::open(&whole)?])
            .map_err(|problem| Error::format(&whole, problem))?;
        return Ok((whole, source));
    }
    let index = folder.join(INDEX);
    if !files::exists(&index)? {
        std::fs::metadata(folder).map_err(Error::io(folder))?;
        return Err(Error::format(
            folder,
            format!("holds neither {WEIGHTS} nor {INDEX}"),
        ));
    }
    let bytes = files::read_small(&index, TEXT_LIMIT)?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|error| Error::format(&index, error.to_string()))?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut parts = BTreeMap::new();
    for part in names {
        if Path::new(part).file_name() != Some(part.as_ref()) {
            let problem = format!("{part:?} is not the name of a file in this folder");
            return Err(Error::format(&index, problem));
        }
        parts.insert(part, TensorFile::open(&folder.join(part))?);
    }
    for (name, part) in &weight_map {
        // Files of models with tied embeddings hold the matrix once, and their index may list it twice.
        if !parts[part].has(name) && !name.ends_with(weights::HEAD) {
            return Err(Error::format(
                parts[part].path(),
                format!("tensor {name} is missing"),
            ));
        }
    }
    let source = Source::new(parts.into_values().collect())
        .map_err(|problem| Error::format(&index, problem))?;
    Ok((index, source))
}
