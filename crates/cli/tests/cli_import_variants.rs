//! Import variants: forms of configurations, names of wrapped models, files that are not read.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::import::{configure, dir, fixture, rewrite, tensors, write_tensors};
use common::*;
use serde_json::{Value, json};

const IMPORT: [&str; 5] = ["import", "their", "--out", "ours", "--json"];

/// Returns the reasons and counts of the omitted items of a unit.
fn omitted(found: &Value, unit: &str) -> Vec<(String, u64)> {
    let all = found["left_out"].as_array().unwrap();
    (all.iter().filter(|one| one["unit"] == unit))
        .map(|one| {
            (
                one["reason"].as_str().unwrap().into(),
                one["count"].as_u64().unwrap(),
            )
        })
        .collect()
}

/// Asserts that every file of the folder is either read or omitted.
fn assert_files_add_up(dir: &TestDir, found: &Value, read: u64) {
    let there = fs::read_dir(dir.path("their")).unwrap().count() as u64;
    let counts: u64 = omitted(found, "files").iter().map(|(_, count)| count).sum();
    assert_eq!(there, read + counts, "{found}");
}

#[test]
fn files_that_were_not_opened_are_counted() {
    let dir = dir("olmoe");
    for name in [
        "model.pt",
        "config.yaml",
        "model.safetensors.index.json",
        "tokenizer.json",
        "pytorch_model-00001.bin",
        "LICENSE",
    ] {
        dir.write(&format!("their/{name}"), "not read");
    }
    let found = dir.json(&[&IMPORT[..], &["--no-tokenizer"]].concat());
    assert_files_add_up(&dir, &found, 2);
    let reasons = omitted(&found, "files");
    let count = |words: &str| {
        let mut of = reasons.iter().filter(|(reason, _)| reason.contains(words));
        of.next().map_or(0, |(_, count)| *count)
    };
    assert_eq!(
        count("weights or configuration in a format other than the one that was read"),
        4,
        "{reasons:?}"
    );
    assert_eq!(count("--no-tokenizer"), 1, "{reasons:?}");
    assert_eq!(count("not needed"), 1, "{reasons:?}");
    let named = [
        "import",
        "their",
        "--out",
        "b",
        "--json",
        "--tokenizer",
        "bytes",
    ];
    // More tokens than the model's vocabulary.
    dir.expect_any_error(&named, &["257 tokens"]);
    let text = stderr(&dir.run(&["import", "their", "--out", "c", "--no-tokenizer"]));
    assert!(
        text.contains("omitted 4 files: weights or configuration in a format other than"),
        "{text}"
    );
}

#[test]
fn a_common_prefix_of_tensor_names_is_removed() {
    let plain = dir("olmoe");
    plain.json(&IMPORT);
    for prefix in ["_orig_mod.", "module.", "_orig_mod.module."] {
        let dir = dir("olmoe");
        rewrite(&dir, |all| {
            all.iter_mut()
                .for_each(|t| t.0 = format!("{prefix}{}", t.0));
        });
        let found = dir.json(&IMPORT);
        let note = found["notes"][0].as_str().unwrap();
        assert!(
            note.contains(&format!("have the prefix `{prefix}`")),
            "{note}"
        );
        assert!(
            dir.read("ours/model.safetensors") == plain.read("ours/model.safetensors"),
            "{prefix}"
        );
        let text = dir.ok(&["import", "their", "--out", "second", "--quiet"]);
        assert!(text.contains(&format!("`{prefix}`")), "{text}");
    }
    // In a shard that an index lists.
    let split = dir("olmoe");
    let mut map = serde_json::Map::new();
    rewrite(&split, |all| {
        for t in all.iter_mut() {
            t.0 = format!("_orig_mod.{}", t.0);
            map.insert(t.0.clone(), json!("a.safetensors"));
        }
    });
    fs::rename(
        split.path("their/model.safetensors"),
        split.path("their/a.safetensors"),
    )
    .unwrap();
    let index = json!({ "weight_map": map }).to_string();
    split.write("their/model.safetensors.index.json", index);
    assert_files_add_up(&split, &split.json(&IMPORT), 3);
    assert!(split.read("ours/model.safetensors") == plain.read("ours/model.safetensors"));
    // A missing tensor is still reported by name.
    let dir = dir("olmoe");
    rewrite(&dir, |all| {
        all.iter_mut()
            .for_each(|t| t.0 = format!("_orig_mod.{}", t.0));
        all.remove(0);
    });
    dir.expect_error(1, &IMPORT, &["is missing", "without the `_orig_mod.`"]);
}

#[test]
fn compiled_official_models_are_imported() {
    let dir = TestDir::new();
    write_official_checkpoint(&dir, "plain");
    dir.ok(&["import", "plain", "--out", "expected", "--quiet"]);
    write_official_checkpoint(&dir, "their");
    fs::remove_file(dir.path("their/model.pt")).unwrap();
    let official = fixture("").join("../official/hybridnorm-star.safetensors");
    let mut all = tensors(&fs::read(official).unwrap());
    all.retain(|t| t.0.starts_with("weight."));
    for t in &mut all {
        t.0 = format!("_orig_mod.{}", &t.0["weight.".len()..]);
    }
    dir.write("their/model.safetensors", write_tensors(all));
    let found = dir.json(&IMPORT);
    assert!(
        found["notes"][0]
            .as_str()
            .unwrap()
            .contains("torch.compile")
    );
    assert_files_add_up(&dir, &found, 2);
    assert!(dir.read("ours/model.safetensors") == dir.read("expected/model.safetensors"));
}

#[test]
fn moe_with_only_dense_layers_is_a_dense_model() {
    let dir = dir("deepseek-v3");
    configure(&dir, "first_k_dense_replace", json!(3));
    // The configuration has no experts, but the weights do.
    dir.expect_error(
        1,
        &IMPORT,
        &["model.layers.1.mlp.gate_proj.weight is missing"],
    );
    rewrite(&dir, |all| {
        all.retain(|t| t.0.starts_with("model.layers.0.") || !t.0.contains(".mlp."));
        let of_first: Vec<_> = all
            .iter()
            .filter(|t| t.0.contains(".0.mlp."))
            .cloned()
            .collect();
        for layer in [1, 2] {
            for (name, shape, data) in &of_first {
                let name = name.replace("layers.0", &format!("layers.{layer}"));
                all.push((name, shape.clone(), data.clone()));
            }
        }
    });
    for first in [3, 7] {
        configure(&dir, "first_k_dense_replace", json!(first));
        let out = format!("dense{first}");
        let found = dir.json(&["import", "their", "--out", &out, "--json"]);
        assert_eq!(found["tensors"]["all"], found["tensors"]["read"]);
        let shape: Value = serde_json::from_slice(&dir.read(format!("{out}/config.json"))).unwrap();
        assert_eq!(
            (&shape["model"]["moe"], &shape["model"]["d_ff"]),
            (&Value::Null, &json!(48))
        );
        let ours = tensors(&dir.read(format!("{out}/model.safetensors")));
        let up = |layer: u32| {
            let name = format!("blocks.{layer}.feed_forward.up");
            ours.iter().find(|t| t.0 == name).unwrap().2.clone()
        };
        assert!(up(0) == up(1) && up(1) == up(2));
    }
}

#[test]
fn alternating_moe_layers_are_rejected_by_key() {
    let dir = dir("deepseek-v3");
    configure(&dir, "moe_layer_freq", json!(2));
    dir.expect_error(1, &IMPORT, &["config.json: moe_layer_freq 2, expected 1"]);
    configure(&dir, "moe_layer_freq", json!(1));
    dir.json(&IMPORT);
}

/// Modification of a configuration.
type Change<'a> = &'a dyn Fn(&mut Value);

/// Returns a directory with an official checkpoint folder `their`, and its configuration.
fn official_dir() -> (TestDir, Value) {
    let dir = TestDir::new();
    write_official_checkpoint(&dir, "their");
    let config = serde_json::from_slice(&dir.read("their/config.yaml")).unwrap();
    (dir, config)
}

/// Imports `their` with a changed `model` section.
fn import_changed(dir: &TestDir, config: &Value, out: &str, change: Change<'_>) -> Output {
    let mut config = config.clone();
    change(&mut config["model"]);
    dir.write("their/config.yaml", config.to_string());
    dir.run(&["import", "their", "--out", out])
}

#[test]
fn official_configurations_have_several_spellings() {
    let (dir, config) = official_dir();
    dir.json(&IMPORT);
    let remove = |model: &mut Value, key: &str| drop(model.as_object_mut().unwrap().remove(key));
    let same: [(&str, Change<'_>); 4] = [
        ("ratio", &|model| {
            remove(model, "mlp_hidden_size");
            model["mlp_ratio"] = json!(3);
        }),
        ("padded", &|model| {
            model["embedding_size"] = Value::Null;
            model["vocab_size"] = json!(64);
        }),
        ("heads", &|model| {
            model["multi_query_attention"] = json!(false)
        }),
        ("dropout", &|model| remove(model, "attention_dropout")),
    ];
    for (name, change) in same {
        let output = import_changed(&dir, &config, name, change);
        assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        let weights = |of: &str| dir.read(format!("{of}/model.safetensors"));
        assert!(weights(name) == weights("ours"), "{name}");
    }
    // YAML as users write it, with other sections and comments.
    let model = config["model"].as_object().unwrap();
    let mut yaml = "# a run\nrun_name: x\nmodel:\n".to_owned();
    for (key, value) in model {
        yaml += &format!("  {key}: {value}  # set\n");
    }
    yaml += "optimizer:\n  name: adamw\n  betas: [0.9, 0.95]\n";
    dir.write("their/config.yaml", yaml);
    dir.ok(&["import", "their", "--out", "yaml", "--quiet"]);
    assert!(dir.read("yaml/model.safetensors") == dir.read("ours/model.safetensors"));
}

#[test]
fn unsupported_official_configurations_are_rejected_by_key() {
    let (dir, config) = official_dir();
    let rejected: [(Change<'_>, &str); 8] = [
        (
            &|model| model["activation_type"] = json!("gelu"),
            "model.activation_type \"gelu\"",
        ),
        (
            &|model| model["layer_norm_type"] = json!("low_precision"),
            "model.layer_norm_type",
        ),
        (
            &|model| model["block_type"] = json!("llama"),
            "model.block_type \"llama\"",
        ),
        (
            &|model| model["block_type"] = json!("moe"),
            "model.moe_num_experts is missing",
        ),
        (
            &|model| model["mlp_hidden_size"] = json!(95),
            "model.mlp_hidden_size 95 is odd",
        ),
        (&|model| model["rope"] = json!(false), "model.rope is off"),
        (
            &|model| model["weight_tying"] = json!(true),
            "weight_tying is set",
        ),
        (
            &|model| model["norm_pos_special_config"] = json!("_{0:{'attn':True}}_"),
            "unknown flag \"attn\"",
        ),
    ];
    for (change, words) in rejected {
        let output = import_changed(&dir, &config, "rejected", change);
        let text = stderr(&output);
        assert_ne!(code(&output), 0);
        assert!(
            text.contains(words) && text.lines().count() == 1,
            "{words}: {text}"
        );
        assert!(!dir.path("rejected").exists());
    }
}

#[cfg(unix)]
fn pipe(dir: &TestDir, path: &str) {
    let path = dir.path(path);
    let _ = fs::remove_file(&path);
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[cfg(unix)]
#[test]
fn pipes_are_rejected_immediately() {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let dir = dir("olmoe");
        pipe(&dir, &format!("their/{name}"));
        dir.expect_any_error(
            &IMPORT,
            &[&format!("{name}: is a pipe, expected a regular file")],
        );
        assert!(!dir.path("ours").exists());
    }
    for name in ["config.yaml", "model.pt"] {
        let dir = TestDir::new();
        write_official_checkpoint(&dir, "their");
        pipe(&dir, &format!("their/{name}"));
        dir.expect_any_error(&IMPORT, &[&format!("{name}: is a pipe")]);
    }
    // Files that are not read may be anything.
    let dir = dir("olmoe");
    for name in ["tokenizer.json", "README.md", "model.pt"] {
        pipe(&dir, &format!("their/{name}"));
    }
    let found = dir.json(&[&IMPORT[..], &["--no-tokenizer"]].concat());
    assert_files_add_up(&dir, &found, 2);
    pipe(&dir, "pipe");
    let message = dir.expect_any_error(
        &["import", "pipe", "--out", "x"],
        &["pipe: is a pipe, expected a folder with config.json or config.yaml"],
    );
    assert!(!message.contains("--no-tokenizer"), "{message}");
    dir.expect_any_error(
        &["import", "tiny.toml", "--out", "x"],
        &["tiny.toml: is a file, expected a folder"],
    );
    dir.expect_any_error(
        &["import", "nowhere", "--out", "x"],
        &["nowhere: no such file or folder"],
    );
    // A pipe instead of the lock file of a run.
    fs::create_dir(dir.path("run")).unwrap();
    pipe(&dir, "run/lock");
    let message = dir.expect_any_error(
        &train_args("run", &[]),
        &["run/lock: is a pipe, expected a regular file to lock"],
    );
    assert!(!message.contains("os error"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_killed_import_is_repeated_by_the_same_command() {
    let dir = dir("olmoe");
    // Large enough to be observed while being written.
    let rows = 60_000;
    configure(&dir, "vocab_size", json!(rows));
    rewrite(&dir, |all| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let at = all.iter().position(|t| t.0 == name).unwrap();
            all[at].1 = json!([rows, 32]);
            all[at].2 = [0, 0, 0, 63].repeat(rows * 32);
        }
    });
    let args = ["import", "their", "--out", "made/ours", "--quiet"];
    let mut killed = false;
    for _ in 0..20 {
        let mut child = dir.start(&args);
        wait_until("something is written or it ended", || {
            let there =
                |folder: &Path| fs::read_dir(folder).is_ok_and(|mut all| all.next().is_some());
            there(&dir.path("made")) || child.try_wait().unwrap().is_some()
        });
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if !status.success() {
            killed = true;
            break;
        }
        fs::remove_dir_all(dir.path("made/ours")).unwrap();
    }
    assert!(killed && !dir.path("made/ours").exists());
    dir.ok(&args);
    dir.ok(&["inspect", "made/ours"]);
    let left: Vec<_> = fs::read_dir(dir.path("made")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn messages_about_other_sources_name_what_to_do() {
    let dir = dir("llama");
    dir.expect_error(
        2,
        &["import", "their", "--out", "ours", "--tokenizer", "bytes"],
        &["their: --tokenizer bytes: the tokenizer has 257 tokens, the model only"],
    );
    #[cfg(not(feature = "hub"))]
    dir.expect_error(
        1,
        &["import", "owner/model", "--out", "ours"],
        &["owner/model: no such file or folder", "--features hub"],
    );
    let printed = dir.ok(&["import", "their", "--out", "ours", "--quiet"]);
    assert!(printed.starts_with("imported "), "{printed}");
    let shown = dir.ok(&["inspect", "ours"]);
    for words in [
        "[model]\n",
        "base = \"pre-norm\"",
        "rope_theta",
        "micro-batch of 1 sequence of",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}
