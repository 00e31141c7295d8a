//! Conversion of a `tokenizer.json` to the keys of a GGUF file.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::super::pieces;
use super::super::pre_tokenizers::{PRE_TOKENIZERS, PreTokenizer};
use super::super::tokenizer::{
    BYTE, CONTROL, END_OF_TEXT_NAMES, END_OF_TURN_NAMES, NORMAL, UNKNOWN, UNUSED, USER_DEFINED,
};
use super::header::Value;
use crate::data::{StartToken, TextStart, Tokenizer};

type Keys = Vec<(String, Value)>;

/// Tokens by id, with their types.
struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
}

/// Returns the keys of a tokenizer for a model with `vocab_size` rows of its embedding, or of none.
pub(super) fn keys(tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Keys, String> {
    let Some(tokenizer) = tokenizer else {
        return Ok(vec![key("model", Value::Text("none".into()))]);
    };
    if tokenizer.vocab_size() > vocab_size {
        return Err(format!(
            "the tokenizer has {} tokens, the model only {vocab_size}",
            tokenizer.vocab_size()
        ));
    }
    let json: Json =
        serde_json::from_slice(&tokenizer.to_json()).map_err(|error| error.to_string())?;
    let model = &json["model"];
    let merges = merges(model)?;
    let has_byte_fallback = model["byte_fallback"] == true;
    let tokens = Tokens::read(&json, vocab_size, has_byte_fallback)?;
    let mut keys = match has_byte_fallback {
        true => sentencepiece(&json, &merges, &tokens)?,
        false => byte_level(&json, merges)?,
    };
    let ends = ends(tokenizer, &tokens)?;
    keys.push(key("tokens", Value::Texts(tokens.texts)));
    keys.push(key("token_type", Value::Integers(tokens.types)));
    keys.push(key("eos_token_id", Value::Integer(tokenizer.eos_id())));
    // Without these keys, readers take other tokens.
    let start = TextStart::new(tokenizer, StartToken::Tokenizer);
    keys.push(key("bos_token_id", Value::Integer(start.of_empty)));
    keys.push(key("add_bos_token", Value::Bool(start.id.is_some())));
    keys.extend(ends);
    if let Some(chat) = tokenizer.chat_template() {
        let template = Value::Text(chat.template.clone());
        keys.push(("tokenizer.chat_template".to_owned(), template));
    }
    Ok(keys)
}

fn key(name: &str, value: Value) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), value)
}

impl Tokens {
    fn read(json: &Json, count: usize, has_byte_fallback: bool) -> Result<Self, String> {
        let mut texts = vec![String::new(); count];
        let mut types = vec![UNUSED as i32; count];
        let unknown = json["model"]["unk_token"].as_str();
        let is_byte = |text: &str| {
            has_byte_fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>')
        };
        let vocab = json["model"]["vocab"].as_object();
        let vocab = vocab.ok_or("its model has no vocabulary of names and ids")?;
        for (text, id) in vocab {
            let kind = match text.as_str() {
                text if Some(text) == unknown => UNKNOWN,
                text if is_byte(text) => BYTE,
                _ => NORMAL,
            };
            let id = index(id, count)?;
            texts[id].clone_from(text);
            types[id] = kind as i32;
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let (id, text) = (index(&added["id"], count)?, added["content"].as_str());
            texts[id] = text.unwrap_or_default().to_owned();
            types[id] = match added["special"] == true {
                true if text == unknown => UNKNOWN as i32,
                true => CONTROL as i32,
                false => USER_DEFINED as i32,
            };
        }
        let unused = texts.iter_mut().zip(&types).enumerate();
        for (id, (text, _)) in unused.filter(|(_, (_, kind))| **kind == UNUSED as i32) {
            *text = format!("[PAD{id}]");
        }
        Ok(Self { texts, types })
    }
}

fn index(id: &Json, count: usize) -> Result<usize, String> {
    let index = id.as_u64().and_then(|id| usize::try_from(id).ok());
    index
        .filter(|id| *id < count)
        .ok_or_else(|| format!("a token has the id {id}, expected one below {count}"))
}

/// Returns the keys of the tokens that end generated text besides the end-of-text token. Readers recognize those with some
/// names without a key.
fn ends(tokenizer: &Tokenizer, tokens: &Tokens) -> Result<Keys, String> {
    const ROLES: [&str; 2] = ["eot_token_id", "eom_token_id"];
    let others = &tokenizer.end_ids()[1..];
    let has_name = |id: &u32, names: &[&str]| names.contains(&tokens.texts[*id as usize].as_str());
    let others = others.iter().filter(|id| !has_name(id, &END_OF_TEXT_NAMES));
    let (turns, unnamed): (Vec<u32>, Vec<u32>) =
        others.partition(|id| has_name(id, &END_OF_TURN_NAMES));
    if unnamed.len() > ROLES.len() {
        return Err(format!(
            "generated text ends at {} tokens; a GGUF file can represent {} of them and the usual names, which the others lack",
            1 + unnamed.len(),
            1 + ROLES.len()
        ));
    }
    let ids = unnamed.into_iter().chain(turns);
    Ok(ROLES
        .into_iter()
        .zip(ids)
        .map(|(role, id)| key(role, Value::Integer(id)))
        .collect())
}

/// Returns the merges of BPE.
fn merges(model: &Json) -> Result<Vec<(String, String)>, String> {
    let merges = model["merges"].as_array();
    let merges = merges.ok_or("its model is not BPE, the only one that can be written")?;
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(format!("its model has a {key}, which cannot be written"));
        }
    }
    let pair = |merge: &Json| {
        let pair = match merge {
            Json::String(text) => text.split_once(' '),
            merge => Option::zip(merge[0].as_str(), merge[1].as_str()),
        };
        let pair = pair.map(|(left, right)| (left.to_owned(), right.to_owned()));
        pair.ok_or_else(|| "a merge is not a pair of tokens".to_owned())
    };
    merges.iter().map(pair).collect()
}

fn byte_level(json: &Json, merges: Vec<(String, String)>) -> Result<Keys, String> {
    let ignores_merges = json["model"]["ignore_merges"] == true;
    let matches = |known: &&PreTokenizer| {
        known.matches(&json["normalizer"], &json["pre_tokenizer"])
            && known.ignores_merges == ignores_merges
    };
    let split = match PRE_TOKENIZERS.iter().find(matches) {
        Some(split) => split.names[0],
        // Without merges, every character is a token, however text is split.
        None if merges.is_empty() && json["normalizer"].is_null() => PRE_TOKENIZERS[0].names[0],
        None => {
            return Err(
                "its normalizer and pre-tokenizer are not those of a tokenizer.ggml.pre that is known here".into(),
            );
        }
    };
    if merges
        .iter()
        .any(|(left, right)| left.contains(' ') || right.contains(' '))
    {
        return Err(
            "a merge contains a space, which separates the tokens of a merge in GGUF".into(),
        );
    }
    let merges = merges.iter().map(|(left, right)| format!("{left} {right}"));
    Ok(vec![
        key("model", Value::Text("gpt2".into())),
        key("pre", Value::Text(split.to_owned())),
        key("merges", Value::Texts(merges.collect())),
    ])
}

/// Scores are ranks: the piece of an earlier merge has a higher score.
fn sentencepiece(
    json: &Json,
    merges: &[(String, String)],
    tokens: &Tokens,
) -> Result<Keys, String> {
    let has_prefix = pieces::has_prefix(&json["normalizer"], &json["pre_tokenizer"])
        .ok_or("its normalizer and pre-tokenizer are not those of SentencePiece")?;
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let last = merges.len();
    let score = |text: &String| -(*ranks.get(text).unwrap_or(&last) as f32);
    Ok(vec![
        key("model", Value::Text("llama".into())),
        key("pre", Value::Text("default".into())),
        key(
            "scores",
            Value::Numbers(tokens.texts.iter().map(score).collect()),
        ),
        key("add_space_prefix", Value::Bool(has_prefix)),
    ])
}
