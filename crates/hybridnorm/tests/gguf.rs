//! GGUF files (`fixtures/gguf`): models as llama.cpp's converter writes them, all types of tensors, tokenizers.

mod common;

use std::path::{Path, PathBuf};

use common::hf::modified_checkpoint;
use common::reference::*;
use hybridnorm::Device;
use hybridnorm::interop::{self, Imported};
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
