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

pub mod dataset;
pub mod pretokenized;
pub mod shard;
pub mod stream;

mod manifest;
mod notes;
mod raw;
mod sliding;
mod windows;

#[cfg(feature = "data")]
pub mod bpe;
#[cfg(feature = "data")]
pub mod gutenberg;
#[cfg(feature = "data")]
pub mod inspect;
#[cfg(feature = "data")]
pub mod olmo_eval;
#[cfg(feature = "data")]
pub mod open;
#[cfg(feature = "data")]
pub mod prepare;
#[cfg(feature = "data")]
pub mod source;
#[cfg(feature = "data")]
pub mod stories;
#[cfg(feature = "data")]
pub mod tokenizer;
#[cfg(not(feature = "data"))]
#[path = "no_tokenizer.rs"]
pub mod tokenizer;

#[cfg(feature = "data")]
mod documents;
mod frequencies;
#[cfg(feature = "data")]
mod jsonl;
#[cfg(feature = "data")]
mod lines;
#[cfg(feature = "data")]
mod literal_special_tokens;
#[cfg(feature = "data")]
mod numpy;
#[cfg(feature = "data")]
mod overwrite_check;
#[cfg(feature = "data")]
mod package_client;
mod text_stats;

pub use dataset::{Batch, SequentialBatches, TokenDataset};
#[cfg(feature = "data")]
pub use inspect::{Inspection, SplitReport, inspect};
#[cfg(feature = "data")]
pub(crate) use literal_special_tokens::LiteralSpecialTokenCounter;
pub use manifest::{
    Dtype, FirstTokenBytes, Manifest, ShardRecord, SourceRecord, SplitRecord, TokenizerRecord,
};
#[cfg(feature = "data")]
pub use open::{OpenOptions, OpenedData, Split, TokenizerChoice, is_raw_text, open};
#[cfg(feature = "data")]
pub use prepare::{PrepareOptions, prepare, prepare_with};
pub use pretokenized::PretokenizedFile;
pub use shard::{PreparedFolder, ShardWriter, TokenStream};
pub use sliding::SlidingWindow;
#[cfg(feature = "data")]
pub(crate) use source::open_text;
#[cfg(feature = "data")]
pub use source::{Document, Documents, InvalidUtf8, SourceOptions, SourceStats, Sources};
#[cfg(feature = "data")]
pub use stories::{Stories, story};
pub use stream::{BatchStream, Cursor, Order};
pub use text_stats::{LiteralSpecialToken, TextStats};
pub use tokenizer::Tokenizer;
#[cfg(feature = "interop")]
pub(crate) use tokenizer::{CHAT_TEMPLATE_LIMIT, Settings as TokenizerSettings};
#[cfg(feature = "data")]
pub use tokenizer::{ChatTemplate, StartToken, StreamDecoder, TextStart, TokenizerSpec};
pub use windows::{Coverage, Windows};

/// Progress of a long-running operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Stage, in a word or two: `"read text"`, `"learn merges"`, `"write tokens"`.
    pub stage: &'static str,
    /// Units done.
    pub done: u64,
    /// Total units, if known.
    pub total: Option<u64>,
    /// Unit of the counts: `"bytes"` or `"merges"`.
    pub unit: &'static str,
}

/// Receives [`Progress`]; called often, so it should return quickly.
pub type ProgressFn<'a> = &'a mut dyn FnMut(Progress);

/// Ignores the progress: a no-op [`ProgressFn`].
pub fn quiet(_: Progress) {}
