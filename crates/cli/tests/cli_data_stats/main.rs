//! Every command reports how much of the text of its data was read, omitted and split.

#[path = "../common/mod.rs"]
mod common;
mod files;
mod sets;

use common::{TestDir, stderr};
use serde_json::Value;

/// Trains a run `run` in a new directory, and returns the directory and the run's outcome.
fn trained(settings: &[&str]) -> (TestDir, Value) {
    let dir = TestDir::new();
    dir.write("own.jsonl", RECORDS);
    let mut args = vec!["train", "tiny.toml", "--run", "run", "--json", "--quiet"];
    args.extend([
        "--set",
        "train.steps=2",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "train.eval_every=0",
    ]);
    for setting in settings {
        args.extend(["--set", setting]);
    }
    let outcome = dir.json(&args);
    (dir, outcome)
}

const RECORDS: &str = "{\"body\": \"A first text, about the size of a sequence or two.\"}\n\
    {\"body\": null}\n{\"body\": \" \\t\"}\n\
    {\"body\": \"A second text, which the split may well hold out for validation.\"}\n";

/// Sums the counts of a unit in a `left_out` list.
fn count(left_out: &Value, unit: &str) -> u64 {
    let all = left_out.as_array().unwrap().iter();
    let of_unit = all.filter(|omission| omission["unit"] == unit);
    of_unit
        .map(|omission| omission["count"].as_u64().unwrap())
        .sum()
}

#[test]
fn study_probe_and_replay_report_data_stats() {
    let (dir, _) = trained(&[
        "data.train=[\"own.jsonl\"]",
        "data.text={text_field=\"body\"}",
    ]);
    let own = [
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "data.train=[\"own.jsonl\"]",
        "--set",
        "data.text={text_field=\"body\"}",
    ];
    let probe = [&["probe", "tiny.toml", "--steps", "1", "--json"], &own[..]].concat();
    let replay = ["replay", "run", "--step", "2", "--json"];
    for found in [dir.json(&probe), dir.json(&replay)] {
        assert_eq!(count(&found["left_out"], "records"), 1, "{found}");
        assert_eq!(found["data"]["text"]["documents"], 2);
        assert!(found["data"]["notes"].to_string().contains("is null"));
    }
    dir.write(
        "s.toml",
        String::from_utf8(dir.read("tiny.toml")).unwrap().replace("seed = 3", "")
            .replace("placement = \"hybridnorm-star\"", "").replace("lr = 3e-3", "")
            .replace("stories:60", "own.jsonl").replace("steps = 20", "steps = 2").replace("warmup_steps = 4", "warmup_steps = 0")
            + "[data.text]\ntext_field = \"body\"\n[study]\nplacements = [\"pre-norm\"]\nlr = [1e-3]\nseeds = [1, 2]\n",
    );
    let output = dir.run(&["study", "s.toml", "--out", "s", "--json"]);
    let stderr = common::stderr(&output);
    assert_eq!(
        stderr
            .matches("training data: prepared from 1 file, 3 records")
            .count(),
        1,
        "{stderr}"
    );
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(count(&found[0]["left_out"], "records"), 1, "{found}");
    assert_eq!(found[0]["data"][0]["text"]["records"], 3);
}

#[test]
fn notes_on_token_files_are_in_json() {
    let dir = TestDir::new();
    let tokens: Vec<u8> = (0..400_u32)
        .flat_map(|i| (i * 7 % 250).to_le_bytes())
        .collect();
    dir.write("t.bin", &tokens);
    let outcome = dir.json(&[
        "train",
        "tiny.toml",
        "--json",
        "--set",
        "train.steps=1",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "train.eval_every=0",
        "--set",
        "data.train=[\"t.bin\"]",
    ]);
    assert!(
        outcome["data"]["notes"].to_string().contains("read as u32"),
        "{outcome}"
    );
}

#[test]
fn known_end_of_text_tokens_are_noted_for_any_tokenizer() {
    let dir = TestDir::new();
    dir.write(
        "words.json",
        WORDS.replace("UNK", "\"unk_token\": \"<unk>\","),
    );
    dir.write("t.txt", "a b<|endoftext|>a</s>");
    let found = dir.json(&[
        "data",
        "prepare",
        "t.txt",
        "--tokenizer",
        "bytes",
        "--out",
        "p",
        "--json",
    ]);
    let spelled = found["spelled_special_tokens"].to_string();
    assert!(
        spelled.contains("</s>") && spelled.contains("<|endoftext|>"),
        "{spelled}"
    );
}

/// BPE tokenizer file with a few characters.
const WORDS: &str = r#"{"version": "1.0", "added_tokens": [
    {"id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", UNK "vocab": {"</s>": 0, "<unk>": 1, "a": 2, "b": 3, "ab": 4}, "merges": ["a b"]}}"#;

#[test]
fn unknown_tokens_and_dropped_characters_are_counted() {
    let dir = TestDir::new();
    dir.write("u.json", WORDS.replace("UNK", "\"unk_token\": \"<unk>\","));
    dir.write("d.json", WORDS.replace("UNK", ""));
    dir.write("t.txt", "ab axb \u{e9}\u{5de8}ab a\u{e9}b ab ab ba ab");
    for (tokenizer, unknown, dropped, note) in [
        ("u.json", 4, 0, "4 of the targets are the unknown token"),
        (
            "d.json",
            0,
            4,
            "4 characters of the text are not in the vocabulary",
        ),
    ] {
        let out = format!("p-{tokenizer}");
        let args = [
            "data",
            "prepare",
            "t.txt",
            "--tokenizer",
            tokenizer,
            "--out",
            &out,
            "--json",
        ];
        let source = dir.json(&args)["sources"][0].clone();
        assert_eq!(source["unknown_tokens"], unknown, "{source}");
        assert_eq!(source["dropped_chars"], dropped, "{source}");
        let run = format!("run-{tokenizer}");
        let tokenizer = format!("data.tokenizer=\"{tokenizer}\"");
        dir.ok(&[
            "train",
            "tiny.toml",
            "--run",
            &run,
            "--set",
            "train.steps=1",
            "--set",
            "schedule.warmup_steps=0",
            "--set",
            "train.eval_every=0",
            "--set",
            "train.seq_len=4",
            "--set",
            "data.train=[\"t.txt\"]",
            "--set",
            &tokenizer,
        ]);
        let found = dir.json(&["eval", &run, "--data", "t.txt", "--json"]);
        let set = &found["sets"][0];
        assert_eq!(set["unknown_tokens"], unknown, "{set}");
        assert!(set["notes"].to_string().contains(note), "{set}");
        assert!(dir.ok(&["eval", &run, "--data", "t.txt"]).contains(note));
    }
}

#[test]
fn prompts_have_data_statistics() {
    let dir = TestDir::new();
    dir.write("d.json", WORDS.replace("UNK", ""));
    dir.write("u.json", WORDS.replace("UNK", "\"unk_token\": \"<unk>\","));
    dir.write("t.txt", "ab ba ab ab ba. ".repeat(300));
    let train = |run: &str, tokenizer: &str| {
        let tokenizer = format!("data.tokenizer={tokenizer}");
        let data = ["--set", r#"data.train=["t.txt"]"#, "--set", &tokenizer];
        dir.train(run, &[&data[..], &["--set", "train.steps=4"]].concat());
    };
    train("dropping", "d.json");
    train("unknown", "u.json");
    let written = |run: &str, prompt: &str| {
        dir.json(&[
            "generate",
            run,
            "--prompt",
            prompt,
            "--max-tokens",
            "1",
            "--json",
        ])
    };
    assert_eq!(written("dropping", "ab zz")["dropped_chars"], 2);
    assert_eq!(written("unknown", "ab zz")["unknown_tokens"], 2);
    let spelled = &written("unknown", "ab</s>")["spelled_special_tokens"];
    assert_eq!(spelled[0]["token"], "</s>", "{spelled}");
    let whole = written("unknown", "ab");
    assert!(whole.get("unknown_tokens").is_none(), "{whole}");
    let stderr = stderr(&dir.run(&[
        "generate",
        "dropping",
        "--prompt",
        "zz",
        "--max-tokens",
        "1",
    ]));
    assert!(stderr.contains("prompt: 2 characters omitted"), "{stderr}");
}
