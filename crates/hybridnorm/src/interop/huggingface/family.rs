//! Model families: parsing of `config.json`, and conversion of tensors.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

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

/// Values that a family has for keys that its `config.json` lacks: the defaults of its configuration class in
/// `transformers`, which files often lack. Keys without such a value in this crate are required, or have the same one in
/// all families.
pub(super) struct Defaults {
    /// Keys and values, as in a JSON object. A null in a file is not replaced.
    pub(super) keys: &'static str,
    /// Base of the rotary embedding.
    pub(super) rope_theta: f64,
}

impl Defaults {
    /// Only what most families have.
    pub(super) const NONE: Self = Self {
        keys: "",
        rope_theta: 10_000.0,
    };

    /// Returns a `config.json` with all keys. Those that it lacks follow its own, so that messages about these name the
    /// right place.
    fn complete(&self, json: &[u8]) -> Result<Vec<u8>, String> {
        let read = |json: &[u8]| serde_json::from_slice::<Map<String, Value>>(json);
        let own = read(json).map_err(|error| with_key(json, &error))?;
        let defaults = read(format!("{{{}}}", self.keys).as_bytes()).expect("defaults are JSON");
        let mut json = json.to_vec();
        let end = json.iter().rposition(|byte| *byte == b'}');
        json.truncate(end.expect("an object ends"));
        let mut is_first = own.is_empty();
        for (key, value) in defaults.iter().filter(|(key, _)| !own.contains_key(*key)) {
            let separator = if is_first { "" } else { "," };
            json.extend_from_slice(format!("{separator}{key:?}:{value}").as_bytes());
            is_first = false;
        }
        json.push(b'}');
        Ok(json)
    }
}

/// Reads the keys of a family and those of all families. An unknown key is rejected.
pub(super) fn read_keys<T: DeserializeOwned>(
    json: &[u8],
    defaults: &'static Defaults,
) -> Result<(T, Common), String> {
    let mut groups = read_key_groups(json, defaults)?;
    let own = groups.read()?;
    let common = groups.read_common()?;
    groups.reject_unread()?;
    Ok((own, common))
}

/// Reads several groups of keys of one `config.json`.
pub(super) fn read_key_groups(
    json: &[u8],
    defaults: &'static Defaults,
) -> Result<KeyGroups, String> {
    Ok(KeyGroups {
        json: defaults.complete(json)?,
        defaults,
        unread: None,
    })
}

/// A `config.json` with the defaults of its family, and the keys that no group so far has read.
pub(super) struct KeyGroups {
    json: Vec<u8>,
    defaults: &'static Defaults,
    unread: Option<BTreeSet<keys::Key>>,
}

impl KeyGroups {
    /// Reads the keys of all families.
    pub(super) fn read_common(&mut self) -> Result<Common, String> {
        let mut common: Common = self.read()?;
        common.default_rope_theta = self.defaults.rope_theta;
        Ok(common)
    }

    /// Reads a group of keys.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        let mut reader = serde_json::Deserializer::from_slice(&self.json);
        let (group, unread) =
            keys::read(&mut reader).map_err(|error| with_key(&self.json, &error))?;
        self.unread = Some(match &self.unread {
            Some(others) => keys::unread_by_both(others, &unread),
            None => unread,
        });
        Ok(group)
    }

    /// Rejects quantized weights, and keys that no group has read and that may affect the computation.
    pub(super) fn reject_unread(self) -> Result<(), String> {
        let all: Value =
            serde_json::from_slice(&self.json).map_err(|error| with_key(&self.json, &error))?;
        if !all["quantization_config"].is_null() {
            return Err("quantization_config is set, expected unquantized weights".into());
        }
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
pub(super) const IGNORED_KEYS: [&str; 72] = [
    "_attn_implementation",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "ep_size",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "seq_aux",
    "sliding_window_size",
    "summary_activation",
    "summary_first_dropout",
    "summary_hidden_size",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];
