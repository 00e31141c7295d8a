//! Tokenizer read from a `tokenizer.json`, with limits.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokenizers::models::ModelWrapper;
use tokenizers::{DecoderWrapper, PostProcessorWrapper};

use crate::untrusted::{catch_panic, catch_panic_on_large_stack};

use super::batch::Chunk;
use super::byte_tokens::{ByteTokens, encode_words};
use super::chunks::{HARD_LIMIT, SOFT_LIMIT_HF, SplitPoints, chunks};
use super::continuation::{marks_spaces, without_prefix_space};
use super::growth::Growth;
use super::json::{byte_table, parser_message};
use super::lost_text::DroppedCharCounter;
use super::split_rules::SplitRules;
use super::tokenizer_file::TokenizerFile;
use super::without_special::without_special;

/// Maximum size of a chunk of text in bytes; encoding takes about 200 times as much memory.
const MAX_CHUNK_LEN: usize = HARD_LIMIT + 4;
/// Size above which chunks are tokenized one at a time, regardless of the number of threads.
const LARGE_CHUNK: usize = 4 * SOFT_LIMIT_HF;
/// Text that is encoded once when a file is read, to find files on which the tokenizer panics.
const TRIAL: &str = "The red kite, 12 of them!\n  na\u{ef}ve \u{5de8}\u{5927} \u{1f989} </s>\t";

/// Tokenizer of the `tokenizers` crate with derived properties.
pub(super) struct HfTokenizer {
    /// The file, as it was read.
    file: Vec<u8>,
    tokenizer: tokenizers::Tokenizer,
    /// Bytes of each token, where the vocabulary is byte-level.
    bytes: Option<Vec<Vec<u8>>>,
    vocab_size: usize,
    /// By id: true for tokens that text is never encoded to.
    special: Vec<bool>,
    byte_tokens: ByteTokens,
    /// True if the normalizer does more than mark spaces.
    normalizer_rewrites_text: bool,
    /// Tokenizer without special tokens, for text that contains the name of one.
    without_special: OnceLock<Variant>,
    /// Variants of `tokenizer` and `without_special` for chunks after the first one.
    continuation: OnceLock<Variant>,
    continuation_without_special: OnceLock<Variant>,
    /// Lock held while a large chunk is encoded, to bound memory.
    large_chunk_lock: Mutex<()>,
    growth: Growth,
    split_rules: SplitRules,
    /// Reason why tokens do not determine the bytes of their text.
    inexact_bytes_reason: Option<String>,
    notes: Vec<String>,
    /// Id of the unknown token.
    unk_id: Option<u32>,
    /// True if characters may be dropped.
    may_drop_chars: bool,
    /// True if the model drops characters outside its vocabulary.
    drops_unknown_chars: bool,
    /// Counter of dropped characters.
    counter: OnceLock<Result<DroppedCharCounter, String>>,
}

type Variant = Result<tokenizers::Tokenizer, String>;

impl HfTokenizer {
    /// Reads a file; `find_eos` selects the end-of-text token, given a function from name to id.
    pub(super) fn read(
        file: Vec<u8>,
        find_eos: impl FnOnce(&dyn Fn(&str) -> Option<u32>) -> Result<u32, String> + Send,
    ) -> Result<(Self, u32), String> {
        catch_panic_on_large_stack(|| Self::read_inner(file, find_eos))?
            .ok_or_else(|| TOKENIZER_PANIC_MESSAGE.to_owned())?
    }

    fn read_inner(
        file: Vec<u8>,
        find_eos: impl FnOnce(&dyn Fn(&str) -> Option<u32>) -> Result<u32, String>,
    ) -> Result<(Self, u32), String> {
        let (contents, growth) = TokenizerFile::read(&file).map_err(malformed)?;
        let mut inner = parse(&file).map_err(malformed)?;
        check_added_ids(&contents, &inner)?;
        if contents.has_dropout() {
            disable_dropout(&mut inner);
        }
        let vocab = inner.get_vocab(true);
        let eos = find_eos(&|name| vocab.get(name).copied())?;
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let unk_id = match inner.get_model() {
            ModelWrapper::Unigram(_) => inner.id_to_token(unigram_unknown(&file)),
            _ => contents.unk_token().map(str::to_owned),
        };
        let unk_id = unk_id.and_then(|name| vocab.get(&name).copied());
        let byte_tokens = catch_panic(|| ByteTokens::find(inner.get_model(), &vocab));
        let byte_tokens = byte_tokens.ok_or_else(|| malformed(TOKENIZER_PANIC_MESSAGE.into()))?;
        let mut special = special_tokens(&inner, vocab_size, unk_id, &byte_tokens);
        special[eos as usize] = true;
        let is_byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let bytes = is_byte_level.then(|| token_bytes(&contents, &inner, &vocab, vocab_size));
        let mut encodable_vocab = vocab;
        encodable_vocab.retain(|_, id| !special[*id as usize]);
        let drops_unknown_chars = DroppedCharCounter::is_needed(
            inner.get_model(),
            &encodable_vocab,
            contents.is_byte_level(),
            contents.has_byte_fallback(),
        );
        let read = Self {
            unk_id,
            drops_unknown_chars,
            may_drop_chars: drops_unknown_chars || contents.may_remove_chars(),
            counter: OnceLock::new(),
            inexact_bytes_reason: contents.inexact_bytes_reason(bytes.as_deref()),
            normalizer_rewrites_text: !contents
                .normalizer_steps()
                .iter()
                .all(|step| marks_spaces(step)),
            bytes,
            vocab_size,
            special,
            byte_tokens,
            without_special: OnceLock::new(),
            continuation: OnceLock::new(),
            continuation_without_special: OnceLock::new(),
            large_chunk_lock: Mutex::new(()),
            growth,
            split_rules: contents.split_rules(&encodable_vocab),
            notes: contents.notes(),
            file,
            tokenizer: inner,
        };
        read.check_by_trial()?;
        Ok((read, eos))
    }

    /// Rejects a file that panics on any text. An error may only mean a missing unknown token.
    fn check_by_trial(&self) -> Result<(), String> {
        if let Some(Ok(ids)) = catch_panic(|| self.tokenizer.encode_fast(TRIAL, false)) {
            let _ = self.decode(ids.get_ids());
        } else if catch_panic(|| self.tokenizer.encode_fast("a", false)).is_none() {
            return Err(malformed(TOKENIZER_PANIC_MESSAGE.into()));
        }
        Ok(())
    }

    /// Encodes a chunk of a text.
    pub(super) fn encode(&self, chunk: Chunk) -> Result<Vec<u32>, String> {
        let text = chunk.text;
        if text.len() > MAX_CHUNK_LEN {
            return Err(format!(
                "a text of {} bytes exceeds the limit of {HARD_LIMIT} bytes and cannot be split without changing its \
                 tokens: split the text into documents, or use a tokenizer that splits text at spaces",
                text.len()
            ));
        }
        let is_large = text.len() > LARGE_CHUNK;
        let _guard = is_large.then(|| {
            self.large_chunk_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        });
        self.growth.check(text)?;
        let is_continuation = self.split_rules.has_continuation && !chunk.is_first;
        let with_special = match is_continuation {
            true => get_or_init(&self.continuation, || without_prefix_space(&self.tokenizer))?,
            false => &self.tokenizer,
        };
        let mut ids = encode_with(with_special, text)?;
        if (self.normalizer_rewrites_text || text.contains("<0x"))
            && self.byte_tokens.may_be_literal(&ids)
        {
            ids = self.encode_words(with_special, text, None)?;
        }
        if !self.has_special(&ids) {
            return Ok(ids);
        }
        let without_special = get_or_init(&self.without_special, || self.parse_without_special())?;
        let without_special = match is_continuation {
            true => get_or_init(&self.continuation_without_special, || {
                without_prefix_space(without_special)
            })?,
            false => without_special,
        };
        // Words without special tokens keep their tokens.
        ids = self.encode_words(with_special, text, Some(without_special))?;
        if self.has_special(&ids) {
            ids = self.encode_words(without_special, text, None)?;
        }
        match self.has_special(&ids) {
            true => Err("text outside its vocabulary would be encoded as a special token; use a tokenizer with an unknown token of its own, or one that encodes every text (bytes, r50k, bpe:N)".into()),
            false => Ok(ids),
        }
    }

    /// Encodes a text word by word; words that would become special tokens are encoded with `without_special`.
    fn encode_words(
        &self,
        with_special: &tokenizers::Tokenizer,
        text: &str,
        without_special: Option<&tokenizers::Tokenizer>,
    ) -> Result<Vec<u32>, String> {
        let bytes = &self.byte_tokens;
        let found = catch_panic(|| {
            encode_words(with_special, text, |word| {
                let tokens = bytes.tokenize(with_special.get_model(), word)?;
                match without_special {
                    Some(without_special)
                        if tokens.iter().any(|token| self.is_special(token.id)) =>
                    {
                        bytes.tokenize(without_special.get_model(), word)
                    }
                    _ => Ok(tokens),
                }
            })
        });
        map_encode_error(found)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// True if characters of a text may be dropped.
    pub(super) fn may_drop_chars(&self) -> bool {
        self.may_drop_chars
    }

    /// Counts the characters of a text that no token represents.
    pub(super) fn dropped_chars(&self, text: &str) -> Result<u64, String> {
        let build =
            || DroppedCharCounter::new(&self.file_without_special()?, self.drops_unknown_chars);
        let counter = self.counter.get_or_init(build).as_ref();
        let counter = counter.map_err(Clone::clone)?;
        let (points, soft) = self.split_points();
        chunks(text, points, soft)
            .map(|chunk| counter.dropped_chars(chunk))
            .sum()
    }

    /// Returns the id of the unknown token.
    pub(super) fn unk_id(&self) -> Option<u32> {
        self.unk_id
    }

    fn has_special(&self, ids: &[u32]) -> bool {
        ids.iter().any(|&id| self.is_special(id))
    }

    /// Returns the tokenizer for text that contains the name of a special token.
    fn parse_without_special(&self) -> Result<tokenizers::Tokenizer, String> {
        let file = self.file_without_special()?;
        let parsed = catch_panic_on_large_stack(|| parse(&file))?;
        parsed.ok_or_else(|| TOKENIZER_PANIC_MESSAGE.to_owned())?
    }

    /// Returns the positions where texts are split, and the soft limit of a chunk in bytes.
    pub(super) fn split_points(&self) -> (SplitPoints, usize) {
        (self.split_rules.points, SOFT_LIMIT_HF)
    }

    /// Returns the reason why tokens do not determine the bytes of their text, if any.
    pub(super) fn inexact_bytes_reason(&self) -> Option<&str> {
        self.inexact_bytes_reason.as_deref()
    }

    /// Returns the bytes of text up to the end of its first token, given the id of that token and the first
    /// chunk of the text; `None` if the token ends within a character.
    pub(super) fn first_token_bytes(&self, chunk: Chunk, id: u32) -> Option<u64> {
        if self.byte_tokens.contains(id) {
            return Some(1);
        }
        // A space that was added before the text.
        if !chunk.text.starts_with(char::is_whitespace) && self.decode(&[id]).trim().is_empty() {
            return Some(0);
        }
        let without_special = self
            .without_special
            .get()
            .and_then(|without_special| without_special.as_ref().ok());
        [Some(&self.tokenizer), without_special]
            .into_iter()
            .flatten()
            .find_map(|tokenizer| {
                let encoded = catch_panic(|| tokenizer.encode(chunk.text, false))?.ok()?;
                let (first, all) = (encoded.get_ids().first()?, encoded.get_offsets());
                let end = all.first()?.1;
                let is_whole = all.get(1).is_none_or(|second| second.0 >= end);
                (*first == id && is_whole).then_some(end as u64)
            })
    }

    fn file_without_special(&self) -> Result<Vec<u8>, String> {
        let ids = (0..).zip(&self.special).filter(|(_, special)| **special);
        let names = ids.filter_map(|(id, _)| self.tokenizer.id_to_token(id));
        without_special(&self.file, &names.collect())
    }

    /// Decodes ids. If the decoder fails, concatenates the tokens as written in the vocabulary.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let decoded = catch_panic(|| self.tokenizer.decode(ids, false));
        let token = |&id: &u32| self.tokenizer.id_to_token(id);
        decoded
            .and_then(Result::ok)
            .unwrap_or_else(|| ids.iter().filter_map(token).collect())
    }

    pub(super) fn bytes(&self) -> Option<&[Vec<u8>]> {
        self.bytes.as_deref()
    }

    /// Returns the names of the tokens that text is never encoded to.
    pub(super) fn special_tokens(&self) -> Vec<String> {
        let ids = (0..).zip(&self.special);
        ids.filter_map(|(id, &special)| special.then(|| self.tokenizer.id_to_token(id))?)
            .collect()
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn name_of(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Returns the id of a token by its name.
    pub(super) fn id_of(&self, name: &str) -> Option<u32> {
        self.tokenizer.token_to_id(name)
    }

    /// Returns the id of a special token.
    pub(super) fn special_id(&self, name: &str) -> Option<u32> {
        self.tokenizer
            .token_to_id(name)
            .filter(|&id| self.is_special(id))
    }

    pub(super) fn file(&self) -> &[u8] {
        &self.file
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Returns for each id whether it is a special token that text must not be encoded as.
fn special_tokens(
    tokenizer: &tokenizers::Tokenizer,
    vocab_size: usize,
    unk_id: Option<u32>,
    byte_tokens: &ByteTokens,
) -> Vec<bool> {
    let mut special = vec![false; vocab_size];
    for (id, added) in tokenizer.get_added_tokens_decoder() {
        // Text of one character has no other encoding, and the model needs it.
        let is_single_char = added.content.chars().nth(1).is_none();
        special[id as usize] =
            added.special && !is_single_char && Some(id) != unk_id && !byte_tokens.contains(id);
    }
    special
}

/// Returns the tokenizer in `cell`, which is created on first use.
fn get_or_init(
    cell: &OnceLock<Variant>,
    create: impl FnOnce() -> Variant,
) -> Result<&tokenizers::Tokenizer, String> {
    cell.get_or_init(create).as_ref().map_err(Clone::clone)
}

/// Message for a panic of the `tokenizers` crate.
const TOKENIZER_PANIC_MESSAGE: &str = "inconsistent tokenizer.json; save it again with the program that created it, or use another tokenizer (bytes, r50k, bpe:N)";

/// Checks that added tokens have the ids that the file gives them.
fn check_added_ids(
    contents: &TokenizerFile,
    tokenizer: &tokenizers::Tokenizer,
) -> Result<(), String> {
    for added in &contents.added_tokens {
        let found = tokenizer.token_to_id(&added.content).map(u64::from);
        if !added.content.is_empty() && found != added.id.as_u64() {
            return Err(malformed(format!(
                "its added token `{}` has the id {}, where the next free id is {}",
                added.content,
                added.id,
                found.unwrap_or_default()
            )));
        }
    }
    Ok(())
}

fn disable_dropout(tokenizer: &mut tokenizers::Tokenizer) {
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model() {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
}

/// Returns the bytes of each token of a byte-level vocabulary.
fn token_bytes(
    contents: &TokenizerFile,
    tokenizer: &tokenizers::Tokenizer,
    vocab: &HashMap<String, u32>,
    vocab_size: usize,
) -> Vec<Vec<u8>> {
    let mut bytes = byte_table(vocab, vocab_size);
    // Added tokens are stored as plain text, not byte-level.
    let known = tokenizer.get_vocab(false);
    for added in contents.added_tokens.iter().filter(|added| !added.special) {
        if let (Some(&id), None) = (vocab.get(&added.content), known.get(&added.content)) {
            bytes[id as usize] = added.content.as_bytes().to_vec();
        }
    }
    bytes
}

fn malformed(problem: String) -> String {
    format!("not a tokenizer: {problem}")
}

/// Reads a file whose contents were checked.
pub(super) fn parse(file: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut inner = tokenizers::Tokenizer::from_bytes(file).map_err(|error| {
        let message = parser_message(&*error);
        match message.contains("untagged") {
            true => "a component is unknown or incomplete".to_owned(),
            false => message,
        }
    })?;
    inner.set_encode_special_tokens(true);
    inner.with_padding(None);
    // No special tokens are added to a text, so the post-processor is not needed; its template could repeat the text.
    inner.with_post_processor(None::<PostProcessorWrapper>);
    inner
        .with_truncation(None)
        .map_err(|error| parser_message(&*error))?;
    Ok(inner)
}

fn encode_with(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoded = catch_panic(|| tokenizer.encode_fast(text, false));
    map_encode_error(encoded.map(|encoded| encoded.map(|encoded| encoded.get_ids().to_vec())))
}

/// Converts the result of the `tokenizers` crate, `None` after a panic, to messages.
fn map_encode_error(found: Option<tokenizers::Result<Vec<u32>>>) -> Result<Vec<u32>, String> {
    let found = found.ok_or(
        "it cannot encode this text; omit the text, or use another tokenizer (bytes, r50k, bpe:N)",
    )?;
    found.map_err(|error| {
        let message = parser_message(&*error);
        // Parts of its models' messages on a missing unknown token.
        let lacks = ["[UNK]", "unk_id", "Unk token"];
        match lacks.iter().any(|word| message.contains(word)) {
            true => format!(
                "{message}: the text contains characters outside the vocabulary and there is no unknown token; set \
                 one in its `model` (`unk_token`, or `unk_id` of a Unigram model), or use a tokenizer that encodes \
                 every text (bytes, r50k, bpe:N)"
            ),
            false => message,
        }
    })
}

/// Returns the `unk_id` of a Unigram model, which the model does not expose.
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
