//! A `tokenizer.json` whose special tokens match no text.

use std::collections::HashSet;

use serde_json::Value;

use crate::files;

/// Renames the tokens in `special`, so that text that contains their names is encoded as other tokens. Ids are
/// kept. Merges with a special token, truncation, padding, the post-processor and dropout are removed.
pub(super) fn without_special(file: &[u8], special: &HashSet<String>) -> Result<Vec<u8>, String> {
    let mut json: Value = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    // No text contains these names, since they include the hash of the file.
    let hash = files::sha256(file);
    let hidden = |name: &str| format!("\u{10ffff}{hash} {}", files::sha256(name.as_bytes()));
    for key in ["truncation", "padding", "post_processor"] {
        json[key] = Value::Null;
    }
    for added in json["added_tokens"].as_array_mut().into_iter().flatten() {
        hide(&mut added["content"], special, &hidden);
    }
    let model = &mut json["model"];
    if model.get("dropout").is_some() {
        model["dropout"] = Value::Null;
    }
    if model.get("unk_token").is_some() {
        hide(&mut model["unk_token"], special, &hidden);
    }
    match &mut model["vocab"] {
        Value::Object(vocab) => {
            for name in special {
                if let Some(id) = vocab.remove(name) {
                    vocab.insert(hidden(name), id);
                }
            }
        }
        Value::Array(vocab) => {
            for token in vocab {
                hide(&mut token[0], special, &hidden);
            }
        }
        _ => {}
    }
    let prefix = model["continuing_subword_prefix"]
        .as_str()
        .unwrap_or_default();
    let prefix = prefix.to_owned();
    if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
        merges.retain(|merge| {
            let (left, right) = match merge {
                Value::String(pair) => pair.split_once(' ').unwrap_or((pair, "")),
                pair => (
                    pair[0].as_str().unwrap_or_default(),
                    pair[1].as_str().unwrap_or_default(),
                ),
            };
            let rest = right.strip_prefix(&prefix).unwrap_or(right);
            let joined = format!("{left}{rest}");
            ![left, right, &joined]
                .iter()
                .any(|&token| special.contains(token))
        });
    }
    serde_json::to_vec(&json).map_err(|error| error.to_string())
}

fn hide(name: &mut Value, special: &HashSet<String>, hidden: &dyn Fn(&str) -> String) {
    let known = name.as_str().filter(|&text| special.contains(text));
    if let Some(known) = known {
        *name = hidden(known).into();
    }
}
