//! Token streams and arrays, split into instances for training and into windows for evaluation.
//!
//! An instance is `seq_len + 1` tokens: inputs are all but the last, targets all but the first. A
//! stream of tokens is split into instances that share one token with their neighbours (instance i
//! covers tokens `i*seq_len ..= (i+1)*seq_len`), so every token but the first is a target once
//! per epoch. Rows of two-dimensional arrays are independent streams: no window spans two rows.
//!
//! The remainder at the end of a stream is shorter than an instance. Training drops it; evaluation
//! reads it as a shorter window ([`Windows::All`]). [`TokenDataset::coverage`] counts both.

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::omissions::Unit;

use super::frequencies;
use super::pretokenized::PretokenizedFile;
use super::shard::TokenStream;
use super::windows::{Coverage, Part, WindowGrid, Windows};

/// Dataset of instances of equal length from one or more token streams or arrays.
///
/// ```
/// use hybridnorm::data::{TokenDataset, Windows};
///
/// let tokens: Vec<u32> = (0..10).collect();
/// let dataset = TokenDataset::from_tokens(&tokens, 4, 10)?;
/// assert_eq!(dataset.len(), 2);
/// assert_eq!(dataset.instance(1)?, [4, 5, 6, 7, 8]);
/// // The last target is in a shorter window, which training does not use.
/// assert_eq!(dataset.coverage(Windows::All).tokens, 9);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct TokenDataset {
    pub(super) parts: Vec<Part>,
    seq_len: usize,
    instances: u64,
    has_rows: bool,
    fingerprint: Sha256,
}

impl TokenDataset {
    /// Returns an empty dataset of instances with `seq_len` inputs and as many targets.
    ///
    /// # Errors
    /// If `seq_len` is 0.
    pub fn new(seq_len: usize) -> Result<Self> {
        if seq_len == 0 {
            return Err(Error::out_of_range("seq_len", 0, "at least 1"));
        }
        Ok(Self {
            parts: Vec::new(),
            seq_len,
            instances: 0,
            has_rows: false,
            fingerprint: Sha256::new(),
        })
    }

    /// Returns a dataset of one stream of tokens in memory, which must be below `vocab_size`.
    ///
    /// # Errors
    /// If `seq_len` is 0, `vocab_size` is not from 1 to 2³¹, or a token is not below it.
    pub fn from_tokens(tokens: &[u32], seq_len: usize, vocab_size: usize) -> Result<Self> {
        if !(1..=1 << 31).contains(&vocab_size) {
            return Err(Error::out_of_range("vocab_size", vocab_size, "1 to 2^31"));
        }
        let stream = TokenStream::from_tokens(tokens, vocab_size);
        let content_hash = content_hash(&stream)?;
        let mut dataset = Self::new(seq_len)?;
        dataset.push_stream(stream, &content_hash);
        Ok(dataset)
    }

    /// Appends the instances of a stream. `identity` must differ if the tokens differ; it is part of
    /// [`TokenDataset::fingerprint`]. A stream shorter than an instance adds none.
    pub fn push_stream(&mut self, tokens: TokenStream, identity: &str) {
        self.push(tokens, (1, false), self.seq_len as u64, identity);
    }

    /// Appends a pre-tokenized file: its stream, or its rows, which must be instances.
    ///
    /// # Errors
    /// If its rows do not have `seq_len + 1` tokens, or the file cannot be read.
    pub fn push_pretokenized(&mut self, file: PretokenizedFile) -> Result<()> {
        let needed = self.seq_len as u64 + 1;
        match file.row_width() {
            Some(width) if width != needed => Err(Error::format(
                file.path(),
                format!(
                    "rows of {width} tokens; a sequence length of {} needs {needed}: in training every row of a \
                     two-dimensional array is one instance{}",
                    self.seq_len,
                    match width {
                        0 | 1 => String::new(),
                        _ => format!(
                            "; set the sequence length to {}, or save the array with one dimension, so \
                             that it is split into sequences of that length",
                            width - 1
                        ),
                    }
                ),
            )),
            _ => self.push_pretokenized_rows(file),
        }
    }

    /// Appends a pre-tokenized file whose rows may have any length, as in evaluation. A row longer than
    /// `seq_len + 1` yields several windows; a shorter one is an instance of its own length.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn push_pretokenized_rows(&mut self, file: PretokenizedFile) -> Result<()> {
        let content_hash = content_hash(file.tokens())?;
        match file.row_width() {
            None => self.push_stream(file.into_tokens(), &content_hash),
            Some(width) => {
                let tokens = file.into_tokens();
                let rows = tokens.len() / width.max(1);
                self.push(tokens, (rows, true), width, &content_hash);
                self.has_rows = true;
            }
        }
        Ok(())
    }

    /// True if it holds arrays whose rows are independent sequences.
    pub fn has_rows(&self) -> bool {
        self.has_rows
    }

    fn push(&mut self, tokens: TokenStream, streams: (u64, bool), stride: u64, identity: &str) {
        let all = tokens.len();
        let part = Part::split(
            tokens,
            streams,
            self.seq_len as u64,
            self.instances,
            identity,
        );
        let instances = part.full.len();
        self.fingerprint
            .update(format!("{stride} {instances} {all} {identity}\n"));
        self.parts.push(part);
        self.instances += instances;
    }

    /// Returns the number of instances.
    pub fn len(&self) -> u64 {
        self.instances
    }

    /// True if there are no instances.
    pub fn is_empty(&self) -> bool {
        self.instances == 0
    }

    /// Returns the number of inputs per instance.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Returns the mean of -ln p over all tokens, in nats, where p is the token frequency: the loss of a
    /// unigram model.
    ///
    /// # Errors
    /// If tokens cannot be read.
    pub fn unigram_nats(&self) -> Result<f64> {
        let mut counts = Vec::new();
        for part in &self.parts {
            frequencies::count(&part.tokens, &mut counts)?;
        }
        let all = self.tokens() as f64;
        Ok(frequencies::mean_nats(&counts, &counts, &|count| {
            count as f64 / all
        }))
    }

    /// Returns the exclusive upper bound of token ids; 0 without parts.
    pub fn vocab_size(&self) -> usize {
        let sizes = self.parts.iter().map(|part| part.tokens.vocab_size());
        sizes.max().unwrap_or(0)
    }

    /// Returns the number of tokens in all parts, including those in incomplete instances.
    pub fn tokens(&self) -> u64 {
        self.parts.iter().map(|part| part.tokens.len()).sum()
    }

    /// Counts the tokens that are targets of `windows`, and the remaining tokens by reason.
    pub fn coverage(&self, windows: Windows) -> Coverage {
        let mut found = Coverage {
            all_tokens: self.tokens(),
            ..Coverage::default()
        };
        let mut omit = |reason: &str, count| found.omissions.add(Unit::Tokens, reason, count, None);
        for part in &self.parts {
            let reason = match part.streams {
                0 | 1 => "first token of its stream, which has no context",
                _ => "first token of its row, which has no context",
            };
            omit(reason, part.streams);
        }
        let partial: u64 = self
            .partial()
            .map(|(_, grid)| grid.len() * grid.targets)
            .sum();
        let full = self
            .parts
            .iter()
            .map(|part| (part.full.len(), part.full.targets));
        let mut targets: u64 = full.clone().map(|(len, of_each)| len * of_each).sum();
        match windows {
            Windows::All => targets += partial,
            Windows::Full { limit } => {
                for (part, grid) in self.partial() {
                    let of = if part.streams > 1 { "row" } else { "stream" };
                    let reason = format!(
                        "at the end of a {of}, fewer than a sequence of {} tokens",
                        self.seq_len
                    );
                    omit(&reason, grid.len() * grid.targets);
                }
                let taken = limit.unwrap_or(u64::MAX).min(self.instances);
                let (mut rest, all) = (taken, targets);
                let within = full.map(|(len, of_each)| {
                    let here = len.min(rest);
                    rest -= here;
                    here * of_each
                });
                targets = within.sum();
                omit(
                    &format!("beyond the first {taken} sequences"),
                    all - targets,
                );
            }
        }
        found.tokens = targets;
        found
    }

    /// Returns the SHA-256 of the parts; equal only for the same data, split into the same instances.
    pub fn fingerprint(&self) -> String {
        crate::files::hex(&self.fingerprint.clone().finalize())
    }

    /// True if both datasets share a non-empty stream or array.
    pub fn overlaps(&self, other: &Self) -> bool {
        let filled = |data: &'_ Self| -> Vec<String> {
            let parts = data.parts.iter().filter(|part| !part.tokens.is_empty());
            parts.map(|part| part.identity.clone()).collect()
        };
        let theirs = filled(other);
        filled(self).iter().any(|ours| theirs.contains(ours))
    }

    /// Returns the first token of every stream and row, which is never a target.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn first_tokens(&self) -> Result<Vec<u32>> {
        let mut firsts = Vec::new();
        for part in &self.parts {
            for stream in 0..part.streams {
                let mut token = [0];
                part.tokens
                    .read(stream * part.full.stream_stride, &mut token)?;
                firsts.extend(token);
            }
        }
        Ok(firsts)
    }

    /// Returns the tokens of instance `id`: `seq_len + 1`, or those of a shorter row.
    ///
    /// # Errors
    /// If there is no such instance, or a token is outside the vocabulary.
    pub fn instance(&self, id: u64) -> Result<Vec<u32>> {
        let part = self.part_of(id)?;
        let mut tokens = vec![0; part.full.targets as usize + 1];
        read(part, id, &mut tokens)?;
        Ok(tokens)
    }

    /// Returns the part of instance `id`.
    fn part_of(&self, id: u64) -> Result<&Part> {
        let part = self
            .parts
            .partition_point(|part| part.first_instance + part.full.len() <= id);
        let below = || format!("below {}", self.instances);
        let part = self.parts.get(part);
        part.ok_or_else(|| Error::out_of_range("instance", id, below()))
    }

    pub(super) fn batch(&self, ids: Vec<u64>, epoch: u64) -> Result<Batch> {
        let seq_len = match ids.first() {
            Some(&first) => self.part_of(first)?.full.targets as usize,
            None => self.seq_len,
        };
        let mut batch = Batch::new(ids, seq_len, epoch);
        let mut tokens = vec![0; seq_len + 1];
        for row in 0..batch.len() {
            let id = batch.instance_ids[row];
            let part = self.part_of(id)?;
            if part.full.targets != seq_len as u64 {
                return Err(Error::invalid_value(
                    "data",
                    format!(
                        "instances of {seq_len} and of {} targets in one batch, expected rows of equal length",
                        part.full.targets
                    ),
                ));
            }
            read(part, id, &mut tokens)?;
            batch.push(&tokens);
        }
        Ok(batch)
    }

    /// Returns the parts that have shorter windows, and these windows.
    fn partial(&self) -> impl Iterator<Item = (&Part, WindowGrid)> {
        let grids = self.parts.iter().map(|part| (part, part.partial));
        grids.filter(|(_, grid)| grid.len() > 0)
    }

    /// Returns the end of the instances from `first` on that have the same length as it.
    fn end_of_equal_lengths(&self, first: u64) -> u64 {
        let mut parts = self
            .parts
            .iter()
            .filter(|part| part.full.len() > 0 && part.first_instance + part.full.len() > first);
        let length = parts.clone().next().map(|part| part.full.targets);
        let other = parts.find(|part| Some(part.full.targets) != length);
        other.map_or(self.instances, |part| part.first_instance)
    }

    /// Iterates over all instances in order, or the first `limit`, in batches of `batch_size`; the last
    /// batch may be smaller. For validation.
    pub fn sequential(&self, batch_size: usize, limit: Option<u64>) -> SequentialBatches<'_> {
        SequentialBatches {
            dataset: self,
            next: 0,
            end: limit.map_or(self.instances, |limit| limit.min(self.instances)),
            batch_size: batch_size.max(1) as u64,
        }
    }

    /// Iterates over the windows in batches of at most `batch_size` windows of one length: first those of
    /// [`TokenDataset::sequential`], then, for [`Windows::All`], the shorter ones, whose ids continue
    /// from there.
    pub fn windows(
        &self,
        batch_size: usize,
        windows: Windows,
    ) -> impl Iterator<Item = Result<Batch>> {
        let limit = match windows {
            Windows::All => None,
            Windows::Full { limit } => limit,
        };
        let shorter = (windows == Windows::All).then(|| self.shorter(batch_size.max(1) as u64));
        self.sequential(batch_size, limit)
            .chain(shorter.into_iter().flatten())
    }

    fn shorter(&self, batch_size: u64) -> impl Iterator<Item = Result<Batch>> {
        let mut next_id = self.instances;
        self.partial().flat_map(move |(part, grid)| {
            let first_id = next_id;
            next_id += grid.len();
            let starts = (0..grid.len()).step_by(batch_size as usize);
            starts.map(move |from| {
                let to = grid.len().min(from.saturating_add(batch_size));
                let ids = (first_id + from..first_id + to).collect();
                let mut batch = Batch::new(ids, grid.targets as usize, 0);
                let mut tokens = vec![0; grid.targets as usize + 1];
                for index in from..to {
                    part.tokens.read(grid.start_of(index), &mut tokens)?;
                    batch.push(&tokens);
                }
                Ok(batch)
            })
        })
    }
}

/// Reads the tokens of an instance of a part.
fn read(part: &Part, id: u64, tokens: &mut [u32]) -> Result<()> {
    let start = part.full.start_of(id - part.first_instance);
    part.tokens.read(start, tokens)
}

/// Returns the SHA-256 over all tokens as u32.
fn content_hash(tokens: &TokenStream) -> Result<String> {
    let mut digest = Sha256::new();
    tokens.for_each_chunk(|tokens| {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        digest.update(&bytes);
    })?;
    Ok(crate::files::hex(&digest.finalize()))
}

/// Batch of instances, one per row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// Input tokens, `[b, t]`.
    pub inputs: Vec<i32>,
    /// Target tokens, which follow the inputs, `[b, t]`.
    pub targets: Vec<i32>,
    /// Instance id of each row, `[b]`.
    pub instance_ids: Vec<u64>,
    /// Sequence length, t.
    pub seq_len: usize,
    /// Epoch of the first row.
    pub epoch: u64,
}

impl Batch {
    /// Returns an empty batch with capacity for the rows of `ids`.
    fn new(ids: Vec<u64>, seq_len: usize, epoch: u64) -> Self {
        Self {
            inputs: Vec::with_capacity(ids.len() * seq_len),
            targets: Vec::with_capacity(ids.len() * seq_len),
            instance_ids: ids,
            seq_len,
            epoch,
        }
    }

    /// Appends a row from its `seq_len + 1` tokens.
    fn push(&mut self, tokens: &[u32]) {
        // A token stream only returns ids below 2^31.
        let signed = |&token: &u32| token as i32;
        self.inputs
            .extend(tokens[..self.seq_len].iter().map(signed));
        self.targets.extend(tokens[1..].iter().map(signed));
    }

    /// Returns the number of rows, b.
    pub fn len(&self) -> usize {
        self.instance_ids.len()
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.instance_ids.is_empty()
    }
}

/// Iterator of [`TokenDataset::sequential`].
#[derive(Debug)]
pub struct SequentialBatches<'d> {
    dataset: &'d TokenDataset,
    next: u64,
    end: u64,
    batch_size: u64,
}

impl Iterator for SequentialBatches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        if self.next >= self.end {
            return None;
        }
        let end = self.end.min(self.next.saturating_add(self.batch_size));
        let end = end.min(self.dataset.end_of_equal_lengths(self.next));
        let ids = (self.next..end).collect();
        self.next = end;
        let batch = self.dataset.batch(ids, 0);
        if batch.is_err() {
            self.next = self.end;
        }
        Some(batch)
    }
}
