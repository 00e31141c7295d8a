//! Files next to imported weights: the tokenizer, and files that are not read.

use std::path::Path;

use serde_json::Value;

use super::gguf;
use crate::data::{Tokenizer, TokenizerSettings};
use crate::error::{Error, Result};
use crate::files;
use crate::omissions::{Omissions, Unit};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Files that give the ids of the tokens that end generated text, in order of preference.
const MODEL_CONFIGS: [&str; 2] = ["generation_config.json", "config.json"];
const JSON_LIMIT: u64 = 256 << 20;
/// File names of weights and configurations in the supported formats.
const MODEL_FILES: [&str; 5] = [
    "config.json",
    "config.yaml",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.pt",
];

/// A tokenizer found next to weights.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImportedTokenizer {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The files of the folder that were read for it.
    pub files: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Reads the `tokenizer.json` of a model's folder, if there is one. Its end-of-text token is the one that
/// `tokenizer_config.json` names, else the first with an id in `generation_config.json` or `config.json`,
/// else one of a well-known name. Generation also ends at all tokens with ids there. A GGUF file contains its tokenizer; see [`super::import`] for such files.
///
/// # Errors
/// If it exists but cannot be read.
pub fn tokenizer(path: &Path) -> Result<Option<ImportedTokenizer>> {
    match super::gguf_file(path)? {
        Some(file) => gguf::read_tokenizer(&file),
        None => tokenizer_of_folder(path),
    }
}

/// True if a file exists. A symbolic link without its target is an error: downloads of models are folders of such links.
fn is_present(path: &Path) -> Result<bool> {
    let is_present = files::exists(path)?;
    match !is_present && path.is_symlink() {
        true => Err(Error::format(
            path,
            "a symbolic link whose target does not exist; restore the target, or remove the link",
        )),
        false => Ok(is_present),
    }
}

fn tokenizer_of_folder(folder: &Path) -> Result<Option<ImportedTokenizer>> {
    let path = folder.join(TOKENIZER);
    if !is_present(&path)? {
        return Ok(None);
    }
    let mut files = vec![TOKENIZER.to_owned()];
    if is_present(&folder.join(TOKENIZER_CONFIG))? {
        files.push(TOKENIZER_CONFIG.to_owned());
    }
    let mut settings = TokenizerSettings::read(folder)?;
    let ends = end_ids(folder, &mut files)?;
    if let (None, Some(first)) = (&settings.eos_token, ends.first()) {
        let bytes = files::read_small(&path, JSON_LIMIT)?;
        let json = serde_json::from_slice::<Value>(&bytes).ok();
        settings.eos_token = json.and_then(|json| token_of(&json, *first));
    }
    let tokenizer = Tokenizer::load_json_with(&path, settings)?;
    let outside = |id: &&u64| **id >= tokenizer.vocab_size() as u64;
    let notes = ends.iter().filter(outside).map(|id| {
        format!(
            "the end token {id} is outside the vocabulary of {} tokens, ignored",
            tokenizer.vocab_size()
        )
    });
    let notes = notes.collect();
    let ends = ends.into_iter().filter_map(|id| u32::try_from(id).ok());
    let tokenizer = tokenizer.with_end_ids(&ends.collect::<Vec<_>>());
    if is_present(&folder.join(CHAT_TEMPLATE))? {
        files.push(CHAT_TEMPLATE.to_owned());
    }
    Ok(Some(ImportedTokenizer {
        tokenizer,
        files,
        notes,
    }))
}

/// Returns the ids of the tokens that end generated text.
fn end_ids(folder: &Path, files: &mut Vec<String>) -> Result<Vec<u64>> {
    for name in MODEL_CONFIGS {
        let Some(config) = read_json(folder, name, files)? else {
            continue;
        };
        let found = match &config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
            id => Vec::from_iter(id.as_u64()),
        };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Returns the token of an id: an added one, or one of the vocabulary.
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

/// Reads a JSON file of the folder if it exists, and then adds its name to `files`.
fn read_json(folder: &Path, name: &str, files: &mut Vec<String>) -> Result<Option<Value>> {
    let path = folder.join(name);
    if !is_present(&path)? {
        return Ok(None);
    }
    let bytes = files::read_small(&path, 16 << 20)?;
    files.push(name.to_owned());
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::format(path, error.to_string()))
}

/// Returns the files of a folder that are not in `read`, by reason; `no_tokenizer` is the reason for the
/// tokenizer's files. There are none if a file was imported, and not a folder.
///
/// # Errors
/// If the folder cannot be listed.
pub fn unread_files(folder: &Path, read: &[String], no_tokenizer: &str) -> Result<Omissions> {
    if !files::is_dir(folder)? {
        return Ok(Omissions::default());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.retain(|name| !read.contains(name));
    let mut omissions = Omissions::default();
    for name in names {
        let reason = match name.as_str() {
            TOKENIZER | TOKENIZER_CONFIG => no_tokenizer,
            file if MODEL_FILES.contains(&file) || is_weights_file(file) => {
                "weights or configuration in a format other than the one that was read"
            }
            _ => "not needed for the weights or the tokenizer",
        };
        omissions.add(Unit::Files, reason, 1, Some(name));
    }
    Ok(omissions)
}

fn is_weights_file(name: &str) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    ["safetensors", "pt", "pth", "bin", "gguf"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn links_without_their_target_are_rejected() {
        for name in [TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE] {
            let folder = tempfile::tempdir().unwrap();
            let json = Tokenizer::bytes().to_json();
            std::fs::write(folder.path().join(TOKENIZER), json).unwrap();
            let path = folder.path().join(name);
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink("missing", &path).unwrap();
            let problem = tokenizer(folder.path()).unwrap_err().to_string();
            assert!(problem.contains(name), "{problem}");
            assert!(problem.contains("whose target does not exist"), "{problem}");
        }
    }

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
