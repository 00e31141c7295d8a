//! Malicious tokenizer files: each works or fails with one line, within memory bounds.

#[path = "../common/mod.rs"]
mod common;
mod json;

use std::process::Command;

use common::{TestDir, code, stderr};
use json::*;
use serde_json::{Value, json};

/// Address space in KiB within which every file must be handled.
const MEMORY_KIB: u64 = 3_000_000;

const TEXT: &str = "the kite aaaa is red, </s> na\u{ef}ve 12\n";

fn doubling() -> Value {
    replace(text("a"), "aa")
}

type Files = Vec<(&'static str, Value)>;

/// Components that multiply the text, or tokens that do.
fn growing_components() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for n in [8, 20, 40, 63, 70] {
        let steps = sequence("normalizers", vec![doubling(); n]);
        add("doubling", with(word_level(), "/normalizer", steps));
    }
    let deep = (0..7).fold(doubling(), |part, _| sequence("normalizers", vec![part; 4]));
    add(
        "doubling in a tree",
        with(word_level(), "/normalizer", deep),
    );
    let empty = sequence("normalizers", vec![replace(regex(""), "ab"); 30]);
    add(
        "between all characters",
        with(word_level(), "/normalizer", empty),
    );
    let ahead = sequence("normalizers", vec![replace(regex("(?=.)"), "ab"); 30]);
    add(
        "before all characters",
        with(word_level(), "/normalizer", ahead),
    );
    let long = replace(regex("a"), &"b".repeat(3_000_000));
    add("long content", with(word_level(), "/normalizer", long));
    let prepend = json!({"type": "Prepend", "prepend": "b".repeat(2_000_000)});
    add(
        "long prefix",
        with(word_level(), "/normalizer", prepend.clone()),
    );
    let prepends = sequence(
        "normalizers",
        vec![json!({"type": "Prepend", "prepend": "b".repeat(900)}); 60],
    );
    add("many prefixes", with(word_level(), "/normalizer", prepends));
    let bytes = sequence("normalizers", vec![json!({"type": "ByteLevel"}); 40]);
    add(
        "repeated byte-level normalizers",
        with(word_level(), "/normalizer", bytes),
    );
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let bytes = sequence("pretokenizers", vec![byte_level; 30]);
    add(
        "repeated byte-level pre-tokenizers",
        with(word_level(), "/pre_tokenizer", bytes),
    );
    let decoder = sequence("decoders", vec![doubling(); 40]);
    add("doubling decoder", with(word_level(), "/decoder", decoder));
    let mut file = with(
        word_level(),
        "/normalizer",
        sequence("normalizers", vec![doubling(); 15]),
    );
    file["added_tokens"] = json!([added(json!(5), &"a".repeat(1000))]);
    add("added token that grows", file);
    files
}

/// Deeply nested components.
fn nested_components() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for depth in [5, 50, 120, 5000] {
        let lowercase = json!({"type": "Lowercase"});
        let normalizer = nested("Sequence", "normalizers", depth.min(100), lowercase);
        add(
            "nested normalizer",
            with(word_level(), "/normalizer", normalizer),
        );
        let split = json!({"type": "Whitespace"});
        let splits = nested("Sequence", "pretokenizers", depth.min(100), split);
        add(
            "nested pre-tokenizer",
            with(word_level(), "/pre_tokenizer", splits),
        );
        let fuse = json!({"type": "Fuse"});
        add(
            "nested decoder",
            with(
                word_level(),
                "/decoder",
                nested("Sequence", "decoders", depth.min(100), fuse),
            ),
        );
        let byte = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
        add(
            "nested processor",
            with(
                word_level(),
                "/post_processor",
                nested("Sequence", "processors", depth.min(100), byte),
            ),
        );
    }
    files
}

/// Long tokens and invalid ids.
fn unusual_vocabularies() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for length in [1000, 30_000, 1_000_000] {
        let vocab = json!([["?", 0.0], ["</s>", 0.0], ["a".repeat(length), -1.0]]);
        add("long Unigram token", model(unigram(), "vocab", vocab));
        let mut file = word_level();
        file["added_tokens"] = json!([added(json!(5), &"b".repeat(length))]);
        add("long added token", file);
        let prefix = json!("#".repeat(length));
        add(
            "long prefix",
            model(bpe(), "continuing_subword_prefix", prefix.clone()),
        );
        add(
            "long suffix",
            model(bpe(), "end_of_word_suffix", prefix.clone()),
        );
    }
    for id in [
        json!(60_000),
        json!(4_000_000_000_u64),
        json!(1_u64 << 40),
        json!(-1),
        json!(2.5),
        json!("2"),
        json!(null),
    ] {
        add(
            "odd id",
            model(word_level(), "vocab", json!({"?": 0, "</s>": 1, "the": id})),
        );
        let mut file = word_level();
        file["added_tokens"] = json!([added(id, "kites")]);
        add("odd added id", file);
    }
    files
}

/// Empty, duplicate, malformed and very many tokens.
fn inconsistent_vocabularies() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    add(
        "duplicate id",
        model(
            word_level(),
            "vocab",
            json!({"?": 0, "</s>": 1, "the": 1, "a": 1}),
        ),
    );
    add("no token", model(word_level(), "vocab", json!({})));
    add("no piece", model(unigram(), "vocab", json!([])));
    add(
        "vocabulary of numbers",
        model(word_level(), "vocab", json!(7)),
    );
    let nul = json!({"?": 0, "</s>": 1, "\u{1b}[31mred\u{7}": "x"});
    add("control characters", model(word_level(), "vocab", nul));
    let mut file = word_level();
    file["added_tokens"] = json!([added(json!(5), "x"), added(json!(5), "y")]);
    add("two added tokens with one id", file.clone());
    file["added_tokens"] = json!([added(json!(5), ""), added(json!(6), "y")]);
    add("empty added token", file.clone());
    file["added_tokens"] = (0..200_000)
        .map(|id| added(json!(id + 5), &format!("t{id}")))
        .collect();
    add("too many added tokens", file.clone());
    file["added_tokens"] = (0..20_000)
        .map(|id| added(json!(id + 5), &format!("t{id}")))
        .collect();
    add("many added tokens", file);
    files
}

/// Invalid merges and dropout.
fn inconsistent_models() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    add(
        "merge of unknown tokens",
        model(bpe(), "merges", json!(["x y"])),
    );
    add(
        "merge into an unknown token",
        model(bpe(), "merges", json!(["aa aa"])),
    );
    add("merge of one", model(bpe(), "merges", json!(["a"])));
    add(
        "merge of three",
        model(bpe(), "merges", json!([["a", "a", "a"]])),
    );
    add("merges are a number", model(bpe(), "merges", json!(3)));
    add(
        "merges beyond the prefix",
        model(bpe(), "continuing_subword_prefix", json!("##long")),
    );
    add(
        "unknown token is unknown",
        model(bpe(), "unk_token", json!("none")),
    );
    for dropout in [json!(0.5), json!(1.0), json!(7), json!(-1), json!("x")] {
        add("dropout", model(bpe(), "dropout", dropout));
    }
    files
}

/// Invalid scores, word lengths and kinds of models.
fn invalid_scores_and_kinds() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for unknown in [
        json!(2),
        json!(3),
        json!(-1),
        json!(1_u64 << 40),
        json!(null),
    ] {
        add("unknown piece", model(unigram(), "unk_id", unknown));
    }
    for score in [
        json!(1e308),
        json!(-1e308),
        json!(5.0),
        json!("NaN"),
        json!(null),
    ] {
        let vocab = json!([["?", 0.0], ["</s>", -1e308], ["a", score], ["aa", 1e308]]);
        add("odd score", model(unigram(), "vocab", vocab));
    }
    let nested_pieces: Vec<Value> = (1..=1000).map(|n| json!(["a".repeat(n), -1.0])).collect();
    let vocab = [vec![json!(["?", 0.0]), json!(["</s>", 0.0])], nested_pieces].concat();
    add(
        "tokens that are prefixes of each other",
        model(unigram(), "vocab", json!(vocab)),
    );
    for most in [json!(0), json!(1_000_000_000), json!(-1)] {
        let mut file = model(word_level(), "type", json!("WordPiece"));
        file["model"]["continuing_subword_prefix"] = json!("##");
        add(
            "longest word",
            model(file, "max_input_chars_per_word", most),
        );
    }
    add(
        "no model of that kind",
        model(word_level(), "type", json!("Neural")),
    );
    add("no kind", model(word_level(), "type", json!(null)));
    files
}

/// Unknown components and invalid character maps.
fn unusual_components() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for kind in ["Nothing", "Precompiled", "Replace", "\u{1b}[2J"] {
        add(
            "unknown normalizer",
            with(word_level(), "/normalizer", json!({"type": kind})),
        );
        add(
            "unknown pre-tokenizer",
            with(word_level(), "/pre_tokenizer", json!({"type": kind})),
        );
        add(
            "unknown decoder",
            with(word_level(), "/decoder", json!({"type": kind})),
        );
        add(
            "unknown processor",
            with(word_level(), "/post_processor", json!({"type": kind})),
        );
    }
    for map in [
        "",
        "AAAA",
        "/////w==",
        "////fw==AAAA",
        "!!!!",
        "BAAAAP////8=",
    ] {
        let part = json!({"type": "Precompiled", "precompiled_charsmap": map});
        add("charsmap", with(word_level(), "/normalizer", part));
    }
    files
}

/// Patterns with exponential backtracking or large automata.
fn catastrophic_patterns() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for pattern in [
        "(a+)+$",
        "(?=(a+)+b)",
        "(",
        "((a{1000}){1000}){1000}",
        "(?<!x)(a|aa)+$",
        "\\p{L}{99999}",
    ] {
        let split = |behavior| json!({"type": "Split", "pattern": regex(pattern), "behavior": behavior, "invert": false});
        add(
            "catastrophic split",
            with(word_level(), "/pre_tokenizer", split("Isolated")),
        );
        add(
            "catastrophic split",
            with(word_level(), "/pre_tokenizer", split("Removed")),
        );
        add(
            "catastrophic replacement",
            with(word_level(), "/normalizer", replace(regex(pattern), "b")),
        );
    }
    let long = json!({"type": "Split", "pattern": regex(&"a?".repeat(100_000)), "behavior": "Isolated", "invert": false});
    add("long pattern", with(word_level(), "/pre_tokenizer", long));
    files
}

/// Components with extreme arguments.
fn extreme_arguments() -> Files {
    let mut files = Files::new();
    let mut add = |name, file| files.push((name, file));
    for length in [json!(0), json!(1), json!(u64::MAX), json!(-1)] {
        add(
            "fixed length",
            with(
                word_level(),
                "/pre_tokenizer",
                json!({"type": "FixedLength", "length": length}),
            ),
        );
        let strip = json!({"type": "Strip", "content": "a", "start": length, "stop": length});
        add("strip", with(word_level(), "/decoder", strip));
    }
    let template: Vec<Value> = (0..200_000)
        .map(|_| json!({"Sequence": {"id": "A", "type_id": 0}}))
        .collect();
    let template =
        json!({"type": "TemplateProcessing", "single": template, "pair": [], "special_tokens": {}});
    add("template", with(word_level(), "/post_processor", template));
    for most in [json!(0), json!(1), json!(-1), json!(u64::MAX)] {
        let mut file = word_level();
        file["truncation"] = json!({"direction": "Right", "max_length": most, "strategy": "LongestFirst", "stride": 5});
        file["padding"] = json!({"strategy": {"Fixed": most}, "direction": "Right", "pad_to_multiple_of": most,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "?"});
        add("truncation and padding", file);
    }
    files
}

/// Files that are not valid JSON documents of one model.
fn malformed_files() -> Vec<(String, Vec<u8>)> {
    let open = [b"[".repeat(200_000), b"{\"model\":".repeat(100_000)];
    let mut files = open
        .map(|file| ("opened and not closed".into(), file))
        .to_vec();
    let twice = word_level()
        .to_string()
        .replacen('{', "{\"model\": {\"vocab\": {}}, ", 1);
    files.push(("two models".into(), twice.into_bytes()));
    files
}

fn crafted() -> Vec<(String, Vec<u8>)> {
    let files = [
        growing_components(),
        nested_components(),
        unusual_vocabularies(),
        inconsistent_vocabularies(),
        inconsistent_models(),
        invalid_scores_and_kinds(),
        unusual_components(),
        catastrophic_patterns(),
        extreme_arguments(),
    ];
    let mut files: Vec<(String, Vec<u8>)> = files
        .into_iter()
        .flatten()
        .map(|(name, file)| (name.to_owned(), file.to_string().into_bytes()))
        .collect();
    files.extend(malformed_files());
    files
}

#[test]
fn tokenizer_files_at_even_indices_load_or_fail_with_one_line() {
    try_files(0);
}

#[test]
fn tokenizer_files_at_odd_indices_load_or_fail_with_one_line() {
    try_files(1);
}

fn try_files(first: usize) {
    let dir = TestDir::new();
    dir.write("text.jsonl", json!({"text": TEXT.repeat(20)}).to_string());
    let files = crafted();
    assert!(files.len() > 100, "{}", files.len());
    let mut works = 0;
    for (index, (name, file)) in files.iter().enumerate().skip(first).step_by(2) {
        let tokenizer = format!("{index}.json");
        dir.write(&tokenizer, file);
        let script = format!("ulimit -v {MEMORY_KIB}; exec \"$@\"");
        let out = format!("out{index}");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_hybridnorm")])
            .args(["--threads", "1", "data", "prepare", "text.jsonl"])
            .args(["--tokenizer", &tokenizer, "--out", &out])
            .args(["--validation-fraction", "0", "--quiet"])
            .current_dir(dir.path(""))
            .env("XDG_CACHE_HOME", dir.path("cache"));
        let output = command.output().unwrap();
        let text = stderr(&output);
        if code(&output) == 0 {
            assert_eq!(text, "", "{name}");
            works += 1;
            continue;
        }
        let start: String = String::from_utf8_lossy(file).chars().take(300).collect();
        assert!(
            [1, 2].contains(&code(&output)),
            "{name}: {output:?} {start}"
        );
        assert_eq!(text.lines().count(), 1, "{name}: {text}");
        assert!(text.starts_with("error: "), "{name}: {text}");
        assert!(text.contains(&tokenizer), "{name}: {text}");
        assert!(
            text.len() < 1500 && !text.contains('\u{1b}'),
            "{name}: {text}"
        );
        for word in ["internal error", "panicked", "untagged", "u32", "usize"] {
            assert!(!text.contains(word), "{name}: {text}");
        }
    }
    assert!(works > 10, "{works}");
}
