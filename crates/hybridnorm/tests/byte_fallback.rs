//! Byte tokens and single-character tokens encode text even if `tokenizer.json` declares them special, since that
//! text has no other encoding. Text that spells the name of such a token is still text.

use hybridnorm::data::Tokenizer;
use serde_json::{Value, json};

fn tokenizer(file: &Value) -> Tokenizer {
    Tokenizer::from_json(file.to_string().into_bytes(), None).unwrap()
}

fn special(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// Returns `<unk>`, `</s>`, the byte tokens from id 2 on, then `more`.
fn names(more: &[&str]) -> Vec<String> {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let ends = ["<unk>", "</s>"].map(str::to_owned);
    let more = more.iter().map(|&name| name.to_owned());
    ends.into_iter().chain(bytes).chain(more).collect()
}

fn file(model: Value) -> Value {
    json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model})
}

fn bpe(more: &[&str], merges: &[&str]) -> Value {
    let ids = names(more).into_iter().zip(0..);
    let vocab: serde_json::Map<String, Value> = ids.map(|(name, id)| (name, id.into())).collect();
    file(
        json!({"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
        "vocab": vocab, "merges": merges}),
    )
}

fn unigram(more: &[&str]) -> Value {
    let scored = names(more).into_iter().zip(0..);
    let vocab: Vec<Value> = scored
        .map(|(name, id)| json!([name, if id < 258 { 0.0 } else { -2.0 }]))
        .collect();
    file(json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": vocab}))
}

/// Declares the first 258 tokens special.
fn declared(mut file: Value) -> Value {
    let special = names(&[])
        .iter()
        .enumerate()
        .map(|(id, name)| special(id, name))
        .collect();
    file["added_tokens"] = Value::Array(special);
    file
}

const LETTERS: [&str; 14] = [
    "\u{2581}", "r", "e", "d", "k", "i", "t", "<", ">", "0", "x", "4", "1", "re",
];

#[test]
fn byte_fallback_tokens_marked_special_are_encoded() {
    let models = [bpe(&LETTERS, &["r e"]), unigram(&LETTERS)];
    for file in models {
        let (plain, declared) = (tokenizer(&file), tokenizer(&declared(file)));
        for text in [
            "red kite",
            "a red \u{5de8}kite",
            "\0\u{1f989}\n tired  ",
            "caf\u{e9} </s> <unk> red",
            "",
        ] {
            let ids = declared.encode(text).unwrap();
            assert_eq!(ids, plain.encode(text).unwrap(), "{text}");
            if !text.contains('<') {
                assert_eq!(declared.decode(&ids), text);
                assert!(!ids.contains(&0), "{text}: {ids:?}");
            }
            assert!(!ids.contains(&1), "{text}: {ids:?}");
        }
        assert_eq!(declared.special_tokens(), ["</s>"]);
    }
}

/// 0x41 is the letter `A`, which no vocabulary here contains.
#[test]
fn literal_byte_token_names_are_encoded_as_text() {
    let merges = ["< 0", "<0 x", "4 1", "<0x 41", "<0x41 >"];
    let parts = [&LETTERS[..], &["<0", "<0x", "41", "<0x41"]].concat();
    let mut looked_up = bpe(&parts, &merges[..2]);
    looked_up["model"]["ignore_merges"] = true.into();
    looked_up["normalizer"] = Value::Null;
    let a = 2 + 0x41;
    for (name, file) in [
        ("Unigram", unigram(&LETTERS)),
        ("BPE", bpe(&LETTERS, &["r e"])),
        ("BPE that merges up to it", bpe(&parts, &merges)),
        ("BPE that looks words up", looked_up),
    ] {
        for file in [file.clone(), declared(file)] {
            let tokenizer = tokenizer(&file);
            assert!(tokenizer.encode("red A").unwrap().contains(&a), "{name}");
            for text in ["<0x41>", "red <0x41>", "<0x41><0x41>kite", "<<0x41>>"] {
                let ids = tokenizer.encode(text).unwrap();
                assert!(!ids.contains(&a), "{name} {text}: {ids:?}");
                let with_others = format!("{text} \u{e9}");
                let ids = tokenizer.encode(&with_others).unwrap();
                assert!(!ids.contains(&a), "{name} {text}: {ids:?}");
                assert!(
                    ids.ends_with(&[2 + 0xc3, 2 + 0xa9]),
                    "{name} {text}: {ids:?}"
                );
                assert!(tokenizer.decode(&ids).contains("<0x41>"), "{name} {text}");
            }
        }
    }
}

#[test]
fn single_character_special_tokens_are_encoded() {
    let mut json = bpe(&["\n", "r", "e", "d", "\u{2581}"], &[]);
    json["model"]["byte_fallback"] = false.into();
    json["added_tokens"] = json!([special(0, "<unk>"), special(1, "</s>"), special(258, "\n")]);
    let found = tokenizer(&json).encode("red\nred").unwrap();
    assert_eq!(found, [262, 259, 260, 261, 258, 259, 260, 261]);
    // Text never encodes to the end-of-text token.
    json["added_tokens"] = json!([special(258, "\n")]);
    let ending = Tokenizer::from_json(json.to_string().into_bytes(), Some("\n")).unwrap();
    assert!(!ending.encode("red\nred").unwrap().contains(&258));
}

#[test]
fn words_beside_special_tokens_keep_their_tokens() {
    let mut json = bpe(&["t", "h", "e", "th", "the"], &["t h", "th e"]);
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
    json["added_tokens"] = json!([special(1, "</s>"), special(261, "th")]);
    let tokenizer = tokenizer(&json);
    assert_eq!(tokenizer.encode("the").unwrap(), [262]);
    assert_eq!(
        tokenizer.encode("the th the").unwrap(),
        [262, 258, 259, 262]
    );
}
