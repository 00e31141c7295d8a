//! Importing third-party model folders through the binary.

mod common;

use std::fs;
use std::path::Path;

use common::import::{configure, dir, fixture, rewrite};
use common::*;
use serde_json::{Value, json};

fn assert_adds_up(found: &Value) {
    let tensors = |omission: &&Value| omission["unit"] == "tensors";
    let left_out = found["left_out"].as_array().unwrap();
    let left_out = left_out.iter().filter(tensors);
    let left_out: u64 = left_out.map(|o| o["count"].as_u64().unwrap()).sum();
    let read = found["tensors"]["read"].as_u64().unwrap();
    assert_eq!(found["tensors"]["all"], read + left_out, "{found}");
}

const IMPORT: [&str; 5] = ["import", "their", "--out", "ours", "--json"];

#[test]
fn every_tensor_is_imported_or_omitted_for_a_reason() {
    let dir = dir("deepseek-v3");
    rewrite(&dir, |all| {
        let (_, shape, data) = all[0].clone();
        for name in [
            "model.layers.3.eh_proj.weight",
            "model.layers.3.enorm.weight",
        ] {
            all.push((name.into(), shape.clone(), data.clone()));
        }
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
        all.push((name.into(), shape, data));
    });
    dir.write("their/generation_config.json", "{}");
    dir.write("their/README.md", "a model");
    let found = dir.json(&IMPORT);
    assert_adds_up(&found);
    let reasons: Vec<&str> = found["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["reason"].as_str().unwrap())
        .collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    for (reason, words) in reasons
        .iter()
        .zip(["multi-token prediction", "rotary", "not needed"])
    {
        assert!(reason.contains(words), "{reasons:?}");
    }
    let text = stderr(&dir.run(&["import", "their", "--out", "second"]));
    assert!(
        text.contains("omitted 2 tensors: multi-token prediction layers"),
        "{text}"
    );
    assert!(text.contains("omitted 2 files: not needed"), "{text}");
}

#[test]
fn a_tied_head_may_be_stored_if_it_equals_the_embedding() {
    let dir = dir("olmoe");
    configure(&dir, "tie_word_embeddings", json!(true));
    let head = "lm_head.weight";
    dir.expect_error(
        1,
        &IMPORT,
        &["tie_word_embeddings is set, but lm_head.weight differs from the embedding"],
    );
    rewrite(&dir, |all| {
        let of = |name: &str| all.iter().position(|t| t.0 == name).unwrap();
        let (from, to) = (of("model.embed_tokens.weight"), of(head));
        all[to].2 = all[from].2.clone();
    });
    let stored = dir.json(&IMPORT);
    assert_adds_up(&stored);
    assert_eq!(stored["left_out"][0]["examples"], json!([head]));
    // Stored once, listed twice in the index.
    let mut map = serde_json::Map::new();
    rewrite(&dir, |all| {
        map = all
            .iter()
            .map(|t| (t.0.clone(), json!("a.safetensors")))
            .collect();
        all.retain(|t| t.0 != head);
    });
    fs::rename(
        dir.path("their/model.safetensors"),
        dir.path("their/a.safetensors"),
    )
    .unwrap();
    let index = json!({ "weight_map": map }).to_string();
    dir.write("their/model.safetensors.index.json", index);
    let listed = dir.json(&["import", "their", "--out", "listed", "--json"]);
    assert_eq!(listed["left_out"], json!([]));
    assert_eq!(
        dir.read("ours/model.safetensors"),
        dir.read("listed/model.safetensors")
    );
}

#[test]
fn wrapped_models_and_lfs_pointers_are_rejected_with_a_hint() {
    for (prefix, who) in [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("model._fsdp_wrapped_module.", "FSDP"),
    ] {
        let dir = dir("olmoe");
        // Only some names are prefixed.
        rewrite(&dir, |all| {
            all.iter_mut()
                .skip(1)
                .for_each(|t| t.0 = format!("{prefix}{}", t.0))
        });
        dir.expect_error(1, &IMPORT, &[prefix.trim_start_matches("model."), who]);
        assert!(!dir.path("ours").exists());
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n";
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let dir = dir("olmoe");
        dir.write(&format!("their/{name}"), pointer);
        dir.expect_any_error(&IMPORT, &[name, "Git LFS", "git lfs pull"]);
    }
}

#[test]
fn the_tokenizer_next_to_the_weights_is_imported() {
    let dir = dir("olmoe");
    dir.train("run", &["--set", "train.steps=5"]);
    let saved = dir.path("run/checkpoints/step-00000005/tokenizer/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(saved).unwrap()).unwrap();
    // Vocabulary size of the small model.
    let size = {
        let config: Value = serde_json::from_slice(&dir.read("their/config.json")).unwrap();
        config["vocab_size"].as_u64().unwrap()
    };
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| id.as_u64().unwrap() < size);
    json["added_tokens"] = json!([]);
    dir.write("their/tokenizer.json", json.to_string());
    dir.write(
        "their/generation_config.json",
        r#"{"eos_token_id": [3, 5]}"#,
    );
    let found = dir.json(&IMPORT);
    assert_eq!(
        found["tokenizer"],
        json!({ "vocab_size": size, "eos_id": 3, "end_ids": [3, 5] })
    );
    assert!(dir.path("ours/tokenizer/tokenizer.json").exists());
    let without = ["import", "their", "--out", "b", "--json", "--no-tokenizer"];
    assert_eq!(dir.json(&without)["tokenizer"], Value::Null);
    dir.write("their/tokenizer.json", "{ \"model\": 3 }");
    dir.expect_any_error(
        &["import", "their", "--out", "c"],
        &["tokenizer.json", "--no-tokenizer"],
    );
    assert!(!dir.path("c").exists());
}

#[test]
fn wrong_types_in_a_configuration_are_reported_by_key() {
    for (family, key, value, words) in [
        (
            "olmoe",
            "hidden_size",
            json!("32"),
            "expected a non-negative integer",
        ),
        (
            "olmoe",
            "num_experts",
            json!(-4),
            "expected a non-negative integer, found -4",
        ),
        (
            "olmoe",
            "norm_topk_prob",
            json!(1),
            "expected true or false, found 1",
        ),
        (
            "deepseek-v3",
            "rms_norm_eps",
            json!([]),
            "expected a number, found an array",
        ),
        (
            "deepseek-v3",
            "hidden_act",
            json!({}),
            "expected a string, found a table",
        ),
    ] {
        let dir = dir(family);
        configure(&dir, key, value);
        let text = dir.expect_error(1, &IMPORT, &["config.json", key, words]);
        for rust in ["usize", "f64", "struct", "boolean", "invalid type"] {
            assert!(!text.contains(rust), "{text}");
        }
    }
}

#[test]
fn a_gguf_file_is_imported_with_its_tokenizer() {
    let dir = TestDir::new();
    let bytes = fs::read(fixture("../gguf/llama.gguf")).unwrap();
    dir.write("their.gguf", &bytes);
    let found = dir.json(&["import", "their.gguf", "--out", "ours", "--json"]);
    assert_adds_up(&found);
    assert_eq!(
        found["tokenizer"],
        json!({"vocab_size": 96, "eos_id": 1, "end_ids": [1]})
    );
    assert_eq!(found["notes"], json!([]));
    let text = "the sea";
    let args = [
        "generate",
        "ours",
        "--prompt",
        text,
        "--max-tokens",
        "3",
        "--temperature",
        "0",
    ];
    let generated = String::from_utf8(dir.run(&args).stdout).unwrap();
    assert!(generated.starts_with(text), "{generated}");
    // An unknown pre-tokenizer, of the same length.
    let at = bytes.windows(5).position(|part| part == b"gpt-2").unwrap();
    let mut other = bytes;
    other[at..at + 5].copy_from_slice(b"gpt-9");
    dir.write("other.gguf", other);
    let args = ["import", "other.gguf", "--out", "made/other"];
    dir.expect_any_error(&args, &["tokenizer.ggml.pre = \"gpt-9\"", "--no-tokenizer"]);
    assert!(!dir.path("made").exists());
    dir.ok(&[&args[..], &["--no-tokenizer"]].concat());
}

#[cfg(unix)]
#[test]
fn written_files_have_the_modes_of_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;
    let dir = dir("olmoe");
    let program = env!("CARGO_BIN_EXE_hybridnorm");
    for (umask, file_mode, folder_mode) in [("022", 0o644, 0o755), ("077", 0o600, 0o700)] {
        let target = |name: &str| format!("all{umask}/{name}");
        fs::create_dir(dir.path(target(""))).unwrap();
        let data = target("data");
        let study = common::STUDY_KEEPING_RUNS.replace("[\"data\"]", &format!("[\"{data}\"]"));
        dir.write("study.toml", study);
        for args in [
            format!(
                "train tiny.toml --quiet --run {} --set train.steps=5",
                target("run")
            ),
            format!("import their --out {}", target("ours")),
            format!("data prepare stories:60 --tokenizer bytes --out {data}"),
            format!("study study.toml --out {}", target("study")),
            format!("report {} --out {}", target("run"), target("report.html")),
        ] {
            let line = format!("umask {umask}; exec {program} {args}");
            let mut command = Command::new("sh");
            command.args(["-c", &line]).current_dir(dir.path("."));
            let output = command
                .env("XDG_CACHE_HOME", dir.path("cache"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{args}: {}", stderr(&output));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for folder in ["run", "ours", "data", "study", "study/runs", "study/kept"] {
            assert_eq!(mode(&dir.path(target(folder))), folder_mode, "{folder}");
        }
        let files = files_below(&dir.path(target("")));
        assert!(files.len() > 30, "{files:?}");
        for file in files {
            assert_eq!(mode(&file), file_mode, "{}", file.display());
        }
    }
}
