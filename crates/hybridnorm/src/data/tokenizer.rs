//! One interface for byte-level BPE trained here, any `tokenizer.json`, tiktoken vocabularies, and plain
//! bytes.
//!
//! [`Tokenizer::encode`] never returns special tokens, whatever the model: the end-of-text token and the
//! added tokens that a `tokenizer.json` marks as special. Text that contains `<|endoftext|>` or `</s>` is
//! encoded as plain characters, even if the vocabulary contains that string as an ordinary token. Three kinds
//! of tokens are returned even if marked as special, since some text has no other encoding: the unknown
//! token, for text outside the vocabulary; tokens of one character; and with byte fallback the tokens
//! `<0x00>` to `<0xFF>`, each for a byte of a character outside the vocabulary, but not for text that
//! contains `<0x41>`. Added tokens not marked as special are returned. No start token is added.
//!
//! **Memory.** Texts are encoded in chunks (`chunks.rs`), and preparation writes the tokens of a chunk before it
//! encodes many more: besides the text, tokens and tokenizer buffers take at most 256 MiB, regardless of the length of
//! a text. A text of more than 1 MiB that a `tokenizer.json` does not allow to be split is rejected.
//!
//! A `tokenizer.json` is checked against limits (`tokenizer_file.rs`, `growth.rs`): it takes up to 50 times its
//! size, plus 256 MiB, plus 750 bytes per trie node of a Unigram model, which has at most 262,144 nodes
//! plus 10 per token. Its dropout, truncation and padding are disabled; [`Tokenizer::notes`] reports this.

mod batch;
mod byte_tokens;
mod chat;
mod chunks;
mod continuation;
mod ends;
mod exact;
mod growth;
mod hf;
mod json;
mod lost_text;
mod parallel;
mod spec;
mod special;
mod split_rules;
mod start;
mod stream;
mod text_bytes;
mod tokenizer_file;
mod without_special;

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tiktoken_rs::CoreBPE;

use crate::error::{Error, Result};
use crate::files;

use super::ProgressFn;
use super::bpe::{self, BpeTrainer, END_OF_TEXT, END_OF_TEXT_ID, PreTokenizer};
use super::manifest::TokenizerRecord;

pub use chat::ChatTemplate;
pub(crate) use chat::Settings;
#[cfg(feature = "interop")]
pub(crate) use chat::TEMPLATE_LIMIT as CHAT_TEMPLATE_LIMIT;
pub(super) use chunks::{SOFT_LIMIT, SplitPoints, chunks};
use hf::HfTokenizer;
use json::{saved_config, tiktoken_json};
pub use lost_text::LostText;
pub(super) use parallel::in_parallel;
pub use spec::TokenizerSpec;
pub use start::{StartToken, TextStart};
pub use stream::StreamDecoder;

const JSON_NAME: &str = "tokenizer.json";
const CONFIG_NAME: &str = "tokenizer_config.json";
pub(super) const RECORD_NAME: &str = "hybridnorm-tokenizer.json";
const RECORD_VERSION: u32 = 1;
/// Maximum size of a `tokenizer.json` in bytes; for the memory that it takes, see the module documentation.
const JSON_LIMIT: u64 = 128 << 20;

/// Common names of the end-of-text token, in order of preference.
pub(super) const EOS_TOKEN_NAMES: [&str; 8] = [
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "[SEP]",
];

/// Tokenizer: converts text to token ids and back. Cheap to clone.
///
/// ```
/// use hybridnorm::data::Tokenizer;
///
/// let tokenizer = Tokenizer::bytes();
/// let ids = tokenizer.encode("héllo")?;
/// assert_eq!(ids.len(), 6);
/// assert_eq!(tokenizer.decode(&ids), "héllo");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    kind: Kind,
    name: String,
    vocab_size: usize,
    eos: u32,
    /// Tokens that end generated text: `eos`, then others.
    ends: Vec<u32>,
    /// Named start token.
    bos: Option<u32>,
    fingerprint: String,
    chat_template: Option<Arc<ChatTemplate>>,
}

#[derive(Clone)]
enum Kind {
    Bytes,
    Tiktoken(&'static CoreBPE, Builtin),
    Json(Arc<HfTokenizer>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Builtin {
    Bytes,
    R50k,
    Cl100k,
}

/// Record of a saved tokenizer.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    /// If absent, the `tokenizer.json` next to the record is used.
    builtin: Option<Builtin>,
    name: String,
    vocab_size: usize,
    eos_id: u32,
    /// Tokens that end generated text besides the end-of-text token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    other_end_ids: Vec<u32>,
    fingerprint: String,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.name)
            .field("vocab_size", &self.vocab_size)
            .field("eos", &self.eos)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Returns the tokenizer of a specification.
    ///
    /// # Errors
    /// If it is `bpe:N`, which must be trained on text ([`BpeTrainer`], [`super::prepare()`]), or if a path
    /// fails as in [`Tokenizer::load`].
    pub fn from_spec(spec: &TokenizerSpec) -> Result<Self> {
        match spec {
            TokenizerSpec::Bytes => Ok(Self::bytes()),
            TokenizerSpec::R50k => Ok(Self::r50k()),
            TokenizerSpec::Cl100k => Ok(Self::cl100k()),
            TokenizerSpec::Bpe { .. } => Err(Error::invalid_value(
                "tokenizer",
                format!("`{spec}` must be trained on text first; prepare data with it"),
            )),
            TokenizerSpec::Path(path)
                if path.components().count() == 1 && !files::exists(path)? =>
            {
                let known = TokenizerSpec::by_common_name(&spec.to_string());
                let known = known.ok_or_else(|| {
                    Error::invalid_value(
                        "tokenizer",
                        format!(
                            "`{spec}` is not a tokenizer: expected bytes, r50k (also gpt2), cl100k (also gpt4), \
                             bpe:N, or the path of a tokenizer.json or of a folder that holds one"
                        ),
                    )
                })?;
                Self::from_spec(&known)
            }
            TokenizerSpec::Path(path) => Ok(Self::load(path)?.with_name(&spec.to_string())),
        }
    }

    /// Returns the byte tokenizer: one token per byte, and the end-of-text token with id 256.
    pub fn bytes() -> Self {
        Self::builtin(Kind::Bytes, "bytes", 257, END_OF_TEXT_ID)
    }

    /// Returns the tokenizer of GPT-2.
    pub fn r50k() -> Self {
        let bpe = tiktoken_rs::r50k_base_singleton();
        Self::builtin(Kind::Tiktoken(bpe, Builtin::R50k), "r50k", 50_257, 50_256)
    }

    /// Returns the tokenizer of GPT-4. Ids 100,256 and 100,261 to 100,275 are not used.
    pub fn cl100k() -> Self {
        let bpe = tiktoken_rs::cl100k_base_singleton();
        Self::builtin(
            Kind::Tiktoken(bpe, Builtin::Cl100k),
            "cl100k",
            100_277,
            100_257,
        )
    }

    fn builtin(kind: Kind, name: &str, vocab_size: usize, eos: u32) -> Self {
        Self {
            kind,
            name: name.into(),
            vocab_size,
            eos,
            ends: vec![eos],
            bos: None,
            fingerprint: files::sha256(format!("hybridnorm tokenizer 1 {name}").as_bytes()),
            chat_template: None,
        }
    }

    /// Trains byte-level BPE of at most `vocab_size` tokens on `texts`.
    ///
    /// # Errors
    /// If `vocab_size` is below 257 or above 1,000,000.
    ///
    /// ```
    /// use hybridnorm::data::{Tokenizer, quiet};
    ///
    /// let tokenizer = Tokenizer::train_bpe(&["low lower lowest", "low"], 260, &mut quiet)?;
    /// assert_eq!(tokenizer.vocab_size(), 260);
    /// assert_eq!(tokenizer.encode("low")?.len(), 1);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn train_bpe(texts: &[&str], vocab_size: usize, progress: ProgressFn) -> Result<Self> {
        let mut trainer = BpeTrainer::new(vocab_size)?;
        trainer.feed(texts, 0);
        let json = trainer.finish(progress);
        Self::from_json(json.into_bytes(), None).map(|t| t.with_name(&format!("bpe:{vocab_size}")))
    }

    /// Reads a `tokenizer.json`, a folder that holds one, or a folder written by
    /// [`Tokenizer::save`].
    ///
    /// The end-of-text token is the `eos_token` of a `tokenizer_config.json` next to the file, or
    /// else the first token with a well-known name.
    ///
    /// # Errors
    /// If the path does not exist, the file is not a tokenizer, it has no end-of-text token, or a saved
    /// tokenizer was changed.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_dir() {
            return Self::load_json(path, path.parent());
        }
        let record_path = path.join(RECORD_NAME);
        if files::exists(&record_path)? {
            return Self::load_saved(path, &record_path);
        }
        let json = path.join(JSON_NAME);
        if !files::exists(&json)? {
            return Err(Error::format(path, "no tokenizer.json in this folder"));
        }
        Self::load_json(&json, Some(path))
    }

    fn load_json(path: &Path, folder: Option<&Path>) -> Result<Self> {
        let settings = folder.map(Settings::read).transpose()?.unwrap_or_default();
        Self::load_json_with(path, settings)
    }

    /// Reads a `tokenizer.json` with the settings of its folder.
    pub(crate) fn load_json_with(path: &Path, settings: Settings) -> Result<Self> {
        let file = files::read_small(path, JSON_LIMIT)?;
        let tokenizer = Self::from_json(file, settings.eos_token.as_deref())
            .map_err(|error| Error::format(path, error.to_string()))?;
        let bos = settings.bos_token.as_deref();
        let bos = bos.and_then(|name| tokenizer.id_of(name));
        Ok(tokenizer
            .with_name(&path.display().to_string())
            .with_bos_id(bos)
            .with_chat_template(settings.chat_template))
    }

    fn load_saved(folder: &Path, record_path: &Path) -> Result<Self> {
        let text = files::read_small(record_path, 1 << 20)?;
        let record: Record = serde_json::from_slice(&text)
            .map_err(|error| Error::format(record_path, error.to_string()))?;
        if record.version != RECORD_VERSION {
            return Err(Error::format(
                record_path,
                format!("version {}, expected {RECORD_VERSION}", record.version),
            ));
        }
        let tokenizer = match record.builtin {
            Some(Builtin::Bytes) => Self::bytes(),
            Some(Builtin::R50k) => Self::r50k(),
            Some(Builtin::Cl100k) => Self::cl100k(),
            None => Self::load_json(&folder.join(JSON_NAME), Some(folder))?,
        };
        if tokenizer.fingerprint != record.fingerprint {
            return Err(Error::format(
                folder,
                "the tokenizer changed since it was saved; restore its tokenizer.json",
            ));
        }
        Ok(tokenizer
            .with_name(&record.name)
            .with_end_ids(&record.other_end_ids))
    }

    /// Reads a tokenizer from the bytes of a `tokenizer.json`; `eos` names its end-of-text token.
    ///
    /// # Errors
    /// If the file is not a tokenizer or has no such token.
    pub fn from_json(file: Vec<u8>, eos: Option<&str>) -> Result<Self> {
        let digest = files::sha256(&file);
        let find_eos = |id_of: &dyn Fn(&str) -> Option<u32>| {
            match eos {
            Some(name) => id_of(name)
                .ok_or_else(|| format!("the configured eos_token `{name}` is not in the vocabulary")),
            None => EOS_TOKEN_NAMES.iter().find_map(|name| id_of(name)).ok_or_else(|| {
                format!(
                    "no end-of-text token; put `{{\"eos_token\": \"...\"}}` in a {CONFIG_NAME} next to it"
                )
            }),
        }
        };
        let (hf, eos) = HfTokenizer::read(file, find_eos)
            .map_err(|problem| Error::invalid_value(JSON_NAME, problem))?;
        let fingerprint =
            files::sha256(format!("hybridnorm tokenizer 1 json {eos} {digest}").as_bytes());
        Ok(Self {
            vocab_size: hf.vocab_size(),
            kind: Kind::Json(Arc::new(hf)),
            name: JSON_NAME.into(),
            eos,
            ends: vec![eos],
            bos: None,
            fingerprint,
            chat_template: None,
        })
    }

    /// Returns the tokenizer under another name.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Returns the name as specified.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the vocabulary size; all token ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the id of the end-of-text token, which ends every document.
    pub fn eos_id(&self) -> u32 {
        self.eos
    }

    /// Returns a SHA-256 that is equal for equal tokenizers, regardless of their names.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the settings of its `tokenizer.json` that are ignored, with reasons, one per line.
    pub fn notes(&self) -> &[String] {
        match &self.kind {
            Kind::Json(json) => json.notes(),
            _ => &[],
        }
    }

    /// Returns the record for manifests and checkpoints.
    pub fn record(&self) -> TokenizerRecord {
        TokenizerRecord {
            name: self.name.clone(),
            fingerprint: self.fingerprint.clone(),
            vocab_size: self.vocab_size,
            eos_id: self.eos,
            notes: self.notes().to_vec(),
        }
    }

    /// Counts the characters of each text that no token represents, on `threads` threads (0: one per core).
    ///
    /// # Errors
    /// If a `tokenizer.json` cannot encode a text.
    pub fn dropped_chars(&self, texts: &[&str], threads: usize) -> Result<Vec<u64>> {
        let Kind::Json(json) = &self.kind else {
            return Ok(vec![0; texts.len()]);
        };
        if !json.may_drop_chars() {
            return Ok(vec![0; texts.len()]);
        }
        let dropped = in_parallel(texts, threads, |text| json.dropped_chars(text));
        dropped
            .into_iter()
            .map(|found| found.map_err(|problem| self.text_error(&problem)))
            .collect()
    }

    /// Returns the error for a text that cannot be encoded.
    fn text_error(&self, problem: &str) -> Error {
        Error::invalid_value("text", format!("{}: {problem}", self.name))
    }

    /// Returns the id of the unknown token, if there is one other than the end-of-text token.
    pub fn unknown_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Json(json) => json.unk_id().filter(|&id| id != self.eos),
            Kind::Bytes | Kind::Tiktoken(..) => None,
        }
    }

    /// Decodes token ids. Bytes that are not UTF-8 and unknown ids become U+FFFD; special tokens
    /// appear by name.
    pub fn decode(&self, ids: &[u32]) -> String {
        if let Kind::Json(json) = &self.kind
            && json.bytes().is_none()
        {
            return json.decode(ids);
        }
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id).into_owned())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns a decoder that takes ids one by one.
    pub fn stream_decoder(&self) -> StreamDecoder {
        self.stream_decoder_with_context(&[])
    }

    /// Returns a decoder that takes ids one by one and returns the text that they append to that of
    /// `ids`.
    pub fn stream_decoder_with_context(&self, ids: &[u32]) -> StreamDecoder {
        StreamDecoder::new(self.clone(), ids)
    }

    fn is_byte_level(&self) -> bool {
        !matches!(&self.kind, Kind::Json(json) if json.bytes().is_none())
    }

    /// Returns the bytes of a token, in byte-level vocabularies.
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        const UNKNOWN: &[u8] = "\u{fffd}".as_bytes();
        match &self.kind {
            Kind::Bytes => match u8::try_from(id) {
                Ok(byte) => Cow::Owned(vec![byte]),
                Err(_) if id == self.eos => END_OF_TEXT.as_bytes().into(),
                Err(_) => UNKNOWN.into(),
            },
            Kind::Tiktoken(bpe, _) => bpe.decode_bytes(&[id]).map_or(UNKNOWN.into(), Cow::Owned),
            Kind::Json(json) => match json.bytes().and_then(|all| all.get(id as usize)) {
                Some(bytes) if !bytes.is_empty() => bytes.into(),
                _ => UNKNOWN.into(),
            },
        }
    }

    /// Writes the tokenizer to `folder`, whose parent must exist: `tokenizer.json` and
    /// `tokenizer_config.json` for Hugging Face tools, and a record for [`Tokenizer::load`].
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        files::create_new_dir(folder)?;
        files::write(folder.join(JSON_NAME), &self.to_json())?;
        let bos = self.bos.map(|id| self.name_of(id));
        let config = saved_config(
            &self.name_of(self.eos),
            bos.as_deref(),
            self.chat_template(),
        );
        files::write(folder.join(CONFIG_NAME), pretty(&config).as_bytes())?;
        let builtin = match &self.kind {
            Kind::Bytes => Some(Builtin::Bytes),
            Kind::Tiktoken(_, builtin) => Some(*builtin),
            Kind::Json(_) => None,
        };
        let record = Record {
            version: RECORD_VERSION,
            builtin,
            name: self.name.clone(),
            vocab_size: self.vocab_size,
            eos_id: self.eos,
            other_end_ids: self.ends[1..].to_vec(),
            fingerprint: self.fingerprint.clone(),
        };
        files::write(folder.join(RECORD_NAME), pretty(&record).as_bytes())?;
        Ok(())
    }

    /// Returns the tokenizer as a `tokenizer.json`; for plain bytes and tiktoken vocabularies, an
    /// equivalent one.
    pub fn to_json(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Json(json) => json.file().to_vec(),
            Kind::Bytes => {
                let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
                tokens.push(END_OF_TEXT.into());
                bpe::tokenizer_json(&tokens, &[], &[END_OF_TEXT_ID], PreTokenizer::None)
                    .into_bytes()
            }
            Kind::Tiktoken(core, builtin) => tiktoken_json(core, *builtin, self.vocab_size),
        }
    }
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
