//! `eval`: every token is measured or counted as omitted, per data set; the type of pre-tokenized files is detected.

mod common;

use common::{TestDir, code, numpy, stderr};
use serde_json::Value;

fn le16(ids: &[u16]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn le32(ids: &[u16]) -> Vec<u8> {
    ids.iter()
        .flat_map(|&id| u32::from(id).to_le_bytes())
        .collect()
}

/// Returns token ids below 250.
fn ids(n: u16) -> Vec<u16> {
    (0..n).map(|i| i.wrapping_mul(7_919) % 250).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn count(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// Sums the omitted tokens over all reasons.
fn omitted(value: &Value) -> u64 {
    let reasons = value["left_out"].as_array().unwrap();
    reasons
        .iter()
        .map(|reason| {
            assert_eq!(reason["unit"], "tokens");
            assert!(!reason["reason"].as_str().unwrap().is_empty());
            count(reason, "count")
        })
        .sum()
}

fn assert_adds_up(value: &Value) {
    assert_eq!(
        count(value, "tokens") + omitted(value),
        count(value, "all_tokens"),
        "{value}"
    );
}

fn nats(value: &Value) -> f64 {
    number(value, "loss") * number(value, "tokens")
}

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
}

fn eval(dir: &TestDir, data: &[&str], more: &[&str]) -> Value {
    dir.json(&[&["eval", "run", "--json", "--data"][..], data, more].concat())
}

#[test]
fn short_last_windows_are_evaluated() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    // 101 bytes of text and an end-of-text token, windows of 16: six full ones and one of five targets.
    dir.write("a.txt", "It rained, é, all week. ".repeat(4) + "Then");
    let all = eval(&dir, &["a.txt"], &[]);
    let bytes = dir.read("a.txt").len() as u64;
    assert_eq!(count(&all, "tokens"), bytes);
    assert_eq!(count(&all, "all_tokens"), bytes + 1);
    assert_adds_up(&all);
    assert_close(
        number(&all, "bits_per_byte"),
        nats(&all) / 2_f64.ln() / (bytes - 1) as f64,
    );
    // The earlier name of `full`.
    let whole = eval(&dir, &["a.txt"], &["--windows", "whole"]);
    assert_eq!(count(&whole, "tokens"), bytes / 16 * 16);
    assert_adds_up(&whole);
    for size in ["1", "3", "100"] {
        let other = eval(&dir, &["a.txt"], &["--batch-size", size]);
        assert_close(number(&other, "loss"), number(&all, "loss"));
    }
    // Shorter than a window.
    dir.write("b.txt", "Hi!");
    let short = eval(&dir, &["b.txt"], &[]);
    assert_eq!(count(&short, "tokens"), 3);
    let text = dir.ok(&["eval", "run", "--data", "b.txt"]);
    assert!(
        text.contains("tokens         3\nomitted 1 token: first token of its stream"),
        "{text}"
    );

    // The loss is a mean over targets, so the last window counts like a separate file.
    let tokens = ids(100);
    dir.write("all.u16", le16(&tokens));
    dir.write("begin.u16", le16(&tokens[..97]));
    dir.write("end.u16", le16(&tokens[96..]));
    let all = eval(&dir, &["all.u16"], &[]);
    let parts = eval(&dir, &["begin.u16", "end.u16"], &[]);
    assert_eq!(count(&all, "tokens"), 99);
    assert_eq!(count(&parts, "tokens"), 99);
    assert_close(nats(&all), nats(&parts));
    // A single token is not a target.
    dir.write("one.u16", le16(&[7]));
    dir.expect_error(
        2,
        &["eval", "run", "--data", "one.u16"],
        &["one.u16", "no targets"],
    );
}

#[test]
fn data_sets_are_evaluated_separately() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.prepare("stories:40", "bytes", "p");
    dir.write("a.txt", "Nobody came to the door. ".repeat(5));
    dir.write("t.u16", le16(&ids(70)));
    let names = ["p", "a.txt", "t.u16"];
    let found = eval(&dir, &names, &[]);
    let sets = found["sets"].as_array().unwrap();
    let split = |set: &Value| set["split"].as_str().unwrap().to_owned();
    assert_eq!(
        sets.iter().map(split).collect::<Vec<_>>(),
        ["validation", "all", "all"]
    );
    for (set, name) in sets.iter().zip(names) {
        assert_eq!(set["name"], name);
        assert_adds_up(set);
        let alone = eval(&dir, &[name], &[]);
        for key in ["loss", "tokens", "perplexity", "bits_per_byte"] {
            assert_close(number(&alone, key), number(set, key));
        }
    }
    assert_adds_up(&found);
    assert_close(nats(&found), sets.iter().map(nats).sum());
    assert_close(number(&found, "perplexity"), number(&found, "loss").exp());
    let manifest = dir.json(&["data", "inspect", "p", "--json"]);
    let held_out = count(&manifest["manifest"]["validation"], "tokens");
    assert_eq!(count(&sets[0], "all_tokens"), held_out);
    let table = dir.ok(&["eval", "run", "--data", "p", "--data", "a.txt"]);
    for word in ["all sets, pooled", "validation", "a.txt: omitted 1 token"] {
        assert!(table.contains(word), "{table}");
    }

    // Nothing is dropped silently.
    let validation = |names: &[&'static str], words: &[&str]| {
        let args = ["eval", "run", "--split", "validation", "--data"];
        dir.expect_error(2, &[&args[..], names].concat(), words);
    };
    dir.write("tiny.txt", "One line.");
    validation(
        &["p", "tiny.txt"],
        &["tiny.txt", "the validation split is empty"],
    );
    validation(&["p", "t.u16"], &["t.u16", "no validation split"]);
    for twice in [["p", "p"], ["p", "./p"], ["a.txt", "a.txt"]] {
        let args = ["eval", "run", "--data", twice[0], twice[1]];
        dir.expect_error(2, &args, &["given twice"]);
    }
    // Equal tokens under two names.
    dir.write("u.u16", le16(&ids(70)));
    let found = eval(&dir, &["t.u16", "u.u16"], &[]);
    assert!(found["notes"][0].as_str().unwrap().contains("counts twice"));
}

#[test]
fn rows_are_evaluated_as_separate_windows() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let tokens = ids(240);
    for (file, shape, width) in [
        ("narrow.npy", "(24, 10)", 10),
        ("exact.npy", "(14, 17)", 17),
        ("wide.npy", "(6, 40)", 40),
    ] {
        let rows = tokens.len() / width;
        let tokens = &tokens[..rows * width];
        dir.write(file, numpy(shape, tokens));
        let found = eval(&dir, &[file], &["--batch-size", "3"]);
        assert_eq!(
            count(&found, "tokens"),
            (rows * (width - 1)) as u64,
            "{file}"
        );
        assert_eq!(omitted(&found), rows as u64);
        assert_adds_up(&found);
        let names: Vec<String> = (0..rows).map(|row| format!("{file}.{row}.u16")).collect();
        for (name, row) in names.iter().zip(tokens.chunks(width)) {
            dir.write(name, le16(row));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_close(nats(&found), nats(&eval(&dir, &names, &[])));
        if width != 17 {
            let data = format!("data.train=['{file}']");
            let words = [&format!("rows of {width} tokens")[..], "one instance", "17"];
            dir.train_fails(1, "other", &["--set", &data], &words);
        }
    }
}

#[test]
fn training_counts_omitted_tokens() {
    let dir = TestDir::new();
    let args = [
        "train",
        "tiny.toml",
        "--run",
        "run",
        "--json",
        "--set",
        "train.eval_sequences=2",
    ];
    let output = dir.run(&args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let data = &found["data"];
    for part in ["train", "validation"] {
        assert_adds_up(&data[part]);
        assert_eq!(count(&data[part], "tokens") % 16, 0);
    }
    assert_eq!(count(&data["validation"], "tokens"), 32);
    assert_eq!(count(&found["validation"], "tokens"), 32);
    assert_eq!(
        omitted(&found),
        omitted(&data["train"]) + omitted(&data["validation"])
    );
    let text = stderr(&output);
    for word in [
        "training data:",
        "validation data:",
        "at the end of a stream",
        "beyond the first 2 sequences",
    ] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn element_types_of_raw_tokens_are_detected() {
    let dir = TestDir::new();
    let tokens = ids(2_000);
    dir.write("wide.bin", le32(&tokens));
    dir.write("narrow.bin", le16(&tokens));
    dir.write("few.bin", le32(&tokens[..20]));
    let train = |run: &str, file: &str| {
        let data = format!("data.train=['{file}']");
        let output = dir.run(&["train", "tiny.toml", "--run", run, "--set", &data, "--json"]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (dir.column(run, "loss"), stderr(&output))
    };
    let (expected, note) = train("a", "narrow.bin");
    assert!(!note.contains("read as"), "{note}");
    assert!(note.contains("token files have no held-out part"), "{note}");
    let (found, note) = train("b", "wide.bin");
    assert!(note.contains("wide.bin: read as u32"), "{note}");
    assert_eq!(found, expected);
    let (found, note) = train("c", "wide.bin:u32");
    assert!(!note.contains("read as"), "{note}");
    assert_eq!(found, expected);
    let (found, note) = train("d", "wide.bin:u16");
    assert!(note.contains("as if it were u32"), "{note}");
    assert_ne!(found, expected);
    dir.train_fails(
        1,
        "e",
        &["--set", "data.train=['few.bin']"],
        &["`few.bin:u16` or `few.bin:u32`"],
    );
    let vocab = [
        "--set",
        "data.train=['narrow.bin']",
        "--set",
        "model.vocab_size=80000",
    ];
    let no_tokenizer = String::from_utf8(dir.read("tiny.toml")).unwrap();
    dir.write(
        "tiny.toml",
        no_tokenizer.replace("tokenizer = \"bytes\"\n", ""),
    );
    dir.train_fails(
        1,
        "e",
        &vocab,
        &["not u32 tokens below 80000", "`narrow.bin:u16`"],
    );
    dir.write("x.bin", b"PK\x03\x04 and more of a zip file");
    let data = [
        "--set",
        "data.train=['x.bin']",
        "--set",
        "model.vocab_size=257",
    ];
    dir.train_fails(1, "e", &data, &["x.bin", "a zip file"]);
}

#[cfg(unix)]
#[test]
fn pipes_are_not_token_files() {
    let dir = TestDir::new();
    for name in ["pipe.bin", "pipe.npy"] {
        let made = std::process::Command::new("mkfifo")
            .arg(dir.path(name))
            .status();
        assert!(made.unwrap().success());
        let data = format!("data.train=['{name}']");
        dir.train_fails(1, "run", &["--set", &data], &[name, "is a pipe"]);
    }
}

#[test]
fn huge_losses_have_short_perplexities() {
    let dir = TestDir::new();
    dir.write("a.txt", "Nobody came to the door. ".repeat(5));
    let output = dir.run(&[
        "train",
        "tiny.toml",
        "--run",
        "run",
        "--set",
        "optimizer.lr=300.0",
        "--set",
        "schedule.warmup_steps=0",
    ]);
    let mut text = stderr(&output);
    if code(&output) == 0 {
        text += &dir.ok(&["eval", "run", "--data", "a.txt"]);
    }
    let longest = text
        .split(|char: char| !char.is_ascii_digit())
        .map(str::len)
        .max();
    assert!(longest < Some(24), "{text}");
}

#[test]
fn mixed_precision_is_named_and_differs_little() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.write("a.txt", "It rained, all week. ".repeat(9));
    let single = eval(&dir, &["a.txt"], &[]);
    for (more, name) in [
        (&["--precision", "bf16"][..], "bf16, residual stream in f32"),
        (
            &["--precision", "bf16", "--residual-precision", "bf16"],
            "bf16, residual stream in bf16",
        ),
    ] {
        let mixed = eval(&dir, &["a.txt"], more);
        let (a, b) = (number(&mixed, "loss"), number(&single, "loss"));
        assert!(a != b && (a - b).abs() < 0.02 * b, "{a} {b}");
        assert_eq!(mixed["precision"], name);
        assert_eq!(single["precision"], "f32");
        let note = format!("computed in {name}");
        assert!(mixed.to_string().contains(&note), "{mixed}");
        assert!(!single.to_string().contains("computed in"));
        let text = dir.ok(&[&["eval", "run", "--data", "a.txt"], more].concat());
        assert!(text.contains(&note), "{text}");
    }
    let args = [
        "eval",
        "run",
        "--data",
        "a.txt",
        "--residual-precision",
        "bf16",
    ];
    dir.expect_any_error(&args, &["no effect without --precision bf16"]);
}

#[test]
fn text_is_generated_in_mixed_precision() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let args = [
        "generate",
        "run",
        "--prompt",
        "It",
        "--max-tokens",
        "9",
        "--precision",
        "bf16",
    ];
    let found = dir.json(&[&args[..], &["--json"]].concat());
    assert_eq!(found, dir.json(&[&args[..], &["--json"]].concat()));
    assert_eq!(found["precision"], "bf16, residual stream in f32");
    assert_eq!(found["tokens"], 9);
    assert!(!found["text"].as_str().unwrap().is_empty(), "{found}");
}

#[test]
fn a_residual_stream_in_bfloat16_without_effect_is_an_error() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "model.placement=ngpt"]);
    let args = ["--precision", "bf16", "--residual-precision", "bf16"];
    let generate = ["generate", "run", "--prompt", "It"];
    dir.expect_any_error(
        &[&generate[..], &args].concat(),
        &["has no effect on this model"],
    );
    dir.ok(&[&generate[..], &args[..2]].concat());
}
