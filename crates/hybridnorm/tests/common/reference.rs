//! Reference vectors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hybridnorm::tensors::HostTensor;
use safetensors::SafeTensors;
use serde_json::Value;

/// Returns the path of a file in `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path)
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Reads the `f32` tensors whose names begin with `prefix`, which is removed.
pub fn tensors(bytes: &[u8], prefix: &str) -> BTreeMap<String, HostTensor> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut all = BTreeMap::new();
    for (name, view) in file.tensors() {
        if let Some(name) = name.strip_prefix(prefix) {
            let data = view.data().chunks_exact(4);
            let data = data
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            let shape = view.shape().to_vec();
            all.insert(name.to_owned(), HostTensor { shape, data });
        }
    }
    all
}

/// Reads the token ids and their shape.
pub fn tokens(bytes: &[u8]) -> (Vec<i32>, Vec<usize>) {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let view = file.tensor("tokens").unwrap();
    let ids = view.data().chunks_exact(8);
    let ids = ids.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32);
    (ids.collect(), view.shape().to_vec())
}

/// Splits rows with one extra token into inputs and targets.
pub fn shifted(ids: &[i32], row_len: usize) -> (Vec<i32>, Vec<i32>) {
    let rows = ids.chunks(row_len);
    let inputs = rows
        .clone()
        .flat_map(|r| r[..row_len - 1].to_vec())
        .collect();
    (inputs, rows.flat_map(|r| r[1..].to_vec()).collect())
}

/// Writes tensors as `model.safetensors`.
pub fn write_tensors(folder: &Path, tensors: &BTreeMap<String, HostTensor>) {
    let owned: Vec<_> = tensors
        .iter()
        .map(|(name, values)| {
            let bytes: Vec<u8> = values.data.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.clone(), bytes, values.shape.clone())
        })
        .collect();
    let views = owned.iter().map(|(name, bytes, shape)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Writes an official checkpoint folder.
pub fn write_official(folder: &Path, model: &Value, weights: &BTreeMap<String, HostTensor>) {
    // JSON is valid YAML.
    let config = serde_json::json!({ "model": model });
    std::fs::write(folder.join("config.yaml"), config.to_string()).unwrap();
    write_tensors(folder, weights);
}

/// Returns the largest deviation of any gradient, relative to the largest element of its expected value.
pub fn gradient_deviation(
    gradients: &hybridnorm::train::Gradients,
    expected: &BTreeMap<String, HostTensor>,
) -> f64 {
    let mut worst = 0.0;
    for (parameter, expected) in expected {
        let gradient = gradients.get(parameter).expect(parameter);
        let largest = expected
            .data
            .iter()
            .fold(0.0, |m: f64, x| m.max(f64::from(x.abs())));
        let deviation = f64::from(super::largest_difference(&gradient, &expected.data)) / largest;
        worst = f64::max(worst, deviation);
    }
    worst
}
