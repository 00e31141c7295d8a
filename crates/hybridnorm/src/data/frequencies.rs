//! Token frequencies, and the loss of a model that knows nothing else.

use crate::error::Result;

use super::shard::TokenStream;

/// Counts the tokens of a stream by id, one entry for each id of its vocabulary.
pub(super) fn counts(tokens: &TokenStream) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    count(tokens, &mut counts)?;
    Ok(counts)
}

/// As [`counts`], on top of those of other streams.
pub(super) fn count(tokens: &TokenStream, counts: &mut Vec<u64>) -> Result<()> {
    counts.resize(counts.len().max(tokens.vocab_size()), 0);
    tokens.for_each(|token| counts[token as usize] += 1)
}

/// Mean of -ln p over tokens that occur `counts` times, in nats, where p follows from how often each was
/// `seen`; 0 where there are no tokens.
pub(super) fn mean_nats(counts: &[u64], seen: &[u64], p: &dyn Fn(u64) -> f64) -> f64 {
    let nats: f64 = counts
        .iter()
        .zip(seen)
        .filter(|&(&count, _)| count > 0)
        .map(|(&count, &seen)| -(count as f64) * p(seen).ln())
        .sum();
    nats / counts.iter().sum::<u64>().max(1) as f64
}
