//! A tokenizer out of a `tokenizer.json`, behind limits.

use std::sync::OnceLock;

use tokenizers::models::ModelWrapper;
use tokenizers::{DecoderWrapper, PostProcessorWrapper};

use crate::foreign::{caught, caught_on_large_stack};

use super::growth::Growth;
use super::json::{byte_table, one_line};
use super::lost::{Counter, Lost};
use super::pieces::{Cut, pieces};
use super::shape::Shape;
use super::without_special::without_special;

/// Text that is tokenized at once where it cannot be cut.
const LONGEST_PIECE: usize = 16 << 20;
/// What a file is tried on when it is read.
const TRIAL: &str = "The red kite, 12 of them!\n  na\u{ef}ve \u{5de8}\u{5927} \u{1f989} </s>\t";

/// A tokenizer of the `tokenizers` crate and what is known of it.
pub(super) struct Foreign {
    /// The file, as it was read.
    file: Vec<u8>,
    inner: tokenizers::Tokenizer,
    /// Bytes of each token, where the vocabulary is byte-level.
    bytes: Option<Vec<Vec<u8>>>,
    vocab_size: usize,
    /// By id: true for tokens that do not come out of text.
    special: Vec<bool>,
    /// The same without special tokens, for text that spells one.
    plain: OnceLock<Result<tokenizers::Tokenizer, String>>,
    growth: Growth,
    cut: Cut,
    notes: Vec<String>,
    /// The token for what the vocabulary cannot spell.
    unknown: Option<u32>,
    /// Whether characters may have no token.
    may_drop: bool,
    /// Whether the model passes over characters that it cannot spell.
    passes_over: bool,
    /// What counts these.
    counter: OnceLock<Result<Counter, String>>,
}

impl Foreign {
    /// Reads a file; `find_end` chooses the end-of-text token, given a way to look up names.
    pub(super) fn read(
        file: Vec<u8>,
        find_end: impl FnOnce(&dyn Fn(&str) -> Option<u32>) -> Result<u32, String> + Send,
    ) -> Result<(Self, u32), String> {
        caught_on_large_stack(|| Self::read_here(file, find_end))?
            .ok_or_else(|| "its parts do not fit together".to_owned())?
    }

    fn read_here(
        file: Vec<u8>,
        find_end: impl FnOnce(&dyn Fn(&str) -> Option<u32>) -> Result<u32, String>,
    ) -> Result<(Self, u32), String> {
        let (shape, growth) = Shape::read(&file).map_err(malformed)?;
        let mut inner = parse(&file).map_err(malformed)?;
        for added in &shape.added_tokens {
            let found = inner.token_to_id(&added.content).map(u64::from);
            if !added.content.is_empty() && found != added.id.as_u64() {
                return Err(malformed(format!(
                    "its added token `{}` has the id {}, where the next free id is {}",
                    added.content,
                    added.id,
                    found.unwrap_or_default()
                )));
            }
        }
        if shape.has_dropout()
            && let ModelWrapper::BPE(bpe) = inner.get_model()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        let vocab = inner.get_vocab(true);
        let end = find_end(&|name| vocab.get(name).copied())?;
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let unknown = match inner.get_model() {
            ModelWrapper::Unigram(_) => inner.id_to_token(unigram_unknown(&file)),
            _ => shape.unknown().map(str::to_owned),
        };
        let unknown = unknown.and_then(|name| vocab.get(&name).copied());
        let mut special = vec![false; vocab_size];
        for (id, added) in inner.get_added_tokens_decoder() {
            special[id as usize] = added.special && Some(id) != unknown;
        }
        special[end as usize] = true;
        let bytes = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
            .then(|| byte_table(&vocab, vocab_size));
        let passes_over =
            Counter::is_needed(inner.get_model(), shape.is_byte_level(), shape.falls_back());
        let read = Self {
            unknown,
            passes_over,
            may_drop: passes_over || shape.takes_out(),
            counter: OnceLock::new(),
            bytes,
            vocab_size,
            special,
            plain: OnceLock::new(),
            growth,
            cut: shape.cut(),
            notes: shape.notes(),
            file,
            inner,
        };
        // What panics on any text does so now. An error can be that of a missing unknown token.
        if let Some(Ok(ids)) = caught(|| read.inner.encode_fast(TRIAL, false)) {
            let _ = read.decode(ids.get_ids());
        } else if caught(|| read.inner.encode_fast("a", false)).is_none() {
            return Err(malformed("its parts do not fit together".into()));
        }
        Ok((read, end))
    }

    /// Ids of a text.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        for piece in pieces(text, self.cut) {
            if piece.len() > LONGEST_PIECE {
                return Err(format!(
                    "a text of {} bytes without a place where it may be cut is too long for it; up to {LONGEST_PIECE} are tokenized at once",
                    piece.len()
                ));
            }
            self.growth.check(piece)?;
            let mut found = encode_with(&self.inner, piece)?;
            if self.has_special(&found) {
                found = encode_with(self.plain()?, piece)?;
                if self.has_special(&found) {
                    return Err(
                        "text that it cannot spell would become one of its special tokens".into(),
                    );
                }
            }
            ids.extend(found);
        }
        Ok(ids)
    }

    /// What of a text no token stands for; `ids` are its tokens.
    pub(super) fn lost(&self, text: &str, ids: &[u32]) -> Result<Lost, String> {
        let is_unknown = |id: &&u32| Some(**id) == self.unknown;
        let mut lost = Lost {
            unknown_tokens: ids.iter().filter(is_unknown).count() as u64,
            dropped_chars: 0,
        };
        if self.may_drop {
            let build = || Counter::new(&self.file_without_special()?, self.passes_over);
            let counter = self.counter.get_or_init(build).as_ref();
            let counter = counter.map_err(Clone::clone)?;
            for piece in pieces(text, self.cut) {
                lost.dropped_chars += counter.dropped_chars(piece)?;
            }
        }
        Ok(lost)
    }

    /// The token for what the vocabulary cannot spell.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    fn has_special(&self, ids: &[u32]) -> bool {
        let is_special = |id: &u32| self.special.get(*id as usize).copied().unwrap_or(false);
        ids.iter().any(is_special)
    }

    /// The tokenizer for text that spells a special token.
    fn plain(&self) -> Result<&tokenizers::Tokenizer, String> {
        let build = || {
            let file = self.file_without_special()?;
            let parsed = caught_on_large_stack(|| parse(&file))?;
            parsed.ok_or_else(|| "its parts do not fit together".to_owned())?
        };
        self.plain.get_or_init(build).as_ref().map_err(Clone::clone)
    }

    fn file_without_special(&self) -> Result<Vec<u8>, String> {
        let ids = (0..).zip(&self.special).filter(|(_, special)| **special);
        let names = ids.filter_map(|(id, _)| self.inner.id_to_token(id));
        without_special(&self.file, &names.collect())
    }

    /// Text of ids. Where its decoder fails, the tokens as they are spelled.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let decoded = caught(|| self.inner.decode(ids, false));
        let spelled = |&id: &u32| self.inner.id_to_token(id);
        decoded
            .and_then(Result::ok)
            .unwrap_or_else(|| ids.iter().filter_map(spelled).collect())
    }

    pub(super) fn bytes(&self) -> Option<&[Vec<u8>]> {
        self.bytes.as_deref()
    }

    /// Spellings of the tokens that do not come out of text.
    pub(super) fn special_tokens(&self) -> Vec<String> {
        let ids = (0..).zip(&self.special);
        ids.filter_map(|(id, &special)| special.then(|| self.inner.id_to_token(id))?)
            .collect()
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn name_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn file(&self) -> &[u8] {
        &self.file
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn malformed(problem: String) -> String {
    format!("not a tokenizer: {problem}")
}

/// Reads a file whose shape was checked.
pub(super) fn parse(file: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut inner = tokenizers::Tokenizer::from_bytes(file).map_err(|error| {
        let message = one_line(&*error);
        match message.contains("untagged") {
            true => "one of its parts is unknown or lacks something".to_owned(),
            false => message,
        }
    })?;
    inner.set_encode_special_tokens(true);
    inner.with_padding(None);
    // No token is put in around a text, so this has no use; a template could repeat the text.
    inner.with_post_processor(None::<PostProcessorWrapper>);
    inner
        .with_truncation(None)
        .map_err(|error| one_line(&*error))?;
    Ok(inner)
}

fn encode_with(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoded = caught(|| tokenizer.encode_fast(text, false))
        .ok_or("its parts do not fit together for this text")?;
    let encoded = encoded.map_err(|error| one_line(&*error))?;
    Ok(encoded.get_ids().to_vec())
}

/// The `unk_id` of a Unigram model, which keeps it for itself.
fn unigram_unknown(file: &[u8]) -> u32 {
    #[derive(serde::Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        unk_id: Option<u32>,
    }
    let file = serde_json::from_slice::<File>(file).ok();
    file.and_then(|file| file.model.unk_id).unwrap_or(u32::MAX)
}
