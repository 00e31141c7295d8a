//! Bounds on the growth of text by the normalizer of a `tokenizer.json`.
//!
//! A sequence of a few replacements can double a text thirty times. The maximum growth of a step follows
//! from its settings; if that is too large, the steps are run one by one on short segments of the text and measured
//! before the whole text is normalized.

use serde_json::Value;
use tokenizers::utils::SysRegex;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use crate::untrusted::catch_panic;

use super::tokenizer_file::unknown_part;

/// Maximum growth factor of a normalizer; a larger one is rejected.
const MAX_NORMALIZER_GROWTH: f64 = 65_536.0;
/// Maximum growth factor of a decoder.
const MAX_DECODER_GROWTH: f64 = 4096.0;
/// Bound on the size of the normalized text, in bytes, up to which no trial is needed.
const UNTRIED_BYTES: f64 = (64 << 20) as f64;
/// Maximum growth factor of a normalized text, in addition to [`GROWTH_SLACK`] bytes.
const MAX_TEXT_GROWTH: usize = 32;
const GROWTH_SLACK: usize = 64 << 10;
/// Maximum output of one step for a trial segment, in bytes.
const SEGMENT_BYTES: f64 = (16 << 20) as f64;
/// Maximum length of text that a step inserts, in bytes.
const MAX_CONTENT_LEN: usize = 1024;
/// Maximum length of a pattern, in bytes.
const MAX_PATTERN_LEN: usize = 16 << 10;

/// Steps of a normalizer and their maximum growth.
pub(super) struct Growth {
    steps: Vec<NormalizerWrapper>,
    product: f64,
    largest: f64,
}

impl Growth {
    /// Computes the maximum growth from the steps of a normalizer, with sequences flattened.
    pub(super) fn of_normalizer(steps: &[&Value]) -> Result<Self, String> {
        let mut growth = Self {
            steps: Vec::new(),
            product: 1.0,
            largest: 1.0,
        };
        for step in steps {
            let factor = factor(step)?;
            growth.product *= factor;
            growth.largest = growth.largest.max(factor);
        }
        if growth.product > MAX_NORMALIZER_GROWTH {
            return Err(format!(
                "its `normalizer` could grow a text by a factor of {:.0e}; the limit is {MAX_NORMALIZER_GROWTH}",
                growth.product
            ));
        }
        for step in steps {
            let step: &Value = step;
            let read = catch_panic(|| serde_json::from_value(step.clone()).ok());
            let read = read.flatten();
            growth
                .steps
                .push(read.ok_or_else(|| unknown_part("normalizer", step))?);
        }
        Ok(growth)
    }

    /// Checks the steps of a decoder.
    pub(super) fn check_decoder(steps: &[&Value]) -> Result<(), String> {
        let mut product = 1.0;
        for step in steps {
            product *= match kind(step) {
                "Replace" => factor(step)?,
                _ => 1.0,
            };
        }
        match product > MAX_DECODER_GROWTH {
            true => Err(format!(
                "its `decoder` could grow a text by a factor of {product:.0e}; the limit is {MAX_DECODER_GROWTH}"
            )),
            false => Ok(()),
        }
    }

    /// Checks that the normalized text stays within bounds.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        if self.product * text.len() as f64 <= UNTRIED_BYTES {
            return Ok(());
        }
        self.check_by_trial(text)
    }

    /// Checks the normalized text as [`Growth::check`] does, always by trial.
    pub(super) fn check_by_trial(&self, text: &str) -> Result<(), String> {
        let limit = MAX_TEXT_GROWTH * text.len() + GROWTH_SLACK;
        let segment = SEGMENT_BYTES / (MAX_TEXT_GROWTH as f64 * self.largest);
        let segment = (segment as usize).clamp(16, 64 << 10);
        let mut total = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let (now, after) = rest.split_at(rest.ceil_char_boundary(segment));
            rest = after;
            let mut normalized = NormalizedString::from(now);
            for step in &self.steps {
                match catch_panic(|| step.normalize(&mut normalized)) {
                    Some(Ok(())) => {}
                    _ => return Err("its `normalizer` fails on this text".into()),
                }
                if normalized.len()
                    > MAX_TEXT_GROWTH * now.len() + GROWTH_SLACK.min(MAX_TEXT_GROWTH * segment)
                {
                    return Err(too_long());
                }
            }
            total += normalized.len();
            if total > limit {
                return Err(too_long());
            }
        }
        Ok(())
    }
}

fn too_long() -> String {
    format!("its `normalizer` grows this text by more than a factor of {MAX_TEXT_GROWTH}")
}

/// Returns the `type` of a part; some parts have none.
pub(super) fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or_default()
}

/// Returns the maximum number of output bytes of a step per byte of input.
fn factor(step: &Value) -> Result<f64, String> {
    Ok(match kind(step) {
        "Lowercase" | "Strip" | "StripAccents" | "Nmt" => 3.0,
        "Bert" | "BertNormalizer" => 6.0,
        "NFC" | "NFD" => 4.0,
        "NFKC" | "NFKD" => 11.0,
        "ByteLevel" => 2.0,
        "Precompiled" => charsmap_factor(step)?,
        _ if step["prepend"].is_string() => 1.0 + inserted_len(step, "prepend")? as f64,
        _ if !step["pattern"].is_null() => replacement_factor(step)?,
        _ if !step["precompiled_charsmap"].is_null() => charsmap_factor(step)?,
        _ => 6.0,
    })
}

fn inserted_len(step: &Value, key: &str) -> Result<usize, String> {
    let length = step[key].as_str().map_or(0, str::len);
    match length > MAX_CONTENT_LEN {
        true => Err(format!(
            "a step inserts {length} bytes (`{key}`); the limit is {MAX_CONTENT_LEN}"
        )),
        false => Ok(length),
    }
}

fn replacement_factor(step: &Value) -> Result<f64, String> {
    let content = inserted_len(step, "content")? as f64;
    check_pattern(step)?;
    let pattern = &step["pattern"];
    let shortest = match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(text), _) => text.len(),
        (None, Some(regex)) => usize::from(!matches_empty(regex)),
        (None, None) => 1,
    };
    Ok(match shortest {
        0 => 1.0 + content,
        _ => (content / shortest as f64).max(1.0),
    })
}

/// Checks the pattern of a replacement or a split.
pub(super) fn check_pattern(step: &Value) -> Result<(), String> {
    let pattern = &step["pattern"];
    let text = pattern["String"].as_str().or(pattern["Regex"].as_str());
    let length = text.map_or(0, str::len);
    match length > MAX_PATTERN_LEN {
        true => Err(format!(
            "a pattern of {length} bytes; the limit is {MAX_PATTERN_LEN}"
        )),
        false => Ok(()),
    }
}

/// True if a pattern may match the empty string somewhere.
fn matches_empty(pattern: &str) -> bool {
    let anchors = [
        "(?=", "(?!", "(?<", r"\b", r"\B", r"\A", r"\z", r"\Z", r"\G", r"\K", "^", "$",
    ];
    anchors.iter().any(|anchor| pattern.contains(anchor))
        || catch_panic(|| {
            SysRegex::new(pattern).is_ok_and(|regex| regex.find_iter("").next().is_some())
        })
        .unwrap_or(true)
}

/// Returns the length in bytes of the longest replacement in a SentencePiece table, at least 1, after checking the
/// table.
fn charsmap_factor(step: &Value) -> Result<f64, String> {
    let broken = || "its `precompiled_charsmap` is damaged".to_owned();
    let table = step["precompiled_charsmap"].as_str().ok_or_else(broken)?;
    let bytes = base64(table).ok_or_else(broken)?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let size = u32::from_le_bytes(*size) as usize;
    let texts = rest.get(size / 4 * 4..).ok_or_else(broken)?;
    if size < 4 || std::str::from_utf8(texts).is_err() {
        return Err(broken());
    }
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max();
    Ok(longest.unwrap_or(0).max(1) as f64)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    let mut bits = 0_u32;
    for (n, digit) in digits.bytes().enumerate() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        if n % 4 != 0 {
            bytes.push((bits >> (6 - 2 * (n % 4))) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(steps: &[Value]) -> Result<Growth, String> {
        Growth::of_normalizer(&steps.iter().collect::<Vec<_>>())
    }

    fn replace(pattern: &str, content: &str) -> Value {
        serde_json::json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    #[test]
    fn rejects_excessive_growth_without_running() {
        let found = growth(&vec![replace("a", "aa"); 30]).err().unwrap();
        assert!(found.contains("by a factor of 1e9"), "{found}");
        let found = growth(&[replace("a", &"b".repeat(2000))]).err().unwrap();
        assert!(found.contains("inserts 2000 bytes"), "{found}");
        assert!(growth(&[replace(" ", "\u{2581}"), replace("``", "\"")]).is_ok());
    }

    #[test]
    fn a_long_text_is_tried_in_segments() {
        let doubled = growth(&vec![replace("a", "aa"); 10]).unwrap();
        assert_eq!(doubled.check("aaa"), Ok(()));
        let text = "a".repeat(1 << 20);
        assert!(doubled.check(&text).is_err());
        assert_eq!(doubled.check(&"b".repeat(1 << 20)), Ok(()));
        let mixed = "b".repeat(1 << 20) + &"a".repeat(10_000);
        assert!(doubled.check(&mixed).is_err());
    }

    #[test]
    fn tables_of_sentencepiece_are_checked() {
        assert_eq!(base64("QUJDRA=="), Some(b"ABCD".to_vec()));
        assert_eq!(base64("QUJD"), Some(b"ABC".to_vec()));
        assert_eq!(base64("?"), None);
        let table = |text: &str| {
            charsmap_factor(
                &serde_json::json!({"type": "Precompiled", "precompiled_charsmap": text}),
            )
        };
        // The trie would be 4 GiB.
        assert!(table("/////w==").is_err());
        assert!(table("").is_err());
        // A trie of one unit, then `abc`, 0, `x`.
        assert_eq!(table("BAAAAAAAAABhYmMAeA=="), Ok(3.0));
    }

    #[test]
    fn detects_patterns_matching_empty() {
        for pattern in ["a*", "(?=a)", r"\b", "x?"] {
            assert!(matches_empty(pattern), "{pattern}");
        }
        for pattern in [" {2,}", r"\s+", "a"] {
            assert!(!matches_empty(pattern), "{pattern}");
        }
    }
}
