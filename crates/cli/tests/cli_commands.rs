//! Every command does what its help text says.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::Lab;
use serde_json::{Value, json};

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{a} {b}");
}

#[test]
fn eval_prints_one_document_that_agrees_with_the_metrics() {
    let lab = Lab::new();
    lab.ok(&[
        "data",
        "prepare",
        "stories:60",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
        "--validation-fraction",
        "0.2",
    ]);
    lab.train("run", &["--set", "data.train=['p']"]);
    let last = lab.metrics("run")[19]["validation_loss"].as_f64().unwrap();
    let whole = ["eval", "run", "--data", "p", "--json", "--windows", "whole"];
    let found = lab.json(&[&whole[..], &["--batch-size", "4"]].concat());
    for key in [
        "loss",
        "perplexity",
        "tokens",
        "bits_per_byte",
        "left_out",
        "sets",
    ] {
        assert!(keys(&found).contains(&key), "{key}");
    }
    close(found["loss"].as_f64().unwrap(), last);
    close(found["perplexity"].as_f64().unwrap(), last.exp());
    let held_out =
        lab.json(&["data", "inspect", "p", "--json"])["manifest"]["validation"]["tokens"]
            .as_u64()
            .unwrap();
    assert_eq!(found["tokens"].as_u64().unwrap(), (held_out - 1) / 16 * 16);
    // Other batch sizes change only the last bits.
    let other = lab.json(&[&whole[..], &["--batch-size", "7"]].concat());
    assert!((other["loss"].as_f64().unwrap() - last).abs() < 1e-6);

    // Explicit validation text is used entirely.
    lab.train("named", &["--set", "data.validation=['stories:9:7']"]);
    let last = lab.metrics("named")[19]["validation_loss"]
        .as_f64()
        .unwrap();
    let found = lab.json(&[
        "eval",
        "named",
        "--data",
        "stories:9:7",
        "--json",
        "--batch-size",
        "4",
        "--windows",
        "whole",
    ]);
    close(found["loss"].as_f64().unwrap(), last);
    let text = lab.ok(&["eval", "named", "--data", "stories:9:7", "p"]);
    assert!(text.contains("perplexity"), "{text}");
}

#[test]
fn generate_is_decided_by_the_seed() {
    let lab = Lab::new();
    lab.train("run", &[]);
    let write = |more: &[&str]| {
        lab.ok(&[
            &["generate", "run", "--prompt", "Once", "--max-tokens", "30"],
            more,
        ]
        .concat())
    };
    assert!(write(&[]).starts_with("Once"));
    assert!(write(&[]).ends_with('\n'));
    assert_eq!(
        write(&["--seed", "1"]),
        write(&["--seed", "1", "--threads", "1"])
    );
    assert_ne!(write(&["--seed", "1"]), write(&["--seed", "2"]));
    let greedy = ["--temperature", "0"];
    assert_eq!(
        write(&greedy),
        write(&["--threads", "1", "--temperature", "0"])
    );
    assert_eq!(write(&greedy), write(&["--top-k", "1"]));
    let found = lab.json(&[
        "generate",
        "run",
        "--prompt",
        "Once",
        "--max-tokens",
        "30",
        "--temperature",
        "0",
        "--json",
    ]);
    assert_eq!(
        keys(&found),
        [
            "context_tokens",
            "left_out",
            "prompt",
            "prompt_tokens",
            "text",
            "tokens"
        ]
    );
    assert_eq!(
        write(&greedy),
        format!("Once{}\n", found["text"].as_str().unwrap())
    );
    assert_eq!(
        lab.ok(&["generate", "run", "--prompt", "ä b", "--max-tokens", "0"]),
        "ä b\n"
    );
    lab.ok(&["generate", "run", "--prompt", "", "--max-tokens", "5"]);
    // Longer than the context.
    lab.ok(&[
        "generate",
        "run",
        "--prompt",
        &"word ".repeat(20),
        "--max-tokens",
        "40",
    ]);
    lab.fails(
        2,
        &["generate", "run", "--prompt", "a", "--temperature", "-1"],
        &["temperature -1"],
    );
    for (options, words) in [
        (
            &["--temperature", "0", "--seed", "5"][..],
            "--seed without effect: decoding is greedy (--temperature 0",
        ),
        (
            &["--temperature", "0", "--top-k", "5", "--top-p", "1"],
            "--top-k and --top-p without effect",
        ),
        (
            &["--top-k", "1", "--seed", "0"],
            "--seed without effect: decoding is greedy (--top-k 1",
        ),
    ] {
        let args = [&["generate", "run", "--prompt", "a"], options].concat();
        lab.fails(2, &args, &[words]);
    }
    lab.fails(
        2,
        &["generate", "run", "--prompt", "a", "--top-p", "0"],
        &["top-p 0"],
    );
}

#[test]
fn data_is_prepared_and_inspected() {
    let lab = Lab::new();
    lab.write("a folder/ä.txt", "One line.\n\nAnother line.\n".repeat(50));
    lab.write("b.jsonl", "{\"text\": \"json\"}\n".repeat(50));
    let args = [
        "data",
        "prepare",
        "a folder",
        "b.jsonl",
        "--tokenizer",
        "bytes",
        "--out",
        "p q",
        "--json",
    ];
    let manifest = lab.json(&args);
    assert_eq!(manifest["sources"][1]["documents"], 50);
    let inspected = lab.json(&["data", "inspect", "p q", "--json"]);
    assert_eq!(inspected["manifest"], manifest);
    assert!(
        lab.ok(&["data", "inspect", "p q"])
            .contains("every shard matches")
    );
    lab.fails(2, &args[..8], &["p q", "already holds prepared data"]);
    lab.ok(&[&args[..8], &["--overwrite", "--quiet"]].concat());
    lab.fails(
        2,
        &[
            "data",
            "prepare",
            "b.jsonl",
            "--tokenizer",
            "bytes",
            "--out",
            "r",
            "--validation-fraction",
            "1",
        ],
        &["validation_fraction = 1"],
    );
}

#[test]
fn placements_are_listed_and_explained() {
    let lab = Lab::new();
    let table = lab.ok(&["placement", "list"]);
    assert!(
        table.contains("qkv-post") && !table.contains("\\n"),
        "{table}"
    );
    let rows = lab.json(&["placement", "list", "--json"]);
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 20);
    let table = lab.ok(&["placement", "list"]);
    for row in rows {
        let name = row["name"].as_str().unwrap();
        assert!(table.contains(name));
        assert!(!lab.ok(&["placement", "explain", name]).is_empty());
        let found = lab.json(&[
            "placement",
            "explain",
            name,
            "--format",
            "json",
            "--layers",
            "4",
        ]);
        assert!(found.is_object());
    }
    assert!(
        lab.ok(&[
            "placement",
            "explain",
            "hybridnorm-star",
            "--format",
            "latex"
        ])
        .contains('\\')
    );
    lab.write("mine.toml", "base = \"pre-norm\"\nnorm = { eps = 1e-4 }\n");
    lab.ok(&["placement", "explain", "mine.toml"]);
    lab.write("mine.toml", "base = \"pre-norm\"\nnrom = { eps = 1e-4 }\n");
    lab.fails(
        2,
        &["placement", "explain", "mine.toml"],
        &["mine.toml", "`norm`"],
    );
    lab.fails(2, &["placement", "explain", "pre-nrom"], &["`pre-norm`"]);
    lab.fails(
        2,
        &["placement", "explain", "pre-norm", "--layers", "0"],
        &["n_layers and d_model must be at least 1"],
    );
    lab.fails(
        2,
        &["placement", "explain", "pre-norm", "--layers", "100000000"],
        &["too many"],
    );
}

#[test]
fn every_recipe_is_inspected_at_once() {
    let lab = Lab::new();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut seen = 0;
    for entry in fs::read_dir(configs).unwrap() {
        let path = entry.unwrap().path();
        let started = Instant::now();
        let found = lab.json(&["inspect", path.to_str().unwrap(), "--json"]);
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{}",
            path.display()
        );
        let total = found["inventory"]["total"].as_u64().unwrap();
        if path.ends_with("hybridnorm-1.2b.toml") {
            assert!((1_100_000_000..1_400_000_000).contains(&total), "{total}");
        }
        lab.ok(&["inspect", path.to_str().unwrap()]);
        seen += 1;
    }
    assert!(seen >= 7);
    lab.train("run", &[]);
    let of_config = lab.json(&["inspect", "tiny.toml", "--json"]);
    for path in ["run", "run/checkpoints/step-00000020"] {
        let of_checkpoint = lab.json(&["inspect", path, "--json"]);
        assert_eq!(of_config["placement_hash"], of_checkpoint["placement_hash"]);
        assert_eq!(
            of_config["inventory"]["total"],
            of_checkpoint["inventory"]["total"]
        );
    }
    // For a run the configured training is inspected, for a checkpoint alone a single sequence.
    let inventory = |path| lab.json(&["inspect", path, "--json"])["inventory"].clone();
    assert_eq!(inventory("run"), inventory("tiny.toml"));
    assert_eq!(inventory("run")["micro_batch"], 4);
    assert_eq!(inventory("run/checkpoints/step-00000020")["micro_batch"], 1);
    let wider = lab.json(&["inspect", "tiny.toml", "--set", "model.d_ff=64", "--json"]);
    assert_eq!(wider["model"]["d_ff"], 64);
    lab.fails(
        2,
        &["inspect", "run", "--set", "seed=2"],
        &["--set has no effect"],
    );
    lab.fails(1, &["inspect", "absent"], &["absent", "no such file"]);
}

/// Returns `model.safetensors` as the official code writes it, from a fixture.
fn official_weights(fixture: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(fixture[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&fixture[8..8 + length]).unwrap();
    let (mut kept, mut data) = (BTreeMap::new(), Vec::new());
    for (name, mut entry) in header {
        let Some(name) = name.strip_prefix("weight.") else {
            continue;
        };
        let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let bytes = &fixture[at(0)..at(1)];
        let start = data.len();
        data.extend_from_slice(bytes);
        entry["data_offsets"] = json!([start, data.len()]);
        kept.insert(name.to_owned(), entry);
    }
    let mut text = serde_json::to_vec(&kept).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..], &data].concat()
}

#[test]
fn official_checkpoints_are_imported() {
    let lab = Lab::new();
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../hybridnorm/tests/fixtures/official");
    for name in ["hybridnorm-star", "hybridnorm", "pre-norm"] {
        let facts: Value =
            serde_json::from_slice(&fs::read(fixtures.join(format!("{name}.json"))).unwrap())
                .unwrap();
        lab.write(
            "theirs/config.yaml",
            json!({"model": facts["model"]}).to_string(),
        );
        let weights =
            official_weights(&fs::read(fixtures.join(format!("{name}.safetensors"))).unwrap());
        lab.write("theirs/model.safetensors", &weights);
        let found = lab.json(&["import", "theirs", "--out", name, "--json"]);
        assert!(found["parameters"].as_u64().unwrap() > 0);
        let report = lab.json(&["inspect", name, "--json"]);
        assert_eq!(report["model"]["d_model"], facts["model"]["d_model"]);
        lab.fails(
            1,
            &["import", "theirs", "--out", name],
            &[name, "already here"],
        );
        lab.fails(
            1,
            &["generate", name, "--prompt", "a"],
            &["has no tokenizer"],
        );
        let deep = format!("deep/er/{name}");
        lab.ok(&["import", "theirs", "--out", &deep, "--quiet"]);
        lab.write("theirs/model.safetensors", &weights[..weights.len() - 9]);
        lab.fails(
            1,
            &["import", "theirs", "--out", "other"],
            &["theirs/model.safetensors"],
        );
    }
    lab.write("theirs/config.yaml", "model: [");
    lab.fails(
        1,
        &["import", "theirs", "--out", "other"],
        &["theirs/config.yaml"],
    );
    lab.fails(1, &["import", "absent", "--out", "other"], &["absent"]);
}

#[test]
fn quickstart_compares_and_can_be_repeated() {
    let lab = Lab::new();
    let args = [
        "quickstart",
        "--quiet",
        "--data",
        "stories:80",
        "--steps",
        "2",
        "--out",
        "q",
        "--json",
    ];
    let found = lab.json(&args);
    let names: Vec<&Value> = found["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["placement"])
        .collect();
    assert_eq!(names, ["hybridnorm-star", "pre-norm"]);
    let again = lab.json(&args);
    for row in [0, 1] {
        assert_eq!(
            found["rows"][row]["validation_loss"],
            again["rows"][row]["validation_loss"]
        );
    }
    let written: Value = serde_json::from_slice(&lab.read("q/results.json")).unwrap();
    assert_eq!(written, again);
    assert!(lab.ok(&args[..8]).contains("pre-norm writes:"));
    lab.fails(
        2,
        &[
            "quickstart",
            "--quiet",
            "--data",
            "stories:80",
            "--steps",
            "0",
            "--out",
            "q",
        ],
        &["steps = 0, expected at least 1"],
    );
    // Runs of others are not deleted.
    lab.train("own/pre-norm", &[]);
    let mut other = args;
    other[7] = "own";
    lab.fails(2, &other, &["own/pre-norm", "not created by quickstart"]);
    assert_eq!(lab.history("own/pre-norm").len(), 20);
    lab.write("q/pre-norm/notes.txt", "mine");
    lab.json(&args);
    assert_eq!(lab.read("q/pre-norm/notes.txt"), b"mine");
}

#[test]
fn a_prompt_may_begin_with_a_dash() {
    let lab = Lab::new();
    lab.train("run", &[]);
    lab.ok(&["generate", "run", "--prompt", "-x", "--max-tokens", "3"]);
}

#[test]
fn a_split_is_evaluated() {
    let lab = Lab::new();
    lab.train("run", &[]);
    let evaluate = |split: &str| {
        let args = ["eval", "run", "--data", "stories:60", "--split", split];
        lab.json(&[&args[..], &["--json"]].concat())
    };
    let tokens = |split: &str| evaluate(split)["tokens"].as_u64().unwrap();
    let (train, held_out, all) = (tokens("train"), tokens("validation"), tokens("all"));
    assert!(
        held_out > 0 && train > held_out && all >= train,
        "{train} {held_out} {all}"
    );
    // Equal to the validation loss in training, which holds out the same documents.
    let args = [
        "eval",
        "run",
        "--data",
        "stories:60",
        "--split",
        "validation",
    ];
    let found = lab.json(&[&args[..], &["--json", "--windows", "whole"]].concat());
    let found = found["loss"].as_f64().unwrap();
    let last = lab.metrics("run").last().unwrap()["validation_loss"]
        .as_f64()
        .unwrap();
    assert!((found - last).abs() < 1e-6, "{found} {last}");
}

#[test]
fn quiet_prints_results_only() {
    let lab = Lab::new();
    let output = lab.run(&["train", "tiny.toml", "--quiet", "--run", "run"]);
    let result = String::from_utf8(output.stdout).unwrap();
    assert!(
        result.starts_with("done: 20 steps, 1,280 tokens, validation loss"),
        "{result}"
    );
    assert_eq!(result.lines().count(), 1, "{result}");
    assert!(output.stderr.is_empty());
    let outcome = lab.json(&["train", "tiny.toml", "--quiet", "--run", "other", "--json"]);
    assert_eq!(
        (&outcome["finished"], &outcome["step"]),
        (&json!(true), &json!(20))
    );
    let output = lab.run(&["eval", "run", "--data", "stories:9", "--json", "--quiet"]);
    assert!(output.stderr.is_empty());
    // Only results go to standard output, even without `--quiet`.
    let output = lab.run(&["train", "tiny.toml", "--run", "loud"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), result);
    assert!(!output.stderr.is_empty());
}

#[test]
fn unusual_names_work() {
    let lab = Lab::new();
    let config = lab.read("tiny.toml");
    lab.write("a b/ü 'x'.toml", config);
    lab.ok(&["train", "a b/ü 'x'.toml", "--quiet"]);
    assert!(lab.path("runs/ü 'x'/config.toml").exists());
    lab.ok(&["eval", "runs/ü 'x'", "--data", "stories:9", "--json"]);
    let table = [
        "--set",
        "model.placement={base='pre-norm', norm={eps=1e-4}}",
    ];
    lab.train("table", &table);
    lab.train(
        "table",
        &[&table[..], &["--resume", "--set", "train.steps=21"]].concat(),
    );
}
