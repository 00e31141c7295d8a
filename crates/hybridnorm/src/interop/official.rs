//! Checkpoints of the official HybridNorm code (a fork of OLMo): `config.yaml` next to
//! `model.safetensors` or `model.pt`.

mod config;

use std::collections::BTreeMap;
use std::path::Path;

use crate::Device;
use serde_json::Value;

use super::experts::{self, ExpertDims};
use super::keys;
use super::pytorch;
use super::source::{self, check_name, common_wrapper};
use super::{Imported, TensorCounts};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{Model, ModelConfig};
use crate::omissions::{Omissions, Unit};
use crate::tensors;
use crate::tensors::HostTensor;
use config::{ConfigFile, IGNORED_KEYS};

const HEAD: &str = "transformer.ff_out.weight";
pub(super) const CONFIG: &str = "config.yaml";
const CONFIG_LIMIT: u64 = 4 << 20;

/// Reads an official checkpoint.
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
    let config_path = folder.join(CONFIG);
    let config = read_config(&config_path)?;
    let (path, tensors) = read_tensors(folder)?;
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    let wrapper = common_wrapper(&names);
    let tensors: BTreeMap<String, HostTensor> = tensors
        .into_iter()
        .map(|(name, values)| (name[wrapper.len()..].to_owned(), values))
        .collect();
    let format_error =
        |error: Error| Error::format(&path, source::with_prefix_note(&wrapper, error.to_string()));
    let all = tensors.len() as u64;
    let mut omissions = Omissions::default();
    for name in tensors.keys() {
        check_name(name).map_err(|problem| Error::format(&path, problem))?;
    }
    if config.tie_embeddings && tensors.contains_key(HEAD) {
        let reason = "equal to the embedding, to which the head is tied";
        omissions.add(Unit::Tensors, reason, 1, Some(HEAD.into()));
    }
    let values = convert_all(tensors, &config).map_err(format_error)?;
    let mut model = Model::uninitialized(&config, device)?;
    model.load(values).map_err(format_error)?;
    let read = all - omissions.count(Unit::Tensors);
    Ok(Imported {
        model,
        tensors: TensorCounts { all, read },
        omissions,
        files: [CONFIG.to_owned()]
            .into_iter()
            .chain(
                path.file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            )
            .collect(),
        notes: source::prefix_note(&wrapper).into_iter().collect(),
    })
}

/// Reads the `model:` section of an official `config.yaml`.
///
/// # Errors
/// If it is not such a file, or has an unsupported feature.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    let bytes = files::read_small(path, CONFIG_LIMIT)?;
    let yaml = |error: serde_yaml_ng::Error| Error::format(path, error.to_string());
    let reader = serde_yaml_ng::Deserializer::from_slice(&bytes);
    let (file, unread): (ConfigFile, _) = keys::read(reader).map_err(yaml)?;
    let all: Value = serde_yaml_ng::from_slice(&bytes).map_err(yaml)?;
    // Other sections concern training.
    let of_model = |key: &keys::Key| match key.split_first() {
        Some((section, rest)) if section == "model" => Some(rest.to_vec()),
        _ => None,
    };
    let unread = unread.iter().filter_map(of_model).collect();
    let config = keys::reject_unread_keys(&all["model"], &unread, &IGNORED_KEYS)
        .and_then(|()| file.model.to_config())
        .map_err(|problem| Error::format(path, format!("model.{problem}")))?;
    config
        .resolve()
        .map_err(|error| Error::format(path, error.to_string()))?;
    Ok(config)
}

/// Converts official tensors to this crate's names and layout. Works for gradients as well as for weights.
///
/// # Errors
/// [`Error::InvalidValue`] if a name or a shape does not occur in official checkpoints; [`Error::Conflict`] if the
/// embeddings are tied, but the head differs from the embedding.
pub fn convert_all(
    mut tensors: BTreeMap<String, HostTensor>,
    config: &ModelConfig,
) -> Result<BTreeMap<String, HostTensor>> {
    let invalid = |problem| Error::invalid_value("tensors", problem);
    let stacks = take_experts(&mut tensors, config).map_err(invalid)?;
    let mut converted = tensors
        .into_iter()
        .map(|(name, tensor)| convert_tensor(&name, tensor, config))
        .collect::<Result<BTreeMap<_, _>, _>>()
        .map_err(invalid)?;
    converted.extend(stacks);
    // Official checkpoints with tied embeddings may contain the head as a second copy.
    if config.tie_embeddings
        && let Some(head) = converted.remove("head")
        && converted.get("embedding") != Some(&head)
    {
        return Err(Error::conflict(
            ["weight_tying", HEAD],
            "weight_tying is set, but transformer.ff_out.weight differs from transformer.wte.weight",
        ));
    }
    Ok(converted)
}

fn read_tensors(folder: &Path) -> Result<(std::path::PathBuf, BTreeMap<String, HostTensor>)> {
    let safe = folder.join("model.safetensors");
    if files::exists(&safe)? {
        let tensors = tensors::read(&safe)?;
        return Ok((safe, tensors));
    }
    let torch = folder.join("model.pt");
    if files::exists(&torch)? {
        let tensors = pytorch::read(&torch)?;
        return Ok((torch, tensors));
    }
    std::fs::metadata(folder).map_err(Error::io(folder))?;
    Err(Error::format(
        folder,
        "contains neither model.safetensors nor model.pt",
    ))
}

/// Takes and converts the experts' matrices: MegaBlocks' `w1` is the gate, `v1` the up and `w2` the transposed
/// down projection, all (E·f, d).
fn take_experts(
    tensors: &mut BTreeMap<String, HostTensor>,
    config: &ModelConfig,
) -> Result<Vec<(String, HostTensor)>, String> {
    let mut stacks = Vec::new();
    for layer in 0..config.n_layers {
        let Some(moe) = config.moe_of_layer(layer) else {
            continue;
        };
        let mut take = |matrix: &str| {
            let name = format!("transformer.blocks.{layer}.ffn.experts.mlp.{matrix}");
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| format!("tensor {name} is missing"))?;
            experts::split(tensor, moe.n_experts)
                .map_err(|problem| format!("tensor {name} {problem}"))
        };
        let [gate, up, down] = [take("w1")?, take("v1")?, take("w2")?];
        let dims = ExpertDims {
            d_model: config.d_model,
            d_expert: moe.d_expert,
        };
        let down = down.into_iter().map(experts::transposed).collect();
        let path = format!("blocks.{layer}.feed_forward.experts");
        stacks.extend(experts::stack_projections(&path, dims, [gate, up, down])?);
    }
    Ok(stacks)
}

/// Converts an official tensor name and layout to this crate's.
fn convert_tensor(
    name: &str,
    tensor: HostTensor,
    config: &ModelConfig,
) -> Result<(String, HostTensor), String> {
    let unknown = || format!("tensor {name} is not a tensor of an official checkpoint");
    let inner = name.strip_prefix("transformer.").ok_or_else(unknown)?;
    if let Some(rest) = inner.strip_prefix("blocks.") {
        let (layer, rest) = rest.split_once('.').ok_or_else(unknown)?;
        let converted = match rest {
            "att_proj.weight" => "attention.qkv",
            "attn_out.weight" => "attention.out",
            "ff_proj.weight" => {
                let swapped = swap_halves(tensor, config).ok_or_else(|| {
                    format!(
                        "tensor {name} does not have shape ({}, {})",
                        2 * config.d_ff,
                        config.d_model
                    )
                })?;
                return Ok((format!("blocks.{layer}.feed_forward.up"), swapped));
            }
            "ff_out.weight" => "feed_forward.down",
            "ffn.router.layer.weight" => "feed_forward.router",
            _ => {
                let (site, field) = rest.rsplit_once('.').ok_or_else(unknown)?;
                let site = match site {
                    "attn_norm" => "attn.in_norm",
                    "ff_norm" => "ffn.in_norm",
                    "q_norm" => "attention.q_norm",
                    "k_norm" => "attention.k_norm",
                    "v_norm" => "attention.v_norm",
                    "c_norm" => "attention.ctx_norm",
                    _ => return Err(unknown()),
                };
                let field = norm_field(field).ok_or_else(unknown)?;
                return Ok((format!("blocks.{layer}.{site}.{field}"), tensor));
            }
        };
        return Ok((format!("blocks.{layer}.{converted}"), tensor));
    }
    let converted = match inner {
        "wte.weight" => "embedding".to_owned(),
        "ff_out.weight" => "head".to_owned(),
        _ => {
            let field = inner.strip_prefix("ln_f.").and_then(norm_field);
            format!("final_norm.{}", field.ok_or_else(unknown)?)
        }
    };
    Ok((converted, tensor))
}

fn norm_field(name: &str) -> Option<&'static str> {
    match name {
        "weight" => Some("gain"),
        "bias" => Some("bias"),
        _ => None,
    }
}

/// Swaps the halves of the official feed-forward projection: it holds the up rows before the gate rows, this
/// crate the gate rows first.
fn swap_halves(tensor: HostTensor, config: &ModelConfig) -> Option<HostTensor> {
    let expected = [2 * config.d_ff, config.d_model];
    if tensor.shape != expected {
        return None;
    }
    let (up, gate) = tensor.data.split_at(tensor.data.len() / 2);
    Some(HostTensor {
        shape: tensor.shape,
        data: [gate, up].concat(),
    })
}
