//! `config.json` and `generation_config.json`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::super::huggingface::hybridnorm::MODEL_TYPE;
use super::python::{self, CLASS};
use crate::data::{StartToken, TextStart, Tokenizer};
use crate::model::ModelConfig;
use crate::tensors::FloatType;

/// Keys of special tokens.
const TOKENS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Returns the `config.json` of generated Python.
pub(super) fn generated(
    config: &ModelConfig,
    tokenizer: Option<&Tokenizer>,
    dtype: FloatType,
) -> Value {
    let mut json = Map::new();
    json.insert(
        "architectures".into(),
        json!([format!("{CLASS}ForCausalLM")]),
    );
    let class = |file: &str, class: &str| {
        let module = file.trim_end_matches(".py");
        json!(format!("{module}.{CLASS}{class}"))
    };
    let auto_map = json!({
        "AutoConfig": class(python::CONFIGURATION, "Config"),
        "AutoModel": class(python::MODELING, "Model"),
        "AutoModelForCausalLM": class(python::MODELING, "ForCausalLM"),
    });
    json.insert("auto_map".into(), auto_map);
    json.insert("model_type".into(), json!(MODEL_TYPE));
    json.extend(python::fields(config));
    json.extend(tokens(tokenizer));
    json.insert("dtype".into(), json!(dtype.torch_name()));
    let own = json!({ "placement_hash": config.placement.hash(), "model": config });
    json.insert(MODEL_TYPE.into(), own);
    Value::Object(json)
}

/// Returns the `config.json` of an architecture of `transformers`.
pub(super) fn stock(json: &Value, tokenizer: Option<&Tokenizer>, dtype: FloatType) -> Value {
    let mut json = json.clone();
    if let Some(fields) = json.as_object_mut() {
        // Defaults of a family may be outside the vocabulary.
        fields.extend(TOKENS.map(|name| (name.to_owned(), Value::Null)));
        fields.extend(tokens(tokenizer));
        fields.insert("dtype".into(), json!(dtype.torch_name()));
    }
    json
}

/// Returns the ids of special tokens: the token of an empty text, those that end generated text (several as a list), and
/// the end-of-text token, which pads batches.
pub(super) fn tokens(tokenizer: Option<&Tokenizer>) -> Map<String, Value> {
    let Some(tokenizer) = tokenizer else {
        return Map::new();
    };
    let ends = match tokenizer.end_ids() {
        [end] => json!(end),
        ends => json!(ends),
    };
    let ids = [json!(start_id(tokenizer)), ends, json!(tokenizer.eos_id())];
    let names = TOKENS.map(str::to_owned);
    names.into_iter().zip(ids).collect()
}

/// Returns the token that begins a text: the one that the tokenizer adds or names. Otherwise the end-of-text token,
/// which separates documents.
pub(in crate::interop) fn start_id(tokenizer: &Tokenizer) -> u32 {
    TextStart::new(tokenizer, StartToken::Tokenizer).of_empty
}

/// Returns indented JSON with a final line break.
pub(super) fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("maps with names as keys") + "\n"
}
