//! Report on the contents of a prepared folder.

use std::path::Path;

use serde::Serialize;

use crate::error::Result;

use super::frequencies;
use super::manifest::Manifest;
use super::shard::PreparedFolder;

/// Number of training tokens in the sample.
const SAMPLE_TOKENS: u64 = 200;

/// Report on a prepared folder whose shards were all verified.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The manifest.
    pub manifest: Manifest,
    /// True if the manifest has a checksum; those of earlier versions have none.
    pub has_checksum: bool,
    /// Report on the training tokens.
    pub train: SplitReport,
    /// Report on the validation tokens; `None` if none were held out.
    pub validation: Option<SplitReport>,
    /// The start of the training text, decoded from its tokens.
    pub sample: String,
}

/// Statistics of one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SplitReport {
    /// Tokens, end-of-text tokens included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of UTF-8 text.
    pub text_bytes: u64,
    /// Shards.
    pub shards: usize,
    /// Bytes of text per token.
    pub bytes_per_token: f64,
    /// Number of distinct tokens.
    pub vocab_used: usize,
    /// Mean of -ln p over the tokens, in nats, where p is the token frequency in the training text: for
    /// the training text its unigram entropy, the loss of a unigram model. For validation
    /// p = (count + 1) / (tokens + vocabulary), so that unseen tokens count.
    pub unigram_nats: f64,
}

/// Verifies a prepared folder and computes its token statistics.
///
/// # Errors
/// If anything in it is missing or damaged.
pub fn inspect(folder: impl AsRef<Path>) -> Result<Inspection> {
    let prepared = PreparedFolder::open(folder)?;
    prepared.verify()?;
    let manifest = prepared.manifest().clone();
    let (train, validation) = (prepared.train()?, prepared.validation()?);
    let train_counts = frequencies::counts(&train)?;
    let validation_counts = frequencies::counts(&validation)?;
    let total = train.len() as f64;
    let smoothed_total = total + train_counts.len() as f64;
    let mut first = vec![0; train.len().min(SAMPLE_TOKENS) as usize];
    train.read(0, &mut first)?;
    let report =
        |counts: &[u64], record: &super::SplitRecord, p: &dyn Fn(u64) -> f64| SplitReport {
            tokens: record.tokens,
            documents: record.documents,
            text_bytes: record.text_bytes,
            shards: record.shards.len(),
            bytes_per_token: record.bytes_per_token(),
            vocab_used: counts.iter().filter(|&&count| count > 0).count(),
            unigram_nats: frequencies::mean_nats(counts, &train_counts, p),
        };
    Ok(Inspection {
        has_checksum: prepared.has_checksum(),
        train: report(&train_counts, &manifest.train, &|seen| seen as f64 / total),
        validation: (!validation.is_empty()).then(|| {
            report(&validation_counts, &manifest.validation, &|seen| {
                (seen as f64 + 1.0) / smoothed_total
            })
        }),
        sample: prepared.tokenizer()?.decode(&first),
        manifest,
    })
}
