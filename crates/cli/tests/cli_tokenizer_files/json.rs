//! Parts of a `tokenizer.json`.

use serde_json::{Value, json};

pub fn word_level() -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "model": {"type": "WordLevel", "unk_token": "?",
            "vocab": {"?": 0, "</s>": 1, "the": 2, "kite": 3, "a": 4}}})
}

pub fn unigram() -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "pre_tokenizer": null, "post_processor": null,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["?", 0.0], ["</s>", 0.0], ["a", -1.0]]}})
}

pub fn bpe() -> Value {
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "pre_tokenizer": null, "post_processor": null,
        "model": {"type": "BPE", "unk_token": "?", "vocab": {"?": 0, "</s>": 1, "a": 2, "aa": 3},
            "merges": ["a a"]}})
}

pub fn with(mut file: Value, key: &str, value: Value) -> Value {
    *file.pointer_mut(key).unwrap_or_else(|| panic!("{key}")) = value;
    file
}

pub fn model(mut file: Value, key: &str, value: Value) -> Value {
    file["model"][key] = value;
    file
}

pub fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

pub fn sequence(key: &str, parts: Vec<Value>) -> Value {
    json!({"type": "Sequence", key: parts})
}

pub fn nested(kind: &str, key: &str, depth: usize, inner: Value) -> Value {
    (0..depth).fold(inner, |part, _| json!({"type": kind, key: [part]}))
}

pub fn added(id: Value, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": true, "special": false})
}

pub fn text(pattern: &str) -> Value {
    json!({"String": pattern})
}

pub fn regex(pattern: &str) -> Value {
    json!({"Regex": pattern})
}
