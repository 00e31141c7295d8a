//! Folders of Hugging Face's format: several files, and what is refused.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use common::reference::*;
use hybridnorm::interop::huggingface;
use hybridnorm::model::params::{self, Values};
use serde_json::{Value, json};
use tempfile::TempDir;

const FAMILIES: [&str; 2] = ["olmoe", "deepseek-v3"];

/// A folder of a family with its configuration and tensors changed.
fn changed(
    family: &str,
    config: impl FnOnce(&mut Value),
    weights: impl FnOnce(&mut BTreeMap<String, Values>),
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

fn error(folder: &Path) -> String {
    let error = huggingface::import(folder, &Device::flex()).unwrap_err();
    let error = error.to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn a_model_in_several_files_is_the_same() {
    for family in FAMILIES {
        let whole = huggingface::import(&fixture(&format!("hf/{family}")), &Device::flex());
        let folder = changed(family, |_| {}, |_| {});
        let file = folder.path().join("model.safetensors");
        let all = tensors(&std::fs::read(&file).unwrap(), "");
        std::fs::remove_file(&file).unwrap();
        let mut map = BTreeMap::new();
        for (part, keep) in [("a.safetensors", 0), ("b.safetensors", 1)] {
            let mut some = all.clone();
            let mut index = 0;
            some.retain(|_, _| {
                index += 1;
                index % 2 == keep
            });
            map.extend(some.keys().map(|name| (name.clone(), part)));
            write_tensors(folder.path(), &some);
            std::fs::rename(&file, folder.path().join(part)).unwrap();
        }
        let index = json!({ "weight_map": map });
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(&path, index.to_string()).unwrap();
        let parts = huggingface::import(folder.path(), &Device::flex());
        assert!(params::values(&whole.unwrap()) == params::values(&parts.unwrap()));

        std::fs::write(&path, json!({ "weight_map": { "x": "../a" } }).to_string()).unwrap();
        assert!(error(folder.path()).contains("not the name of a file in this folder"));
    }
}

#[test]
fn what_the_model_does_not_have_is_refused() {
    let cases: [(&str, &str, Value, &str); 11] = [
        (
            "olmoe",
            "model_type",
            json!("llama"),
            "expected \"olmoe\" or \"deepseek_v3\"",
        ),
        (
            "olmoe",
            "hidden_act",
            json!("gelu"),
            "hidden_act \"gelu\", expected \"silu\"",
        ),
        ("olmoe", "attention_bias", json!(true), "attention_bias"),
        ("olmoe", "clip_qkv", json!(8.0), "clip_qkv 8"),
        (
            "deepseek-v3",
            "scoring_func",
            json!("softmax"),
            "scoring_func \"softmax\"",
        ),
        (
            "deepseek-v3",
            "rope_parameters",
            json!({ "rope_type": "yarn" }),
            "rope_type \"yarn\"",
        ),
        (
            "deepseek-v3",
            "moe_layer_freq",
            json!(2),
            "moe_layer_freq 2, expected 1",
        ),
        ("olmoe", "head_dim", json!(7), "head_dim 7, expected 8"),
        (
            "deepseek-v3",
            "topk_method",
            json!("greedy"),
            "topk_method \"greedy\"",
        ),
        (
            "deepseek-v3",
            "num_key_value_heads",
            json!(1),
            "num_key_value_heads 1, expected 4",
        ),
        (
            "deepseek-v3",
            "quantization_config",
            json!({ "quant_method": "fp8" }),
            "quantization_config",
        ),
    ];
    for (family, key, value, words) in cases {
        let folder = changed(family, |config| config[key] = value, |_| {});
        let error = error(folder.path());
        assert!(
            error.contains("config.json") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let expert = "model.layers.1.mlp.experts.3.up_proj.weight";
    for family in FAMILIES {
        let folder = changed(family, |_| {}, |all| drop(all.remove(expert)));
        assert!(error(folder.path()).contains(&format!("tensor {expert} is missing")));
        let folder = changed(
            family,
            |_| {},
            |all| {
                let values = all[expert].clone();
                // Of the families only one has layers for further tokens, which are left out.
                if family == "deepseek-v3" {
                    all.insert("model.layers.3.extra".into(), values.clone());
                }
                all.insert("model.layers.9.extra".into(), values);
            },
        );
        let error_text = error(folder.path());
        assert!(
            error_text.contains("tensor model.layers.9.extra is not one"),
            "{error_text}"
        );
        let folder = changed(
            family,
            |_| {},
            |all| {
                let values = all.get_mut(expert).unwrap();
                values.shape.reverse();
            },
        );
        let error_text = error(folder.path());
        assert!(
            error_text.contains("up projection of expert 3"),
            "{error_text}"
        );
    }
}

#[test]
fn rows_that_only_add_up_are_refused() {
    let first = |all: &mut BTreeMap<String, Values>, name: &str, rows: usize| {
        let values = all.get_mut(name).unwrap();
        let columns = values.shape[1];
        values.shape[0] = rows;
        values.data.resize(rows * columns, 0.0);
    };
    let path = "model.layers.1.self_attn";
    let (q, k) = (
        format!("{path}.q_proj.weight"),
        format!("{path}.k_proj.weight"),
    );
    let folder = changed(
        "olmoe",
        |_| {},
        |all| {
            first(all, &q, 16);
            first(all, &k, 32);
        },
    );
    assert!(error(folder.path()).contains("expected a matrix of 32 rows"));
    let path = "model.layers.1.mlp.shared_experts";
    let (gate, up) = (
        format!("{path}.gate_proj.weight"),
        format!("{path}.up_proj.weight"),
    );
    let folder = changed(
        "deepseek-v3",
        |_| {},
        |all| {
            first(all, &gate, 8);
            first(all, &up, 24);
        },
    );
    assert!(error(folder.path()).contains("expected a matrix of 16 rows"));
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    let folder = changed(
        "deepseek-v3",
        |_| {},
        |all| all.get_mut(bias).unwrap().data[3] = f32::NAN,
    );
    let error = hybridnorm::interop::import(folder.path(), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("selection_bias"), "{error}");
}

#[test]
fn groups_that_are_all_open_are_none() {
    let folder = changed(
        "deepseek-v3",
        |config| (config["n_group"], config["topk_group"]) = (json!(4), json!(4)),
        |_| {},
    );
    let model = huggingface::import(folder.path(), &Device::flex()).unwrap();
    let moe = model.config().moe.as_ref().unwrap();
    assert_eq!((moe.n_groups, moe.top_groups), (1, 1));
}
