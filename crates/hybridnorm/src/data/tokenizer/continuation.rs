//! Tokenizer for the later chunks of a text, which get no prefix space.

use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Returns a copy of the tokenizer that adds nothing at the beginning of a text.
pub(super) fn without_prefix_space(tokenizer: &Tokenizer) -> Result<Tokenizer, String> {
    let to_message = |error: serde_json::Error| error.to_string();
    let mut continuation = tokenizer.clone();
    let mut steps = serde_json::to_value(tokenizer.get_normalizer()).map_err(to_message)?;
    remove_prepend_steps(&mut steps);
    let steps: Option<NormalizerWrapper> = serde_json::from_value(steps).map_err(to_message)?;
    continuation
        .with_normalizer(steps)
        .map_err(|error| error.to_string())?;
    let mut steps = serde_json::to_value(tokenizer.get_pre_tokenizer()).map_err(to_message)?;
    disable_prefix_space(&mut steps);
    let steps: Option<PreTokenizerWrapper> = serde_json::from_value(steps).map_err(to_message)?;
    continuation.with_pre_tokenizer(steps);
    Ok(continuation)
}

/// True for a normalizer that only prepends text.
pub(super) fn is_prepend(step: &Value) -> bool {
    step["prepend"].is_string()
}

/// True for a normalizer that only replaces spaces by another character, or prepends one to a text.
pub(super) fn marks_spaces(step: &Value) -> bool {
    let is_mark = |text: &Value| {
        text.as_str()
            .is_some_and(|text| !text.chars().any(|c| c.is_ascii_graphic()))
    };
    is_mark(&step["prepend"]) || step["pattern"]["String"] == " " && is_mark(&step["content"])
}

fn remove_prepend_steps(step: &mut Value) {
    if is_prepend(step) {
        *step = Value::Null;
    } else if let Some(steps) = step.get_mut("normalizers").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(remove_prepend_steps);
        steps.retain(|step| !step.is_null());
    }
}

fn disable_prefix_space(step: &mut Value) {
    match step["type"].as_str() {
        Some("Metaspace") => {
            step["prepend_scheme"] = "never".into();
            if let Some(step) = step.as_object_mut() {
                step.remove("add_prefix_space");
            }
        }
        Some("ByteLevel") => step["add_prefix_space"] = false.into(),
        _ => {
            let steps = step.get_mut("pretokenizers").and_then(Value::as_array_mut);
            steps.into_iter().flatten().for_each(disable_prefix_space);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn removes_only_prefixes() {
        let mut file = json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Sequence", "normalizers": [{"prepend": "x"}, {"type": "NFC"}]},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Metaspace", "replacement": "_", "add_prefix_space": true,
                    "prepend_scheme": "always"},
                {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true},
                {"type": "Digits"},
            ]},
        });
        remove_prepend_steps(&mut file["normalizer"]);
        disable_prefix_space(&mut file["pre_tokenizer"]);
        let expected = json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never"},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
                {"type": "Digits"},
            ]},
        });
        assert_eq!(file, expected);
    }
}
