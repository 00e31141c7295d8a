use std::path::Path;

use super::super::pre_tokenizers::PRE_TOKENIZERS;
use super::super::reader::GgufFile;
use super::*;
use crate::data::Tokenizer;

fn metadata(name: &str) -> BTreeMap<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let file = GgufFile::open(&path.join(name)).unwrap();
    file.metadata().clone()
}

fn problem(change: impl FnOnce(&mut BTreeMap<String, Value>)) -> String {
    let mut metadata = metadata("words.gguf");
    change(&mut metadata);
    convert(&metadata)
        .err()
        .expect("the metadata are malformed")
}

#[test]
fn every_pre_tokenizer_gives_the_ids_of_llama_cpp() {
    let words = include_str!("../../../../tests/fixtures/gguf/words.json");
    let words: Json = serde_json::from_str(words).unwrap();
    let texts: Vec<String> = serde_json::from_value(words["texts"].clone()).unwrap();
    for split in &PRE_TOKENIZERS {
        let mut metadata = metadata("words.gguf");
        metadata.insert(
            "tokenizer.ggml.pre".into(),
            Value::Text(split.names[0].into()),
        );
        let converted = convert(&metadata).unwrap().unwrap();
        let tokenizer = Tokenizer::from_json(converted.json, converted.eos.as_deref());
        let tokenizer = tokenizer.unwrap();
        let ids = words["ids"][split.names[0]].clone();
        let ids: Vec<Vec<u32>> = serde_json::from_value(ids).unwrap();
        assert_eq!(ids.len(), texts.len());
        for (text, ids) in texts.iter().zip(ids) {
            let found = tokenizer.encode(text).unwrap();
            assert_eq!(found, ids, "{} {text:?}", split.names[0]);
            assert_eq!(tokenizer.decode(&found), *text);
        }
    }
}

#[test]
fn a_missing_pre_tokenizer_is_the_default_with_a_note() {
    let mut metadata = metadata("words.gguf");
    metadata.remove("tokenizer.ggml.pre");
    let converted = convert(&metadata).unwrap().unwrap();
    assert!(converted.notes[0].starts_with("tokenizer.ggml.pre is missing"));
    assert_eq!(converted.eos.as_deref(), Some("<|endoftext|>"));
    metadata.insert("tokenizer.ggml.model".into(), Value::Text("none".into()));
    assert!(convert(&metadata).unwrap().is_none());
    metadata.remove("tokenizer.ggml.model");
    assert!(convert(&metadata).unwrap().is_none());
}

#[test]
fn the_start_token_is_added_by_default_as_in_llama_cpp() {
    let start = |name: &str, changes: &[(&str, Value)]| {
        let mut metadata = metadata(name);
        metadata.remove("tokenizer.ggml.add_bos_token");
        for (key, value) in changes {
            metadata.insert(format!("tokenizer.ggml.{key}"), value.clone());
        }
        let converted = convert(&metadata).unwrap().unwrap();
        let tokenizer = Tokenizer::from_json(converted.json, converted.eos.as_deref());
        tokenizer.unwrap().start_id()
    };
    let pre = |name: &str| ("pre", Value::Text(name.into()));
    let add = |value| ("add_bos_token", Value::Bool(value));
    // SentencePiece.
    assert_eq!(start("pieces.gguf", &[]), Some(1));
    assert_eq!(start("pieces.gguf", &[add(false)]), None);
    for name in ["llama-bpe", "llama3", "llama-v3", "tekken"] {
        assert_eq!(start("words.gguf", &[pre(name)]), Some(0), "{name}");
        assert_eq!(start("words.gguf", &[pre(name), add(false)]), None);
    }
    for name in ["gpt-2", "smollm", "qwen2", "dbrx"] {
        assert_eq!(start("words.gguf", &[pre(name)]), None, "{name}");
        assert_eq!(start("words.gguf", &[pre(name), add(true)]), Some(0));
    }
}

#[test]
fn ends_and_template_are_read() {
    let mut metadata = metadata("words.gguf");
    let read = |metadata: &BTreeMap<String, Value>| convert(metadata).map(Option::unwrap);
    let found = read(&metadata).unwrap();
    assert_eq!((found.bos, found.ends), (Some(0), vec![0, 0]));
    assert!(found.chat_template.is_none());
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    metadata.insert(key("eot_token_id"), Value::Integer(7));
    metadata.insert(key("eom_token_id"), Value::Integer(9));
    metadata.insert(key("eos_token_id"), Value::Integer(5));
    metadata.insert(TEMPLATE.into(), Value::Text("{{ bos_token }}".into()));
    let found = read(&metadata).unwrap();
    assert_eq!(found.ends, [5, 7, 9, 0]);
    let template = found.chat_template.unwrap();
    assert_eq!(template.template, "{{ bos_token }}");
    assert_eq!(template.bos_token, "<|endoftext|>");
    assert_eq!(Some(template.eos_token), found.eos);
    metadata.insert(TEMPLATE.into(), Value::Integer(1));
    let problem = read(&metadata).err().unwrap();
    assert_eq!(problem, "tokenizer.chat_template = 1, expected a text");
    let long = "a".repeat(TEMPLATE_LIMIT as usize + 1);
    metadata.insert(TEMPLATE.into(), Value::Text(long));
    let problem = read(&metadata).err().unwrap();
    assert!(problem.contains("expected at most 1048576"), "{problem}");
}

#[test]
fn a_token_after_prompts_is_noted() {
    let mut metadata = metadata("words.gguf");
    let mut notes = |value| {
        metadata.insert("tokenizer.ggml.add_eos_token".into(), Value::Bool(value));
        convert(&metadata).unwrap().unwrap().notes
    };
    assert!(notes(false).is_empty());
    assert!(notes(true)[0].starts_with("tokenizer.ggml.add_eos_token = true has no effect"));
}

#[test]
fn malformed_metadata_are_named() {
    let text = |text: &str| Value::Text(text.to_owned());
    for (key, value, expected) in [
        (
            "model",
            Some(text("t5")),
            "model = \"t5\", expected \"gpt2\" or \"llama\"",
        ),
        ("model", Some(text("llama")), "scores is missing"),
        ("tokens", None, "tokens is missing"),
        (
            "tokens",
            Some(Value::Integer(3)),
            "tokens = 3, expected an array of texts",
        ),
        (
            "token_type",
            Some(Value::Bool(true)),
            "token_type = true, expected an array of",
        ),
        ("merges", None, "merges is missing"),
        (
            "eos_token_id",
            Some(Value::Integer(-1)),
            "eos_token_id = -1, expected an id below",
        ),
        (
            "pre",
            Some(text("unknown")),
            "pre = \"unknown\", expected one of \"gpt-2\"",
        ),
        (
            "add_space_prefix",
            Some(Value::Bool(true)),
            "expected false",
        ),
    ] {
        let problem = problem(|metadata| {
            let key = format!("tokenizer.ggml.{key}");
            match value {
                Some(value) => metadata.insert(key, value),
                None => metadata.remove(&key),
            };
        });
        assert!(problem.contains(expected), "{problem}");
    }
}
