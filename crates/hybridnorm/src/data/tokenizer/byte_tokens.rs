//! Byte-fallback tokens `<0x00>` to `<0xFF>` for characters outside the vocabulary. Text that contains
//! `<0x41>` must not be encoded as one of them.

use std::collections::HashMap;

use tokenizers::models::ModelWrapper;
use tokenizers::{Model, OffsetType, PreTokenizer, Token, Tokenizer};

/// Byte-fallback tokens, and a flag that is true if the model also returns them for text that contains their names.
#[derive(Debug, Default)]
pub(super) struct ByteTokens {
    /// Sorted ids; empty without byte fallback.
    ids: Vec<u32>,
    encodes_literal_names: bool,
}

impl ByteTokens {
    pub(super) fn find(model: &ModelWrapper, vocab: &HashMap<String, u32>) -> Self {
        let has_byte_fallback = match model {
            ModelWrapper::BPE(bpe) => bpe.byte_fallback,
            ModelWrapper::Unigram(unigram) => unigram.byte_fallback(),
            _ => false,
        };
        if !has_byte_fallback {
            return Self::default();
        }
        let tokens = (0..=u8::MAX).filter_map(|byte| {
            let name = name(byte);
            vocab.get(&name).map(|&id| (id, name))
        });
        let (mut ids, mut encodes_literal_names) = (Vec::new(), false);
        for (id, name) in tokens {
            ids.push(id);
            let tokenize = || model.tokenize(&name).unwrap_or_default();
            let is_whole = |token: &Token| token.id == id && token.offsets == (0, NAME_LEN);
            encodes_literal_names = encodes_literal_names || tokenize().iter().any(is_whole);
        }
        ids.sort_unstable();
        Self {
            ids,
            encodes_literal_names,
        }
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// True if some of these ids may come from text that contains the name of a byte token.
    pub(super) fn may_be_literal(&self, ids: &[u32]) -> bool {
        self.encodes_literal_names && ids.iter().any(|&id| self.contains(id))
    }

    /// Tokenizes a word. If it contains names of byte tokens and the model would return one for a name, the word is
    /// split after the first character of each name.
    pub(super) fn tokenize(
        &self,
        model: &ModelWrapper,
        word: &str,
    ) -> tokenizers::Result<Vec<Token>> {
        let tokens = model.tokenize(word)?;
        let is_literal_name = |token: &Token| {
            let text = word.get(token.offsets.0..token.offsets.1);
            self.contains(token.id) && text.is_some_and(is_name)
        };
        if !self.encodes_literal_names || !tokens.iter().any(is_literal_name) {
            return Ok(tokens);
        }
        let mut split_tokens = Vec::new();
        let mut begin = 0;
        let names = word.match_indices("<0x");
        let names = names.filter(|(at, _)| word.get(*at..at + NAME_LEN).is_some_and(is_name));
        for end in names.map(|(at, _)| at + 1).chain([word.len()]) {
            let part = model.tokenize(&word[begin..end])?;
            split_tokens.extend(part.into_iter().map(|mut token| {
                token.offsets.0 += begin;
                token.offsets.1 += begin;
                token
            }));
            begin = end;
        }
        Ok(split_tokens)
    }
}

/// Length of the name of a byte token.
const NAME_LEN: usize = "<0x00>".len();

fn name(byte: u8) -> String {
    format!("<{byte:#04X}>")
}

fn is_name(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|text| text.strip_suffix('>'));
    let is_digit = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase() && c.is_ascii_hexdigit();
    digits.is_some_and(|digits| digits.len() == 2 && digits.chars().all(is_digit))
}

/// Encodes a text; `tokenize` converts each word to tokens.
pub(super) fn encode_words(
    tokenizer: &Tokenizer,
    text: &str,
    tokenize: impl Fn(&str) -> tokenizers::Result<Vec<Token>>,
) -> tokenizers::Result<Vec<u32>> {
    let added = tokenizer.get_added_vocabulary();
    let mut words = added.extract_and_normalize(tokenizer.get_normalizer(), text);
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut words)?;
    }
    words.tokenize(|word| tokenize(word.get()))?;
    let encoding = words.into_encoding(None, 0, OffsetType::None)?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bytes() {
        assert_eq!(name(0xa), "<0x0A>");
        for text in ["<0x0A>", "<0xFF>", "<0x99>"] {
            assert!(is_name(text), "{text}");
        }
        for text in ["<0x0a>", "<0xGG>", "<0x0>", "<0x0AA>", "0x0A", ""] {
            assert!(!is_name(text), "{text}");
        }
    }
}
