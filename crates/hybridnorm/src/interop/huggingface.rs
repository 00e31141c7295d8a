//! Checkpoints in Hugging Face format: a folder with `config.json` and `model.safetensors`, or several
//! files and `model.safetensors.index.json`.

mod config;
mod deepseek_v3;
pub(super) mod family;
mod gemma;
mod gpt2;
mod gpt_neox;
pub(super) mod hybridnorm;
mod layer_types;
mod layout;
mod layouts;
mod llama;
pub(in crate::interop) mod mapping;
mod mistral;
mod mixtral;
mod mixture;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod smollm3;
pub(in crate::interop) mod stock;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Device;
use serde::Deserialize;

use super::Imported;
use super::source::{self, TensorSource};
use crate::error::{Error, Result};
use crate::files;
use crate::memory;
use crate::model::counts;
use crate::model::{Model, ModelConfig};
use crate::tensors::TensorFile;
use family::{Family, ReadFamily};
use mapping::Mapping;

/// All families, by the `model_type` of their `config.json`. A new family is a module with a [`Family`], and a line
/// here.
const FAMILIES: &[(&str, ReadFamily)] = &[
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("mixtral", mixtral::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
    ("qwen3_moe", qwen3_moe::read),
    ("olmo2", olmo2::read),
    ("olmo3", olmo3::read),
    ("olmoe", olmoe::read),
    ("gemma2", gemma::read_gemma2),
    ("gemma3_text", gemma::read_gemma3),
    ("phi3", phi3::read),
    ("smollm3", smollm3::read),
    ("gpt2", gpt2::read),
    ("gpt_neox", gpt_neox::read),
    ("deepseek_v3", deepseek_v3::read),
    (hybridnorm::MODEL_TYPE, hybridnorm::read),
];

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const TEXT_LIMIT: u64 = 64 << 20;

/// Returns the `model_type` of every family that can be imported.
///
/// ```
/// assert!(hybridnorm::interop::huggingface::families().contains(&"olmoe"));
/// ```
pub fn families() -> Vec<&'static str> {
    FAMILIES.iter().map(|(model_type, _)| *model_type).collect()
}

/// Reads a checkpoint of one of the [`families`].
///
/// # Errors
/// If a file is missing or corrupt, the configuration has an unsupported feature, or the weights do not match
/// the configuration.
pub fn import(folder: &Path, device: Device) -> Result<Model> {
    read(folder, device).map(|imported| imported.model)
}

/// Reads a checkpoint as [`import`] does; also returns tensor counts and omissions.
///
/// # Errors
/// As [`import`].
pub fn read(folder: &Path, device: Device) -> Result<Imported> {
    let family = read_family(&folder.join(CONFIG))?;
    let (path, source) = open_tensors(folder)?;
    let mut imported = load(family.as_ref(), &path, source, device)?;
    imported.files.push(CONFIG.to_owned());
    imported.files.extend(
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned()),
    );
    Ok(imported)
}

/// Reads a checkpoint of another format, whose configuration and names were translated: `json` is the `config.json`,
/// `path` the file to name in errors.
pub(super) fn read_translated(
    path: &Path,
    json: &[u8],
    source: TensorSource,
    device: Device,
) -> Result<Imported> {
    load(parse_family(path, json)?.as_ref(), path, source, device)
}

/// Returns the configuration of a `config.json`, and its tensors.
pub(super) fn translate(json: &[u8]) -> std::result::Result<(ModelConfig, Vec<Mapping>), String> {
    let family = family::read(json)?;
    Ok((family.config().clone(), family.mappings()))
}

/// Converts the tensors of a family to a model; `path` is the file to name in errors about them.
fn load(
    family: &dyn Family,
    path: &Path,
    source: TensorSource,
    device: Device,
) -> Result<Imported> {
    let config = family.config();
    let files = source.files();
    let prefix_note = source.prefix_note();
    let notes = prefix_note.into_iter().chain(family.notes()).collect();
    // The converted tensors, the tensors in conversion, and the model.
    let weights = 4 * counts::parameters(config)?;
    memory::check_available(
        weights.saturating_mul(3),
        "the tensors of the checkpoint and the model",
    )?;
    let wrapper = source.wrapper().to_owned();
    let format_error =
        |problem: String| Error::format(path, source::with_prefix_note(&wrapper, problem));
    let converted = weights::convert(family, source).map_err(format_error)?;
    // Allocated after the conversion, which fails if the files lack tensors: a small checkpoint cannot make this
    // process allocate a large model.
    let mut model = Model::uninitialized(config, device)?;
    model
        .load(converted.values)
        .map_err(|error| format_error(error.to_string()))?;
    Ok(Imported {
        model,
        tensors: converted.tensors,
        omissions: converted.omissions,
        files,
        notes,
    })
}

/// Reads a `config.json`.
///
/// # Errors
/// If it is not such a file, or has an unsupported feature.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    Ok(read_family(path)?.config().clone())
}

/// Reads a `config.json` and checks that its placement can be resolved.
fn read_family(path: &Path) -> Result<Box<dyn Family>> {
    parse_family(path, &files::read_small(path, TEXT_LIMIT)?)
}

/// Parses the bytes of a `config.json`, which came from the file at `path`.
fn parse_family(path: &Path, json: &[u8]) -> Result<Box<dyn Family>> {
    let format_error = |problem: String| Error::format(path, problem);
    let family = family::read(json).map_err(format_error)?;
    family
        .config()
        .resolve()
        .map_err(|error| format_error(error.to_string()))?;
    Ok(family)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the tensors; also returns the file to name in errors about them.
fn open_tensors(folder: &Path) -> Result<(PathBuf, TensorSource)> {
    let whole = folder.join(WEIGHTS);
    if files::exists(&whole)? {
        let source = TensorSource::new(vec![TensorFile::open(&whole)?])
            .map_err(|problem| Error::format(&whole, problem))?;
        return Ok((whole, source));
    }
    let index = folder.join(INDEX);
    if !files::exists(&index)? {
        std::fs::metadata(folder).map_err(Error::io(folder))?;
        return Err(Error::format(
            folder,
            format!("contains neither {WEIGHTS} nor {INDEX}"),
        ));
    }
    let source = TensorSource::new(open_shards(folder, &index)?)
        .map_err(|problem| Error::format(&index, problem))?;
    Ok((index, source))
}

/// Returns the file of every tensor that an index lists.
///
/// # Errors
/// If it cannot be read, or lists files of other folders.
pub(super) fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = files::read_small(index, TEXT_LIMIT)?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|error| Error::format(index, error.to_string()))?;
    let is_in_folder = |name: &&String| Path::new(name).file_name() == Some(name.as_ref());
    match weight_map.values().find(|name| !is_in_folder(name)) {
        None => Ok(weight_map),
        Some(name) => Err(Error::format(
            index,
            format!("{name:?} is not the name of a file in this folder"),
        )),
    }
}

/// Opens the files that an index lists, and checks that they contain the listed tensors.
fn open_shards(folder: &Path, index: &Path) -> Result<Vec<TensorFile>> {
    let weight_map = read_index(index)?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut shards = BTreeMap::new();
    for name in names {
        shards.insert(name, TensorFile::open(&folder.join(name))?);
    }
    for (tensor, shard) in &weight_map {
        // Checkpoints with tied embeddings contain the matrix once, but their index may also list the head.
        let is_head = layouts::HEADS.iter().any(|head| tensor.ends_with(head));
        if !shards[shard].has(tensor) && !is_head {
            return Err(Error::format(
                shards[shard].path(),
                format!("tensor {tensor} is missing"),
            ));
        }
    }
    Ok(shards.into_values().collect())
}
