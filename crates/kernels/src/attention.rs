//! Causal self-attention with grouped queries, without a (seq, seq) matrix.
//!
//! Queries are taken in tiles of 64 and keys in tiles of 256. The softmax is built up
//! over the key tiles (Milakov, Gimelshein 2018, arXiv 1805.02867) and scores are computed anew in
//! the backward pass from the log-sum-exp of each row (Dao et al. 2022, arXiv 2205.14135,
//! algorithms 1 and 4). Tiles that the mask hides entirely are never computed.
//!
//! With `u = scale q k`, a score is `u`, or `softcap tanh(u / softcap)` if a cap is set (Gemma 2,
//! arXiv 2408.00118). Query head h reads key and value head `h / (heads / kv_heads)`.

use crate::gemm::matmul;
use crate::math::{exp, tanh};
use crate::simd::{dispatch, map_sum, max};
use rayon::prelude::*;

mod backward;

pub use backward::backward;

/// Queries per tile.
const QUERIES: usize = 64;
/// Keys per tile.
const KEYS: usize = 256;

/// Shape and form of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seq: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Soft cap of the scores.
    pub softcap: Option<f32>,
}

/// Attention of packed `qkv` (batch, seq, (heads + 2 kv_heads) * head_dim), rows
/// `[q heads | k heads | v heads]`, to `ctx` (batch, seq, heads * head_dim).
///
/// `lse` (batch, heads, seq) receives the log-sum-exp of each query's scores, for [`backward`].
pub fn forward(a: &Attention, qkv: &[f32], ctx: &mut [f32], lse: &mut [f32]) {
    a.check_packed("attention::forward", qkv, ctx, lse);
    let keys = Keys {
        data: qkv,
        per_sequence: a.seq,
        row_stride: a.packed_width(),
        first_key: a.heads * a.head_dim,
        first_value: (a.heads + a.kv_heads) * a.head_dim,
    };
    attend(a, qkv, &keys, 0, ctx, lse);
}

/// Attention of new queries to a cache, for generation.
///
/// `a.seq` is the number of new positions per sequence. `qkv` (batch, new, (heads + 2 kv_heads) *
/// head_dim) holds the new rows, of which only the queries are read; `cache` (batch, capacity,
/// 2 kv_heads * head_dim), rows `[k heads | v heads]`, already holds the new keys and values.
/// New query i sees the cache rows `0..=past + i`. `ctx` is (batch, new, heads * head_dim).
pub fn cached(a: &Attention, qkv: &[f32], cache: &[f32], past: usize, ctx: &mut [f32]) {
    let mut lse = vec![0.0; a.batch * a.heads * a.seq];
    a.check_packed("attention::cached", qkv, ctx, &lse);
    let row_stride = 2 * a.kv_heads * a.head_dim;
    assert!(
        cache.len().is_multiple_of((a.batch * row_stride).max(1)),
        "attention::cached: cache is not (batch, capacity, {row_stride})"
    );
    let capacity = cache.len() / (a.batch * row_stride).max(1);
    assert!(
        a.batch == 0 || past + a.seq <= capacity,
        "attention::cached: {past} past and {} new rows exceed the capacity {capacity}",
        a.seq
    );
    let first_value = a.kv_heads * a.head_dim;
    let keys = Keys {
        data: cache,
        per_sequence: capacity,
        row_stride,
        first_key: 0,
        first_value,
    };
    attend(a, qkv, &keys, past, ctx, &mut lse);
}

impl Attention {
    fn packed_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check_packed(&self, name: &str, qkv: &[f32], ctx: &[f32], lse: &[f32]) {
        let Attention {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self;
        assert!(
            head_dim > 0 && kv_heads > 0 && heads > 0,
            "{name}: heads must not be empty"
        );
        assert_eq!(
            heads % kv_heads,
            0,
            "{name}: {heads} heads do not share {kv_heads} evenly"
        );
        let rows = batch * seq;
        let width = self.packed_width();
        assert_eq!(
            qkv.len(),
            rows * width,
            "{name}: qkv is not ({batch}, {seq}, {width})"
        );
        let width = heads * head_dim;
        assert_eq!(
            ctx.len(),
            rows * width,
            "{name}: ctx is not ({batch}, {seq}, {width})"
        );
        assert_eq!(
            lse.len(),
            rows * heads,
            "{name}: lse is not ({batch}, {heads}, {seq})"
        );
    }

    /// Factor of the products `q k` before the tanh, or of the scores if there is no cap.
    fn product_scale(&self) -> f32 {
        self.scale / self.softcap.unwrap_or(1.0)
    }
}

/// Where keys and values lie.
struct Keys<'a> {
    data: &'a [f32],
    per_sequence: usize,
    row_stride: usize,
    first_key: usize,
    first_value: usize,
}

/// Rows of one head: row i starts at `i * stride`.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    fn from(self, row: usize) -> Rows<'a> {
        Rows {
            data: &self.data[row * self.stride..],
            stride: self.stride,
        }
    }

    fn row(&self, row: usize, width: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..width]
    }
}

/// One task per sequence, head and tile of queries.
fn attend(a: &Attention, qkv: &[f32], keys: &Keys, past: usize, ctx: &mut [f32], lse: &mut [f32]) {
    if a.batch * a.seq == 0 {
        return;
    }
    let d = a.head_dim;
    let tiles = a.seq.div_ceil(QUERIES);
    let outputs = split_context(a, tiles, ctx);
    let sums = lse
        .chunks_mut(a.seq)
        .flat_map(|head| head.chunks_mut(QUERIES));
    let tasks: Vec<_> = outputs.into_iter().zip(sums).collect();
    let run = |scratch: &mut ForwardScratch,
               (index, (rows, lse)): (usize, (Vec<_>, &mut [f32]))| {
        let (tile, head) = (index % tiles, index / tiles);
        let (b, h) = (head / a.heads, head % a.heads);
        let kv_head = h / (a.heads / a.kv_heads);
        let width = a.packed_width();
        let first = tile * QUERIES;
        let q = Rows {
            data: &qkv[(b * a.seq + first) * width + h * d..],
            stride: width,
        };
        let sequence = b * keys.per_sequence * keys.row_stride + kv_head * d;
        let rows_at = |offset| Rows {
            data: &keys.data[sequence + offset..],
            stride: keys.row_stride,
        };
        let (k, v) = (rows_at(keys.first_key), rows_at(keys.first_value));
        attend_tile(a, q, k, v, past + first, lse, scratch);
        for (row, value) in rows.into_iter().zip(scratch.context.chunks_exact(d)) {
            let row: &mut [f32] = row;
            row.copy_from_slice(value);
        }
    };
    tasks
        .into_par_iter()
        .enumerate()
        .for_each_init(|| ForwardScratch::new(a), run);
}

/// The rows of `ctx` that each task writes, in the order (batch, head, tile).
fn split_context<'a>(a: &Attention, tiles: usize, ctx: &'a mut [f32]) -> Vec<Vec<&'a mut [f32]>> {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..a.batch * a.heads * tiles)
        .map(|_| Vec::with_capacity(QUERIES))
        .collect();
    for (row, values) in ctx.chunks_exact_mut(a.heads * a.head_dim).enumerate() {
        let (b, t) = (row / a.seq, row % a.seq);
        for (h, head) in values.chunks_exact_mut(a.head_dim).enumerate() {
            parts[(b * a.heads + h) * tiles + t / QUERIES].push(head);
        }
    }
    parts
}

struct ForwardScratch {
    scores: Vec<f32>,
    context: Vec<f32>,
    largest: Vec<f32>,
    total: Vec<f32>,
}

impl ForwardScratch {
    fn new(a: &Attention) -> Self {
        ForwardScratch {
            scores: vec![0.0; QUERIES * KEYS],
            context: vec![0.0; QUERIES * a.head_dim],
            largest: vec![0.0; QUERIES],
            total: vec![0.0; QUERIES],
        }
    }
}

/// Context of up to `QUERIES` queries, left in `scratch.context`; query i sees `first + i + 1` keys.
fn attend_tile(
    a: &Attention,
    q: Rows,
    k: Rows,
    v: Rows,
    first: usize,
    lse: &mut [f32],
    scratch: &mut ForwardScratch,
) {
    let (n, d) = (lse.len(), a.head_dim);
    let visible = first + n;
    let ForwardScratch {
        scores,
        context,
        largest,
        total,
    } = scratch;
    largest.fill(f32::NEG_INFINITY);
    total.fill(0.0);
    for start in (0..visible).step_by(KEYS) {
        let count = KEYS.min(visible - start);
        let scores = &mut scores[..n * count];
        products(a, q, k.from(start), n, count, scores);
        dispatch(
            #[inline(always)]
            || {
                let rows = scores
                    .chunks_exact_mut(count)
                    .zip(context.chunks_exact_mut(d));
                let sums = largest.iter_mut().zip(total.iter_mut());
                for (i, ((row, context), (largest, total))) in rows.zip(sums).enumerate() {
                    let seen = (first + i + 1).saturating_sub(start).min(count);
                    let (row, hidden) = row.split_at_mut(seen);
                    hidden.fill(0.0);
                    if let Some(cap) = a.softcap {
                        map_sum(row, |u| cap * tanh(u));
                    }
                    let before = *largest;
                    let now = max(row).max(before);
                    let shrink = exp(before - now);
                    *total = *total * shrink + map_sum(row, |s| exp(s - now));
                    *largest = now;
                    if start > 0 {
                        context.iter_mut().for_each(|c| *c *= shrink);
                    }
                }
            },
        );
        let strides = ((count, 1), (v.stride, 1), (d, 1));
        let v = v.from(start).data;
        let more = start > 0;
        matmul(
            n, d, count, scores, strides.0, v, strides.1, context, strides.2, 1.0, more, false,
        );
    }
    let rows = context
        .chunks_exact_mut(d)
        .zip(largest.iter().zip(total.iter()));
    for ((context, (largest, total)), lse) in rows.zip(lse) {
        let factor = 1.0 / total;
        context.iter_mut().for_each(|c| *c *= factor);
        *lse = largest + total.ln();
    }
}

/// `out` (n, count) = scaled products of `n` queries and `count` keys.
fn products(a: &Attention, q: Rows, k: Rows, n: usize, count: usize, out: &mut [f32]) {
    let strides = ((q.stride, 1), (1, k.stride), (count, 1));
    let alpha = a.product_scale();
    let d = a.head_dim;
    matmul(
        n, count, d, q.data, strides.0, k.data, strides.1, out, strides.2, alpha, false, false,
    );
}

#[cfg(test)]
mod tests;
