//! Data pipeline from text to batches: sources, tokenizers, token shards and the batch stream.
//!
//! ```text
//! inputs -> Sources -> documents -> Tokenizer -> ShardWriter -> folder with manifest.json
//!        -> TokenDataset -> BatchStream -> Batch
//! ```
//!
//! [`prepare()`] performs the first line and writes a prepared folder; [`open()`] opens the data paths of a
//! configuration (prepared folders, pre-tokenized files, raw text) and returns a [`TokenDataset`];
//! [`BatchStream`] yields batches from an exact, serializable [`Cursor`].
//!
//! This module does not print. Long-running functions take a [`ProgressFn`].

pub mod bpe;
pub mod dataset;
pub mod gutenberg;
pub mod inspect;
pub mod open;
pub mod prepare;
pub mod pretokenized;
pub mod shard;
pub mod source;
pub mod stories;
pub mod stream;
pub mod tokenizer;

mod documents;
mod frequencies;
mod jsonl;
mod lines;
mod literal_special_tokens;
mod manifest;
mod notes;
mod numpy;
mod overwrite_check;
mod raw;
mod text_stats;
mod windows;

pub use dataset::{Batch, SequentialBatches, TokenDataset};
pub use inspect::{Inspection, SplitReport, inspect};
pub use literal_special_tokens::SpelledToken;
pub(crate) use literal_special_tokens::SpelledTokens;
pub use manifest::{
    Dtype, FirstTokenBytes, Manifest, ShardRecord, SourceRecord, SplitRecord, TokenizerRecord,
};
pub use open::{OpenOptions, Opened, Split, TokenizerChoice, is_raw_text, open};
pub use prepare::{PrepareOptions, prepare, prepare_with};
pub use pretokenized::ReadyTokens;
pub use shard::{PreparedFolder, ShardWriter, TokenStream};
pub use source::{Document, Documents, InvalidUtf8, SourceOptions, SourceStats, Sources};
pub use stories::{Stories, story};
pub use stream::{BatchStream, Cursor, Order};
pub use text_stats::TextAccount;
pub use tokenizer::{StreamDecoder, Tokenizer, TokenizerSpec};
pub use windows::{Coverage, Windows};

/// Progress of a long-running step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The step, in a word or two: `"read text"`, `"merge tokens"`, `"write tokens"`.
    pub stage: &'static str,
    /// Units done.
    pub done: u64,
    /// Total units, if known.
    pub total: Option<u64>,
    /// Unit of the counts: `"bytes"`, `"merges"`, `"documents"`.
    pub unit: &'static str,
}

/// Receives [`Progress`]; called often, so it should return quickly.
pub type ProgressFn<'a> = &'a mut dyn FnMut(Progress);

/// Ignores the progress: a no-op [`ProgressFn`].
pub fn quiet(_: Progress) {}
