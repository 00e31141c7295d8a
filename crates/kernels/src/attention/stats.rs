//! Statistics of the attention logits, which attention itself never stores.

use super::key_tile::KeyTile;
use super::{AttentionConfig, KEY_TILE, QUERY_TILE, QkvLayout};
use crate::floats::Floats;
use crate::math::{exp, tanh};
use crate::matmul::{
    ActiveRegion, Kernel, Left, OutputRows, PanelRow, TiledMatmul, pack_transposed, panels,
};
use crate::simd::{dispatch, dots, larger_or_nan, map_sum, max, max_or_nan};
use rayon::prelude::*;

/// Query positions per task; each task packs the keys that it reads.
const SPAN: usize = 512;

/// Keys whose logits are computed side by side.
const ROWS_AT_ONCE: usize = 4;

/// Statistics of the logits of all heads over the unmasked keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionStats {
    /// Max attention logit, after the soft cap, unlike [`max_attention_logits`].
    pub max: f32,
    /// Mean attention entropy `-Σ p ln p` over sequences, heads and queries, in nats.
    pub entropy: f64,
}

/// Computes the statistics for packed and transformed `qkv`, as [`super::forward`] reads it. For
/// inspection, not for training: it is as slow as a plain loop. Both are NaN if a logit is not finite.
pub fn attention_stats<'a>(a: &AttentionConfig, qkv: impl Into<Floats<'a>>) -> AttentionStats {
    let qkv = qkv.into().to_f32();
    a.check_qkv("attention::attention_stats", qkv.len());
    let layout = a.packed_layout(Floats::F32(&qkv), None);
    let heads: Vec<AttentionStats> = (0..a.batch * a.heads)
        .into_par_iter()
        .map(|head| head_stats(a, &layout, head / a.heads, head % a.heads))
        .collect();
    let queries = (a.batch * a.heads * a.seq) as f64;
    AttentionStats {
        max: heads
            .iter()
            .map(|head| head.max)
            .fold(f32::NEG_INFINITY, larger_or_nan),
        entropy: heads.iter().map(|head| head.entropy).sum::<f64>() / queries,
    }
}

/// Returns the max attention logit of a head, and the sum of its queries' entropies.
fn head_stats(a: &AttentionConfig, layout: &QkvLayout, b: usize, h: usize) -> AttentionStats {
    let d = a.head_dim;
    let [k, _] = layout
        .keys_and_values(a, b, h / (a.heads / a.kv_heads))
        .map(|head| head.rows);
    let q = layout.queries(a, b, h).rows;
    let mut row = vec![0.0; a.seq];
    let mut found = AttentionStats {
        max: f32::NEG_INFINITY,
        entropy: 0.0,
    };
    for t in 0..a.seq {
        let first_key = a.first_key(t);
        let (row, k) = (&mut row[first_key..=t], k.from(first_key));
        let (max_logit, entropy) = dispatch(
            #[inline(always)]
            || {
                let (groups, rest) = row.as_chunks_mut::<ROWS_AT_ONCE>();
                let whole = ROWS_AT_ONCE * groups.len();
                for (g, logits) in groups.iter_mut().enumerate() {
                    let keys = std::array::from_fn(|i| k.row(ROWS_AT_ONCE * g + i, d).single());
                    *logits = dots::<_, ROWS_AT_ONCE>(q.row(t, d).single(), keys);
                }
                for (s, logit) in rest.iter_mut().enumerate() {
                    [*logit] = dots(q.row(t, d).single(), [k.row(whole + s, d).single()]);
                }
                row.iter_mut().for_each(|s| *s *= a.logit_scale());
                if let Some(cap) = a.softcap {
                    map_sum(row, |u| cap * tanh(u));
                }
                let finite = row.iter().all(|s| s.is_finite());
                let max_logit = if finite { max(row) } else { f32::NAN };
                // With e = exp(s - max_logit) and Z = Σ e the entropy is ln Z - Σ e (s - max_logit) / Z.
                let weighted: f64 = row
                    .iter()
                    .map(|s| f64::from(exp(s - max_logit) * (s - max_logit)))
                    .sum();
                let total = f64::from(map_sum(row, |s| exp(s - max_logit)));
                (max_logit, total.ln() - weighted / total)
            },
        );
        found.max = larger_or_nan(found.max, max_logit);
        found.entropy += entropy;
    }
    found
}

/// Returns the max attention logit of each query head: the largest `scale q k` over all sequences and
/// unmasked keys, before the soft cap; `qkv` is packed and transformed, as [`super::forward`] reads it.
/// NaN for a head with a NaN logit, negative infinity without logits.
pub fn max_attention_logits<'a>(a: &AttentionConfig, qkv: impl Into<Floats<'a>>) -> Vec<f32> {
    let qkv = qkv.into().to_f32();
    a.check_qkv("attention::max_attention_logits", qkv.len());
    let layout = a.packed_layout(Floats::F32(&qkv), None);
    let shared = a.heads / a.kv_heads;
    let spans = a.seq.div_ceil(SPAN);
    let parts: Vec<Vec<f32>> = (0..a.batch * a.kv_heads * spans)
        .into_par_iter()
        .map(|index| {
            let (group, first) = (index / spans, index % spans * SPAN);
            span_maxima(a, &layout, group / a.kv_heads, group % a.kv_heads, first)
        })
        .collect();
    let mut maxima = vec![f32::NEG_INFINITY; a.heads];
    for (index, part) in parts.iter().enumerate() {
        let kv_head = index / spans % a.kv_heads;
        for (max_logit, part) in maxima[kv_head * shared..].iter_mut().zip(part) {
            *max_logit = larger_or_nan(*max_logit, *part);
        }
    }
    maxima
}

/// Returns the largest `scale q k` of a span of queries, for each of the heads that share keys.
fn span_maxima(
    a: &AttentionConfig,
    layout: &QkvLayout,
    b: usize,
    kv_head: usize,
    first: usize,
) -> Vec<f32> {
    let (d, shared) = (a.head_dim, a.heads / a.kv_heads);
    let [k, _] = layout.keys_and_values(a, b, kv_head).map(|head| head.rows);
    let end = a.seq.min(first + SPAN);
    let mut keys = vec![PanelRow::ZERO; panels(KEY_TILE) * d];
    let mut logits = vec![0.0; QUERY_TILE * KEY_TILE];
    let mut maxima = vec![f32::NEG_INFINITY; shared];
    for start in (a.first_key_tile(first)..end).step_by(KEY_TILE) {
        let count = KEY_TILE.min(end - start);
        pack_transposed(Kernel::F32, k.from(start), count, d, &mut keys, d);
        for (query_head, max_logit) in maxima.iter_mut().enumerate() {
            let q = layout.queries(a, b, kv_head * shared + query_head).rows;
            // Query tiles before these keys attend to none of them.
            let skipped = start.saturating_sub(first) / QUERY_TILE * QUERY_TILE;
            for first in (first + skipped..end).step_by(QUERY_TILE) {
                let n = QUERY_TILE.min(end - first);
                let tile = KeyTile {
                    start,
                    count,
                    first_query: first,
                    is_first: false,
                };
                let logits = &mut logits[..n * count];
                TiledMatmul {
                    kernel: Kernel::F32,
                    left: Left::in_place(q.from(first)),
                    rows: n,
                    right: &keys[..panels(count) * d],
                    steps: d,
                    columns: count,
                    out: OutputRows {
                        data: &mut *logits,
                        stride: count,
                        accumulate: false,
                    },
                }
                .run_active(|rows| ActiveRegion {
                    inner: 0..d,
                    columns: tile.visible_to(a, rows.end - 1).end,
                });
                dispatch(
                    #[inline(always)]
                    || {
                        for (i, row) in logits.chunks_exact_mut(count).enumerate() {
                            let row = &mut row[tile.visible_to(a, i)];
                            row.iter_mut().for_each(|s| *s *= a.scale);
                            *max_logit = larger_or_nan(*max_logit, max_or_nan(row));
                        }
                    },
                );
            }
        }
    }
    maxima
}
