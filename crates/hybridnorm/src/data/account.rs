//! What was read of the texts that tokens were made from.

use serde::{Deserialize, Serialize};

use super::shard::PreparedFolder;
use crate::omissions::LeftOut;

/// What preparations read of their inputs, and what they left out, cut and replaced. It is that of all
/// splits together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextAccount {
    /// Files that documents came from; 0 for generated text.
    pub files: u64,
    /// Records of JSON and Parquet files that held a text, blank ones included.
    pub records: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of UTF-8 text in them.
    pub text_bytes: u64,
    /// Plain text files that were cut for their length.
    pub cut_texts: u64,
    /// Documents they were cut into.
    pub cut_documents: u64,
    /// Lines and records in which invalid UTF-8 was replaced.
    pub replaced_lines: u64,
    /// Texts in which half a surrogate pair was replaced.
    pub replaced_surrogates: u64,
    /// Files, records and documents that were left out, by reason.
    pub left_out: LeftOut,
    /// All of what was left out, cut, replaced and spelled out, in lines.
    pub notes: Vec<String>,
}

impl TextAccount {
    /// The account of prepared folders; `None` where there is none.
    pub(super) fn of(folders: &[PreparedFolder]) -> Option<Self> {
        if folders.is_empty() {
            return None;
        }
        let mut all = Self::default();
        for manifest in folders.iter().map(PreparedFolder::manifest) {
            for source in &manifest.sources {
                all.files += source.files;
                all.records += source.records;
                all.documents += source.documents;
                all.text_bytes += source.text_bytes;
                all.cut_texts += source.cut_texts;
                all.cut_documents += source.cut_documents;
                all.replaced_lines += source.replaced_lines;
                all.replaced_surrogates += source.replaced_surrogates;
            }
            all.left_out.extend(&manifest.left_out);
            all.notes.extend(manifest.notes());
        }
        Some(all)
    }
}
