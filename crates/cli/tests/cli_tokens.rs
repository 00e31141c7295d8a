//! Prompts and their continuations; special tokens that files and text cannot forge; memory.

mod common;

use std::process::Command;

use common::{TestDir, code, stderr};
use serde_json::{Value, json};

/// Returns a word-level tokenizer, which decodes with spaces between words.
fn words() -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "model": {"type": "WordLevel", "unk_token": "?",
            "vocab": {"?": 0, "</s>": 1, "owls": 2, "hoot": 3, "softly": 4, "tonight": 5}}})
}

/// Trains a model that memorizes one sentence.
fn train_on_one_sentence() -> TestDir {
    let dir = TestDir::new();
    dir.write("owl/tokenizer.json", words().to_string());
    let line = json!({"text": "owls hoot softly tonight"}).to_string() + "\n";
    dir.write("owl.jsonl", line.repeat(60));
    let settings = [
        "--set",
        "data.train=[\"owl.jsonl\"]",
        "--set",
        "data.tokenizer=\"owl\"",
        "--set",
        "train.steps=60",
        "--set",
        "optimizer.lr=2e-2",
    ];
    dir.train("run", &settings);
    dir
}

#[test]
fn generated_text_continues_its_prompt_and_reports_omissions() {
    let dir = train_on_one_sentence();
    let generate = |prompt: &str| {
        dir.ok(&[
            "generate",
            "run",
            "--prompt",
            prompt,
            "--max-tokens",
            "2",
            "--temperature",
            "0",
        ])
    };
    assert_eq!(generate("owls hoot"), "owls hoot softly tonight\n");
    assert_eq!(generate("owls hoot "), "owls hoot softly tonight\n");
    assert!(generate("").starts_with("owls hoot"));

    let prompt = "owls hoot softly tonight ".repeat(5);
    let args = [
        "generate",
        "run",
        "--prompt",
        &prompt,
        "--max-tokens",
        "1",
        "--temperature",
        "0",
    ];
    let output = dir.run(&args);
    assert_eq!(
        stderr(&output),
        "omitted 5 tokens: beginning of the prompt, which does not fit into the context of 16 tokens\n"
    );
    let quiet = [&args[..], &["--quiet", "--json"]].concat();
    let found = dir.json(&quiet);
    assert_eq!(found["prompt_tokens"], 20);
    assert_eq!(found["context_tokens"], 16);
    assert_eq!(found["left_out"][0]["count"], 5);
    assert_eq!(found["left_out"][0]["unit"], "tokens");
    let short = [
        "generate",
        "run",
        "--prompt",
        "owls",
        "--max-tokens",
        "1",
        "--json",
    ];
    assert_eq!(dir.json(&short)["left_out"], json!([]));
}

#[test]
fn disabled_tokenizer_options_are_reported_and_recorded() {
    let dir = TestDir::new();
    let mut file = words();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    dir.write("owl/tokenizer.json", file.to_string());
    let text = json!({"text": "owls hoot softly tonight </s> owls"}).to_string();
    dir.write("owl.jsonl", text);
    let args = [
        "data",
        "prepare",
        "owl.jsonl",
        "--tokenizer",
        "owl",
        "--out",
        "out",
        "--validation-fraction",
        "0",
    ];
    let output = dir.run(&args);
    let stderr = stderr(&output);
    assert!(
        stderr.contains("truncation to 2 tokens") && stderr.contains("is disabled"),
        "{stderr}"
    );
    let manifest: Value = serde_json::from_slice(&dir.read("out/manifest.json")).unwrap();
    assert_eq!(manifest["train"]["tokens"], 7);
    let notes = manifest["tokenizer"]["notes"].to_string();
    assert!(notes.contains("truncation to 2 tokens"), "{notes}");
    let tokens = dir.read("out/train-00000.bin");
    let ends = tokens.chunks(2).filter(|token| *token == [1, 0]).count();
    assert_eq!(ends, 1);
}

#[test]
fn memory_for_text_without_white_space_is_a_small_multiple_of_its_size() {
    let dir = TestDir::new();
    let size = 24 << 20;
    dir.write(
        "w.jsonl",
        json!({"text": "ab".repeat(size / 2)}).to_string(),
    );
    // Threads, code and buffers take some 400 MB of address space; text takes twelve bytes per byte.
    let limit = 700_000 + 12 * size / 1024;
    let script = format!("ulimit -v {limit}; exec \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_hybridnorm")])
        .args([
            "--threads",
            "1",
            "data",
            "prepare",
            "w.jsonl",
            "--tokenizer",
            "bpe:264",
        ])
        .args(["--out", "out", "--validation-fraction", "0"])
        .current_dir(dir.path(""))
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}
