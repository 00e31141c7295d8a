//! Checks that the tokens of a `tokenizer.json` represent exactly the bytes of their text.

use serde_json::Value;

use super::growth::kind;
use super::split_rules::adds_prefix_space;
use super::tokenizer_file::TokenizerFile;

impl TokenizerFile {
    /// Returns the reason why the concatenated bytes of tokens may differ from the text; `None` if they never
    /// do. `bytes` are those of each token, if the decoder is byte-level.
    pub(super) fn inexact_bytes_reason(&self, bytes: Option<&[Vec<u8>]>) -> Option<String> {
        let Some(bytes) = bytes else {
            return Some(
                "its tokenizer is not byte-level, so the bytes per token are unknown".into(),
            );
        };
        let because = |reason: &str| Some(format!("the tokenizer changes text: {reason}"));
        let (normalizer, splits) = (self.normalizer_steps(), self.pre_tokenizer_steps());
        let is_byte_level = |step: &&&Value| kind(step) == "ByteLevel";
        if let Some(step) = normalizer.iter().find(|step| !is_byte_level(step)) {
            return because(&format!("its `normalizer` `{}`", step_type(step)));
        }
        if splits.iter().any(|split| adds_prefix_space(split)) {
            return because("it adds a space before text that does not begin with one");
        }
        if let Some(split) = splits.iter().find(|split| !keeps_text(split)) {
            return because(&format!("its `pre_tokenizer` `{}`", step_type(split)));
        }
        if normalizer
            .iter()
            .chain(&splits)
            .filter(is_byte_level)
            .count()
            != 1
        {
            return because("it does not apply ByteLevel exactly once");
        }
        if !self.is_position_independent() {
            return because("its model is word-level or position-dependent");
        }
        let mut known = [false; 256];
        for token in bytes {
            if let [byte] = token.as_slice() {
                known[usize::from(*byte)] = true;
            }
        }
        // These never occur in UTF-8.
        let never = |byte: usize| matches!(byte, 0xc0 | 0xc1 | 0xf5..);
        if (0..256).any(|byte| !known[byte] && !never(byte)) {
            return because("its vocabulary does not cover all bytes");
        }
        let mut ordinary = self.added_tokens.iter().filter(|added| !added.special);
        match ordinary.any(|added| added.strips()) {
            true => because("an added token strips adjacent spaces"),
            false => None,
        }
    }
}

/// True if the words that a pre-tokenizer returns concatenate to the text.
fn keeps_text(split: &Value) -> bool {
    match kind(split) {
        "ByteLevel" | "Digits" | "FixedLength" => true,
        "Split" | "Punctuation" => split["behavior"] != "Removed",
        _ => false,
    }
}

/// Returns the type of a step for messages; some steps have none.
fn step_type(step: &Value) -> String {
    match kind(step) {
        "" => "without a type".to_owned(),
        kind => crate::text::truncated_line(kind, 40).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn inexact_bytes_reason(key: &str, part: Value) -> Option<String> {
        let mut file = json!({
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        });
        file[key] = part;
        let (file, _) = TokenizerFile::read(file.to_string().as_bytes()).unwrap();
        let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        file.inexact_bytes_reason(Some(&bytes))
    }

    #[test]
    fn inexact_settings() {
        let level = json!({"type": "ByteLevel", "add_prefix_space": false});
        let sequence = |parts: Value| json!({"type": "Sequence", "pretokenizers": parts});
        assert_eq!(inexact_bytes_reason("pre_tokenizer", level.clone()), None);
        let split = json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated"});
        assert_eq!(
            inexact_bytes_reason("pre_tokenizer", sequence(json!([split, level]))),
            None
        );
        let mut removed = split.clone();
        removed["behavior"] = "Removed".into();
        let added = |strip: &str| {
            let mut added = json!([{"id": 1, "content": "x", "special": false}]);
            added[0][strip] = true.into();
            added
        };
        assert_eq!(
            inexact_bytes_reason("added_tokens", added("single_word")),
            None
        );
        for (key, part, word) in [
            ("normalizer", json!({"type": "NFC"}), "NFC"),
            (
                "pre_tokenizer",
                json!({"type": "ByteLevel"}),
                "a space before",
            ),
            ("pre_tokenizer", sequence(json!([level, level])), "once"),
            ("pre_tokenizer", split, "once"),
            ("pre_tokenizer", sequence(json!([removed, level])), "Split"),
            (
                "pre_tokenizer",
                sequence(json!([{"type": "Whitespace"}, level])),
                "Whitespace",
            ),
            ("added_tokens", added("lstrip"), "adjacent spaces"),
        ] {
            let found = inexact_bytes_reason(key, part).unwrap();
            assert!(found.contains(word), "{found}");
        }
    }
}
