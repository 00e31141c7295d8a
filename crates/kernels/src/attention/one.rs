//! Attention of a single new query to a cache: every key and value is read once, unpacked.

use super::{Attention, Keys};
use crate::math::{exp, tanh};
use crate::simd::{dispatch, dots, map_sum, max};
use rayon::prelude::*;

/// Keys whose scores are computed side by side.
const TOGETHER: usize = 4;

/// One task per sequence and key head; the query of each sequence sees `past + 1` keys.
pub(super) fn attend(a: &Attention, qkv: &[f32], keys: &Keys, past: usize, ctx: &mut [f32]) {
    let (d, shared) = (a.head_dim, a.heads / a.kv_heads);
    ctx.par_chunks_exact_mut(shared * d)
        .enumerate()
        .for_each_init(
            || vec![0.0; past + 1],
            |scores, (group, ctx)| {
                let (b, kv_head) = (group / a.kv_heads, group % a.kv_heads);
                let [k, v] = keys.of(a, b, kv_head);
                let q = &qkv[b * a.packed_width() + kv_head * shared * d..];
                dispatch(
                    #[inline(always)]
                    || {
                        for (q, ctx) in q.chunks_exact(d).zip(ctx.chunks_exact_mut(d)) {
                            let (groups, rest) = scores.as_chunks_mut::<TOGETHER>();
                            let whole = TOGETHER * groups.len();
                            for (g, scores) in groups.iter_mut().enumerate() {
                                let keys = std::array::from_fn(|i| k.row(TOGETHER * g + i, d));
                                *scores = dots::<TOGETHER>(q, keys);
                            }
                            for (s, score) in rest.iter_mut().enumerate() {
                                [*score] = dots(q, [k.row(whole + s, d)]);
                            }
                            scores.iter_mut().for_each(|s| *s *= a.product_scale());
                            if let Some(cap) = a.softcap {
                                map_sum(scores, |u| cap * tanh(u));
                            }
                            let largest = max(scores);
                            let factor = 1.0 / map_sum(scores, |s| exp(s - largest));
                            ctx.fill(0.0);
                            for (s, score) in scores.iter().enumerate() {
                                let p = factor * score;
                                for (c, v) in ctx.iter_mut().zip(v.row(s, d)) {
                                    *c += p * v;
                                }
                            }
                        }
                    },
                );
            },
        );
}
