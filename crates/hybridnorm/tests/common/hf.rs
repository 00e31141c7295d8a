//! Modified copies of the Hugging Face fixtures.

use std::collections::BTreeMap;
use std::path::Path;

use hybridnorm::Device;
use hybridnorm::interop::huggingface;
use hybridnorm::tensors::HostTensor;
use serde_json::Value;
use tempfile::TempDir;

use super::reference::*;

/// Creates a checkpoint of a model family with modified configuration and tensors.
pub fn modified_checkpoint(
    family: &str,
    config: impl FnOnce(&mut Value),
    weights: impl FnOnce(&mut BTreeMap<String, HostTensor>),
) -> TempDir {
    let from = fixture(&format!("hf/{family}"));
    let folder = tempfile::tempdir().unwrap();
    let mut settings = json(&from.join("config.json"));
    config(&mut settings);
    std::fs::write(folder.path().join("config.json"), settings.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let mut all = tensors(&bytes, "");
    weights(&mut all);
    write_tensors(folder.path(), &all);
    folder
}

pub fn import_error(folder: &Path) -> String {
    let error = huggingface::import(folder, Device::Cpu).unwrap_err();
    let error = error.to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// Returns the logits of a model for a few tokens.
pub fn logits(folder: &Path) -> Vec<f32> {
    let mut model = huggingface::import(folder, Device::Cpu).unwrap();
    model.logits(&[1, 5, 2, 7, 3, 3], 1, 6).unwrap().into_f32()
}
