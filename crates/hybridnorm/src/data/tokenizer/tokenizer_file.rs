//! Contents of a `tokenizer.json`, checked against limits before the `tokenizers` crate reads it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::growth::{Growth, check_pattern, kind};
use super::json::parser_message;
use crate::text::one_line;

/// Exclusive upper bound of ids; also the maximum number of tokens.
const MAX_IDS: u64 = 1 << 21;
/// Maximum number of unused ids per token, plus a constant.
const MAX_UNUSED_IDS_PER_TOKEN: u64 = 16;
const MAX_UNUSED_IDS_BASE: u64 = 1 << 16;
/// Maximum bytes of a Unigram token; the trie is as deep as the longest token is long.
const MAX_UNIGRAM_TOKEN_LEN: usize = 1024;
/// Maximum number of trie nodes, each of which takes up to 750 bytes: a constant, plus some per token.
const MAX_TRIE_NODES_BASE: u64 = 1 << 18;
const MAX_TRIE_NODES_PER_TOKEN: u64 = 10;
/// Maximum bytes of an added token, an unknown token, a prefix or a suffix.
const MAX_ADDED_TOKEN_LEN: usize = 1024;
const MAX_ADDED_TOKENS: usize = 1 << 17;
/// Maximum bytes of all added tokens, each of which takes up to 140 bytes: a constant, plus some per token.
const MAX_ADDED_BYTES_BASE: usize = 1 << 19;
const MAX_ADDED_BYTES_PER_TOKEN: usize = 32;
/// Maximum number of patterns of a pre-tokenizer, each of which may take some megabytes.
const MAX_PATTERNS: usize = 16;
/// Maximum number of steps of a normalizer, pre-tokenizer or decoder, and maximum nesting of sequences.
const MAX_STEPS: usize = 64;
const MAX_DEPTH: usize = 8;
/// Maximum characters per word, because WordPiece looks up all parts of a word.
const MAX_WORD_LEN: u64 = 1000;
/// Maximum number of `ByteLevel` steps, each of which doubles text that is not ASCII.
const MAX_BYTE_LEVEL_STEPS: usize = 2;

/// Parts of a file that are checked here.
#[derive(Deserialize)]
#[serde(expecting = "a JSON object")]
pub(super) struct TokenizerFile {
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
#[serde(expecting = "an added token")]
pub(super) struct AddedToken {
    pub(super) id: Value,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

impl AddedToken {
    /// True if it strips adjacent spaces.
    pub(super) fn strips(&self) -> bool {
        self.lstrip || self.rstrip
    }

    /// True if it may span a space.
    pub(super) fn may_span_space(&self) -> bool {
        self.strips() || self.content.contains(char::is_whitespace)
    }
}

#[derive(Deserialize)]
#[serde(expecting = "a JSON object")]
struct Model {
    vocab: Vocab,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
    #[serde(default)]
    merges: Option<IgnoredAny>,
}

impl TokenizerFile {
    /// Reads and checks a file.
    pub(super) fn read(file: &[u8]) -> Result<(Self, Growth), String> {
        let contents: Self =
            serde_json::from_slice(file).map_err(|error| parser_message(&error))?;
        contents.check_tokens()?;
        let growth = contents.check_parts()?;
        Ok((contents, growth))
    }

    fn check_tokens(&self) -> Result<(), String> {
        let vocab = &self.model.vocab;
        if let Some(problem) = &vocab.problem {
            return Err(problem.clone());
        }
        self.check_added_tokens()?;
        let nodes = MAX_TRIE_NODES_BASE + MAX_TRIE_NODES_PER_TOKEN * vocab.tokens;
        if vocab.nodes > nodes {
            return Err(format!(
                "the trie of its {} Unigram tokens would have {} nodes; the limit is {nodes}",
                vocab.tokens, vocab.nodes
            ));
        }
        let mut highest = vocab.highest;
        for added in &self.added_tokens {
            let id = id(&added.content, &added.id)?;
            highest = highest.max(Some(id));
        }
        let tokens = vocab.tokens + self.added_tokens.len() as u64;
        let limit = MAX_UNUSED_IDS_PER_TOKEN * tokens + MAX_UNUSED_IDS_BASE;
        match highest {
            Some(highest) if highest >= limit => Err(format!(
                "ids up to {highest} for {tokens} tokens; most of its vocabulary would be unused"
            )),
            _ if tokens > MAX_IDS => Err(format!("{tokens} tokens; the limit is {MAX_IDS}")),
            _ if vocab.is_unigram && vocab.longest > MAX_UNIGRAM_TOKEN_LEN => Err(format!(
                "a token of its Unigram model has {} bytes; the limit is {MAX_UNIGRAM_TOKEN_LEN}",
                vocab.longest
            )),
            _ => Ok(()),
        }
    }

    /// Checks number and lengths of added tokens, and the lengths of prefixes and suffixes.
    fn check_added_tokens(&self) -> Result<(), String> {
        let model = &self.model;
        if self.added_tokens.len() > MAX_ADDED_TOKENS {
            let found = self.added_tokens.len();
            return Err(format!(
                "{found} added tokens; the limit is {MAX_ADDED_TOKENS}"
            ));
        }
        let added = self.added_tokens.iter().map(|added| &added.content);
        let unk_and_affixes = [
            &model.unk_token,
            &model.continuing_subword_prefix,
            &model.end_of_word_suffix,
        ];
        for text in added.chain(unk_and_affixes.into_iter().flatten()) {
            if text.len() > MAX_ADDED_TOKEN_LEN {
                return Err(format!(
                    "`{}...` has {} bytes; the limit for added tokens, prefixes and suffixes is {MAX_ADDED_TOKEN_LEN}",
                    text.chars().take(20).collect::<String>(),
                    text.len()
                ));
            }
        }
        let bytes: usize = (self.added_tokens.iter())
            .map(|added| added.content.len())
            .sum();
        let limit = MAX_ADDED_BYTES_BASE + MAX_ADDED_BYTES_PER_TOKEN * self.added_tokens.len();
        if bytes > limit {
            return Err(format!(
                "added tokens of {bytes} bytes in total; the limit is {limit}"
            ));
        }
        Ok(())
    }

    fn check_parts(&self) -> Result<Growth, String> {
        if let Some(max_chars) = self.model.max_input_chars_per_word
            && max_chars > MAX_WORD_LEN
        {
            return Err(format!(
                "its `max_input_chars_per_word` is {max_chars}; the limit is {MAX_WORD_LEN}"
            ));
        }
        let splits = steps(&self.pre_tokenizer, "pre_tokenizer", "pretokenizers")?;
        for split in &splits {
            check_pattern(split)?;
            if kind(split) == "FixedLength" && split["length"] == 0 {
                return Err("`FixedLength` has length 0, expected at least 1".into());
            }
        }
        let patterns = splits
            .iter()
            .filter(|split| split["pattern"]["Regex"].is_string());
        if patterns.count() > MAX_PATTERNS {
            return Err(format!("more than {MAX_PATTERNS} patterns in sequence"));
        }
        let byte_levels = splits.iter().filter(|split| kind(split) == "ByteLevel");
        if byte_levels.count() > MAX_BYTE_LEVEL_STEPS {
            return Err(format!(
                "more than {MAX_BYTE_LEVEL_STEPS} `ByteLevel` steps in sequence"
            ));
        }
        Growth::check_decoder(&steps(&self.decoder, "decoder", "decoders")?)?;
        let growth = Growth::of_normalizer(&steps(&self.normalizer, "normalizer", "normalizers")?)?;
        // These are normalized when the file is read.
        for added in self.added_tokens.iter().filter(|added| added.normalized) {
            growth.check_by_trial(&added.content)?;
        }
        Ok(growth)
    }

    /// Returns the settings of the file that are ignored, with reasons.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(dropout) = self.model.dropout.filter(|&dropout| dropout > 0.0) {
            notes.push(format!(
                "the dropout of {dropout} in its tokenizer.json is disabled: tokenization is deterministic"
            ));
        }
        if let Some(max_length) = self.truncation.get("max_length") {
            notes.push(format!(
                "the truncation to {max_length} tokens in its tokenizer.json is disabled: texts are encoded completely"
            ));
        }
        if !self.padding.is_null() {
            notes.push(
                "the padding in its tokenizer.json is disabled: token sequences keep their length"
                    .to_owned(),
            );
        }
        let model = &self.model;
        let is_bpe = model.merges.is_some();
        if is_bpe
            && model.unk_token.is_none()
            && model.byte_fallback != Some(true)
            && !self.has("ByteLevel")
        {
            notes.push(
                "its tokenizer.json has no unknown token: characters outside the vocabulary are dropped"
                    .to_owned(),
            );
        }
        notes
            .iter()
            .map(|note| one_line(note).into_owned())
            .collect()
    }

    /// True if the model has BPE dropout.
    pub(super) fn has_dropout(&self) -> bool {
        self.model.dropout.is_some_and(|dropout| dropout > 0.0)
    }

    /// Returns the unknown token that the model names.
    pub(super) fn unk_token(&self) -> Option<&str> {
        self.model.unk_token.as_deref()
    }

    /// Returns the steps of the normalizer, with sequences flattened.
    pub(super) fn normalizer_steps(&self) -> Vec<&Value> {
        steps(&self.normalizer, "", "normalizers").unwrap_or_default()
    }

    /// Returns the steps of the pre-tokenizer, with sequences flattened.
    pub(super) fn pre_tokenizer_steps(&self) -> Vec<&Value> {
        steps(&self.pre_tokenizer, "", "pretokenizers").unwrap_or_default()
    }

    /// True if tokens do not depend on their position in a word: a Unigram model, or BPE without subword
    /// prefix and word suffix.
    pub(super) fn is_position_independent(&self) -> bool {
        let model = &self.model;
        let is_marked = |mark: &Option<String>| mark.as_ref().is_some_and(|mark| !mark.is_empty());
        let is_marked =
            is_marked(&model.continuing_subword_prefix) || is_marked(&model.end_of_word_suffix);
        model.vocab.is_unigram || model.merges.is_some() && !is_marked
    }

    fn has(&self, part: &str) -> bool {
        let (normalizer, splits) = (self.normalizer_steps(), self.pre_tokenizer_steps());
        normalizer
            .iter()
            .chain(&splits)
            .any(|step| kind(step) == part)
    }

    /// True if text is first mapped to the characters of a byte-level vocabulary.
    pub(super) fn is_byte_level(&self) -> bool {
        self.has("ByteLevel")
    }

    /// True if the model has byte fallback.
    pub(super) fn has_byte_fallback(&self) -> bool {
        self.model.byte_fallback == Some(true)
    }

    /// True if a step may remove visible characters.
    pub(super) fn may_remove_chars(&self) -> bool {
        let normalizer = steps(&self.normalizer, "", "normalizers").unwrap_or_default();
        let splits = steps(&self.pre_tokenizer, "", "pretokenizers").unwrap_or_default();
        normalizer
            .iter()
            .chain(&splits)
            .any(|step| match kind(step) {
                "BertNormalizer" | "StripAccents" | "Precompiled" | "Nmt"
                | "CharDelimiterSplit" => true,
                "Replace" => step["content"] == "",
                "Split" | "Punctuation" => step["behavior"] == "Removed",
                _ => false,
            })
    }
}

/// Returns the message for a part that cannot be read.
pub(super) fn unknown_part(key: &str, part: &Value) -> String {
    match kind(part) {
        "" => format!("its `{key}` has no `type`, or is incomplete"),
        kind => format!("its `{key}` `{}` is unknown or incomplete", one_line(kind)),
    }
}

/// Returns the steps of a part, with sequences flattened.
fn steps<'v>(part: &'v Value, name: &str, key: &str) -> Result<Vec<&'v Value>, String> {
    let mut found = Vec::new();
    flatten(part, key, 0, &mut found).map_err(|problem| format!("its `{name}` {problem}"))?;
    Ok(found)
}

fn flatten<'v>(
    part: &'v Value,
    key: &str,
    depth: usize,
    found: &mut Vec<&'v Value>,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested more than {MAX_DEPTH} levels deep"));
    }
    if found.len() >= MAX_STEPS {
        return Err(format!("has more than {MAX_STEPS} steps"));
    }
    match part.get(key).and_then(Value::as_array) {
        Some(parts) => parts
            .iter()
            .try_for_each(|part| flatten(part, key, depth + 1, found)),
        None if part.is_null() => Ok(()),
        None => {
            found.push(part);
            Ok(())
        }
    }
}

fn id(token: &str, value: &Value) -> Result<u64, String> {
    value.as_u64().filter(|&id| id < MAX_IDS).ok_or_else(|| {
        format!(
            "token `{}` has the id {}; expected an integer from 0 to {}",
            one_line(token),
            one_line(&value.to_string()),
            MAX_IDS - 1
        )
    })
}

/// Properties of a vocabulary that are checked here.
#[derive(Default)]
struct Vocab {
    tokens: u64,
    highest: Option<u64>,
    longest: usize,
    /// Nodes of the trie of a Unigram model.
    nodes: u64,
    /// True for a list of tokens and scores: a Unigram model.
    is_unigram: bool,
    problem: Option<String>,
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Vocab, M::Error> {
        let mut vocab = Vocab::default();
        let mut taken = vec![0_u64; (MAX_IDS / 64) as usize];
        while let Some((token, value)) = map.next_entry::<String, Value>()? {
            vocab.tokens += 1;
            vocab.longest = vocab.longest.max(token.len());
            match id(&token, &value) {
                Ok(id) => {
                    let (word, bit) = ((id / 64) as usize, 1 << (id % 64));
                    if taken[word] & bit != 0 && vocab.problem.is_none() {
                        let token = one_line(&token);
                        vocab.problem = Some(format!(
                            "token `{token}` has the id {id}, which another token also has"
                        ));
                    }
                    taken[word] |= bit;
                    vocab.highest = vocab.highest.max(Some(id));
                }
                Err(problem) => {
                    vocab.problem.get_or_insert(problem);
                }
            }
        }
        Ok(vocab)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Vocab, S::Error> {
        let mut vocab = Vocab {
            is_unigram: true,
            ..Vocab::default()
        };
        let mut tokens = Vec::new();
        while let Some((token, _)) = list.next_element::<(String, f64)>()? {
            vocab.longest = vocab.longest.max(token.len());
            tokens.push(token);
        }
        vocab.tokens = tokens.len() as u64;
        vocab.nodes = nodes(tokens);
        vocab.highest = vocab.tokens.checked_sub(1);
        Ok(vocab)
    }
}

/// Counts the nodes of the byte trie of these tokens, in which common prefixes are shared.
fn nodes(mut tokens: Vec<String>) -> u64 {
    tokens.sort_unstable();
    let mut before = "";
    let mut nodes = 0;
    for token in &tokens {
        let common = token
            .bytes()
            .zip(before.bytes())
            .take_while(|(a, b)| a == b);
        nodes += (token.len() - common.count()) as u64;
        before = token;
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_prefixes_count_once() {
        let of = |tokens: &[&str]| nodes(tokens.iter().map(|t| (*t).to_owned()).collect());
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&["ab", "abc", "b", "ab", "ad"]), 5);
    }
}
