//! A long text encodes to the tokens that the `tokenizers` crate returns for the whole text.

use hybridnorm::data::Tokenizer;
use serde_json::{Value, json};

fn file(normalizer: Value, pre_tokenizer: Value, model: Value) -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": model})
}

/// Returns a BPE model in which `space` represents a space.
fn bpe(space: char) -> Value {
    let mut vocab = json!({"?": 0, "</s>": 1});
    let letters: Vec<char> = format!("abcdeknorstw.,<>/5\n{space}").chars().collect();
    let more = ["to", "or", "ne", "be"].map(str::to_owned);
    let spaced = [
        format!("{space}{space}"),
        format!("{space}to"),
        format!("{space}or"),
    ];
    let tokens = letters
        .iter()
        .map(char::to_string)
        .chain(more)
        .chain(spaced);
    for (id, token) in (2..).zip(tokens) {
        vocab[token] = id.into();
    }
    let merges = json!([
        ["t", "o"],
        ["o", "r"],
        ["n", "e"],
        ["b", "e"],
        [space.to_string(), space.to_string()],
        [space.to_string(), "to"],
        [space.to_string(), "or"]
    ]);
    json!({"type": "BPE", "unk_token": "?", "fuse_unk": true, "vocab": vocab, "merges": merges})
}

fn unigram() -> Value {
    let bpe = bpe('\u{2581}');
    let mut names: Vec<_> = bpe["vocab"].as_object().unwrap().iter().collect();
    names.sort_by_key(|(_, id)| id.as_u64());
    let scored = names.iter().map(|(name, id)| {
        json!([
            name,
            -2.0 - 0.37 * id.as_f64().unwrap() / name.chars().count() as f64
        ])
    });
    json!({"type": "Unigram", "unk_id": 0, "vocab": scored.collect::<Vec<_>>()})
}

fn files() -> Vec<(&'static str, Value)> {
    let mark = "\u{2581}";
    let prepend = json!({"type": "Prepend", "prepend": mark});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": mark});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let replace_alone = replace.clone();
    let kind = |kind: &str| match kind {
        "Digits" => json!({"type": kind, "individual_digits": true}),
        "Punctuation" => json!({"type": kind, "behavior": "Isolated"}),
        _ => json!({"type": kind}),
    };
    let steps = |steps: &[Value]| json!({"type": "Sequence", "pretokenizers": steps});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme, "split": split});
    let level = |prefix: bool, regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true,
            "use_regex": regex})
    };
    let split = |pattern: &str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false})
    };
    let on_spaces = json!({"type": "Split", "pattern": {"String": " "},
        "behavior": "MergedWithPrevious", "invert": false});
    let tail = r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let sequence = json!({"type": "Sequence", "pretokenizers": [
        split(r"\p{N}{1,3}"), split("[\u{4e00}-\u{9fa5}]+"), split(tail), level(false, false)]});
    vec![
        ("Llama", file(both.clone(), Value::Null, bpe('\u{2581}'))),
        ("Gemma", file(replace, on_spaces, bpe('\u{2581}'))),
        ("bare BPE", file(Value::Null, Value::Null, bpe(' '))),
        (
            "T5",
            file(Value::Null, metaspace("always", true), unigram()),
        ),
        (
            "first",
            file(Value::Null, metaspace("first", true), unigram()),
        ),
        (
            "no words",
            file(Value::Null, metaspace("always", false), unigram()),
        ),
        ("Unigram after Prepend", file(both, Value::Null, unigram())),
        (
            "GPT-2",
            file(Value::Null, level(false, true), bpe('\u{120}')),
        ),
        (
            "prefix",
            file(Value::Null, level(true, true), bpe('\u{120}')),
        ),
        (
            "bytes alone",
            file(Value::Null, level(false, false), bpe('\u{120}')),
        ),
        ("DeepSeek", file(Value::Null, sequence, bpe('\u{120}'))),
        (
            "XLM-R",
            file(
                Value::Null,
                steps(&[kind("WhitespaceSplit"), metaspace("always", true)]),
                unigram(),
            ),
        ),
        (
            "first word",
            file(
                Value::Null,
                steps(&[kind("WhitespaceSplit"), metaspace("first", true)]),
                unigram(),
            ),
        ),
        (
            "marked punctuation",
            file(
                Value::Null,
                steps(&[kind("Punctuation"), metaspace("always", true)]),
                unigram(),
            ),
        ),
        (
            "prefix of every word",
            file(
                Value::Null,
                steps(&[kind("Digits"), level(true, true)]),
                bpe('\u{120}'),
            ),
        ),
        (
            "marks that no splitter sees",
            file(replace_alone, kind("WhitespaceSplit"), bpe('\u{2581}')),
        ),
    ]
}

#[test]
fn chunked_encoding_equals_encoding_of_the_whole_text() {
    let lines = [
        "to be, or  not to be \n born ",
        "at 55 stones <to> end. ",
        "  sent\n\nback,  \u{e9}\u{5de8} ",
    ];
    let text: String = (0..3_000).map(|n| lines[n * n % 3]).collect();
    for (name, json) in files() {
        let bytes = json.to_string().into_bytes();
        let whole = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
        let tokenizer = Tokenizer::from_json(bytes, None).unwrap();
        for text in [text.as_str(), &format!(" {text}")] {
            let expected = whole.encode_fast(text, false).unwrap();
            assert!(
                tokenizer.encode(text).unwrap() == expected.get_ids(),
                "{name}"
            );
        }
        if name == "XLM-R" {
            assert!(tokenizer.encode(&"to\n".repeat(400_000)).is_ok());
        }
        // Long enough to be rejected if it could not be split, with spaces and without.
        if ["Gemma", "first", "prefix"].contains(&name) {
            assert!(tokenizer.encode(&text.repeat(17)).is_ok(), "{name}");
            assert!(tokenizer.encode(&"to".repeat(530_000)).is_ok(), "{name}");
        }
    }
}

/// If tokens span spaces, a text is split only after 1 MiB, and two tokens may differ there.
#[test]
fn tokens_across_spaces() {
    let mut model = bpe('\u{2581}');
    model["vocab"]["s\u{2581}"] = 40.into();
    model["merges"] = json!([["s", "\u{2581}"], ["t", "o"]]);
    let both = files().swap_remove(0).1["normalizer"].clone();
    let json = file(both, Value::Null, model).to_string().into_bytes();
    let whole = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    let tokenizer = Tokenizer::from_json(json, None).unwrap();
    let text = "stones to be ".repeat(90_000);
    let expected = whole.encode_fast(text.as_str(), false).unwrap();
    let (expected, found) = (expected.get_ids(), tokenizer.encode(&text).unwrap());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b);
    let after = expected.iter().rev().zip(found.iter().rev());
    let same = same.count() + after.take_while(|(a, b)| a == b).count();
    assert!(same + 2 >= expected.len(), "{same} of {}", expected.len());
    let short = &text[..900_000];
    let expected = whole.encode_fast(short, false).unwrap();
    assert!(tokenizer.encode(short).unwrap() == expected.get_ids());
}
