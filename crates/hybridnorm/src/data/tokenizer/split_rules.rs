//! Positions where text can be split without changing its tokens under a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::Value;

use super::chunks::SplitPoints;
use super::continuation::is_prepend;
use super::growth::kind;
use super::tokenizer_file::TokenizerFile;

/// Rules for splitting a text into chunks and encoding them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SplitRules {
    pub(super) points: SplitPoints,
    /// True if chunks after the first one need a tokenizer that adds no prefix.
    pub(super) has_continuation: bool,
}

impl TokenizerFile {
    /// Returns the rules; `vocab` holds the tokens that text can be encoded to.
    pub(super) fn split_rules(&self, vocab: &HashMap<String, u32>) -> SplitRules {
        let nowhere = SplitRules {
            points: SplitPoints::Nowhere,
            has_continuation: false,
        };
        let ordinary = || self.added_tokens.iter().filter(|added| !added.special);
        let normalizer = self.normalizer_steps();
        let splits = self.pre_tokenizer_steps();
        if ordinary().any(|added| added.may_span_space())
            || !normalizer
                .iter()
                .all(|step| is_independent_across_spaces(step))
        {
            return nowhere;
        }
        let mut words = splits.iter().skip_while(|split| isolates_non_spaces(split));
        let points = match words.next() {
            Some(first) if separates_at_spaces(first, &space(&normalizer, &[])) => {
                SplitPoints::BeforeSpacesOrAtLimit
            }
            Some(first)
                if !splits_at_replaced_spaces(first, &normalizer) && !does_not_split(first) =>
            {
                return nowhere;
            }
            _ if !self.is_position_independent() => return nowhere,
            _ if space_only_starts_tokens(vocab, &space(&normalizer, &splits)) => {
                SplitPoints::BeforeSpacesOrAtLimit
            }
            _ => SplitPoints::AtLimit,
        };
        let prepends = normalizer.iter().any(|step| is_prepend(step));
        let has_prefix = prepends || splits.iter().any(|split| adds_prefix_space(split));
        // After another splitter, the space is added before every word, also in later chunks.
        let prefixes_every_word = splits.iter().skip(1).any(|split| adds_prefix_space(split));
        let has_ordinary = ordinary().next().is_some();
        match (has_prefix, has_ordinary) {
            (true, false)
                if prefixes_every_word
                    && (prepends || points != SplitPoints::BeforeSpacesOrAtLimit) =>
            {
                nowhere
            }
            (true, false) if prefixes_every_word => SplitRules {
                points,
                has_continuation: false,
            },
            (true, true) if prepends || points == SplitPoints::AtLimit => nowhere,
            // A chunk that begins with a space gets no additional one.
            (true, true) => SplitRules {
                points: SplitPoints::BeforeSpaces,
                has_continuation: false,
            },
            (has_continuation, _) => SplitRules {
                points,
                has_continuation,
            },
        }
    }
}

/// True for a pre-tokenizer that adds a space before text that begins without one.
pub(super) fn adds_prefix_space(split: &Value) -> bool {
    match kind(split) {
        "Metaspace" => split["prepend_scheme"] != "never",
        "ByteLevel" => split["add_prefix_space"] != false,
        _ => false,
    }
}

/// True if the output of a normalizer on one side of a space does not depend on the other side.
fn is_independent_across_spaces(step: &Value) -> bool {
    match kind(step) {
        "Bert" | "BertNormalizer" | "Lowercase" | "NFC" | "NFD" | "NFKC" | "NFKD"
        | "StripAccents" | "Nmt" | "Precompiled" => true,
        "Replace" => match (&step["pattern"]["String"], &step["pattern"]["Regex"]) {
            (Value::String(text), _) => text == " " || !text.contains(char::is_whitespace),
            (_, Value::String(regex)) => regex == " {2,}",
            _ => false,
        },
        _ => is_prepend(step),
    }
}

/// True if no word of this pre-tokenizer contains a space after another character; `space` is the
/// normalized space.
fn separates_at_spaces(split: &Value, space: &str) -> bool {
    match kind(split) {
        "Metaspace" if space == split["replacement"] => split["split"] != false,
        _ if space != " " => false,
        "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => true,
        "Metaspace" => split["split"] != false,
        "ByteLevel" => split["use_regex"] != false,
        // The pattern of GPT-2 and its successors.
        "Split" => {
            let pattern = split["pattern"]["Regex"].as_str().unwrap_or_default();
            pattern.ends_with(r"|\s+(?!\S)|\s+") && split["behavior"] == "Isolated"
        }
        _ => false,
    }
}

/// True if a pre-tokenizer isolates matches that contain no space, regardless of their context.
fn isolates_non_spaces(split: &Value) -> bool {
    match kind(split) {
        "Digits" | "Punctuation" => true,
        "Split" if split["behavior"] == "Isolated" => {
            let pattern = &split["pattern"];
            match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
                (Some(text), _) => !text.is_empty() && !text.contains(char::is_whitespace),
                (_, Some(regex)) => is_class(regex),
                _ => false,
            }
        }
        _ => false,
    }
}

/// True for one character class that excludes whitespace, optionally repeated.
fn is_class(regex: &str) -> bool {
    let body = match (regex.strip_suffix('+'), regex.strip_suffix('}')) {
        (Some(body), _) => body,
        (_, Some(_)) => match regex.rsplit_once('{') {
            Some((body, count)) if count.starts_with(|c: char| c.is_ascii_digit()) => body,
            _ => regex,
        },
        _ => regex,
    };
    let is_named = |body: &str| {
        let name = body
            .strip_prefix(r"\p{")
            .and_then(|name| name.strip_suffix('}'));
        name.is_some_and(|name| matches!(name, "N" | "L" | "P" | "S" | "M"))
    };
    let inner = body
        .strip_prefix('[')
        .and_then(|body| body.strip_suffix(']'));
    let is_plain = |inner: &str| {
        let mut escaped = false;
        inner.chars().all(|c| {
            let is_fine = match escaped {
                true => !matches!(
                    c,
                    's' | 'S' | 'W' | 'D' | 'P' | 'X' | 'h' | 'H' | 'v' | 'x' | 'u'
                ),
                false => !matches!(c, ' ' | '[' | ']' | '&' | '^'),
            };
            escaped = c == '\\' && !escaped;
            is_fine
        })
    };
    is_named(body) || body == r"\d" || inner.is_some_and(is_plain)
}

/// True for a pre-tokenizer that splits at spaces that the normalizer has replaced.
fn splits_at_replaced_spaces(split: &Value, normalizer: &[&Value]) -> bool {
    kind(split) == "Split"
        && split["pattern"]["String"] == " "
        && normalizer.iter().any(|step| {
            kind(step) == "Replace"
                && step["pattern"]["String"] == " "
                && step["content"]
                    .as_str()
                    .is_some_and(|text| !text.contains(' '))
        })
}

/// True for a pre-tokenizer that only maps characters and does not split.
fn does_not_split(split: &Value) -> bool {
    match kind(split) {
        "Metaspace" => split["split"] == false,
        "ByteLevel" => split["use_regex"] == false,
        _ => false,
    }
}

/// Returns the form of a space after the normalizer and pre-tokenizer.
fn space(normalizer: &[&Value], splits: &[&Value]) -> String {
    let mut space = " ".to_owned();
    for step in normalizer.iter().chain(splits) {
        let now = match kind(step) {
            "Replace" if step["pattern"]["String"] == space.as_str() => step["content"].as_str(),
            "Metaspace" if space == " " => step["replacement"].as_str(),
            "ByteLevel" if space == " " => Some("\u{120}"),
            _ => None,
        };
        if let Some(now) = now {
            space = now.to_owned();
        }
    }
    space
}

/// True if a space is a token and occurs in other tokens only at their start, so that no token spans
/// the position before a space.
fn space_only_starts_tokens(vocab: &HashMap<String, u32>, space: &str) -> bool {
    let mut chars = space.chars();
    let (Some(space), None) = (chars.next(), chars.next()) else {
        return false;
    };
    let spans = |token: &String| token.trim_start_matches(space).contains(space);
    vocab.contains_key(&space.to_string()) && !vocab.keys().any(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_of_characters() {
        for class in [
            r"\p{N}{1,3}",
            r"\p{N}",
            r"[\r\n]",
            "[0-9]+",
            "[\u{4e00}-\u{9fa5}]+",
            r"\d",
        ] {
            assert!(is_class(class), "{class}");
        }
        for other in [
            r"\s+",
            "[^a]",
            r"[\s]",
            "[a ]",
            "a|b",
            r"\p{N}+ ",
            r" ?\p{L}+",
            r"[\x20]",
        ] {
            assert!(!is_class(other), "{other}");
        }
    }

    #[test]
    fn tokens_with_inner_spaces_are_found() {
        let vocab = |tokens: &[&str]| {
            (0..)
                .zip(tokens)
                .map(|(id, t)| ((*t).to_owned(), id))
                .collect()
        };
        assert!(space_only_starts_tokens(
            &vocab(&["_", "a", "_a", "__", "__b"]),
            "_"
        ));
        assert!(!space_only_starts_tokens(&vocab(&["_", "a", "a_"]), "_"));
        assert!(!space_only_starts_tokens(&vocab(&["_", "a", "_a_b"]), "_"));
        assert!(!space_only_starts_tokens(&vocab(&["a", "_a"]), "_"));
        assert!(!space_only_starts_tokens(&vocab(&["a", "xx"]), "xx"));
    }

    #[test]
    fn normalized_form_of_space() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "_"});
        let metaspace = json!({"type": "Metaspace", "replacement": "+"});
        assert_eq!(space(&[], &[]), " ");
        assert_eq!(space(&[&replace], &[]), "_");
        assert_eq!(space(&[&replace], &[&metaspace]), "_");
        assert_eq!(space(&[], &[&metaspace]), "+");
    }
}
