//! Folders in the format of Hugging Face: `config.json` beside `model.safetensors`, or beside several
//! files and `model.safetensors.index.json`.

mod config;
mod deepseek_v3;
mod olmoe;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files;
use crate::memory;
use crate::model::inventory::inventory;
use crate::model::{
    Decoder, ModelConfig, Recompute,
    params::{self, Values},
};
use crate::tensors;
use weights::Weights;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TEXT_LIMIT: u64 = 64 << 20;

/// Whether a folder is in this format.
pub fn is_folder(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// Reads a checkpoint of one of the families `olmoe` and `deepseek_v3`.
///
/// # Errors
/// If a file is missing or broken, the configuration asks for something this model does not have,
/// or the weights are not those of the configuration.
pub fn import(folder: &Path, device: &Device) -> Result<Decoder> {
    let family = Family::read(&folder.join(CONFIG))?;
    let config = family.config();
    // The file, its tensors as numbers, ours made of them, and the model.
    let weights = inventory(config, 1, 1, Recompute::None)?.memory.weights;
    memory::require(weights.saturating_mul(4), "reading the checkpoint")?;
    let model = Decoder::uninitialized(config, device)?;
    let (path, tensors) = read_tensors(folder)?;
    let broken = |problem: String| Error::format(&path, problem);
    let values = family.translate(tensors).map_err(broken)?;
    params::load(model, values).map_err(|error| broken(error.to_string()))
}

/// Reads a `config.json`.
///
/// # Errors
/// If it is no such file, or asks for something this model does not have.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    Ok(Family::read(path)?.config().clone())
}

/// A family of models, with what its configuration comes to.
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
        let json = |error: serde_json::Error| broken(error.to_string());
        let Kind { model_type } = serde_json::from_slice(&bytes).map_err(json)?;
        let family = match model_type.as_str() {
            "olmoe" => {
                let found: olmoe::Config = serde_json::from_slice(&bytes).map_err(json)?;
                Self::Olmoe(found.to_config().map_err(broken)?)
            }
            "deepseek_v3" => {
                let found: deepseek_v3::Config = serde_json::from_slice(&bytes).map_err(json)?;
                Self::DeepseekV3(found.to_model().map_err(broken)?)
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

    /// Their tensors under our names in our layout.
    fn translate(
        &self,
        tensors: BTreeMap<String, Values>,
    ) -> Result<BTreeMap<String, Values>, String> {
        let mut weights = Weights::new(tensors);
        match self {
            Self::Olmoe(config) => olmoe::translate(&mut weights, config)?,
            Self::DeepseekV3(model) => deepseek_v3::translate(&mut weights, model)?,
        }
        weights.finish()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// All tensors, and the file to name if something is wrong with them.
fn read_tensors(folder: &Path) -> Result<(PathBuf, BTreeMap<String, Values>)> {
    let whole = folder.join(WEIGHTS);
    if whole.exists() {
        let tensors = tensors::read(&whole)?;
        return Ok((whole, tensors));
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        std::fs::metadata(folder).map_err(Error::io(folder))?;
        return Err(Error::format(
            folder,
            format!("holds neither {WEIGHTS} nor {INDEX}"),
        ));
    }
    let bytes = files::read_small(&index, TEXT_LIMIT)?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|error| Error::format(&index, error.to_string()))?;
    let parts: BTreeSet<&String> = weight_map.values().collect();
    let mut all = BTreeMap::new();
    for part in parts {
        if Path::new(part).file_name() != Some(part.as_ref()) {
            let problem = format!("{part:?} is not the name of a file in this folder");
            return Err(Error::format(&index, problem));
        }
        let path = folder.join(part);
        let mut found = tensors::read(&path)?;
        for (name, _) in weight_map.iter().filter(|(_, holder)| *holder == part) {
            let missing = || Error::format(&path, format!("tensor {name} is missing"));
            all.insert(name.clone(), found.remove(name).ok_or_else(missing)?);
        }
    }
    Ok((index, all))
}
