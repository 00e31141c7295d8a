//! Text lost in tokenization: characters outside the vocabulary, and those that a normalizer or a
//! pre-tokenizer removes.

use std::collections::HashMap;
use std::ops::AddAssign;

use serde_json::Value;
use tokenizers::models::ModelWrapper;

use crate::untrusted::{catch_panic, catch_panic_on_large_stack};

use super::hf::parse;
use super::json::parser_message;

/// Text lost in tokenization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostText {
    /// Unknown tokens; each may represent several characters.
    pub unknown_tokens: u64,
    /// Characters, except whitespace, that no token represents; for a byte-level vocabulary that lacks
    /// bytes, these bytes.
    pub dropped_chars: u64,
}

impl AddAssign for LostText {
    fn add_assign(&mut self, other: Self) {
        self.unknown_tokens += other.unknown_tokens;
        self.dropped_chars += other.dropped_chars;
    }
}

/// Counter of characters that no token represents.
///
/// A BPE model without an unknown token drops characters outside its vocabulary. The counter adds an
/// unknown token, so that each of them is counted.
pub(super) struct DroppedCharCounter {
    inner: tokenizers::Tokenizer,
    /// Id of the added unknown token.
    marker: Option<u32>,
}

impl DroppedCharCounter {
    /// True if a model drops characters outside `vocab`, the tokens that text can be encoded to.
    pub(super) fn is_needed(
        model: &ModelWrapper,
        vocab: &HashMap<String, u32>,
        is_byte_level: bool,
        has_byte_fallback: bool,
    ) -> bool {
        let ModelWrapper::BPE(bpe) = model else {
            return false;
        };
        let all_bytes = || {
            crate::data::bpe::byte_chars()
                .into_iter()
                .all(|c| vocab.contains_key(&c.to_string()))
        };
        let all_fallbacks =
            || (0..=255).all(|byte: u8| vocab.contains_key(&format!("<0x{byte:02X}>")));
        bpe.unk_token.is_none()
            && !(is_byte_level && all_bytes())
            && !(has_byte_fallback && all_fallbacks())
    }

    /// Returns the counter for a file whose special tokens were renamed so that they match no text.
    pub(super) fn new(file: &[u8], marks_unknown: bool) -> Result<Self, String> {
        const MARKER: &str = "\u{10ffff}dropped";
        let mut json: Value = serde_json::from_slice(file).map_err(|error| error.to_string())?;
        let model = &mut json["model"];
        if let (true, Some(vocab)) = (marks_unknown, model["vocab"].as_object_mut()) {
            let highest = vocab.values().filter_map(Value::as_u64).max();
            vocab.insert(MARKER.into(), (highest.unwrap_or_default() + 1).into());
            model["unk_token"] = MARKER.into();
            model["fuse_unk"] = false.into();
        }
        let file = serde_json::to_vec(&json).map_err(|error| error.to_string())?;
        let parsed = catch_panic_on_large_stack(|| parse(&file))?;
        let inner = parsed.ok_or_else(|| "inconsistent tokenizer.json".to_owned())??;
        let marker = marks_unknown.then(|| inner.token_to_id(MARKER)).flatten();
        Ok(Self { inner, marker })
    }

    /// Counts the characters of a text that no token represents.
    pub(super) fn dropped_chars(&self, text: &str) -> Result<u64, String> {
        let encoded = catch_panic(|| self.inner.encode_char_offsets(text, false))
            .ok_or("it cannot encode this text")?
            .map_err(|error| parser_message(&*error))?;
        let ids = encoded.get_ids().iter();
        let marked = ids.filter(|&&id| Some(id) == self.marker).count();
        let mut is_covered: Vec<bool> = text.chars().map(char::is_whitespace).collect();
        for &(from, to) in encoded.get_offsets() {
            let to = to.min(is_covered.len());
            if let Some(range) = is_covered.get_mut(from..to) {
                range.fill(true);
            }
        }
        let uncovered = is_covered.iter().filter(|covered| !**covered).count();
        Ok((marked + uncovered) as u64)
    }
}
