//! Third-party model folders.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::TestDir;

pub fn fixture(family: &str) -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    crates.join("hybridnorm/tests/fixtures/hf").join(family)
}

/// Creates a test directory with a model of a family in its folder `their`.
pub fn dir(family: &str) -> TestDir {
    let dir = TestDir::new();
    for name in ["config.json", "model.safetensors"] {
        let bytes = fs::read(fixture(family).join(name)).unwrap();
        dir.write(&format!("their/{name}"), bytes);
    }
    dir
}

pub fn configure(dir: &TestDir, key: &str, value: Value) {
    let mut config: Value = serde_json::from_slice(&dir.read("their/config.json")).unwrap();
    config[key] = value;
    dir.write("their/config.json", config.to_string());
}

/// Tensor: name, shape, bytes of f32.
pub type Entry = (String, Value, Vec<u8>);

/// Changes the tensors of `their/model.safetensors`.
pub fn rewrite(dir: &TestDir, change: impl FnOnce(&mut Vec<Entry>)) {
    let mut all = tensors(&dir.read("their/model.safetensors"));
    change(&mut all);
    dir.write("their/model.safetensors", write_tensors(all));
}

/// Reads the tensors of an f32 safetensors file.
pub fn tensors(file: &[u8]) -> Vec<Entry> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let data = &file[8 + length..];
    let mut all = Vec::new();
    for (name, entry) in header.as_object().unwrap() {
        if name != "__metadata__" {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            all.push((
                name.clone(),
                entry["shape"].clone(),
                data[at(0)..at(1)].to_vec(),
            ));
        }
    }
    all
}

/// Returns an f32 safetensors file.
pub fn write_tensors(all: Vec<Entry>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut bytes = Vec::new();
    for (name, shape, data) in all {
        let offsets = [bytes.len(), bytes.len() + data.len()];
        header.insert(
            name,
            json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }),
        );
        bytes.extend(data);
    }
    let header = Value::from(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &bytes].concat()
}
