//! Token frequencies and the loss of a unigram model.

use crate::error::Result;

use super::shard::TokenStream;

/// Counts the tokens of a stream by id, one entry for each id of its vocabulary.
#[cfg(feature = "data")]
pub(super) fn counts(tokens: &TokenStream) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    count(tokens, &mut counts)?;
    Ok(counts)
}

/// Adds the token counts of a stream to `counts`.
pub(super) fn count(tokens: &TokenStream, counts: &mut Vec<u64>) -> Result<()> {
    counts.resize(counts.len().max(tokens.vocab_size()), 0);
    tokens.for_each(|token| counts[token as usize] += 1)
}

/// Returns the mean of -ln p over tokens that occur `counts` times, in nats, where `p` maps the count in
/// `seen` to a probability; 0 without tokens.
pub(super) fn mean_nats(counts: &[u64], seen: &[u64], p: &dyn Fn(u64) -> f64) -> f64 {
    let nats: f64 = counts
        .iter()
        .zip(seen)
        .filter(|&(&count, _)| count > 0)
        .map(|(&count, &seen)| -(count as f64) * p(seen).ln())
        .sum();
    nats / counts.iter().sum::<u64>().max(1) as f64
}
