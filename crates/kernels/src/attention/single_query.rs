//! Attention of a single new query to a cache, whose keys and values are read without packing.

use super::{AttentionConfig, QkvLayout};
use crate::floats::Float;
use crate::math::{exp, tanh};
use crate::simd::{dispatch, dots, map_sum, max};
use rayon::prelude::*;

/// Keys whose logits are computed side by side.
const ROWS_AT_ONCE: usize = 4;

/// Runs one task per sequence and query head; the query of each sequence attends to the keys of its window
/// up to `past`.
pub(super) fn attend<T: Float>(
    a: &AttentionConfig,
    layout: &QkvLayout,
    past: usize,
    ctx: &mut [T],
) {
    let (d, e) = (a.head_dim, a.value_dim);
    let first_key = a.first_key(past);
    ctx.par_chunks_exact_mut(e).enumerate().for_each_init(
        || (vec![0.0; past + 1 - first_key], vec![0.0; d], vec![0.0; e]),
        |(logits, q, context), (head, ctx)| {
            let (b, h) = (head / a.heads, head % a.heads);
            let kv_head = h / (a.heads / a.kv_heads);
            let [k, v] = layout
                .keys_and_values(a, b, kv_head)
                .map(|head| head.rows.from(first_key));
            layout.queries(a, b, h).rows.row(0, d).widen(q);
            dispatch(
                #[inline(always)]
                || {
                    let (groups, rest) = logits.as_chunks_mut::<ROWS_AT_ONCE>();
                    let whole = ROWS_AT_ONCE * groups.len();
                    for (g, logits) in groups.iter_mut().enumerate() {
                        let keys = std::array::from_fn(|i| k.row(ROWS_AT_ONCE * g + i, d).single());
                        *logits = dots::<_, ROWS_AT_ONCE>(q, keys);
                    }
                    for (s, logit) in rest.iter_mut().enumerate() {
                        [*logit] = dots(q, [k.row(whole + s, d).single()]);
                    }
                    logits.iter_mut().for_each(|s| *s *= a.logit_scale());
                    if let Some(cap) = a.softcap {
                        map_sum(logits, |u| cap * tanh(u));
                    }
                    let largest = max(logits);
                    let factor = 1.0 / map_sum(logits, |s| exp(s - largest));
                    context.fill(0.0);
                    for (s, logit) in logits.iter().enumerate() {
                        let p = factor * logit;
                        for (c, v) in context.iter_mut().zip(v.row(s, e).single()) {
                            *c += p * v;
                        }
                    }
                    T::narrow(context, ctx);
                },
            );
        },
    );
}
