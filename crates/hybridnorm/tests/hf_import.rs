//! Hugging Face model folders: sharded weights, mismatched tensors, and variants of the model families.

mod common;

use std::collections::BTreeMap;

use common::hf::*;
use common::reference::*;
use hybridnorm::Device;
use hybridnorm::interop::huggingface;
use hybridnorm::tensors::HostTensor;
use serde_json::{Value, json};

const FAMILIES: [&str; 2] = ["olmoe", "deepseek-v3"];

#[test]
fn router_that_selects_all_experts_is_imported() {
    let all = |config: &mut Value| {
        config["num_experts_per_tok"] = config["n_routed_experts"].clone();
        config["topk_group"] = config["n_group"].clone();
        // A number that must not become a loop bound.
        config["num_nextn_predict_layers"] = 1_000_000_000_000_000_u64.into();
    };
    let folder = modified_checkpoint("deepseek-v3", all, |_| {});
    huggingface::import(folder.path(), Device::Cpu).unwrap();
    let one = |config: &mut Value| {
        config["num_experts_per_tok"] = 1.into();
        config["norm_topk_prob"] = true.into();
    };
    let folder = modified_checkpoint("olmoe", one, |_| {});
    huggingface::import(folder.path(), Device::Cpu).unwrap();
}

#[test]
fn sharded_checkpoint_equals_the_single_file() {
    for family in FAMILIES {
        let whole = huggingface::import(&fixture(&format!("hf/{family}")), Device::Cpu);
        let folder = modified_checkpoint(family, |_| {}, |_| {});
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
        let parts = huggingface::import(folder.path(), Device::Cpu);
        assert!(whole.unwrap().values() == parts.unwrap().values());

        std::fs::write(&path, json!({ "weight_map": { "x": "../a" } }).to_string()).unwrap();
        assert!(import_error(folder.path()).contains("not the name of a file in this folder"));
    }
}

#[test]
fn mismatched_tensors_are_named_in_the_error() {
    let expert = "model.layers.1.mlp.experts.3.up_proj.weight";
    for family in FAMILIES {
        let folder = modified_checkpoint(family, |_| {}, |all| drop(all.remove(expert)));
        assert!(import_error(folder.path()).contains(&format!("tensor {expert} is missing")));
        let folder = modified_checkpoint(
            family,
            |_| {},
            |all| {
                let values = all[expert].clone();
                // Only one of the families has multi-token prediction layers, which are omitted.
                if family == "deepseek-v3" {
                    all.insert("model.layers.3.extra".into(), values.clone());
                }
                all.insert("model.layers.9.extra".into(), values);
            },
        );
        let error_text = import_error(folder.path());
        assert!(
            error_text.contains("tensor model.layers.9.extra is not a tensor of this model family"),
            "{error_text}"
        );
        let folder = modified_checkpoint(
            family,
            |_| {},
            |all| {
                let values = all.get_mut(expert).unwrap();
                values.shape.reverse();
            },
        );
        let error_text = import_error(folder.path());
        assert!(
            error_text.contains("experts.3.up_proj.weight has shape"),
            "{error_text}"
        );
    }
}

#[test]
fn mismatched_row_counts_are_rejected() {
    let resize_rows = |all: &mut BTreeMap<String, HostTensor>, name: &str, rows: usize| {
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
    let folder = modified_checkpoint(
        "olmoe",
        |_| {},
        |all| {
            resize_rows(all, &q, 16);
            resize_rows(all, &k, 32);
        },
    );
    assert!(import_error(folder.path()).contains("expected 32 rows"));
    let path = "model.layers.1.mlp.shared_experts";
    let (gate, up) = (
        format!("{path}.gate_proj.weight"),
        format!("{path}.up_proj.weight"),
    );
    let folder = modified_checkpoint(
        "deepseek-v3",
        |_| {},
        |all| {
            resize_rows(all, &gate, 8);
            resize_rows(all, &up, 24);
        },
    );
    assert!(import_error(folder.path()).contains("expected 16 rows"));
}

#[test]
fn non_finite_weights_are_rejected() {
    let bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    let folder = modified_checkpoint(
        "deepseek-v3",
        |_| {},
        |all| all.get_mut(bias).unwrap().data[3] = f32::NAN,
    );
    let error = hybridnorm::interop::import(folder.path(), Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("selection_bias"), "{error}");
}

#[test]
fn selecting_all_expert_groups_equals_no_groups() {
    let folder = modified_checkpoint(
        "deepseek-v3",
        |config| (config["n_group"], config["topk_group"]) = (json!(4), json!(4)),
        |_| {},
    );
    let model = huggingface::import(folder.path(), Device::Cpu).unwrap();
    let moe = model.config().moe.as_ref().unwrap();
    assert_eq!((moe.n_groups, moe.top_groups), (1, 1));
}

/// Computes the matmul `a b`.
fn matmul(a: &HostTensor, b: &HostTensor) -> HostTensor {
    let ([n, k], [_, m]) = (
        <[usize; 2]>::try_from(&a.shape[..]).unwrap(),
        <[usize; 2]>::try_from(&b.shape[..]).unwrap(),
    );
    let at = |i: usize, j: usize| -> f64 {
        (0..k)
            .map(|l| f64::from(a.data[i * k + l]) * f64::from(b.data[l * m + j]))
            .sum()
    };
    let data = (0..n).flat_map(|i| (0..m).map(move |j| (i, j)));
    let data = data.map(|(i, j)| at(i, j) as f32).collect();
    HostTensor {
        shape: vec![n, m],
        data,
    }
}

/// Replaces two query projections with a norm between them by one projection.
fn without_query_latent(all: &mut BTreeMap<String, HostTensor>) {
    let layers: Vec<String> = all
        .keys()
        .filter_map(|name| name.strip_suffix("q_a_proj.weight").map(str::to_owned))
        .collect();
    assert!(!layers.is_empty());
    for layer in layers {
        let mut take = |field: &str| all.remove(&format!("{layer}{field}.weight")).unwrap();
        let (a, b, _) = (take("q_a_proj"), take("q_b_proj"), take("q_a_layernorm"));
        all.insert(format!("{layer}q_proj.weight"), matmul(&b, &a));
    }
}

#[test]
fn no_query_norm_without_query_compression() {
    let folder = modified_checkpoint(
        "deepseek-v3",
        |config| config["q_lora_rank"] = Value::Null,
        without_query_latent,
    );
    let model = huggingface::import(folder.path(), Device::Cpu).unwrap();
    assert_eq!(model.config().mla.unwrap().q_rank, None);
    let has = |end: &str| model.parameters().any(|spec| spec.name.ends_with(end));
    assert!(!has("attention.q_norm.gain") && has("attention.v_norm.gain"));
}

/// Returns the mean cross-entropy of logits (t, vocabulary) in double precision, in nats.
fn mean_loss(logits: &[f32], vocabulary: usize, targets: &[i32]) -> f64 {
    let losses = logits.chunks(vocabulary).zip(targets);
    let losses = losses.map(|(logits, target)| {
        let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        sum.ln() - f64::from(logits[*target as usize])
    });
    losses.sum::<f64>() / targets.len() as f64
}

#[test]
fn deepseek_v3_variants_match_a_plain_implementation() {
    type Weights = fn(&mut BTreeMap<String, HostTensor>);
    fn unchanged(_: &mut BTreeMap<String, HostTensor>) {}
    fn without_shared_expert(all: &mut BTreeMap<String, HostTensor>) {
        all.retain(|name, _| !name.contains("shared_experts"));
    }
    // Losses of the first row of the fixture, computed in double precision by fixtures/hf/deepseek_v3_plain.py.
    let cases: [(Value, Weights, f64); 9] = [
        (json!({}), unchanged, 4.5693155),
        (json!({ "rms_norm_eps": 1e-2 }), unchanged, 4.5622284),
        (
            json!({ "q_lora_rank": null }),
            without_query_latent,
            4.5693237,
        ),
        (
            json!({ "q_lora_rank": null, "rms_norm_eps": 1e-2 }),
            without_query_latent,
            4.5622225,
        ),
        (
            json!({ "n_group": 4, "topk_group": 2 }),
            unchanged,
            4.5598431,
        ),
        (json!({ "norm_topk_prob": false }), unchanged, 4.5668777),
        (json!({ "rope_interleave": false }), unchanged, 4.5692468),
        (
            json!({ "n_shared_experts": 0 }),
            without_shared_expert,
            4.5682335,
        ),
        (
            json!({ "num_experts_per_tok": 3, "routed_scaling_factor": 1.0 }),
            unchanged,
            4.5539591,
        ),
    ];
    let reference = fixture("hf/deepseek-v3/reference.safetensors");
    let (ids, shape) = tokens(&std::fs::read(reference).unwrap());
    let row = &ids[..shape[1]];
    for (change, weights, expected) in cases {
        let set = |config: &mut Value| {
            for (key, value) in change.as_object().unwrap() {
                config[key] = value.clone();
            }
        };
        let folder = modified_checkpoint("deepseek-v3", set, weights);
        let mut model = huggingface::import(folder.path(), Device::Cpu).unwrap();
        let inputs = &row[..row.len() - 1];
        let logits = model.logits(inputs, 1, inputs.len()).unwrap().into_f32();
        let vocabulary = model.config().vocab_size;
        let found = mean_loss(&logits, vocabulary, &row[1..]);
        assert!(
            (found - expected).abs() < 2e-6,
            "{change}: {found}, expected {expected}"
        );
    }
}

#[test]
fn latent_norms_use_their_own_eps() {
    let with = |eps: f64| {
        modified_checkpoint(
            "deepseek-v3",
            |config| config["rms_norm_eps"] = json!(eps),
            |_| {},
        )
    };
    let folder = with(1e-2);
    let model = huggingface::import(folder.path(), Device::Cpu).unwrap();
    let placement = &model.config().placement;
    assert_eq!(placement.norm.eps, 1e-2);
    assert_eq!(placement.block.attn_inner.norm_eps, Some(1e-6));
    let same = with(1e-6);
    let model = huggingface::import(same.path(), Device::Cpu).unwrap();
    assert_eq!(model.config().placement.block.attn_inner.norm_eps, None);
    assert_ne!(logits(folder.path()), logits(same.path()));
}
