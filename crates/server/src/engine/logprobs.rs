//! Log-probabilities of tokens, from logits.

use super::request::TokenLogprob;

/// Returns the log-probabilities of `id` and of the `n_top` most likely tokens with an id below `vocab`, from the logits
/// of one position. The softmax is over all logits, in double precision.
pub(super) fn token_logprob(logits: &[f32], id: i32, n_top: usize, vocab: usize) -> TokenLogprob {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let total: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let log_total = total.ln();
    let logprob = |id: usize| (f64::from(logits[id] - largest) - log_total) as f32;
    let top = largest_ids(&logits[..vocab.min(logits.len())], n_top);
    TokenLogprob {
        id,
        logprob: Some(logprob(id as usize)),
        top: top.into_iter().map(|id| (id as i32, logprob(id))).collect(),
    }
}

/// Returns the ids of the `n` largest logits, in descending order; of equal ones the lower id first.
fn largest_ids(logits: &[f32], n: usize) -> Vec<usize> {
    let mut top: Vec<usize> = Vec::with_capacity(n + 1);
    for (id, logit) in logits.iter().enumerate() {
        let is_full = top.len() == n;
        if is_full
            && top
                .last()
                .is_none_or(|&last| logits[last].total_cmp(logit).is_ge())
        {
            continue;
        }
        let at = top.partition_point(|&other| logits[other].total_cmp(logit).is_ge());
        top.insert(at, id);
        top.truncate(n);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, -2.0, 3.0, 100.0];
        let total: f64 = logits.iter().map(|&x| f64::from(x - 100.0).exp()).sum();
        let expected = |id: usize| (f64::from(logits[id] - 100.0) - total.ln()) as f32;
        let found = token_logprob(&logits, 2, 3, 4);
        assert_eq!(found.logprob, Some(expected(2)));
        assert_eq!(
            found.top,
            [(1, expected(1)), (3, expected(3)), (0, expected(0))]
        );
        assert!(token_logprob(&logits, 0, 0, 5).top.is_empty());
        assert_eq!(token_logprob(&logits, 0, 9, 5).top.len(), 5);
    }

    #[test]
    fn impossible_tokens_have_a_log_probability_of_minus_infinity() {
        let found = token_logprob(&[0.0, f32::NEG_INFINITY], 1, 2, 2);
        assert_eq!(found.logprob, Some(f32::NEG_INFINITY));
        assert_eq!(found.top, [(0, 0.0), (1, f32::NEG_INFINITY)]);
    }
}
