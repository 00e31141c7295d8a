//! Windows over token streams and their coverage.

use serde::{Deserialize, Serialize};

use crate::omissions::Omissions;

use super::shard::TokenStream;

/// Windows of a dataset to use.
///
/// ```
/// use hybridnorm::data::{TokenDataset, Windows};
///
/// let dataset = TokenDataset::from_tokens(&[0, 1, 2, 3, 4, 5], 4, 6)?;
/// let lengths: Vec<_> = dataset
///     .windows(1, Windows::All)
///     .map(|batch| batch.map(|batch| batch.seq_len))
///     .collect::<Result<_, _>>()?;
/// assert_eq!(lengths, [4, 1]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Windows {
    /// All windows, including shorter last ones: every token except the first of each stream or row is a
    /// target.
    All,
    /// Windows of `seq_len` targets, as in training, and whole rows that are shorter; the first `limit` of them if given.
    Full {
        /// Maximum number of windows.
        limit: Option<u64>,
    },
}

/// Number of tokens of a dataset that are targets, and the remaining tokens by reason.
/// `all_tokens = tokens + omissions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Coverage {
    /// Total number of tokens.
    pub all_tokens: u64,
    /// Tokens that are targets, once per epoch.
    pub tokens: u64,
    /// Tokens that are not targets, by reason.
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
}

/// Streams of equal length, split into windows.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) tokens: TokenStream,
    pub(super) identity: String,
    /// Number of streams: the rows of an array, or 1.
    pub(super) streams: u64,
    /// Windows of `seq_len` targets; for rows of up to `seq_len` targets, the rows.
    pub(super) full: WindowGrid,
    /// Index of the first of these windows in the dataset.
    pub(super) first_instance: u64,
    /// The shorter window at the end of each stream.
    pub(super) partial: WindowGrid,
}

/// Windows of equal length, the same number in each stream of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowGrid {
    /// Position of the first window.
    offset: u64,
    /// Distance between the starts of consecutive streams.
    pub(super) stream_stride: u64,
    streams: u64,
    per_stream: u64,
    /// Targets per window, and the distance between consecutive windows of a stream.
    pub(super) targets: u64,
}

impl WindowGrid {
    pub(super) fn len(&self) -> u64 {
        self.streams * self.per_stream
    }

    pub(super) fn start_of(&self, index: u64) -> u64 {
        let (stream, within) = (index / self.per_stream, index % self.per_stream);
        self.offset + stream * self.stream_stride + within * self.targets
    }
}

impl Part {
    /// Splits `streams` streams of equal length into windows. With `has_rows`, a stream is a row of an array, which is an
    /// instance whatever its length, unless it is longer than `seq_len` targets.
    pub(super) fn split(
        tokens: TokenStream,
        (streams, has_rows): (u64, bool),
        seq_len: u64,
        first_instance: u64,
        identity: &str,
    ) -> Self {
        let length = tokens.len().checked_div(streams).unwrap_or_default();
        let targets = length.saturating_sub(1);
        let grid = |offset, per_stream, targets| WindowGrid {
            offset,
            stream_stride: length,
            streams,
            per_stream,
            targets,
        };
        let seq_len = match has_rows && targets > 0 {
            true => seq_len.min(targets),
            false => seq_len,
        };
        let (full, rest) = (targets / seq_len, targets % seq_len);
        Self {
            tokens,
            identity: identity.to_owned(),
            streams: streams * u64::from(length > 0),
            full: grid(0, full, seq_len),
            first_instance,
            partial: grid(full * seq_len, u64::from(rest > 0), rest),
        }
    }
}
