//! Manifest of a prepared folder: its contents and checksums.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{self, checksummed};
use crate::omissions::Omissions;

#[cfg(feature = "data")]
use super::source::SourceStats;
use super::text_stats::LiteralSpecialToken;

/// Name of the manifest in a prepared folder; written last.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Version of the format that is written and read.
pub const MANIFEST_VERSION: u32 = 1;
const FORMAT: &str = "hybridnorm-tokens";
const MANIFEST_LIMIT: u64 = 64 << 20;

/// Integer type of the tokens in a file; little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Unsigned, one byte.
    U8,
    /// Unsigned, two bytes.
    U16,
    /// Unsigned, four bytes.
    U32,
    /// Unsigned, eight bytes.
    U64,
    /// Signed, one byte.
    I8,
    /// Signed, two bytes.
    I16,
    /// Signed, four bytes.
    I32,
    /// Signed, eight bytes.
    I64,
}

impl Dtype {
    /// Returns the type of shards for a vocabulary: u16 up to 65,536 tokens, u32 above.
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 {
            Self::U16
        } else {
            Self::U32
        }
    }

    /// Returns the bytes per token.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::U64 | Self::I64 => 8,
        }
    }

    /// Returns the name, such as `u16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }

    /// Returns the type of a name such as `u16` or `uint16`.
    pub fn from_name(name: &str) -> Option<Self> {
        // NumPy names: `uint16`, `int32`.
        let prefixes = [("uint", "u"), ("int", "i")];
        let mut short = prefixes
            .iter()
            .filter_map(|(long, short)| Some(format!("{short}{}", name.strip_prefix(long)?)));
        let name = short.next().unwrap_or_else(|| name.to_owned());
        [
            Self::U8,
            Self::U16,
            Self::U32,
            Self::U64,
            Self::I8,
            Self::I16,
            Self::I32,
            Self::I64,
        ]
        .into_iter()
        .find(|dtype| dtype.name() == name)
    }

    /// Decodes one token; `None` if negative or above `u32::MAX`.
    pub(super) fn decode_token(self, bytes: &[u8]) -> Option<u32> {
        match (self, bytes) {
            (Self::U16, &[a, b]) => Some(u16::from_le_bytes([a, b]).into()),
            (Self::U32, &[a, b, c, d]) => Some(u32::from_le_bytes([a, b, c, d])),
            _ => u32::try_from(self.decode_integer(bytes)).ok(),
        }
    }

    /// Decodes one integer; -1 for a wrong number of bytes.
    pub(super) fn decode_integer(self, bytes: &[u8]) -> i128 {
        match (self, bytes) {
            (Self::U8, &[a]) => a.into(),
            (Self::I8, &[a]) => a.cast_signed().into(),
            (Self::U16, &[a, b]) => u16::from_le_bytes([a, b]).into(),
            (Self::I16, &[a, b]) => i16::from_le_bytes([a, b]).into(),
            (Self::U32, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]).into(),
            (Self::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
            (Self::U64, bytes) => bytes
                .try_into()
                .map_or(-1, |bytes| u64::from_le_bytes(bytes).into()),
            (Self::I64, bytes) => bytes
                .try_into()
                .map_or(-1, |bytes| i64::from_le_bytes(bytes).into()),
            _ => -1,
        }
    }
}

/// Manifest of a prepared folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Always `hybridnorm-tokens`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// Tokenizer of the tokens, saved in the same folder.
    pub tokenizer: TokenizerRecord,
    /// Type of the tokens in the shards, u16 or u32.
    pub dtype: Dtype,
    /// Training tokens.
    pub train: SplitRecord,
    /// Validation tokens; no shards if none were held out.
    pub validation: SplitRecord,
    /// The inputs.
    pub sources: Vec<SourceRecord>,
    /// Seed of the split.
    pub seed: u64,
    /// Fraction of documents held out for validation; absent where validation inputs were named.
    pub validation_fraction: Option<f64>,
    /// Number of characters after which plain text files were split; absent with a separator, and in folders
    /// of earlier versions.
    #[serde(default)]
    pub document_chars: Option<usize>,
    /// Separator between the documents of plain text files.
    #[serde(default)]
    pub separator: Option<String>,
    /// Special tokens that appear literally in the text, where they are encoded as plain characters.
    #[serde(default)]
    #[serde(rename = "spelled_special_tokens")]
    pub literal_special_tokens: Vec<LiteralSpecialToken>,
    /// Omissions over all inputs, by reason; those of each input are in its record.
    #[serde(default)]
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
    /// Bytes of text of the first tokens.
    #[serde(default, skip_serializing_if = "FirstTokenBytes::is_empty")]
    pub first_token_bytes: FirstTokenBytes,
}

/// Bytes of text of the first token of each split, which is never an evaluation target. Recorded where
/// they follow from the text but not from the token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FirstTokenBytes {
    /// Bytes of the first training token.
    #[serde(default)]
    pub train: Option<u64>,
    /// Bytes of the first validation token.
    #[serde(default)]
    pub validation: Option<u64>,
}

impl FirstTokenBytes {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A tokenizer, as recorded in manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenizerRecord {
    /// Name as specified: `bytes`, `bpe:4096`, a path.
    pub name: String,
    /// [`super::Tokenizer::fingerprint`].
    pub fingerprint: String,
    /// Vocabulary size; all token ids are below it.
    pub vocab_size: usize,
    /// Id of the end-of-text token, which ends every document.
    pub eos_id: u32,
    /// [`super::Tokenizer::notes`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Tokens of one split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SplitRecord {
    /// Shards in order; together they form one stream.
    pub shards: Vec<ShardRecord>,
    /// Tokens in all shards, end-of-text tokens included.
    pub tokens: u64,
    /// Documents in all shards.
    pub documents: u64,
    /// Bytes of UTF-8 text in the documents.
    pub text_bytes: u64,
}

/// One token file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShardRecord {
    /// File name in the folder.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// Documents in it.
    pub documents: u64,
    /// Bytes of UTF-8 text in the documents.
    pub text_bytes: u64,
    /// Size and SHA-256 of the file.
    #[serde(flatten)]
    pub fingerprint: files::Fingerprint,
}

/// One input, as recorded in manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SourceRecord {
    /// Input as given.
    pub input: String,
    /// True if all of it is validation text.
    pub validation: bool,
    /// Files that documents came from; 0 for generated text.
    pub files: u64,
    /// Records of JSON and Parquet files that contain text, blank text included.
    #[serde(default)]
    pub records: u64,
    /// Documents read from it.
    pub documents: u64,
    /// Bytes of UTF-8 text in them.
    pub text_bytes: u64,
    /// Plain text files that were split because of their length.
    #[serde(default)]
    #[serde(rename = "cut_texts")]
    pub split_texts: u64,
    /// Documents that resulted from splitting them.
    #[serde(default)]
    #[serde(rename = "cut_documents")]
    pub split_documents: u64,
    /// Lines and records in which invalid UTF-8 was replaced.
    #[serde(default)]
    pub replaced_lines: u64,
    /// Texts in which an unpaired surrogate was replaced.
    #[serde(default)]
    pub replaced_surrogates: u64,
    /// Separators found between its documents.
    #[serde(default)]
    pub separators: u64,
    /// Occurrences of the vocabulary's unknown token.
    #[serde(default)]
    pub unknown_tokens: u64,
    /// Characters, except whitespace, that no token represents.
    #[serde(default)]
    pub dropped_chars: u64,
    /// Omissions, by reason.
    #[serde(default)]
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
}

impl SourceRecord {
    #[cfg(feature = "data")]
    pub(super) fn new(input: &str, validation: bool, stats: &SourceStats) -> Self {
        Self {
            input: input.to_owned(),
            validation,
            files: stats.files,
            records: stats.records,
            documents: stats.documents,
            text_bytes: stats.text_bytes,
            split_texts: stats.split_texts,
            split_documents: stats.split_documents,
            replaced_lines: stats.replaced_lines,
            replaced_surrogates: stats.replaced_surrogates,
            separators: stats.separators,
            unknown_tokens: 0,
            dropped_chars: 0,
            omissions: stats.omissions.clone(),
        }
    }
}

impl Manifest {
    #[cfg(feature = "data")]
    pub(super) fn new(tokenizer: TokenizerRecord, seed: u64) -> Self {
        Self {
            format: FORMAT.into(),
            version: MANIFEST_VERSION,
            dtype: Dtype::for_vocab(tokenizer.vocab_size),
            tokenizer,
            train: SplitRecord::default(),
            validation: SplitRecord::default(),
            sources: Vec::new(),
            seed,
            validation_fraction: None,
            document_chars: None,
            separator: None,
            literal_special_tokens: Vec::new(),
            omissions: Omissions::default(),
            first_token_bytes: FirstTokenBytes::default(),
        }
    }

    /// Writes the manifest to `folder` atomically.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST_NAME);
        let json = checksummed::to_pretty_json_with_checksum(self)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(&path, json.as_bytes()).map(drop)
    }

    /// Reads the manifest of `folder` and checks its consistency; the flag is true if it has a checksum,
    /// which earlier versions lack.
    ///
    /// # Errors
    /// If it is missing, of another version, damaged, inconsistent, or does not match its checksum.
    pub(super) fn read(folder: &Path) -> Result<(Self, bool)> {
        let path = folder.join(MANIFEST_NAME);
        let json = files::read_small(&path, MANIFEST_LIMIT)?;
        Self::parse(&json).map_err(|problem| Error::format(&path, problem))
    }

    fn parse(json: &[u8]) -> Result<(Self, bool), String> {
        #[derive(Deserialize)]
        struct Head {
            format: Option<String>,
            version: Option<u32>,
        }
        let head: Head = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if head.format.as_deref() != Some(FORMAT) {
            return Err(format!(
                "not the manifest of a prepared folder (format is not `{FORMAT}`)"
            ));
        }
        if head.version != Some(MANIFEST_VERSION) {
            return Err(format!(
                "manifest version {}, hybridnorm reads version {MANIFEST_VERSION}; prepare the data again",
                head.version.map_or("missing".into(), |v| v.to_string())
            ));
        }
        let parsed = checksummed::parse::<Self>(json)?;
        parsed.content.check()?;
        Ok((parsed.content, parsed.checksum.is_some()))
    }

    fn check(&self) -> Result<(), String> {
        let vocab = self.tokenizer.vocab_size;
        if vocab == 0 || vocab > 1 << 24 {
            return Err(format!("vocab_size is {vocab}, expected 1 to {}", 1 << 24));
        }
        if self.tokenizer.eos_id as usize >= vocab {
            return Err(format!(
                "eos_id {} is not below vocab_size {vocab}",
                self.tokenizer.eos_id
            ));
        }
        let expected = Dtype::for_vocab(vocab);
        if self.dtype != expected {
            return Err(format!(
                "dtype {}, expected {} for a vocabulary of {vocab} tokens",
                self.dtype.name(),
                expected.name()
            ));
        }
        self.train.check("train", self.dtype)?;
        self.validation.check("validation", self.dtype)?;
        let wide = u128::from;
        let read =
            |of: fn(&SourceRecord) -> u64| self.sources.iter().map(of).map(wide).sum::<u128>();
        let written =
            |of: fn(&SplitRecord) -> u64| wide(of(&self.train)) + wide(of(&self.validation));
        for (what, read, written) in [
            (
                "documents",
                read(|source| source.documents),
                written(|split| split.documents),
            ),
            (
                "bytes of text",
                read(|source| source.text_bytes),
                written(|split| split.text_bytes),
            ),
        ] {
            if read != written {
                return Err(format!("{read} {what} read but {written} written"));
            }
        }
        Ok(())
    }
}

/// Returns the shard names that the manifest of a folder lists, without validating it; `None` without a
/// readable manifest.
#[cfg(feature = "data")]
pub(super) fn listed_files(folder: &Path) -> Result<Option<Vec<String>>> {
    let path = folder.join(MANIFEST_NAME);
    if !files::exists(&path)? {
        return Ok(None);
    }
    let json = files::read_small(&path, MANIFEST_LIMIT)?;
    let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&json) else {
        return Ok(None);
    };
    let shards = ["train", "validation"].map(|split| manifest[split]["shards"].as_array());
    let shards = shards.into_iter().flatten().flatten();
    let names = shards.filter_map(|shard| shard["file"].as_str());
    Ok(Some(names.map(str::to_owned).collect()))
}

impl SplitRecord {
    pub(super) fn push(&mut self, shard: ShardRecord) {
        self.tokens += shard.tokens;
        self.documents += shard.documents;
        self.text_bytes += shard.text_bytes;
        self.shards.push(shard);
    }

    /// Returns the bytes of text per token, end-of-text tokens included; 0 for an empty split.
    pub fn bytes_per_token(&self) -> f64 {
        if self.tokens == 0 {
            0.0
        } else {
            self.text_bytes as f64 / self.tokens as f64
        }
    }

    fn check(&self, split: &str, dtype: Dtype) -> Result<(), String> {
        let (mut tokens, mut documents, mut text_bytes) = (0_u64, 0_u64, 0_u64);
        for shard in &self.shards {
            let name = &shard.file;
            let plain = !name.is_empty()
                && !name.starts_with('.')
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !plain {
                return Err(format!("{split}: {name:?} is not the name of a shard"));
            }
            if shard.tokens.checked_mul(dtype.size() as u64) != Some(shard.fingerprint.bytes) {
                return Err(format!(
                    "{split}: {name} has {} tokens and {} bytes, which do not agree",
                    shard.tokens, shard.fingerprint.bytes
                ));
            }
            tokens = tokens
                .checked_add(shard.tokens)
                .ok_or_else(|| format!("{split}: too many tokens"))?;
            documents = documents.saturating_add(shard.documents);
            text_bytes = text_bytes.saturating_add(shard.text_bytes);
        }
        for (what, all, of_shards) in [
            ("tokens", self.tokens, tokens),
            ("documents", self.documents, documents),
            ("bytes of text", self.text_bytes, text_bytes),
        ] {
            if all != of_shards {
                return Err(format!(
                    "{split}: {all} {what} in total, but the shards contain {of_shards}"
                ));
            }
        }
        Ok(())
    }
}
