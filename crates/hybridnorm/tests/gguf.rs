//! GGUF files (`fixtures/gguf`): models as llama.cpp's converter writes them, all types of tensors, tokenizers.

mod common;

use std::path::{Path, PathBuf};

use common::hf::modified_checkpoint;
use common::reference::*;
use hybridnorm::Device;
use hybridnorm::data::{ChatTemplate, Tokenizer};
use hybridnorm::interop::gguf::{self, MatrixType};
use hybridnorm::interop::{self, Imported};
use hybridnorm::model::{Model, ModelConfig};
use hybridnorm::placement;
use serde_json::Value;

fn import(path: &Path) -> Imported {
    interop::import(path, Device::Cpu).unwrap()
}

fn import_error(path: &Path) -> String {
    let error = interop::import(path, Device::Cpu).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// Writes a copy of a fixture after a change of its bytes.
fn changed(name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.gguf"));
    let bytes = std::fs::read(fixture(&format!("gguf/{name}.gguf"))).unwrap();
    std::fs::write(&path, change(bytes)).unwrap();
    (folder, path)
}

/// Returns the bytes with the only occurrence of a text replaced by one of the same length.
fn replace(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let found: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|at| bytes[*at..].starts_with(from.as_bytes()))
        .collect();
    let [at] = found[..] else {
        panic!("{from:?} occurs {} times", found.len())
    };
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn converted_models_equal_the_originals() {
    for name in ["llama", "qwen3", "olmo2"] {
        let found = import(&fixture(&format!("gguf/{name}.gguf")));
        // The converter stores matrices in half precision, and vectors in single precision.
        let original = modified_checkpoint(
            name,
            |_| {},
            |weights| {
                for tensor in weights
                    .values_mut()
                    .filter(|tensor| tensor.shape.len() == 2)
                {
                    for value in &mut tensor.data {
                        *value = half::f16::from_f32(*value).to_f32();
                    }
                }
            },
        );
        let expected = import(original.path());
        assert_eq!(found.model.config(), expected.model.config(), "{name}");
        assert!(found.model.values() == expected.model.values(), "{name}");
        assert_eq!(found.tensors, expected.tensors, "{name}");
        assert_eq!(found.files, [format!("{name}.gguf")]);
        assert!(found.notes.is_empty());
    }
}

#[test]
fn gains_of_gemma_are_shifted_once() {
    for name in ["gemma2", "gemma3"] {
        let found = import(&fixture(&format!("gguf/{name}.gguf")));
        // The converter stores gains plus one, and neither the scale of attention logits nor the types of layers.
        let original = modified_checkpoint(
            name,
            |config| {
                config["query_pre_attn_scalar"] = config["head_dim"].clone();
                config["layer_types"] = Value::Null;
            },
            |weights| {
                for tensor in weights.values_mut() {
                    for value in &mut tensor.data {
                        *value = match tensor.shape.len() {
                            2 => half::f16::from_f32(*value).to_f32(),
                            _ => (*value + 1.0) - 1.0,
                        };
                    }
                }
            },
        );
        let expected = import(original.path());
        assert_eq!(found.model.config(), expected.model.config(), "{name}");
        assert!(found.model.values() == expected.model.values(), "{name}");
        let (again, _) = written(&found.model, None, MatrixType::F16);
        assert_eq!(again.model.config(), found.model.config(), "{name}");
        assert!(again.model.values() == found.model.values(), "{name}");
    }
}

#[test]
fn a_model_of_all_types_has_the_values_of_the_reference_implementation() {
    let found = import(&fixture("gguf/mixed.gguf"));
    assert!(found.model.config().tie_embeddings);
    let values = found.model.values();
    let reference = json(&fixture("gguf/mixed.json"));
    // The sum over the tensors of one parameter; these are stacked, and the rows of q and k are reordered.
    let expected = |names: &[&str], key: &str| -> f64 {
        names
            .iter()
            .map(|name| reference[format!("{name}.weight")][key].as_f64().unwrap())
            .sum()
    };
    let mut parameters = vec![("embedding".to_owned(), vec!["token_embd".to_owned()])];
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let block = format!("blocks.{layer}");
        parameters.push((
            format!("{block}.attention.qkv"),
            vec![name("attn_q"), name("attn_k"), name("attn_v")],
        ));
        parameters.push((format!("{block}.attention.out"), vec![name("attn_output")]));
        parameters.push((
            format!("{block}.feed_forward.up"),
            vec![name("ffn_gate"), name("ffn_up")],
        ));
        parameters.push((format!("{block}.feed_forward.down"), vec![name("ffn_down")]));
    }
    for (parameter, names) in &parameters {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let data = &values[parameter].data;
        let sum: f64 = data.iter().map(|value| f64::from(*value)).sum();
        let squares: f64 = data.iter().map(|value| f64::from(*value).powi(2)).sum();
        for (found, key) in [(sum, "sum"), (squares, "squares")] {
            let expected = expected(&names, key);
            assert!(
                (found - expected).abs() < 1e-9 * squares,
                "{parameter} {key}: {found} {expected}"
            );
        }
    }
}

#[test]
fn a_folder_with_one_file_is_imported() {
    let (folder, path) = changed("llama", |bytes| bytes);
    std::fs::write(folder.path().join("README.md"), "text").unwrap();
    let found = import(folder.path());
    assert!(found.model.values() == import(&path).model.values());
    let tokenizer = interop::tokenizer(folder.path()).unwrap().unwrap();
    assert_eq!(tokenizer.files, ["llama.gguf"]);
    let unread = interop::unread_files(folder.path(), &found.files, "").unwrap();
    assert_eq!(unread.lines().len(), 1);
    std::fs::copy(&path, folder.path().join("b.gguf")).unwrap();
    let problem = import_error(folder.path());
    assert!(
        problem.contains("2 files with the extension .gguf, expected one"),
        "{problem}"
    );
}

#[test]
fn unsupported_keys_and_tensors_are_rejected_by_name() {
    for (from, to, expected) in [
        (
            "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0llama",
            "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0mamba",
            "general.architecture = \"mamba\", expected one of \"llama\"",
        ),
        (
            "llama.rope.dimension_count",
            "llama.rope.dimension_cound",
            "llama.rope.dimension_cound = 8 is not supported",
        ),
        (
            "llama.block_count",
            "llama.bl0ck_count",
            "llama.block_count is missing",
        ),
        (
            "blk.1.attn_norm.weight",
            "blk.1.attn_norm.weighs",
            "tensor model.layers.1.input_layernorm.weight is missing",
        ),
        (
            "general.type\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0model",
            "general.type\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0other",
            "general.type = \"other\", expected \"model\"",
        ),
    ] {
        let (_folder, path) = changed("llama", |bytes| replace(bytes, from, to));
        let problem = import_error(&path);
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn tokenizers_give_the_ids_of_the_reference_implementation() {
    let found = interop::tokenizer(&fixture("gguf/pieces.gguf"))
        .unwrap()
        .unwrap();
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    assert_eq!(found.tokenizer.eos_id(), 2);
    assert_eq!(found.tokenizer.vocab_size(), 500);
    let Value::Array(reference) = json(&fixture("gguf/pieces.json")) else {
        panic!("expected an array")
    };
    for example in &reference {
        let text = example["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(example["ids"].clone()).unwrap();
        let ids = found.tokenizer.encode(text).unwrap();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(found.tokenizer.decode(&ids), text);
    }
    let problem = import_error(&fixture("gguf/pieces.gguf"));
    assert!(
        problem.contains("llama.embedding_length is missing"),
        "{problem}"
    );
}

#[test]
fn byte_level_tokenizer_of_a_file() {
    let found = interop::tokenizer(&fixture("gguf/llama.gguf"))
        .unwrap()
        .unwrap();
    let tokenizer = found.tokenizer;
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id()), (96, 1));
    assert_eq!(tokenizer.special_tokens(), ["<|endoftext|>", "<|pad|>"]);
    let ids = tokenizer.encode("the sea and the wood").unwrap();
    assert_eq!(tokenizer.decode(&ids), "the sea and the wood");
    let (_folder, path) = changed("llama", |bytes| replace(bytes, "gpt-2", "gpt-9"));
    let problem = interop::tokenizer(&path).unwrap_err().to_string();
    assert!(
        problem.contains("tokenizer.ggml.pre = \"gpt-9\", expected one of \"gpt-2\""),
        "{problem}"
    );
}

/// Writes a model and reads it.
fn written(
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    kind: MatrixType,
) -> (Imported, Option<Tokenizer>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    gguf::write(model, tokenizer, &path, kind).unwrap();
    let tokenizer = interop::tokenizer(&path).unwrap();
    (import(&path), tokenizer.map(|found| found.tokenizer))
}

/// Returns the largest deviation of the values, relative to the largest value of the parameter.
fn deviation(a: &Model, b: &Model) -> f32 {
    let (a, b) = (a.values(), b.values());
    let of = |(name, a): (&String, &hybridnorm::tensors::HostTensor)| {
        let largest = a
            .data
            .iter()
            .fold(0.0_f32, |largest, x| largest.max(x.abs()));
        common::largest_difference(&a.data, &b[name].data) / largest
    };
    a.iter().map(of).fold(0.0, f32::max)
}

#[test]
fn written_models_are_read_back() {
    for name in ["llama", "qwen3", "olmo2"] {
        let original = import(&fixture(&format!("hf/{name}"))).model;
        for (kind, bound) in [
            (MatrixType::F32, 0.0),
            (MatrixType::F16, 1.0 / 2048.0),
            // Half a step, and the rounding of the scale to half precision.
            (MatrixType::Q8_0, 1.0 / 254.0 + 1.0 / 2048.0),
        ] {
            let (found, tokenizer) = written(&original, None, kind);
            assert_eq!(found.model.config(), original.config(), "{name} {kind:?}");
            let deviation = deviation(&original, &found.model);
            assert!(deviation <= bound, "{name} {kind:?}: {deviation}");
            assert_eq!(deviation > 0.0, kind != MatrixType::F32, "{name} {kind:?}");
            assert!(tokenizer.is_none());
        }
    }
}

#[test]
fn scaled_frequencies_are_read_back() {
    for scaling in [
        serde_json::json!({"rope_type": "linear", "factor": 4.0}),
        serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }),
        serde_json::json!({
            "rope_type": "yarn", "factor": 4.0, "beta_fast": 30.0, "original_max_position_embeddings": 4096,
        }),
    ] {
        let folder = modified_checkpoint(
            "llama",
            |config| {
                config["max_position_embeddings"] = 16_384.into();
                config["rope_parameters"] = scaling.clone();
                config["rope_parameters"]["rope_theta"] = 500_000.into();
            },
            |_| {},
        );
        let original = import(folder.path()).model;
        let (found, _) = written(&original, None, MatrixType::F32);
        assert_eq!(found.model.config(), original.config());
        assert!(found.model.values() == original.values());
    }
}

fn small_model(placement: &str, vocab_size: usize) -> Model {
    let config = ModelConfig::default()
        .with_d_model(8)
        .with_n_layers(1)
        .with_n_heads(2)
        .with_n_kv_heads(1)
        .with_d_ff(8)
        .with_vocab_size(vocab_size)
        .with_max_seq_len(16)
        .with_placement(placement::named(placement).unwrap());
    Model::new(&config, 1, Device::Cpu).unwrap()
}

#[test]
fn written_tokenizers_give_the_same_ids() {
    let text = std::fs::read_to_string(fixture("gguf/make.py")).unwrap();
    let trained = Tokenizer::train_bpe(&[&text], 400, &mut hybridnorm::data::quiet).unwrap();
    let imported = |name: &str| {
        interop::tokenizer(&fixture(name))
            .unwrap()
            .unwrap()
            .tokenizer
    };
    for tokenizer in [
        Tokenizer::bytes(),
        Tokenizer::r50k(),
        Tokenizer::cl100k(),
        with_roberta_start(&trained),
        trained,
        imported("gguf/pieces.gguf"),
        imported("gguf/llama.gguf"),
    ] {
        // Rows of the embedding without a token.
        let model = small_model("pre-norm", tokenizer.vocab_size() + 3);
        let (_, found) = written(&model, Some(&tokenizer), MatrixType::F16);
        let found = found.unwrap();
        assert_eq!(found.vocab_size(), tokenizer.vocab_size(), "{tokenizer:?}");
        assert_eq!(found.eos_id(), tokenizer.eos_id(), "{tokenizer:?}");
        assert_eq!(found.start_id(), tokenizer.start_id(), "{tokenizer:?}");
        for part in text.lines().chain([
            "na\u{ef}ve \u{5de8}\u{5927} \u{1f989}",
            "  1234 </s>",
            "a\n\n b",
        ]) {
            assert_eq!(
                found.encode(part).unwrap(),
                tokenizer.encode(part).unwrap(),
                "{tokenizer:?} {part:?}"
            );
        }
    }
}

#[test]
fn written_tokenizers_keep_ends_start_and_template() {
    let texts = ["one two three <end_of_turn>"; 3];
    let tokenizer = Tokenizer::train_bpe(&texts, 270, &mut hybridnorm::data::quiet).unwrap();
    let model = small_model("pre-norm", 270);
    let template = ChatTemplate::new("{{ messages }}");
    let tokenizer = tokenizer
        .with_bos_id(Some(65))
        .with_chat_template(Some(template));
    for ends in [vec![256], vec![256, 70], vec![256, 70, 10]] {
        let tokenizer = tokenizer.clone().with_end_ids(&ends);
        let (_, found) = written(&model, Some(&tokenizer), MatrixType::F16);
        let found = found.unwrap();
        assert_eq!(found.end_ids(), ends);
        assert_eq!((found.start_id(), found.bos_id()), (None, Some(65)));
        let template = found.chat_template().unwrap();
        assert_eq!(template.template, "{{ messages }}");
        assert_eq!(template.eos_token, "<|endoftext|>");
    }
    let many = tokenizer.with_end_ids(&[1, 2, 3]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let problem = gguf::write(&model, Some(&many), &path, MatrixType::F16).unwrap_err();
    let problem = problem.to_string();
    assert!(
        problem.contains("generated text ends at 4 tokens"),
        "{problem}"
    );
}

/// Returns the tokenizer with a post-processor that adds its end-of-text token before a text.
fn with_roberta_start(tokenizer: &Tokenizer) -> Tokenizer {
    let mut json: Value = serde_json::from_slice(&tokenizer.to_json()).unwrap();
    let end = serde_json::json!(["<|endoftext|>", tokenizer.eos_id()]);
    json["post_processor"] = serde_json::json!({
        "type": "RobertaProcessing", "sep": end, "cls": end, "trim_offsets": true, "add_prefix_space": false,
    });
    let tokenizer = Tokenizer::from_json(json.to_string().into_bytes(), None).unwrap();
    assert_eq!(tokenizer.start_id(), Some(tokenizer.eos_id()));
    tokenizer
}

#[test]
fn models_of_other_architectures_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let model = small_model("hybridnorm", 32);
    let problem = gguf::write(&model, None, &path, MatrixType::F32).unwrap_err();
    let problem = problem.to_string();
    assert!(
        problem.contains("no architecture of llama.cpp computes this model (llama: placement."),
        "{problem}"
    );
    let few = small_model("pre-norm", 32);
    let problem = gguf::write(&few, Some(&Tokenizer::bytes()), &path, MatrixType::F32).unwrap_err();
    assert!(
        problem
            .to_string()
            .contains("the tokenizer has 257 tokens, the model only 32"),
        "{problem}"
    );
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}
