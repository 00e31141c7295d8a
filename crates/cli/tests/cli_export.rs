//! Exporting checkpoints through the binary.

mod common;

use common::*;

/// Trains a tiny model on prepared text, with a tokenizer.
fn trained() -> TestDir {
    let dir = TestDir::new();
    train_on_prepared_data(&dir);
    dir
}

fn text(dir: &TestDir, name: &str) -> String {
    String::from_utf8(dir.read(name)).unwrap()
}

#[test]
fn run_is_exported_verified_and_imported() {
    let dir = trained();
    let export = ["export", "run", "--format", "hf", "--out", "hf"];
    let found = dir.json(&[&export[..], &["--verify", "--json"]].concat());
    assert_eq!(found["model_type"], "hybridnorm");
    assert!(found["verification"]["equal_parameters"].as_u64().unwrap() > 5);
    assert_eq!(found["verification"]["logits_difference"], 0.0);
    let mut files: Vec<&str> = found["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap())
        .collect();
    files.sort_unstable();
    let expected = [
        "README.md",
        "config.json",
        "configuration_hybridnorm.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_hybridnorm.py",
        "selftest.py",
        "selftest.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(files, expected);
    let card = text(&dir, "hf/README.md");
    for words in [
        "## Equations",
        "Y  = X + A_QKV(X)",
        "| data | data |",
        "nats per token: the batch of the last step, before its update |",
        "| llama.cpp | no | computes only its own architectures",
    ] {
        assert!(card.contains(words), "{words}: {card}");
    }
    // A second export does not replace the first; the imported model generates the same text.
    dir.expect_error(2, &export, &["hf: already exists"]);
    dir.ok(&["import", "hf", "--out", "back", "--quiet"]);
    let generated = |from| {
        dir.ok(&[
            "generate",
            from,
            "--prompt",
            "The",
            "--max-tokens",
            "9",
            "--temperature",
            "0",
        ])
    };
    assert_eq!(generated("run"), generated("back"));
    let printed = dir.run(&[
        "export",
        "back",
        "--format",
        "safetensors",
        "--out",
        "plain",
        "--verify",
    ]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].contains("with the names of hybridnorm"),
        "{printed}"
    );
    assert!(lines[1].starts_with("verified: all "), "{printed}");
    dir.expect_error(
        1,
        &["import", "plain", "--out", "other"],
        &["plain: written by `export --format safetensors`"],
    );
    for own in ["run", "back"] {
        let words = ["a checkpoint or run directory of hybridnorm already"];
        dir.expect_error(1, &["import", own, "--out", "other"], &words);
    }
    for command in [
        &["generate", "hf", "--prompt", "a"][..],
        &["inspect", "hf"],
        &["eval", "hf", "--data", "stories:9"],
        &["export", "hf", "--explain"],
    ] {
        let words = [
            "hf: a model in Hugging Face format",
            "hybridnorm import hf --out",
        ];
        dir.expect_error(1, command, &words);
    }
    // No facts about training are known of an imported model.
    assert!(!text(&dir, "plain/README.md").contains("## Training"));
}

#[test]
fn rounded_weights_are_compared_with_the_logits_of_the_checkpoint() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "model.placement=pre-norm"]);
    let verified = |out, format: &[&str]| {
        let export = ["export", "run", "--out", out, "--verify", "--json"];
        let mut found = dir.json(&[&export[..], format].concat());
        found["verification"].take()
    };
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let exact = verified("f32", &["--format", "gguf"]);
    assert_eq!(exact["equal_parameters"], exact["parameters"]);
    assert_eq!(exact["logits_difference"], 0.0);
    let half = verified("hf16", &["--format", "hf", "--dtype", "f16"]);
    let gguf = verified("gguf16", &["--format", "gguf", "--dtype", "f16"]);
    for found in [&half, &gguf] {
        let difference = number(&found["logits_difference"]);
        assert!(difference > 0.0 && difference < 0.1 * number(&found["largest_logit"]));
    }
    let printed = dir.ok(&[
        "export", "run", "--format", "gguf", "--out", "text", "--verify",
    ]);
    assert!(
        printed.contains("parameters have equal bits when read back"),
        "{printed}"
    );
}

#[test]
fn explanation_lists_programs_and_writes_nothing() {
    let dir = trained();
    let found = dir.json(&["export", "run", "--explain", "--json"]);
    let can_run: Vec<bool> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["can_run"].as_bool().unwrap())
        .collect();
    assert_eq!(can_run, [true, true, false, false]);
    let table = dir.ok(&["export", "run", "--explain"]);
    for words in [
        "transformers",
        "trust_remote_code",
        "MLX",
        "differs in block",
    ] {
        assert!(table.contains(words), "{table}");
    }
}

#[test]
fn run_is_exported_for_llama_cpp() {
    let dir = TestDir::new();
    dir.prepare("stories:60", "bytes", "data");
    let settings = ["data.train=[\"data\"]", "model.placement=\"pre-norm\""];
    dir.train("run", &settings.map(|setting| ["--set", setting]).concat());
    let export = ["export", "run", "--format", "gguf"];
    let printed = dir.ok(&[&export[..], &["--out", "out", "--verify"]].concat());
    assert!(
        printed.contains("\nverified: all 15 parameters have equal bits when read back; the imported model's logits are equal"),
        "{printed}"
    );
    assert!(text(&dir, "out/README.md").contains("parameters as F32"));
    for (path, kind) in [
        ("out", "a folder with a GGUF file"),
        ("out/model.gguf", "a GGUF file"),
    ] {
        dir.expect_error(1, &["inspect", path], &[kind, "hybridnorm import"]);
    }
    dir.ok(&["import", "out", "--out", "back", "--quiet"]);
    let generate = |from| {
        dir.ok(&[
            "generate",
            from,
            "--prompt",
            "The",
            "--max-tokens",
            "9",
            "--temperature",
            "0",
        ])
    };
    assert_eq!(generate("run"), generate("back"));
    dir.ok(&[
        &export[..],
        &["--out", "small", "--dtype", "q8_0", "--quiet"],
    ]
    .concat());
    let bf16 = [&export[..], &["--out", "x", "--dtype", "bf16"]].concat();
    dir.expect_any_error(&bf16, &["--dtype bf16 is not written to GGUF files"]);
    let hf = [
        "export", "run", "--format", "hf", "--out", "x", "--dtype", "q8_0",
    ];
    dir.expect_any_error(&hf, &["q8_0 is a type of GGUF files"]);
    let table = dir.ok(&["export", "run", "--explain"]);
    assert!(
        table.contains("the file that --format gguf writes"),
        "{table}"
    );
}

#[test]
fn arguments_are_checked() {
    let dir = trained();
    let usage_error = |args: &[&str], words: &[&str]| {
        let output = dir.run(&[&["export", "run"], args].concat());
        assert_eq!(code(&output), 2);
        let found = stderr(&output);
        assert!(words.iter().all(|word| found.contains(word)), "{found}");
    };
    usage_error(&["--format", "hf"], &["--out"]);
    usage_error(&["--out", "x"], &["--format"]);
    usage_error(&["--explain", "--out", "x"], &["--explain", "--out"]);
    usage_error(
        &["--format", "onnx", "--out", "x"],
        &["onnx", "safetensors"],
    );
    dir.expect_any_error(
        &["export", "missing", "--format", "hf", "--out", "x"],
        &["missing"],
    );
    assert!(!dir.path("x").exists());
}
