//! Attention to a latent cache, for generation: all heads share the same rows as keys, and their first
//! channels as values (multi-head latent attention with absorbed projections, DeepSeek-V2,
//! arXiv 2405.04434, section 2.1.2).

use super::{AttentionConfig, HeadOffsets, QkvLayout, capacity, forward};
use crate::math::{exp, tanh};
use crate::matmul::Precision;
use crate::simd::{AccumulateRows, DotProducts, SimdKernel, dispatch, map_sum, max, run_simd};
use pulp::Simd;
use rayon::prelude::*;

/// Cache rows per task. Computing the logits loads them from memory, computing the context from the L2 cache.
const POSITIONS: usize = 128;
/// Maximum number of new positions for which packing the cache does not pay off.
const MAX_UNPACKED_QUERIES: usize = 4;
/// Maximum number of heads that share packed rows.
const MAX_HEADS_PER_GROUP: usize = 4;

/// Shape and parameters of attention to a latent cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentAttentionConfig {
    /// Sequences.
    pub batch: usize,
    /// New positions per sequence.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Channels of the latent, the value shared by all heads.
    pub latent: usize,
    /// Channels of the rotary key.
    pub rope: usize,
    /// Softmax scale, that of the heads before the projections were absorbed.
    pub scale: f32,
    /// Soft cap of the logits.
    pub softcap: Option<f32>,
}

/// Computes attention of new queries to a latent cache.
///
/// `q` (batch, new, heads * (latent + rope)) holds absorbed and rotated queries; `cache` (batch,
/// capacity, latent + rope), rows `[latent | rotated key]`, already holds the new rows. New query i
/// attends to the cache rows `0..=past + i`. `ctx` is (batch, new, heads * latent); `scratch` has at
/// least [`LatentAttentionConfig::scratch_len`] elements for the past and new positions.
pub fn cached_latent(
    a: &LatentAttentionConfig,
    q: &[f32],
    cache: &[f32],
    past: usize,
    ctx: &mut [f32],
    scratch: &mut [f32],
) {
    let name = "attention::cached_latent";
    let LatentAttentionConfig {
        batch,
        seq,
        heads,
        latent,
        ..
    } = *a;
    assert!(
        heads > 0 && latent > 0,
        "{name}: heads and latent must be at least 1"
    );
    let width = heads * a.width();
    assert_eq!(
        q.len(),
        batch * seq * width,
        "{name}: q is not ({batch}, {seq}, {width})"
    );
    let width = heads * latent;
    assert_eq!(
        ctx.len(),
        batch * seq * width,
        "{name}: ctx is not ({batch}, {seq}, {width})"
    );
    let capacity = capacity(name, cache, batch, a.width(), past + seq);
    let needed = a.scratch_len(past + seq);
    assert!(
        scratch.len() >= needed,
        "{name}: scratch is shorter than {needed}"
    );
    let scratch = &mut scratch[..needed];
    match seq {
        ..=MAX_UNPACKED_QUERIES => attend_per_query(a, q, cache, capacity, past, ctx, scratch),
        _ => attend_tiled(a, q, cache, capacity, past, ctx, scratch),
    }
}

impl LatentAttentionConfig {
    /// Returns the values per query head, and per row of the cache.
    fn width(&self) -> usize {
        self.latent + self.rope
    }

    /// Returns the scratch elements that [`cached_latent`] needs for up to `positions` past and new
    /// positions per sequence.
    pub fn scratch_len(&self, positions: usize) -> usize {
        match self.seq {
            ..=MAX_UNPACKED_QUERIES => {
                self.batch * self.seq * positions.div_ceil(POSITIONS) * self.partial_len()
            }
            _ => self.batch * self.heads * self.seq,
        }
    }

    /// Returns the length of a span's partial result for one query: contexts of all heads, then their
    /// max logits, then the sums of their exponentials.
    fn partial_len(&self) -> usize {
        self.heads * (self.latent + 2)
    }
}

/// Runs the forward pass with groups of heads that share keys and values. `lse` is (batch, heads, seq).
fn attend_tiled(
    a: &LatentAttentionConfig,
    q: &[f32],
    cache: &[f32],
    capacity: usize,
    past: usize,
    ctx: &mut [f32],
    lse: &mut [f32],
) {
    let shared = (1..=MAX_HEADS_PER_GROUP).rfind(|n| a.heads.is_multiple_of(*n));
    let config = AttentionConfig {
        batch: a.batch,
        seq: a.seq,
        heads: a.heads,
        kv_heads: a.heads / shared.unwrap_or(1),
        head_dim: a.width(),
        value_dim: a.latent,
        scale: a.scale,
        softcap: a.softcap,
        window: None,
        precision: Precision::F32,
    };
    let all = HeadOffsets { first: 0, step: 0 };
    let layout = QkvLayout {
        queries: q.into(),
        query_stride: a.heads * a.width(),
        kv: cache.into(),
        rows_per_sequence: capacity,
        row_stride: a.width(),
        key: all,
        value: all,
        transform: None,
        precision: Precision::F32,
    };
    forward::attend(&config, &layout, past, ctx.into(), lse);
}

/// Runs one task per query and [`POSITIONS`] cache rows, each for all heads, and then merges the partial
/// softmaxes of each head. `partials` holds the partial result of each task.
fn attend_per_query(
    a: &LatentAttentionConfig,
    q: &[f32],
    cache: &[f32],
    capacity: usize,
    past: usize,
    ctx: &mut [f32],
    partials: &mut [f32],
) {
    let LatentAttentionConfig {
        seq, heads, latent, ..
    } = *a;
    let width = a.width();
    let visible = |query: usize| past + query % seq.max(1) + 1;
    let spans = (past + seq).div_ceil(POSITIONS);
    let size = a.partial_len();
    partials
        .par_chunks_exact_mut(size)
        .enumerate()
        .for_each_init(
            || vec![0.0; heads * POSITIONS],
            |logits, (index, partial)| {
                let (query, start) = (index / spans, index % spans * POSITIONS);
                let count = POSITIONS.min(visible(query).saturating_sub(start));
                if count == 0 {
                    return;
                }
                let first = query / seq * capacity + start;
                let (context, sums) = partial.split_at_mut(heads * latent);
                let (largest, total) = sums.split_at_mut(heads);
                run_simd(Span {
                    a,
                    q: &q[query * heads * width..][..heads * width],
                    rows: &cache[first * width..][..count * width],
                    logits: &mut logits[..heads * count],
                    context,
                    largest,
                    total,
                });
            },
        );
    ctx.par_chunks_exact_mut(latent)
        .enumerate()
        .for_each(|(head, ctx)| {
            let (query, h) = (head / heads, head % heads);
            let visible_keys = visible(query).div_ceil(POSITIONS);
            // Spans that the query does not attend to have no partial result.
            let spans = partials[query * spans * size..][..visible_keys * size].chunks_exact(size);
            dispatch(
                #[inline(always)]
                || merge(spans, heads, h, ctx),
            );
        });
}

/// Merges the contexts of head `h` of all spans.
#[inline(always)]
fn merge<'a>(
    spans: impl Iterator<Item = &'a [f32]> + Clone,
    heads: usize,
    h: usize,
    ctx: &mut [f32],
) {
    let latent = ctx.len();
    let largest = |span: &[f32]| span[heads * latent + h];
    let max = spans.clone().map(largest).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    ctx.fill(0.0);
    for span in spans {
        let weight = exp(largest(span) - max);
        total += weight * span[heads * (latent + 1) + h];
        for (ctx, part) in ctx.iter_mut().zip(&span[h * latent..]) {
            *ctx += weight * part;
        }
    }
    let factor = 1.0 / total;
    ctx.iter_mut().for_each(|ctx| *ctx *= factor);
}

/// Attention of all heads of one query position to a span of cache rows.
struct Span<'a> {
    a: &'a LatentAttentionConfig,
    q: &'a [f32],
    rows: &'a [f32],
    /// Logits of each head for the rows, replaced by their exponentials.
    logits: &'a mut [f32],
    /// Sum of the rows' latents weighted by these exponentials, for each head.
    context: &'a mut [f32],
    largest: &'a mut [f32],
    total: &'a mut [f32],
}

impl SimdKernel for Span<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(mut self, simd: S) {
        // Blocks that fit into the registers: 16 sums, or as many weights, in AVX-512's 32 registers, each of which
        // holds a chunk; else 8 in AVX2's 16.
        match V {
            1 => {
                self.dot_products::<S, V, 2, 8>(simd);
                self.exponentials();
                self.weighted_sums::<S, V, 2, 8>(simd);
            }
            _ => {
                self.dot_products::<S, V, 1, 4>(simd);
                self.exponentials();
                self.weighted_sums::<S, V, 2, 4>(simd);
            }
        }
    }
}

impl Span<'_> {
    /// Computes the dot products of queries and rows, `M` heads by `N` rows at a time. Rows are in the outer
    /// loop, so that they stay in the L1 cache for all heads.
    #[inline(always)]
    fn dot_products<S: Simd, const V: usize, const M: usize, const N: usize>(&mut self, simd: S) {
        let count = self.count();
        let whole = count - count % N;
        for s in (0..whole).step_by(N) {
            self.dot_products_with_rows::<S, V, M, N>(simd, s);
        }
        for s in whole..count {
            self.dot_products_with_rows::<S, V, M, 1>(simd, s);
        }
    }

    /// Computes the dot products of the queries of all heads with `N` rows from row `s` on.
    #[inline(always)]
    fn dot_products_with_rows<S: Simd, const V: usize, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        s: usize,
    ) {
        let whole = self.a.heads - self.a.heads % M;
        for h in (0..whole).step_by(M) {
            self.dot_products_block::<S, V, M, N>(simd, h, s);
        }
        for h in whole..self.a.heads {
            self.dot_products_block::<S, V, 1, N>(simd, h, s);
        }
    }

    #[inline(always)]
    fn dot_products_block<S: Simd, const V: usize, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        h: usize,
        s: usize,
    ) {
        let (width, count) = (self.a.width(), self.count());
        let x = std::array::from_fn(|j| &self.q[(h + j) * width..][..width]);
        let rows = std::array::from_fn(|i| &self.rows[(s + i) * width..][..width]);
        let products: [[f32; N]; M] = DotProducts { x, rows }.run::<S, V>(simd);
        for (j, products) in products.iter().enumerate() {
            self.logits[(h + j) * count + s..][..N].copy_from_slice(products);
        }
    }

    /// Scales the dot products to logits and replaces each by `exp(logit - max)`, with the maximum of its head.
    #[inline(always)]
    fn exponentials(&mut self) {
        let LatentAttentionConfig { scale, softcap, .. } = *self.a;
        let scale = scale / softcap.unwrap_or(1.0);
        let heads = self
            .logits
            .chunks_exact_mut(self.rows.len() / self.a.width());
        let sums = self.largest.iter_mut().zip(self.total.iter_mut());
        for (logits, (largest, total)) in heads.zip(sums) {
            logits.iter_mut().for_each(|s| *s *= scale);
            if let Some(cap) = softcap {
                map_sum(logits, |u| cap * tanh(u));
            }
            let max = max(logits);
            *largest = max;
            *total = map_sum(logits, |s| exp(s - max));
        }
    }

    /// Computes the weighted sums of the rows' latents, in the same blocks as the dot products.
    #[inline(always)]
    fn weighted_sums<S: Simd, const V: usize, const M: usize, const N: usize>(&mut self, simd: S) {
        self.context.fill(0.0);
        let count = self.count();
        let whole = count - count % N;
        for s in (0..whole).step_by(N) {
            self.add_rows::<S, V, M, N>(simd, s);
        }
        for s in whole..count {
            self.add_rows::<S, V, M, 1>(simd, s);
        }
    }

    /// Adds `N` rows from row `s` on to the contexts of all heads.
    #[inline(always)]
    fn add_rows<S: Simd, const V: usize, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        s: usize,
    ) {
        let whole = self.a.heads - self.a.heads % M;
        for h in (0..whole).step_by(M) {
            self.add_rows_block::<S, V, M, N>(simd, h, s);
        }
        for h in whole..self.a.heads {
            self.add_rows_block::<S, V, 1, N>(simd, h, s);
        }
    }

    #[inline(always)]
    fn add_rows_block<S: Simd, const V: usize, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        h: usize,
        s: usize,
    ) {
        let (width, latent, count) = (self.a.width(), self.a.latent, self.count());
        let mut contexts = self.context[h * latent..].chunks_exact_mut(latent);
        AccumulateRows::<M, N> {
            weights: std::array::from_fn(|j| {
                std::array::from_fn(|i| self.logits[(h + j) * count + s + i])
            }),
            rows: std::array::from_fn(|i| &self.rows[(s + i) * width..][..latent]),
            sums: std::array::from_fn(|_| contexts.next().expect("a context for every head")),
        }
        .run::<S, V>(simd);
    }

    fn count(&self) -> usize {
        self.rows.len() / self.a.width()
    }
}
