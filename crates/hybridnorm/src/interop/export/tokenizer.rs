//! Tokenizer files with which `AutoTokenizer` encodes as [`Tokenizer::encode`] does, after the start token that the
//! tokenizer adds, if any. Text that spells a special token becomes that token: without this, the special tokens of a
//! chat template, which `apply_chat_template` renders as text, would be encoded as plain characters.

use std::path::Path;

use serde_json::{Value, json};

use super::configs::{pretty, start_id, tokens};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files;

/// Writes `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and, if there is one, the chat template.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write(folder: &Path, tokenizer: &Tokenizer, max_seq_len: usize) -> Result<()> {
    let path = folder.join("tokenizer.json");
    let json =
        without_truncation(tokenizer.to_json()).map_err(|problem| Error::format(&path, problem))?;
    files::write(path, &json)?;
    let name = |id: u32| tokenizer.decode(&[id]);
    let eos = name(tokenizer.eos_id());
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name(start_id(tokenizer)),
        "eos_token": eos,
        "pad_token": eos,
        "clean_up_tokenization_spaces": false,
        "model_max_length": max_seq_len,
    });
    if let Some(id) = tokenizer.unknown_id() {
        config["unk_token"] = name(id).into();
    }
    files::write(
        folder.join("tokenizer_config.json"),
        pretty(&config).as_bytes(),
    )?;
    if let Some(chat) = tokenizer.chat_template() {
        files::write(folder.join("chat_template.jinja"), chat.template.as_bytes())?;
    }
    let generation = Value::Object(tokens(Some(tokenizer)));
    files::write(
        folder.join("generation_config.json"),
        pretty(&generation).as_bytes(),
    )?;
    Ok(())
}

/// Removes what drops tokens or pads: truncation, padding, dropout. The post-processor stays: a model that was trained
/// with a start token needs it. Returns the file unchanged if it has none.
fn without_truncation(file: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut json: Value = serde_json::from_slice(&file).map_err(|error| error.to_string())?;
    let mut is_changed = false;
    for path in ["/truncation", "/padding", "/model/dropout"] {
        if let Some(value) = json.pointer_mut(path).filter(|value| !value.is_null()) {
            *value = Value::Null;
            is_changed = true;
        }
    }
    match is_changed {
        true => Ok(pretty(&json).into_bytes()),
        false => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_is_removed() {
        let file = json!({
            "truncation": { "max_length": 3 },
            "padding": null,
            "post_processor": { "type": "TemplateProcessing" },
            "model": { "dropout": 0.1, "vocab": { "a": 0 } },
        });
        let found = without_truncation(file.to_string().into_bytes()).unwrap();
        let found: Value = serde_json::from_slice(&found).unwrap();
        let expected = json!({
            "truncation": null, "padding": null, "post_processor": { "type": "TemplateProcessing" },
            "model": { "dropout": null, "vocab": { "a": 0 } },
        });
        assert_eq!(found, expected);
        let unchanged = br#"{ "post_processor": { "type": "ByteLevel" } }"#.to_vec();
        assert_eq!(without_truncation(unchanged.clone()).unwrap(), unchanged);
    }
}
