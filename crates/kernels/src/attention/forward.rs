//! Forward pass of attention, tile by tile.

use super::head_rows::{self, HeadRows};
use super::key_tile::KeyTile;
use super::{AttentionConfig, KEY_TILE, QUERY_TILE, QkvLayout};
use crate::floats::{Float, FloatsMut};
use crate::math::{exp_bounded, tanh};
use crate::matmul::{
    ActiveRegion, LeftBuffer, OutputRows, PANEL, PanelRow, Precision, Rows, TiledMatmul, pack,
    pack_transposed, panels,
};
use crate::simd::{dispatch, map_sum, max};
use rayon::prelude::*;

/// Query positions per task; each task packs the keys and values that it reads.
const SPAN: usize = 512;

/// Runs one task per sequence, key/value head and span of queries.
pub(super) fn attend(
    a: &AttentionConfig,
    layout: &QkvLayout,
    past: usize,
    ctx: FloatsMut,
    lse: &mut [f32],
) {
    match ctx {
        FloatsMut::F32(ctx) => attend_into(a, layout, past, ctx, lse),
        FloatsMut::Bf16(ctx) => attend_into(a, layout, past, ctx, lse),
    }
}

/// Computes [`attend`] with contexts of any element type.
fn attend_into<T: Float>(
    a: &AttentionConfig,
    layout: &QkvLayout,
    past: usize,
    ctx: &mut [T],
    lse: &mut [f32],
) {
    if a.batch * a.seq == 0 {
        return;
    }
    let spans = a.seq.div_ceil(SPAN);
    split_outputs(a, spans, ctx, lse)
        .into_par_iter()
        .enumerate()
        .for_each_init(
            || Scratch::new(a, layout),
            |scratch, (index, outputs)| {
                let (group, first) = (index / spans, index % spans * SPAN);
                let (b, kv_head) = (group / a.kv_heads, group % a.kv_heads);
                let [k, v] = layout.keys_and_values(a, b, kv_head);
                let shared = a.heads / a.kv_heads;
                scratch.pack(a, &k, &v, past + a.seq.min(first + SPAN));
                let mut rows = outputs.ctx.into_iter();
                for (query_head, lse) in outputs.lse.into_iter().enumerate() {
                    let q = layout.queries(a, b, kv_head * shared + query_head);
                    for (tile, lse) in lse.chunks_mut(QUERY_TILE).enumerate() {
                        let first = first + tile * QUERY_TILE;
                        let ctx = rows.by_ref().take(lse.len());
                        attend_tile(a, &q, first, past, ctx, lse, scratch);
                    }
                }
            },
        );
}

/// Outputs of one task: for each of its query heads, context rows (in the order head, position) and
/// log-sum-exps.
struct Outputs<'a, T> {
    ctx: Vec<&'a mut [T]>,
    lse: Vec<&'a mut [f32]>,
}

/// Splits the outputs into those of each task, in the order (batch, key/value head, span).
fn split_outputs<'a, T>(
    a: &AttentionConfig,
    spans: usize,
    ctx: &'a mut [T],
    lse: &'a mut [f32],
) -> Vec<Outputs<'a, T>> {
    let shared = a.heads / a.kv_heads;
    let mut pieces: Vec<_> = ctx.chunks_exact_mut(a.value_dim).map(Some).collect();
    let mut outputs = Vec::with_capacity(a.batch * a.kv_heads * spans);
    for group in 0..a.batch * a.kv_heads {
        let (b, first_head) = (group / a.kv_heads, group % a.kv_heads * shared);
        for first in (0..a.seq).step_by(SPAN) {
            let positions = first..a.seq.min(first + SPAN);
            let mut rows = Vec::with_capacity(shared * positions.len());
            for head in first_head..first_head + shared {
                let indices = positions.clone().map(|t| (b * a.seq + t) * a.heads + head);
                let row = |index: usize| pieces[index].take().expect("each row once");
                rows.extend(indices.map(row));
            }
            outputs.push(Outputs {
                ctx: rows,
                lse: Vec::with_capacity(shared),
            });
        }
    }
    for (head, values) in lse.chunks_mut(a.seq).enumerate() {
        for (span, values) in values.chunks_mut(SPAN).enumerate() {
            outputs[head / shared * spans + span].lse.push(values);
        }
    }
    outputs
}

#[derive(Default)]
struct Scratch {
    /// Keys as the right operand (head_dim, keys).
    keys: Vec<PanelRow>,
    /// Values as the right operands (keys of a tile, value_dim), tile after tile.
    values: Vec<PanelRow>,
    /// Scaled queries of a tile.
    q: Vec<f32>,
    /// Queries, then probabilities, as the left operand of a matmul.
    left: LeftBuffer,
    logits: Vec<f32>,
    context: Vec<f32>,
    largest: Vec<f32>,
    total: Vec<f32>,
    /// Number of packed keys and values.
    packed: usize,
    /// Unpacked rows of a tile.
    rows: Vec<f32>,
    head_scratch: head_rows::Scratch,
}

/// Returns the bytes of a [`Scratch`] with all keys and values of a sequence.
pub(super) fn scratch_bytes(a: &AttentionConfig) -> usize {
    let (seq, d, e) = (a.seq, a.head_dim, a.value_dim);
    let (queries, keys) = (QUERY_TILE.min(seq), KEY_TILE.min(seq));
    let packed = panels(seq) * a.precision.steps(d) + a.precision.steps(seq) * panels(e);
    let tiles = queries * (d + keys + e + 2) + keys * d.max(e);
    let left = LeftBuffer::bytes(a.precision, queries, d.max(keys));
    packed * size_of::<PanelRow>() + 4 * tiles + left
}

impl Scratch {
    fn new(a: &AttentionConfig, layout: &QkvLayout) -> Self {
        Scratch {
            head_scratch: head_rows::Scratch::new(a.head_dim, layout.transform),
            ..Scratch::default()
        }
    }

    /// Packs the first `visible` keys and values.
    fn pack(&mut self, a: &AttentionConfig, k: &HeadRows, v: &HeadRows, visible: usize) {
        let (d, e) = (a.head_dim, a.value_dim);
        let (queries, keys) = (QUERY_TILE.min(a.seq), KEY_TILE.min(visible));
        let (precision, steps) = (a.precision, a.precision.steps(d));
        self.keys.resize(panels(visible) * steps, PanelRow::ZERO);
        self.values
            .resize(precision.steps(visible) * panels(e), PanelRow::ZERO);
        self.q.resize(queries * d, 0.0);
        self.logits.resize(queries * keys, 0.0);
        self.context.resize(queries * e, 0.0);
        self.largest.resize(queries, 0.0);
        self.total.resize(queries, 0.0);
        self.rows.resize(keys * d.max(e), 0.0);
        self.packed = visible;
        for start in (0..visible).step_by(KEY_TILE) {
            let n = KEY_TILE.min(visible - start);
            let data = &mut self.rows[..n * d];
            k.load(d, start, data, &mut self.head_scratch);
            let keys = &mut self.keys[start / PANEL * steps..];
            pack_transposed(precision, Rows::new(&*data, d), n, d, keys, steps);
            let data = &mut self.rows[..n * e];
            v.load(e, start, data, &mut self.head_scratch);
            let values = &mut self.values[precision.steps(start) * panels(e)..];
            pack(
                precision,
                Rows::new(&*data, e),
                n,
                e,
                values,
                precision.steps(n),
            );
        }
    }
}

/// Returns the tile that starts at row `start` of `n` rows packed tile by tile, and its steps. All tiles but the last have
/// whole steps.
pub(super) fn tile_of(
    precision: Precision,
    packed: &[PanelRow],
    n: usize,
    start: usize,
    width: usize,
) -> (&[PanelRow], usize) {
    let steps = precision.steps(KEY_TILE.min(n - start));
    (
        &packed[precision.steps(start) * panels(width)..][..steps * panels(width)],
        steps,
    )
}

/// Loads transformed queries times [`AttentionConfig::logit_scale`].
pub(super) fn load_queries(
    a: &AttentionConfig,
    q: &HeadRows,
    first: usize,
    out: &mut [f32],
    scratch: &mut head_rows::Scratch,
) {
    q.load(a.head_dim, first, out, scratch);
    let scale = a.logit_scale();
    dispatch(
        #[inline(always)]
        || out.iter_mut().for_each(|q| *q *= scale),
    );
}

/// Computes the context of up to `QUERY_TILE` queries from query `first` on and writes it to the rows of
/// `ctx`; query i attends to keys up to `past + i`, as far as the window reaches.
fn attend_tile<'a, T: Float + 'a>(
    a: &AttentionConfig,
    q: &HeadRows,
    first: usize,
    past: usize,
    ctx: impl Iterator<Item = &'a mut [T]>,
    lse: &mut [f32],
    scratch: &mut Scratch,
) {
    let (n, d, e) = (lse.len(), a.head_dim, a.value_dim);
    let visible = past + first + n;
    load_queries(
        a,
        q,
        first,
        &mut scratch.q[..n * d],
        &mut scratch.head_scratch,
    );
    scratch.largest.fill(f32::NEG_INFINITY);
    scratch.total.fill(0.0);
    let first_tile = a.first_key_tile(past + first);
    for start in (first_tile..visible).step_by(KEY_TILE) {
        let tile = KeyTile {
            start,
            count: KEY_TILE.min(visible - start),
            first_query: past + first,
            is_first: start == first_tile,
        };
        scratch.multiply_by_keys(a, n, &tile);
        scratch.update_softmax(a, n, &tile);
        scratch.add_values(a, n, &tile);
    }
    dispatch(
        #[inline(always)]
        || {
            let sums = scratch.largest.iter().zip(scratch.total.iter()).zip(lse);
            let contexts = ctx.zip(scratch.context.chunks_exact_mut(e));
            for ((ctx, context), ((largest, total), lse)) in contexts.zip(sums) {
                let factor = 1.0 / total;
                context.iter_mut().for_each(|c| *c *= factor);
                T::narrow(context, ctx);
                *lse = largest + total.ln();
            }
        },
    );
}

impl Scratch {
    /// Computes `q k^T` for `n` queries and a tile of keys.
    #[inline(always)]
    fn multiply_by_keys(&mut self, a: &AttentionConfig, n: usize, tile: &KeyTile) {
        let (d, KeyTile { start, count, .. }) = (a.head_dim, *tile);
        let steps = a.precision.steps(d);
        TiledMatmul {
            kernel: a.precision.into(),
            left: self
                .left
                .row_major(a.precision, Rows::new(&self.q, d), n, d),
            rows: n,
            right: &self.keys[start / PANEL * steps..][..panels(count) * steps],
            steps,
            columns: count,
            out: OutputRows {
                data: &mut self.logits[..n * count],
                stride: count,
                accumulate: false,
            },
        }
        .run_active(|rows| ActiveRegion {
            inner: 0..d,
            columns: tile.visible_to(a, rows.end - 1).end,
        });
    }

    /// Applies the soft cap, replaces each logit by `exp(logit - max)` with the maximum so far, and rescales the sums
    /// of previous tiles to this maximum.
    #[inline(always)]
    fn update_softmax(&mut self, a: &AttentionConfig, n: usize, tile: &KeyTile) {
        let count = tile.count;
        let (logits, context) = (&mut self.logits[..n * count], &mut self.context);
        let (largest, total) = (&mut self.largest, &mut self.total);
        dispatch(
            #[inline(always)]
            || {
                let rows = logits
                    .chunks_exact_mut(count)
                    .zip(context.chunks_exact_mut(a.value_dim));
                let sums = largest.iter_mut().zip(total.iter_mut());
                for (i, ((row, context), (largest, total))) in rows.zip(sums).enumerate() {
                    let keys = tile.visible_to(a, i);
                    row[..keys.start].fill(0.0);
                    row[keys.end..].fill(0.0);
                    if keys.is_empty() {
                        continue;
                    }
                    let row = &mut row[keys];
                    if let Some(cap) = a.softcap {
                        map_sum(row, |u| cap * tanh(u));
                    }
                    let before = *largest;
                    let now = max(row).max(before);
                    let shrink = exp_bounded(before - now);
                    *total = *total * shrink + map_sum(row, |s| exp_bounded(s - now));
                    *largest = now;
                    if !tile.is_first {
                        context.iter_mut().for_each(|c| *c *= shrink);
                    }
                }
            },
        );
    }

    /// Adds the values of a tile of keys, weighted by the exponentials, to the contexts of `n` queries.
    #[inline(always)]
    fn add_values(&mut self, a: &AttentionConfig, n: usize, tile: &KeyTile) {
        let (e, KeyTile { start, count, .. }) = (a.value_dim, *tile);
        let (right, steps) = tile_of(a.precision, &self.values, self.packed, start, e);
        TiledMatmul {
            kernel: a.precision.into(),
            left: self
                .left
                .row_major(a.precision, Rows::new(&self.logits, count), n, count),
            rows: n,
            right,
            steps,
            columns: e,
            out: OutputRows {
                data: &mut self.context,
                stride: e,
                accumulate: !tile.is_first,
            },
        }
        .run_active(|rows| ActiveRegion {
            inner: tile.visible_to_any(a, rows),
            columns: e,
        });
    }
}
