//! Model families: parsing of `config.json`, and conversion of tensors.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::keys;
use super::FAMILIES;
use super::config::Common;
use super::mapping::Mapping;
use super::weights::Weights;
use crate::model::ModelConfig;

/// Reads the configuration of a family from the bytes of a `config.json`.
pub(super) type ReadFamily = fn(&[u8]) -> Result<Box<dyn Family>, String>;

/// A checkpoint of one family, as its configuration describes it.
pub(in crate::interop) trait Family {
    /// Returns the configuration of the model.
    fn config(&self) -> &ModelConfig;

    /// Returns the correspondence of all tensors of this crate to those of the checkpoint.
    fn mappings(&self) -> Vec<Mapping>;

    /// Returns the prefix of the names in [`Family::mappings`] that the tensors of some checkpoints lack.
    fn optional_prefix(&self) -> Option<&'static str> {
        None
    }

    /// Returns notes for the user.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Omits tensors of the checkpoint that are not part of the decoder.
    fn omit(&self, _weights: &mut Weights) {}
}

#[derive(Deserialize)]
struct ModelType {
    model_type: String,
}

/// Recognizes the family of a `config.json` and reads it.
pub(in crate::interop) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    let ModelType { model_type } =
        serde_json::from_slice(json).map_err(|error| with_key(json, &error))?;
    match FAMILIES.iter().find(|(known, _)| *known == model_type) {
        Some((_, read)) => read(json),
        None => {
            let known = FAMILIES.iter().map(|(known, _)| format!("{known:?}"));
            let known = known.collect::<Vec<_>>().join(", ");
            Err(format!(
                "model_type {model_type:?}, expected one of {known}"
            ))
        }
    }
}

/// Reads the keys of a family and those of all families. An unknown key is rejected.
pub(super) fn read_keys<T: DeserializeOwned>(json: &[u8]) -> Result<(T, Common), String> {
    let mut groups = read_key_groups(json);
    let own = groups.read()?;
    let common = groups.read()?;
    groups.reject_unread()?;
    Ok((own, common))
}

/// Reads several groups of keys of one `config.json`.
pub(super) fn read_key_groups(json: &[u8]) -> KeyGroups<'_> {
    KeyGroups { json, unread: None }
}

/// A `config.json`, and the keys that no group so far has read.
pub(super) struct KeyGroups<'a> {
    json: &'a [u8],
    unread: Option<BTreeSet<keys::Key>>,
}

impl KeyGroups<'_> {
    /// Reads a group of keys.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let mut reader = serde_json::Deserializer::from_slice(self.json);
        let (group, unread) =
            keys::read(&mut reader).map_err(|error| with_key(self.json, &error))?;
        self.unread = Some(match &self.unread {
            Some(others) => keys::unread_by_both(others, &unread),
            None => unread,
        });
        Ok(group)
    }

    /// Rejects keys that no group has read and that may affect the computation.
    pub(super) fn reject_unread(self) -> Result<(), String> {
        let all = serde_json::from_slice(self.json).map_err(|error| with_key(self.json, &error))?;
        let unread = self.unread.unwrap_or_default();
        keys::reject_unread_keys(&all, &unread, &IGNORED_KEYS)
    }
}

/// Returns the error message with the key of the value.
fn with_key(json: &[u8], error: &serde_json::Error) -> String {
    let message = error.to_string();
    if error.line() == 0 || error.classify() != serde_json::error::Category::Data {
        return message;
    }
    // For a missing key, the position is the end of the object, and the message already names the key.
    if message.starts_with("missing field") {
        return message;
    }
    let lines = json.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(error.line() - 1).map(<[u8]>::len).sum();
    let end = (before + error.column()).min(json.len());
    let text = String::from_utf8_lossy(&json[..end]);
    let key = text
        .rsplit_once("\":")
        .and_then(|(head, _)| head.rsplit('"').next());
    match key.filter(|key| !key.is_empty()) {
        Some(key) => format!("{key}: {message}"),
        None => message,
    }
}

/// Keys that do not affect the computation, or only in a way that is checked elsewhere.
pub(super) const IGNORED_KEYS: [&str; 39] = [
    "_attn_implementation",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "ep_size",
    "id2label",
    "gradient_checkpointing",
    "is_decoder",
    "label2id",
    "max_length",
    "min_length",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "return_dict",
    "seq_aux",
    "summary_activation",
    "summary_first_dropout",
    "summary_hidden_size",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
];
