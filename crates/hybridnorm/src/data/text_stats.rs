//! Statistics of the source text of a dataset: what was read, changed and omitted.

use serde::{Deserialize, Serialize};

use crate::omissions::Omissions;

use super::manifest::{Manifest, SourceRecord};
use super::shard::PreparedFolder;

/// Special token and the number of its literal occurrences in text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LiteralSpecialToken {
    /// The token.
    pub token: String,
    /// Occurrences.
    pub count: u64,
    /// Documents in which it occurs.
    pub documents: u64,
}

/// Statistics of the source text of a dataset: sums over the inputs of prepared folders, regardless of the split used.
///
/// Files read plus files omitted are all files; the same holds for records and for documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TextStats {
    /// Files that documents came from.
    pub files: u64,
    /// Records of JSON and Parquet files that contain text, blank text included.
    pub records: u64,
    /// Documents read.
    pub documents: u64,
    /// Tokens, end-of-text tokens included.
    pub tokens: u64,
    /// Bytes of UTF-8 text in the documents.
    pub text_bytes: u64,
    /// Plain text files that were split because of their length.
    #[serde(rename = "cut_texts")]
    pub split_texts: u64,
    /// Documents that resulted from splitting them.
    #[serde(rename = "cut_documents")]
    pub split_documents: u64,
    /// Separators found between documents.
    pub separators: u64,
    /// Lines and records in which invalid UTF-8 was replaced.
    pub replaced_lines: u64,
    /// Texts in which an unpaired surrogate was replaced.
    pub replaced_surrogates: u64,
    /// Occurrences of the vocabulary's unknown token.
    pub unknown_tokens: u64,
    /// Characters, except whitespace, that no token represents.
    pub dropped_chars: u64,
    /// Special tokens that appear literally in the text, where they are encoded as plain characters.
    #[serde(rename = "spelled_special_tokens")]
    pub literal_special_tokens: Vec<LiteralSpecialToken>,
    /// Omissions, by reason.
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
    /// Notes on everything that was omitted, split, replaced or dropped, on unknown tokens, and on special tokens that
    /// appear literally.
    pub notes: Vec<String>,
}

impl TextStats {
    /// Returns the sums over several prepared folders; `None` without folders.
    pub fn from_folders(folders: &[PreparedFolder]) -> Option<Self> {
        let mut all = folders
            .iter()
            .map(|folder| Self::from_manifest(folder.manifest()));
        let first = all.next()?;
        Some(all.fold(first, Self::merge))
    }

    fn from_manifest(manifest: &Manifest) -> Self {
        let sum = |of: fn(&SourceRecord) -> u64| manifest.sources.iter().map(of).sum::<u64>();
        Self {
            files: sum(|source| source.files),
            records: sum(|source| source.records),
            documents: sum(|source| source.documents),
            tokens: manifest.train.tokens + manifest.validation.tokens,
            text_bytes: sum(|source| source.text_bytes),
            split_texts: sum(|source| source.split_texts),
            split_documents: sum(|source| source.split_documents),
            separators: sum(|source| source.separators),
            replaced_lines: sum(|source| source.replaced_lines),
            replaced_surrogates: sum(|source| source.replaced_surrogates),
            unknown_tokens: sum(|source| source.unknown_tokens),
            dropped_chars: sum(|source| source.dropped_chars),
            literal_special_tokens: manifest.literal_special_tokens.clone(),
            omissions: manifest.omissions.clone(),
            notes: manifest.notes(),
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.files += other.files;
        self.records += other.records;
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.text_bytes += other.text_bytes;
        self.split_texts += other.split_texts;
        self.split_documents += other.split_documents;
        self.separators += other.separators;
        self.replaced_lines += other.replaced_lines;
        self.replaced_surrogates += other.replaced_surrogates;
        self.unknown_tokens += other.unknown_tokens;
        self.dropped_chars += other.dropped_chars;
        for literal in other.literal_special_tokens {
            let mut ours = self.literal_special_tokens.iter_mut();
            match ours.rfind(|ours| ours.token == literal.token) {
                Some(ours) => {
                    ours.count += literal.count;
                    ours.documents += literal.documents;
                }
                None => self.literal_special_tokens.push(literal),
            }
        }
        self.omissions.extend(&other.omissions);
        self.notes.extend(other.notes);
        self
    }

    /// Returns the numbers of files, records, documents and tokens in one line.
    pub fn summary(&self) -> String {
        let number = |count: u64, unit: &str| {
            let s = if count == 1 { "" } else { "s" };
            format!(
                "{} {unit}{s}",
                crate::format_number::with_thousands_separators(count)
            )
        };
        let counted = [(self.files, "file"), (self.records, "record")];
        let mut parts: Vec<String> = counted
            .into_iter()
            .filter(|&(count, _)| count > 0)
            .map(|(count, unit)| number(count, unit))
            .collect();
        parts.push(number(self.documents, "document"));
        parts.push(number(self.tokens, "token"));
        parts.join(", ")
    }
}
