//! One tokenizer value over byte-level BPE trained here, any `tokenizer.json`, tiktoken
//! vocabularies, and plain bytes.
//!
//! Special tokens never come out of [`Tokenizer::encode`]: text that spells `<|endoftext|>` is
//! encoded as the characters it consists of. No start token is added.

mod json;
mod parallel;
mod special;
mod stream;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tiktoken_rs::CoreBPE;
use tokenizers::DecoderWrapper;

use crate::error::{Error, Result};
use crate::files;

use super::ProgressFn;
use super::bpe::{self, BpeTrainer, END_OF_TEXT, END_OF_TEXT_ID, Splitter};
use super::manifest::TokenizerRecord;

use json::{byte_table, configured_eos, one_line, parse_json, tiktoken_json};
pub(super) use parallel::{in_parallel, pieces};
pub use stream::StreamDecoder;

const JSON_NAME: &str = "tokenizer.json";
const CONFIG_NAME: &str = "tokenizer_config.json";
pub(super) const RECORD_NAME: &str = "hybridnorm-tokenizer.json";
const RECORD_VERSION: u32 = 1;
const JSON_LIMIT: u64 = 256 << 20;

/// Names under which vocabularies commonly know their end-of-text token, in order of preference.
const END_NAMES: [&str; 8] = [
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "[SEP]",
];

/// Which tokenizer is meant; written `bytes`, `r50k`, `cl100k`, `bpe:4096`, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSpec {
    /// One token per byte, and the end-of-text token; 257 in all.
    Bytes,
    /// GPT-2's vocabulary, 50,257 tokens.
    R50k,
    /// The vocabulary of GPT-4, 100,277 ids.
    Cl100k,
    /// Byte-level BPE to be trained on the text at hand.
    Bpe {
        /// Most tokens it may have.
        vocab_size: usize,
    },
    /// A `tokenizer.json`, or a folder that holds one.
    Path(PathBuf),
}

impl FromStr for TokenizerSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "bytes" => Self::Bytes,
            "r50k" => Self::R50k,
            "cl100k" => Self::Cl100k,
            "" => return Err(Error::config("the tokenizer is the empty string")),
            _ => match text.strip_prefix("bpe:") {
                Some(size) => {
                    let vocab_size = size.parse().map_err(|_| {
                        Error::config(format!(
                            "`{text}` is not a tokenizer: expected a number after `bpe:`, as in `bpe:4096`"
                        ))
                    })?;
                    BpeTrainer::new(vocab_size)?;
                    Self::Bpe { vocab_size }
                }
                None => Self::Path(text.into()),
            },
        })
    }
}

impl fmt::Display for TokenizerSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("bytes"),
            Self::R50k => f.write_str("r50k"),
            Self::Cl100k => f.write_str("cl100k"),
            Self::Bpe { vocab_size } => write!(f, "bpe:{vocab_size}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Text to token ids and back. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    kind: Kind,
    name: String,
    vocab_size: usize,
    eos: u32,
    fingerprint: String,
}

#[derive(Clone)]
enum Kind {
    Bytes,
    Tiktoken(&'static CoreBPE, Builtin),
    Json(Arc<Json>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Builtin {
    Bytes,
    R50k,
    Cl100k,
}

struct Json {
    /// The file, as it was read.
    file: Vec<u8>,
    inner: tokenizers::Tokenizer,
    /// Bytes of each token, where the vocabulary is byte-level.
    bytes: Option<Vec<Vec<u8>>>,
}

/// What a saved tokenizer says of itself.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Absent: `tokenizer.json` beside it.
    builtin: Option<Builtin>,
    name: String,
    vocab_size: usize,
    eos_id: u32,
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
    /// The tokenizer that a specification names.
    ///
    /// # Errors
    /// If it is `bpe:N`, which needs text ([`BpeTrainer`]; [`super::prepare()`] does that), or a
    /// path as in [`Tokenizer::load`].
    pub fn from_spec(spec: &TokenizerSpec) -> Result<Self> {
        match spec {
            TokenizerSpec::Bytes => Ok(Self::bytes()),
            TokenizerSpec::R50k => Ok(Self::r50k()),
            TokenizerSpec::Cl100k => Ok(Self::cl100k()),
            TokenizerSpec::Bpe { .. } => Err(Error::config(format!(
                "`{spec}` must be trained on text first; prepare data with it"
            ))),
            TokenizerSpec::Path(path) if !path.exists() && path.components().count() == 1 => {
                Err(Error::config(format!(
                    "`{spec}` is not a tokenizer: expected bytes, r50k, cl100k, bpe:N, or the path of a tokenizer.json or of a folder that holds one"
                )))
            }
            TokenizerSpec::Path(path) => Ok(Self::load(path)?.named(&spec.to_string())),
        }
    }

    /// One token per byte, and the end-of-text token with id 256.
    pub fn bytes() -> Self {
        Self::builtin(Kind::Bytes, "bytes", 257, END_OF_TEXT_ID)
    }

    /// GPT-2's vocabulary.
    pub fn r50k() -> Self {
        let bpe = tiktoken_rs::r50k_base_singleton();
        Self::builtin(Kind::Tiktoken(bpe, Builtin::R50k), "r50k", 50_257, 50_256)
    }

    /// The vocabulary of GPT-4. Ids 100,256 and 100,261 to 100,275 are not used.
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
            fingerprint: files::sha256(format!("hybridnorm tokenizer 1 {name}").as_bytes()),
        }
    }

    /// Byte-level BPE of at most `vocab_size` tokens, trained on `texts`.
    ///
    /// # Errors
    /// If `vocab_size` is not sensible.
    pub fn train_bpe(texts: &[&str], vocab_size: usize, progress: ProgressFn) -> Result<Self> {
        let mut trainer = BpeTrainer::new(vocab_size)?;
        trainer.feed(texts, 0);
        let json = trainer.finish(progress);
        Self::from_json(json.into_bytes(), None).map(|t| t.named(&format!("bpe:{vocab_size}")))
    }

    /// Reads a `tokenizer.json`, a folder that holds one, or a folder written by
    /// [`Tokenizer::save`].
    ///
    /// The end-of-text token is the `eos_token` of a `tokenizer_config.json` beside the file, or
    /// else the first special token with a well-known name.
    ///
    /// # Errors
    /// If nothing is there, the file is not a tokenizer, it has no end-of-text token, or it is
    /// not what was saved.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_dir() {
            return Self::load_json(path, path.parent());
        }
        let record_path = path.join(RECORD_NAME);
        if record_path.exists() {
            return Self::load_saved(path, &record_path);
        }
        let json = path.join(JSON_NAME);
        if !json.exists() {
            return Err(Error::format(path, "no tokenizer.json in this folder"));
        }
        Self::load_json(&json, Some(path))
    }

    fn load_json(path: &Path, folder: Option<&Path>) -> Result<Self> {
        let file = files::read_small(path, JSON_LIMIT)?;
        let eos = match folder.map(|folder| folder.join(CONFIG_NAME)) {
            Some(config) if config.exists() => configured_eos(&config)?,
            _ => None,
        };
        Self::from_json(file, eos.as_deref())
            .map(|tokenizer| tokenizer.named(&path.display().to_string()))
            .map_err(|error| Error::format(path, error.to_string()))
    }

    fn load_saved(folder: &Path, record_path: &Path) -> Result<Self> {
        let text = files::read_small(record_path, 1 << 20)?;
        let record: Record = serde_json::from_slice(&text)
            .map_err(|error| Error::format(record_path, error.to_string()))?;
        if record.version != RECORD_VERSION {
            return Err(Error::format(
                record_path,
                format!(
                    "version {}, this program reads version {RECORD_VERSION}",
                    record.version
                ),
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
        Ok(tokenizer.named(&record.name))
    }

    /// A tokenizer out of the bytes of a `tokenizer.json`; `eos` names its end-of-text token.
    ///
    /// # Errors
    /// If the file is not a tokenizer or has no such token.
    pub fn from_json(file: Vec<u8>, eos: Option<&str>) -> Result<Self> {
        let mut inner = parse_json(&file)
            .map_err(|problem| Error::config(format!("not a tokenizer: {problem}")))?;
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| Error::config(one_line(&*error)))?;
        let vocab = inner.get_vocab(true);
        let eos = match eos {
            Some(name) => vocab.get(name).copied().ok_or_else(|| {
                Error::config(format!("no token `{name}`, which is named as its end of text"))
            })?,
            None => END_NAMES
                .iter()
                .find_map(|name| vocab.get(*name).copied())
                .ok_or_else(|| {
                    Error::config(format!(
                        "no end-of-text token; put `{{\"eos_token\": \"...\"}}` in a {CONFIG_NAME} beside it"
                    ))
                })?,
        };
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size > 1 << 24 {
            return Err(Error::config(format!(
                "a token has the id {}; ids up to {} are read",
                vocab_size - 1,
                1 << 24
            )));
        }
        let bytes = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
            .then(|| byte_table(&vocab, vocab_size));
        let fingerprint = files::sha256(
            format!("hybridnorm tokenizer 1 json {eos} {}", files::sha256(&file)).as_bytes(),
        );
        Ok(Self {
            kind: Kind::Json(Arc::new(Json { file, inner, bytes })),
            name: JSON_NAME.into(),
            vocab_size,
            eos,
            fingerprint,
        })
    }

    /// The same tokenizer under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// How it was specified.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the token that ends every document.
    pub fn eos_id(&self) -> u32 {
        self.eos
    }

    /// SHA-256 that is equal for equal tokenizers, whatever their names.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What manifests and checkpoints record.
    pub fn record(&self) -> TokenizerRecord {
        TokenizerRecord {
            name: self.name.clone(),
            fingerprint: self.fingerprint.clone(),
            vocab_size: self.vocab_size,
            eos_id: self.eos,
        }
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// If a `tokenizer.json` cannot encode it, for example for want of an unknown-token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in pieces(text) {
            match &self.kind {
                Kind::Bytes => ids.extend(piece.bytes().map(u32::from)),
                Kind::Tiktoken(bpe, _) => ids.extend(bpe.encode_ordinary(piece)),
                Kind::Json(json) => {
                    let encoding = json.inner.encode_fast(piece, false).map_err(|error| {
                        Error::config(format!("{}: {}", self.name, one_line(&*error)))
                    })?;
                    ids.extend(encoding.get_ids());
                }
            }
        }
        Ok(ids)
    }

    /// Token ids of several texts, on `threads` threads (0: one per core). The result does not
    /// depend on their number.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], threads: usize) -> Result<Vec<Vec<u32>>> {
        in_parallel(texts, threads, |text| self.encode(text))
            .into_iter()
            .collect()
    }

    /// Text of token ids. Bytes that are not UTF-8 and unknown ids become U+FFFD; special tokens
    /// appear by name.
    pub fn decode(&self, ids: &[u32]) -> String {
        if let Kind::Json(json) = &self.kind
            && json.bytes.is_none()
        {
            return json.inner.decode(ids, false).unwrap_or_default();
        }
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id).into_owned())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder that takes ids one by one.
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    fn is_byte_level(&self) -> bool {
        !matches!(&self.kind, Kind::Json(json) if json.bytes.is_none())
    }

    /// The bytes a token stands for, in byte-level vocabularies.
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        const UNKNOWN: &[u8] = "\u{fffd}".as_bytes();
        match &self.kind {
            Kind::Bytes => match u8::try_from(id) {
                Ok(byte) => Cow::Owned(vec![byte]),
                Err(_) if id == self.eos => END_OF_TEXT.as_bytes().into(),
                Err(_) => UNKNOWN.into(),
            },
            Kind::Tiktoken(bpe, _) => bpe.decode_bytes(&[id]).map_or(UNKNOWN.into(), Cow::Owned),
            Kind::Json(json) => match json.bytes.as_ref().and_then(|all| all.get(id as usize)) {
                Some(bytes) if !bytes.is_empty() => bytes.into(),
                _ => UNKNOWN.into(),
            },
        }
    }

    /// Writes the tokenizer into `folder`: `tokenizer.json` and `tokenizer_config.json`, which
    /// Hugging Face tools read, and a record for [`Tokenizer::load`].
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        files::create_dir(folder)?;
        files::write(folder.join(JSON_NAME), &self.to_json())?;
        let eos = match &self.kind {
            Kind::Json(json) => json.inner.id_to_token(self.eos),
            _ => None,
        };
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos.as_deref().unwrap_or(END_OF_TEXT),
            "clean_up_tokenization_spaces": false,
        });
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
            fingerprint: self.fingerprint.clone(),
        };
        files::write(folder.join(RECORD_NAME), pretty(&record).as_bytes())?;
        Ok(())
    }

    /// The tokenizer as a `tokenizer.json`; for plain bytes and tiktoken vocabularies, one that
    /// encodes the same.
    pub fn to_json(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Json(json) => json.file.clone(),
            Kind::Bytes => {
                let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
                tokens.push(END_OF_TEXT.into());
                bpe::tokenizer_json(&tokens, &[], &[END_OF_TEXT_ID], Splitter::None).into_bytes()
            }
            Kind::Tiktoken(core, builtin) => tiktoken_json(core, *builtin, self.vocab_size),
        }
    }
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
