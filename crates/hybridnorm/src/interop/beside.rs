//! What stands beside imported weights: the tokenizer, and files that are not read.

use std::path::Path;

use serde_json::Value;

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files;
use crate::omissions::{LeftOut, Unit};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Where the end-of-text token is named by its id, in order of preference.
const MODEL_CONFIGS: [&str; 2] = ["generation_config.json", "config.json"];
const JSON_LIMIT: u64 = 256 << 20;
/// Files that are read, whichever of them are there.
const READ: [&str; 8] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    "config.json",
    "config.yaml",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.pt",
    "generation_config.json",
];

/// The `tokenizer.json` of a model's folder, if there is one. Its end-of-text token is the one that
/// `tokenizer_config.json` names, else the first that `generation_config.json` or `config.json`
/// gives the id of, else one of a well-known name.
///
/// # Errors
/// If it is there but cannot be read.
pub fn tokenizer(folder: &Path) -> Result<Option<Tokenizer>> {
    let path = folder.join(TOKENIZER);
    if !files::exists(&path)? {
        return Ok(None);
    }
    let config = read_json(&folder.join(TOKENIZER_CONFIG))?;
    let is_named = config.is_some_and(|config| !config["eos_token"].is_null());
    let id = match is_named {
        true => None,
        false => end_id(folder)?,
    };
    let Some(id) = id else {
        return Tokenizer::load(folder).map(Some);
    };
    let bytes = files::read_small(&path, JSON_LIMIT)?;
    let name = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|json| token_of(&json, id));
    Tokenizer::from_json(bytes, name.as_deref())
        .map(Some)
        .map_err(|error| Error::format(path, error.to_string()))
}

fn end_id(folder: &Path) -> Result<Option<u64>> {
    for name in MODEL_CONFIGS {
        let Some(config) = read_json(&folder.join(name))? else {
            continue;
        };
        let found = &config["eos_token_id"];
        if let Some(id) = found.as_u64().or_else(|| found.get(0)?.as_u64()) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The token of an id: an added one, or one of the vocabulary.
fn token_of(tokenizer: &Value, id: u64) -> Option<String> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let mut added = added.filter(|token| token["id"].as_u64() == Some(id));
    if let Some(token) = added.next() {
        return token["content"].as_str().map(str::to_owned);
    }
    match &tokenizer["model"]["vocab"] {
        Value::Object(vocab) => {
            let found = vocab.iter().find(|(_, found)| found.as_u64() == Some(id));
            found.map(|(token, _)| token.clone())
        }
        Value::Array(pieces) => {
            let piece = pieces.get(usize::try_from(id).ok()?)?;
            piece[0].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !files::exists(path)? {
        return Ok(None);
    }
    let bytes = files::read_small(path, 16 << 20)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::format(path, error.to_string()))
}

/// Files of a folder that were not read, where `shards` are those that hold weights.
pub(super) fn not_read(folder: &Path, shards: &[String]) -> Result<LeftOut> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut left_out = LeftOut::default();
    for name in names {
        if !READ.contains(&name.as_str()) && !shards.contains(&name) {
            let reason = "not needed for the weights or the tokenizer";
            left_out.add(Unit::Files, reason, 1, Some(name));
        }
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_looked_up_among_added_tokens_and_in_both_forms_of_a_vocabulary() {
        let added = json!({
            "added_tokens": [{ "id": 7, "content": "<end>" }],
            "model": { "vocab": { "a": 0, "b": 1 } },
        });
        assert_eq!(token_of(&added, 7).as_deref(), Some("<end>"));
        assert_eq!(token_of(&added, 1).as_deref(), Some("b"));
        assert_eq!(token_of(&added, 9), None);
        let pieces = json!({ "model": { "vocab": [["<unk>", 0.0], ["</s>", 0.0]] } });
        assert_eq!(token_of(&pieces, 1).as_deref(), Some("</s>"));
    }
}
