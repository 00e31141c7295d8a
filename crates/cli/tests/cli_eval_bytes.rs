//! Bits per byte refer to the original text for any tokenizer, or are not reported.

mod common;

use common::TestDir;
use serde_json::{Value, json};

/// Writes a modified byte-level tokenizer to a separate file.
fn write_tokenizer(dir: &TestDir, name: &str, change: impl FnOnce(&mut Value)) {
    let mut file: Value = serde_json::from_slice(&dir.read("bytes/tokenizer.json")).unwrap();
    file["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    change(&mut file);
    dir.write(&format!("{name}.json"), file.to_string());
}

/// Writes tokenizers that keep, extend, strip, expand and lower-case text.
fn write_tokenizers(dir: &TestDir) {
    write_tokenizer(dir, "exact", |_| {});
    write_tokenizer(dir, "prefix", |file| {
        file["pre_tokenizer"]["add_prefix_space"] = true.into();
    });
    write_tokenizer(dir, "strip", |file| {
        file["normalizer"] = json!({"type": "Sequence",
            "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}]});
    });
    write_tokenizer(dir, "grow", |file| {
        file["normalizer"] =
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "    "});
    });
    write_tokenizer(dir, "lower", |file| {
        file["normalizer"] = json!({"type": "Lowercase"});
    });
}

/// Function that returns the number of tokens of a text.
type CountTokens<'l> = &'l dyn Fn(&str) -> usize;

fn eval(dir: &TestDir, run: &str, data: &str, windows: &str) -> Value {
    dir.json(&["eval", run, "--json", "--data", data, "--windows", windows])
}

/// Writes a text of 320 tokens, whose targets fill whole windows, and one of 325.
fn texts(dir: &TestDir, tokens_of: impl Fn(&str) -> usize) -> [String; 2] {
    [320, 325].map(|wanted| {
        let mut text = String::from("It rained, \u{e9}\u{e8}, all day");
        while tokens_of(&text) < wanted {
            text.push_str(match wanted - tokens_of(&text) {
                1..=5 => "x",
                _ => " a",
            });
        }
        assert_eq!(tokens_of(&text), wanted);
        dir.write(&format!("{wanted}.txt"), &text);
        text
    })
}

#[test]
fn all_and_full_windows_count_the_bytes_of_the_text() {
    let dir = TestDir::new();
    dir.prepare("stories:5", "bytes", "bytes");
    write_tokenizers(&dir);
    let spaces = |text: &str| text.matches(' ').count();
    let lengths: [(&str, CountTokens, u64); 5] = [
        ("exact", &|text| text.len(), 1),
        // The prepended space is not part of the text.
        ("prefix", &|text| text.len() + 1, 0),
        ("strip", &|text| text.chars().count(), 1),
        ("grow", &|text| text.len() + 3 * spaces(text), 1),
        ("lower", &|text| text.len(), 1),
    ];
    for (name, tokens_of, first) in lengths {
        let [whole, longer] = texts(&dir, tokens_of);
        let tokenizer = format!("data.tokenizer=\"{name}.json\"");
        dir.train(name, &["--set", &tokenizer, "--set", "train.steps=5"]);
        let all = eval(&dir, name, "320.txt", "all");
        let same = eval(&dir, name, "320.txt", "full");
        assert_eq!(all["tokens"], 320, "{name}");
        assert_eq!(
            all["text_bytes"],
            whole.len() as u64 - first,
            "{name}: {all}"
        );
        for key in ["tokens", "text_bytes", "bits_per_byte"] {
            assert_eq!(all[key], same[key], "{name}: {all}\n{same}");
        }
        // Five tokens are omitted, whose bytes only an exact tokenizer determines.
        let all = eval(&dir, name, "325.txt", "all");
        assert_eq!(all["text_bytes"], longer.len() as u64 - first, "{name}");
        let part = eval(&dir, name, "325.txt", "full");
        assert_eq!(part["tokens"], 320, "{name}");
        let reason = part["sets"][0]["no_bits_per_byte"].as_str();
        match name {
            "exact" => {
                let bytes = part["text_bytes"].as_u64().unwrap();
                assert!(part["bits_per_byte"].is_f64() && bytes < longer.len() as u64 - first);
            }
            _ => {
                assert!(part["bits_per_byte"].is_null(), "{name}: {part}");
                assert!(reason.unwrap().contains("changes text"), "{name}: {part}");
            }
        }
        // Tokens without text.
        let ids: Vec<u8> = (0..40_u16)
            .flat_map(|id| (id % 7 + 40).to_le_bytes())
            .collect();
        dir.write("pretokenized.u16", ids);
        for windows in ["all", "full"] {
            let found = eval(&dir, name, "pretokenized.u16", windows);
            assert_eq!(
                found["bits_per_byte"].is_f64(),
                name == "exact",
                "{name}: {found}"
            );
        }
    }
}

#[test]
fn a_first_token_may_be_part_of_a_character() {
    let dir = TestDir::new();
    dir.prepare("stories:5", "bytes", "bytes");
    write_tokenizer(&dir, "lower", |file| {
        file["normalizer"] = json!({"type": "Lowercase"});
    });
    dir.train(
        "run",
        &[
            "--set",
            "data.tokenizer=\"lower.json\"",
            "--set",
            "train.steps=5",
        ],
    );
    dir.write("a.txt", "\u{c9}t\u{e9}, l'\u{e9}t\u{e9} ".repeat(20));
    let found = eval(&dir, "run", "a.txt", "all");
    assert!(found["bits_per_byte"].is_null());
    let reason = found["sets"][0]["no_bits_per_byte"].as_str().unwrap();
    assert!(reason.contains("ends within a character"), "{reason}");
    // A prepared folder gives the same values as its text.
    dir.write("b.txt", "The red kite, l'\u{e9}t\u{e9} ".repeat(20));
    dir.ok(&[
        "data",
        "prepare",
        "b.txt",
        "--tokenizer",
        "lower.json",
        "--out",
        "b",
        "--validation-fraction",
        "0",
    ]);
    let (text, folder) = (
        eval(&dir, "run", "b.txt", "all"),
        eval(&dir, "run", "b", "all"),
    );
    for key in ["text_bytes", "bits_per_byte"] {
        assert!(!text[key].is_null());
        assert_eq!(text[key], folder[key]);
    }
}
