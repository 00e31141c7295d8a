//! What the scores look like that attention never keeps.

use super::{Attention, Place};
use crate::math::{exp, tanh};
use crate::simd::{dispatch, dots, map_sum, max};
use rayon::prelude::*;

/// Keys whose scores are computed side by side.
const TOGETHER: usize = 4;

/// The scores of all heads over the keys that the causal mask leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The largest one.
    pub max: f32,
    /// Mean over sequences, heads and queries of the entropy `-Σ p ln p` of the weights, in nats.
    pub entropy: f64,
}

/// Scores of packed and prepared `qkv`, as [`super::forward`] reads it; for looking inside, not for
/// training: it takes as long as a plain loop. All NaN for a row with a score that is not finite.
pub fn scores(a: &Attention, qkv: &[f32]) -> Scores {
    a.check_qkv("attention::scores", qkv);
    let place = a.packed(qkv, None);
    let heads: Vec<Scores> = (0..a.batch * a.heads)
        .into_par_iter()
        .map(|head| of_head(a, &place, head / a.heads, head % a.heads))
        .collect();
    let queries = (a.batch * a.heads * a.seq) as f64;
    Scores {
        max: heads
            .iter()
            .map(|head| head.max)
            .fold(f32::NEG_INFINITY, largest),
        entropy: heads.iter().map(|head| head.entropy).sum::<f64>() / queries,
    }
}

/// The largest score of a head, and the sum of its queries' entropies.
fn of_head(a: &Attention, place: &Place, b: usize, h: usize) -> Scores {
    let d = a.head_dim;
    let [k, _] = place
        .keys_and_values(a, b, h / (a.heads / a.kv_heads))
        .map(|head| head.rows);
    let q = place.queries(a, b, h).rows;
    let mut row = vec![0.0; a.seq];
    let mut found = Scores {
        max: f32::NEG_INFINITY,
        entropy: 0.0,
    };
    for t in 0..a.seq {
        let row = &mut row[..=t];
        let (top, entropy) = dispatch(
            #[inline(always)]
            || {
                let (groups, rest) = row.as_chunks_mut::<TOGETHER>();
                let whole = TOGETHER * groups.len();
                for (g, scores) in groups.iter_mut().enumerate() {
                    let keys = std::array::from_fn(|i| k.row(TOGETHER * g + i, d));
                    *scores = dots::<TOGETHER>(q.row(t, d), keys);
                }
                for (s, score) in rest.iter_mut().enumerate() {
                    [*score] = dots(q.row(t, d), [k.row(whole + s, d)]);
                }
                row.iter_mut().for_each(|s| *s *= a.product_scale());
                if let Some(cap) = a.softcap {
                    map_sum(row, |u| cap * tanh(u));
                }
                let finite = row.iter().all(|s| s.is_finite());
                let top = if finite { max(row) } else { f32::NAN };
                // With e = exp(s - top) and Z = Σ e the entropy is ln Z - Σ e (s - top) / Z.
                let weighted: f64 = row
                    .iter()
                    .map(|s| f64::from(exp(s - top) * (s - top)))
                    .sum();
                let total = f64::from(map_sum(row, |s| exp(s - top)));
                (top, total.ln() - weighted / total)
            },
        );
        found.max = largest(found.max, top);
        found.entropy += entropy;
    }
    found
}

/// The larger one, or NaN where either is.
fn largest(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        return f32::NAN;
    }
    a.max(b)
}
