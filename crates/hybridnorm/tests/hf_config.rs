//! `config.json` of Hugging Face models: supported and unsupported keys.

mod common;

use std::collections::BTreeMap;

use common::hf::*;
use hybridnorm::Device;
use hybridnorm::interop::huggingface;
use hybridnorm::model::{ModelConfig, Rope, RopeScaling};
use hybridnorm::omissions::Unit;
use hybridnorm::tensors::HostTensor;
use serde_json::{Value, json};

/// Key, value, and a part of the message.
type Unsupported = (&'static str, Value, &'static str);

fn unsupported_in_olmoe() -> Vec<Unsupported> {
    vec![
        (
            "model_type",
            json!("bert"),
            "expected one of \"llama\", \"mistral\"",
        ),
        (
            "hidden_act",
            json!("gelu"),
            "hidden_act \"gelu\", expected \"silu\"",
        ),
        (
            "attention_bias",
            json!(true),
            "self_attn.q_proj.bias is missing",
        ),
        ("clip_qkv", json!(8.0), "clip_qkv 8"),
        ("head_dim", json!(7), "model.head_dim = 7"),
        (
            "rope_scaling",
            json!({ "type": "longrope", "factor": 2.0 }),
            "rope_type \"longrope\"",
        ),
        ("attention_dropout", json!(0.1), "attention_dropout"),
    ]
}

fn unsupported_in_deepseek_v3() -> Vec<Unsupported> {
    vec![
        ("scoring_func", json!("softmax"), "scoring_func \"softmax\""),
        (
            "rope_parameters",
            json!({ "rope_type": "yarn" }),
            "rope_parameters.factor is missing for rope_type \"yarn\"",
        ),
        ("moe_layer_freq", json!(2), "moe_layer_freq 2, expected 1"),
        ("topk_method", json!("greedy"), "topk_method \"greedy\""),
        (
            "num_key_value_heads",
            json!(1),
            "num_key_value_heads 1, expected 4",
        ),
        (
            "quantization_config",
            json!({ "quant_method": "fp8" }),
            "quantization_config",
        ),
        ("attention_bias", json!(true), "attention_bias"),
        (
            "rope_parameters",
            json!({ "partial_rotary_factor": 0.5 }),
            "partial_rotary_factor",
        ),
        (
            "first_k_dense_replace",
            json!(0),
            "tensor model.layers.0.mlp.gate.weight is missing",
        ),
    ]
}

fn assert_rejected(family: &str, (key, value, message): Unsupported) {
    let folder = modified_checkpoint(family, |config| config[key] = value, |_| {});
    let error = import_error(folder.path());
    assert!(error.contains(message), "{error}");
    // Detected in the configuration, unless it can be seen in the tensors only.
    assert!(
        error.contains("config.json") || message.contains("is missing"),
        "{error}"
    );
}

#[test]
fn unsupported_settings_are_rejected() {
    for setting in unsupported_in_olmoe() {
        assert_rejected("olmoe", setting);
    }
    for setting in unsupported_in_deepseek_v3() {
        assert_rejected("deepseek-v3", setting);
    }
}

#[test]
fn supported_variants_of_the_families_are_imported() {
    type Change = fn(&mut Value);
    type Weights = fn(&mut BTreeMap<String, HostTensor>);
    fn unchanged(_: &mut BTreeMap<String, HostTensor>) {}
    let reads: [(&str, Change, Weights); 8] = [
        ("olmoe", |c| c["norm_topk_prob"] = json!(true), unchanged),
        ("olmoe", |c| c["clip_qkv"] = Value::Null, unchanged),
        ("olmoe", |c| c["rope_scaling"] = Value::Null, unchanged),
        (
            "deepseek-v3",
            |c| c["rope_interleave"] = json!(false),
            unchanged,
        ),
        (
            "deepseek-v3",
            |c| c["num_nextn_predict_layers"] = json!(0),
            unchanged,
        ),
        (
            "deepseek-v3",
            |c| c["norm_topk_prob"] = json!(false),
            unchanged,
        ),
        (
            "deepseek-v3",
            |c| (c["n_group"], c["topk_group"]) = (Value::Null, Value::Null),
            unchanged,
        ),
        (
            "deepseek-v3",
            |c| c["n_shared_experts"] = json!(0),
            |all| all.retain(|name, _| !name.contains("shared_experts")),
        ),
    ];
    for (index, (family, config, weights)) in reads.into_iter().enumerate() {
        let found = logits(modified_checkpoint(family, config, weights).path());
        assert!(found.iter().all(|x| x.is_finite()), "{index}");
    }
}

/// A key that is not read may affect the computation.
#[test]
fn unread_keys_are_rejected() {
    for (family, key, value) in [
        ("olmoe", "logit_scale", json!(2.0)),
        ("olmoe", "final_logit_softcapping", json!(30.0)),
        ("olmoe", "sliding_window", json!(4)),
        ("olmoe", "layer_types", json!(["sliding_attention"])),
        ("deepseek-v3", "embedding_multiplier", json!(8.0)),
        ("deepseek-v3", "mlp_bias", json!(true)),
        ("deepseek-v3", "qk_head_dim", json!(99)),
        ("olmoe", "partial_rotary_factor", json!(0.5)),
        ("olmoe", "rope_theta", json!(500.0)),
        (
            "olmoe",
            "rope_parameters",
            json!({ "rope_theta": 1e4, "type": "yarn" }),
        ),
        (
            "olmoe",
            "rope_parameters",
            json!({ "rope_theta": 1e4, "factor": 8.0 }),
        ),
        (
            "deepseek-v3",
            "rope_parameters",
            json!({ "full_attention": { "rope_theta": 1e4 } }),
        ),
    ] {
        let folder = modified_checkpoint(family, |config| config[key] = value, |_| {});
        let error = import_error(folder.path());
        let word = match key {
            "rope_parameters" => "rope",
            key => key,
        };
        assert!(
            error.contains("config.json") && error.contains(word),
            "{key}: {error}"
        );
    }
    for (key, value) in [
        ("sliding_window", Value::Null),
        ("use_sliding_window", json!(false)),
        ("torch_dtype", json!("float32")),
    ] {
        logits(modified_checkpoint("olmoe", |config| config[key] = value, |_| {}).path());
    }
}

/// The default of a missing key differs between versions of a family.
#[test]
fn keys_that_determine_the_computation_are_required() {
    for (family, key) in [
        ("olmoe", "rms_norm_eps"),
        ("deepseek-v3", "rms_norm_eps"),
        ("deepseek-v3", "routed_scaling_factor"),
        ("deepseek-v3", "n_group"),
        ("deepseek-v3", "topk_group"),
        ("deepseek-v3", "q_lora_rank"),
        ("deepseek-v3", "first_k_dense_replace"),
        ("deepseek-v3", "n_shared_experts"),
        ("deepseek-v3", "norm_topk_prob"),
    ] {
        let folder = modified_checkpoint(
            family,
            |config| drop(config.as_object_mut().unwrap().remove(key)),
            |_| {},
        );
        let error = import_error(folder.path());
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
}

/// The number is checked before anything is allocated for each layer.
#[test]
fn too_many_layers_are_rejected() {
    for family in ["llama", "gemma2", "mistral", "smollm3", "olmoe"] {
        for count in [10_001, 1_u64 << 60, u64::MAX] {
            let change = |config: &mut Value| {
                config["num_hidden_layers"] = json!(count);
                config["layer_types"] = Value::Null;
                config["no_rope_layers"] = Value::Null;
            };
            let error = import_error(modified_checkpoint(family, change, |_| {}).path());
            let expected = format!("num_hidden_layers {count}, expected at most 10000");
            assert!(error.contains(&expected), "{family}: {error}");
        }
    }
}

#[test]
fn rope_scalings_are_read() {
    let scaling = |key: &str, value: Value| {
        let change = |config: &mut Value| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config[key] = value.clone();
        };
        let folder = modified_checkpoint("llama", change, |_| {});
        let config = huggingface::read_config(&folder.path().join("config.json")).unwrap();
        config.rope_scaling
    };
    let llama3 = json!({ "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32, "rope_type": "llama3" });
    assert_eq!(
        scaling("rope_scaling", llama3),
        Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_seq_len: 32
        })
    );
    let linear = Some(RopeScaling::Linear { factor: 2.0 });
    assert_eq!(
        scaling("rope_scaling", json!({ "type": "linear", "factor": 2.0 })),
        linear
    );
    let newer = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4 });
    assert_eq!(scaling("rope_parameters", newer), linear);
    // A second base is not ignored.
    let base = |config: &mut Value| {
        config["rope_scaling"] = json!({ "type": "linear", "factor": 2.0, "rope_theta": 500.0 });
    };
    let folder = modified_checkpoint("llama", base, |_| {});
    let error = import_error(folder.path());
    assert!(
        error.contains("rope_theta is both 10000 and 500"),
        "{error}"
    );
    // Beyond the longest sequence only.
    assert_eq!(
        scaling("rope_scaling", json!({ "type": "dynamic", "factor": 2.0 })),
        None
    );
    // The factor is the ratio of the lengths, 64 / 16.
    let yarn = scaling(
        "rope_scaling",
        json!({ "rope_type": "yarn", "original_max_position_embeddings": 16 }),
    );
    let attention_factor = 0.1 * 4_f64.ln() + 1.0;
    assert_eq!(
        yarn,
        Some(RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_seq_len: 16,
            attention_factor
        })
    );
}

/// Returns the configuration that is read from a changed `config.json`.
fn read_config(
    family: &str,
    change: impl Fn(&mut Value),
) -> Result<ModelConfig, hybridnorm::Error> {
    let folder = modified_checkpoint(family, change, |_| {});
    huggingface::read_config(&folder.path().join("config.json"))
}

#[test]
fn windows_follow_the_rules_of_their_family() {
    let windows = |config: &ModelConfig| -> Vec<Option<usize>> {
        (0..config.n_layers)
            .map(|layer| config.window_of_layer(layer))
            .collect()
    };
    let (full, sliding) = ("full_attention", "sliding_attention");
    let read = |family: &str, keys: Value| {
        read_config(family, |config| {
            let fields = config.as_object_mut().unwrap();
            fields.remove("layer_types");
            fields.extend(keys.as_object().unwrap().clone());
        })
    };
    let cases = [
        ("mistral", json!({ "sliding_window": null }), vec![None; 2]),
        (
            "mistral",
            json!({ "sliding_window": 31 }),
            vec![Some(31); 2],
        ),
        // As long as the longest sequence.
        ("mistral", json!({ "sliding_window": 32 }), vec![None; 2]),
        (
            "qwen3",
            json!({ "sliding_window": 8, "use_sliding_window": false }),
            vec![None; 2],
        ),
        (
            "qwen3",
            json!({ "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1 }),
            vec![None, Some(8)],
        ),
        (
            "qwen3",
            json!({ "sliding_window": 8, "layer_types": [sliding, full] }),
            vec![Some(8), None],
        ),
        ("gemma2", json!({}), vec![Some(8), None]),
        (
            "gemma3",
            json!({ "sliding_window_pattern": 2, "_sliding_window_pattern": 2 }),
            vec![Some(8), None, Some(8)],
        ),
        ("olmo3", json!({}), vec![Some(8); 3]),
    ];
    for (family, keys, expected) in cases {
        let config = read(family, keys.clone()).unwrap();
        assert_eq!(windows(&config), expected, "{family} {keys}");
    }
    for (family, keys, problem) in [
        (
            "qwen3",
            json!({ "layer_types": [full, sliding] }),
            "sliding_window is missing",
        ),
        (
            "qwen3",
            json!({ "layer_types": [full, "linear_attention"] }),
            "linear_attention",
        ),
        (
            "qwen3",
            json!({ "layer_types": [full] }),
            "layer_types has 1 entries",
        ),
        // `transformers` ignores it.
        (
            "gemma3",
            json!({ "_sliding_window_pattern": 2 }),
            "_sliding_window_pattern 2 without layer_types, expected 6",
        ),
        (
            "llama",
            json!({ "sliding_window": 8 }),
            "sliding_window 8 without layer_types",
        ),
    ] {
        let error = read(family, keys).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn layers_have_their_own_rotary_embedding() {
    let rope = |theta, scaling| Rope::On { theta, scaling };
    let linear = Some(RopeScaling::Linear { factor: 4.0 });
    // Gemma 3, as newer and as older files have it.
    for older in [false, true] {
        let config = read_config("gemma3", |config| {
            if older {
                config.as_object_mut().unwrap().remove("rope_parameters");
                config["rope_theta"] = json!(1000.0);
                config["rope_local_base_freq"] = json!(100.0);
                config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 4.0 });
            }
        });
        let config = config.unwrap();
        let found = [0, 1, 2].map(|layer| config.rope_of_layer(layer));
        assert_eq!(
            found,
            [rope(100.0, None), rope(100.0, None), rope(1000.0, linear)]
        );
    }
    // In OLMo 3, layers with a window are never scaled.
    let config = read_config("olmo3", |config| {
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_theta"] = json!(500.0);
        config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 4.0 });
    });
    let config = config.unwrap();
    assert_eq!(
        [0, 2].map(|layer| config.rope_of_layer(layer)),
        [rope(500.0, None), rope(500.0, linear)]
    );
    let config = read_config("smollm3", |_| {}).unwrap();
    assert_eq!(
        [1, 2].map(|layer| config.rope_of_layer(layer)),
        [rope(2e6, None), Rope::Off]
    );
    let config = read_config("smollm3", |config| config["no_rope_layers"] = Value::Null).unwrap();
    assert_eq!(config.rope_of_layer(3), Rope::Off);
}

/// Names without the prefix, and masks of attention.
#[test]
fn older_files_of_gpt2_are_imported() {
    let folder = modified_checkpoint(
        "gpt2",
        |config| config["attn_pdrop"] = json!(0.1),
        |weights| {
            let renamed = std::mem::take(weights).into_iter();
            let stripped = |name: String| name.trim_start_matches("transformer.").to_owned();
            *weights = renamed
                .map(|(name, tensor)| (stripped(name), tensor))
                .collect();
            let mask = HostTensor {
                shape: vec![1, 1, 2, 2],
                data: vec![1.0; 4],
            };
            weights.insert("h.0.attn.bias".into(), mask);
        },
    );
    let imported = huggingface::read(folder.path(), Device::Cpu).unwrap();
    assert!(
        imported.notes[0].contains("attn_pdrop is 0.1"),
        "{:?}",
        imported.notes
    );
    assert_eq!(imported.omissions.count(Unit::Tensors), 1);
    let unchanged =
        huggingface::import(&common::reference::fixture("hf/gpt2"), Device::Cpu).unwrap();
    assert_eq!(imported.model.values(), unchanged.values());
}

/// A head that is tied to the embedding may be in the file as a copy.
#[test]
fn copies_of_tied_embeddings_are_omitted() {
    for (family, embedding, head) in [
        ("llama", "model.embed_tokens.weight", "lm_head.weight"),
        ("gpt_neox", "gpt_neox.embed_in.weight", "embed_out.weight"),
    ] {
        let tied = |change: fn(&mut f32)| {
            modified_checkpoint(
                family,
                |config| config["tie_word_embeddings"] = json!(true),
                |weights| {
                    let mut copy = weights[embedding].clone();
                    change(&mut copy.data[0]);
                    weights.insert(head.to_owned(), copy);
                },
            )
        };
        let imported = huggingface::read(tied(|_| {}).path(), Device::Cpu).unwrap();
        assert!(imported.model.config().tie_embeddings);
        assert_eq!(imported.omissions.count(Unit::Tensors), 1);
        let error = import_error(tied(|x| *x += 1.0).path());
        assert!(
            error.contains(&format!("{head} differs from the embedding")),
            "{error}"
        );
    }
}

/// The state of a model in newer versions of `transformers` has one tensor for all experts.
#[test]
fn fused_experts_are_imported() {
    let folder = modified_checkpoint(
        "qwen3_moe",
        |_| {},
        |weights| {
            for layer in 0..2 {
                let path = format!("model.layers.{layer}.mlp.experts");
                let mut stack = |kinds: &[&str], shape: [usize; 3]| HostTensor {
                    data: (0..4)
                        .flat_map(|expert| kinds.iter().map(move |kind| (expert, *kind)))
                        .flat_map(|(expert, kind)| {
                            weights
                                .remove(&format!("{path}.{expert}.{kind}.weight"))
                                .unwrap()
                                .data
                        })
                        .collect(),
                    shape: shape.to_vec(),
                };
                let up = stack(&["gate_proj", "up_proj"], [4, 24, 16]);
                let down = stack(&["down_proj"], [4, 16, 12]);
                weights.insert(format!("{path}.gate_up_proj"), up);
                weights.insert(format!("{path}.down_proj"), down);
            }
        },
    );
    let fused = huggingface::import(folder.path(), Device::Cpu).unwrap();
    let separate =
        huggingface::import(&common::reference::fixture("hf/qwen3_moe"), Device::Cpu).unwrap();
    assert_eq!(fused.values(), separate.values());
}

/// The families are listed where users look for them.
#[test]
fn the_readme_lists_all_families() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    for family in huggingface::families() {
        assert!(readme.contains(&format!("`{family}`")), "{family}");
    }
}
