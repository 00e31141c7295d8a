//! Checkpoint folders of the official code, as PyTorch writes them and damaged.
//!
//! `hybridnorm-star.pt` was written by `torch.save` of PyTorch 2.15 from the weights in
//! `hybridnorm-star.safetensors`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use hybridnorm::Error;
use hybridnorm::interop::official;
use hybridnorm::model::params;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/official")
        .join(name)
}

/// An official checkpoint folder around the given `model.pt`.
fn folder(torch: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let json = fs::read(fixture("hybridnorm-star.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    // JSON is YAML.
    let config = serde_json::json!({ "model": json["model"] }).to_string();
    fs::write(folder.path().join("config.yaml"), config).unwrap();
    fs::write(folder.path().join("model.pt"), torch).unwrap();
    folder
}

fn import(torch: &[u8]) -> Result<hybridnorm::model::Decoder, Error> {
    official::import(folder(torch).path(), &Device::flex())
}

#[test]
fn a_pytorch_file_gives_the_weights_of_the_safetensors_file() {
    let torch = fs::read(fixture("hybridnorm-star.pt")).unwrap();
    let model = import(&torch).unwrap();
    let found = params::values(&model);

    let bytes = fs::read(fixture("hybridnorm-star.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weights = file.tensors().into_iter().filter_map(|(name, view)| {
        let name = name.strip_prefix("weight.")?.to_owned();
        let data = view.data().chunks_exact(4);
        let data = data.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let (shape, data) = (view.shape().to_vec(), data.collect());
        Some((name, params::Values { shape, data }))
    });
    let expected = official::translate_all(weights.collect(), model.config()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        assert!(found[&name].data == expected.data, "{name}");
    }
}

#[test]
fn a_damaged_pytorch_file_is_an_error_that_names_it() {
    let whole = fs::read(fixture("hybridnorm-star.pt")).unwrap();
    let names_it = |error: Error| {
        let text = error.to_string();
        assert!(text.contains("model.pt"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    for length in [0, 1, 4, 100, whole.len() / 2, whole.len() - 1] {
        names_it(import(&whole[..length]).unwrap_err());
    }
    // A changed byte anywhere must not end in a panic. Where it is in the padding between the
    // entries of the archive nothing is lost by it.
    for place in (0..whole.len()).step_by(397) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x41;
        if let Err(error) = import(&bytes) {
            names_it(error);
        }
    }
}

#[test]
fn a_folder_without_weights_says_so() {
    let folder = folder(b"");
    fs::remove_file(folder.path().join("model.pt")).unwrap();
    let error = official::import(folder.path(), &Device::flex()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("neither model.safetensors nor model.pt"),
        "{text}"
    );
}

#[test]
fn settings_of_another_computation_are_refused() {
    let folder = folder(b"");
    let path = folder.path().join("config.yaml");
    let config = fs::read_to_string(&path).unwrap();
    for key in ["alibi", "norm_after", "scale_logits"] {
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["model"][key] = true.into();
        fs::write(&path, config.to_string()).unwrap();
        let text = official::read_config(&path).unwrap_err().to_string();
        assert!(text.contains(key) && text.contains("config.yaml"), "{text}");
    }
}
