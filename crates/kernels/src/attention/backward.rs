//! Backward pass of attention, with logits recomputed tile by tile.

use super::forward::{load_queries, tile_of};
use super::head_rows::{self, HeadRows};
use super::key_tile::KeyTile;
use super::{AttentionConfig, KEY_TILE, QUERY_TILE, QkvLayout};
use crate::floats::{Float, Floats, FloatsMut};
use crate::math::{exp_bounded, tanh};
use crate::matmul::{
    ActiveRegion, LeftBuffer, OutputRows, PANEL, PanelRow, Rows, TiledMatmul, pack,
    pack_transposed, panels,
};
use crate::qkv::{BoundQkvTransform, sum_gradients};
use crate::simd::{dispatch, dot};
use rayon::prelude::*;

/// Computes the gradient of [`forward`](super::forward): `dqkv`, shaped like `qkv`, from its inputs and
/// outputs and `dctx`, shaped like `ctx`.
pub fn backward<'a>(
    a: &AttentionConfig,
    qkv: impl Into<Floats<'a>>,
    ctx: impl Into<Floats<'a>>,
    lse: &'a [f32],
    dctx: impl Into<Floats<'a>>,
    dqkv: impl Into<FloatsMut<'a>>,
) {
    let inputs = Inputs {
        layout: a.packed_layout(qkv.into(), None),
        ctx: ctx.into(),
        lse,
        dctx: dctx.into(),
    };
    inputs.run("attention::backward", a, dqkv.into());
}

/// Computes the gradient of [`forward_transformed`](super::forward_transformed): as [`backward`], and the
/// gradients of the parameters of the q, k and v norms.
#[expect(
    clippy::too_many_arguments,
    reason = "inputs, outputs and gradients of the forward pass"
)]
pub fn backward_transformed<'a>(
    a: &AttentionConfig,
    transform: &'a BoundQkvTransform<'a>,
    qkv: impl Into<Floats<'a>>,
    ctx: impl Into<Floats<'a>>,
    lse: &'a [f32],
    dctx: impl Into<Floats<'a>>,
    dqkv: impl Into<FloatsMut<'a>>,
    dparams: [&mut [f32]; 3],
) {
    let name = "attention::backward_transformed";
    a.check_transform(name, transform);
    let inputs = Inputs {
        layout: a.packed_layout(qkv.into(), Some(transform)),
        ctx: ctx.into(),
        lse,
        dctx: dctx.into(),
    };
    let partials = inputs.run(name, a, dqkv.into());
    sum_gradients(name, partials, dparams);
}

/// Inputs of the backward pass.
struct Inputs<'a> {
    layout: QkvLayout<'a>,
    ctx: Floats<'a>,
    lse: &'a [f32],
    dctx: Floats<'a>,
}

impl Inputs<'_> {
    /// Writes `dqkv` and returns each task's partial gradients of the norm parameters.
    fn run(&self, name: &str, a: &AttentionConfig, dqkv: FloatsMut) -> Vec<[Vec<f32>; 3]> {
        a.check_packed(name, self.layout.queries.len(), self.ctx.len(), self.lse);
        assert_eq!(
            self.dctx.len(),
            self.ctx.len(),
            "{name}: dctx is not as long as ctx"
        );
        assert_eq!(
            dqkv.len(),
            self.layout.queries.len(),
            "{name}: dqkv is not as long as qkv"
        );
        if a.batch * a.seq == 0 {
            return Vec::new();
        }
        match dqkv {
            FloatsMut::F32(dqkv) => self.run_into(a, dqkv),
            FloatsMut::Bf16(dqkv) => self.run_into(a, dqkv),
        }
    }

    /// Computes [`Inputs::run`] with gradients of any element type.
    fn run_into<T: Float>(&self, a: &AttentionConfig, dqkv: &mut [T]) -> Vec<[Vec<f32>; 3]> {
        let groups = split_gradient(a, dqkv).into_par_iter().enumerate();
        groups
            .map_init(
                || BackwardScratch::new(a, &self.layout),
                |scratch, (index, gradient)| {
                    let group = Group {
                        batch: index / a.kv_heads,
                        kv_head: index % a.kv_heads,
                    };
                    self.backward_group(a, &group, gradient, scratch)
                },
            )
            .collect()
    }
}

/// A key/value head of a sequence, with the query heads that share it.
struct Group {
    batch: usize,
    kv_head: usize,
}

/// Slices of `dqkv` of one group: query rows in the order (position, head), key rows and value rows.
struct GroupGradient<'a, T> {
    q: Vec<&'a mut [T]>,
    k: Vec<&'a mut [T]>,
    v: Vec<&'a mut [T]>,
}

fn split_gradient<'a, T>(a: &AttentionConfig, dqkv: &'a mut [T]) -> Vec<GroupGradient<'a, T>> {
    let shared = a.heads / a.kv_heads;
    let mut groups: Vec<GroupGradient<T>> = (0..a.batch * a.kv_heads)
        .map(|_| GroupGradient {
            q: Vec::with_capacity(a.seq * shared),
            k: Vec::with_capacity(a.seq),
            v: Vec::with_capacity(a.seq),
        })
        .collect();
    for (row, values) in dqkv.chunks_exact_mut(a.packed_width()).enumerate() {
        let groups = &mut groups[row / a.seq * a.kv_heads..][..a.kv_heads];
        let (q, kv) = values.split_at_mut(a.heads * a.head_dim);
        let (k, v) = kv.split_at_mut(a.kv_heads * a.head_dim);
        for (h, head) in q.chunks_exact_mut(a.head_dim).enumerate() {
            groups[h / shared].q.push(head);
        }
        let heads = k.chunks_exact_mut(a.head_dim);
        let heads = heads.zip(v.chunks_exact_mut(a.value_dim));
        for (group, (k, v)) in groups.iter_mut().zip(heads) {
            group.k.push(k);
            group.v.push(v);
        }
    }
    groups
}

struct BackwardScratch {
    /// Keys and values as right operands (head_dim, seq) and (value_dim, seq).
    keys_transposed: Vec<PanelRow>,
    values_transposed: Vec<PanelRow>,
    /// Keys as right operands (keys of a tile, head_dim), tile after tile.
    keys: Vec<PanelRow>,
    /// Unpacked rows of a tile of keys or values.
    rows: Vec<f32>,
    /// Scaled queries of a tile, their context and its gradient.
    q: Vec<f32>,
    ctx: Vec<f32>,
    dctx: Vec<f32>,
    /// Both as right operands (queries, head_dim) and (queries, value_dim).
    q_panels: Vec<PanelRow>,
    /// Left operand of a matmul.
    left: LeftBuffer,
    dctx_panels: Vec<PanelRow>,
    /// Probabilities of a tile.
    p: Vec<f32>,
    /// Gradient of the probabilities, then of the logits.
    ds: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    head_scratch: head_rows::Scratch,
}

/// Returns the bytes of a [`BackwardScratch`].
pub(super) fn scratch_bytes(a: &AttentionConfig) -> usize {
    let (seq, d, e) = (a.seq, a.head_dim, a.value_dim);
    let (queries, keys) = (QUERY_TILE.min(seq), KEY_TILE.min(seq));
    let steps = |inner| a.precision.steps(inner);
    let packed = panels(seq) * (steps(d) + steps(e))
        + steps(seq) * panels(d)
        + steps(queries) * (panels(d) + panels(e));
    let tiles = keys * d.max(e) + queries * (2 * d + 2 * e + 2 * keys);
    let left = LeftBuffer::bytes(a.precision, keys.max(queries), keys.max(d).max(e));
    packed * size_of::<PanelRow>() + 4 * (tiles + seq * (d + e)) + left
}

impl BackwardScratch {
    fn new(a: &AttentionConfig, layout: &QkvLayout) -> Self {
        let (seq, d, e) = (a.seq, a.head_dim, a.value_dim);
        let (queries, keys) = (QUERY_TILE.min(seq), KEY_TILE.min(seq));
        let zero = PanelRow::ZERO;
        let steps = |inner| a.precision.steps(inner);
        BackwardScratch {
            keys_transposed: vec![zero; panels(seq) * steps(d)],
            values_transposed: vec![zero; panels(seq) * steps(e)],
            keys: vec![zero; steps(seq) * panels(d)],
            left: LeftBuffer::default(),
            ctx: vec![0.0; queries * e],
            rows: vec![0.0; keys * d.max(e)],
            q: vec![0.0; queries * d],
            dctx: vec![0.0; queries * e],
            q_panels: vec![zero; steps(queries) * panels(d)],
            dctx_panels: vec![zero; steps(queries) * panels(e)],
            p: vec![0.0; queries * keys],
            ds: vec![0.0; queries * keys],
            dq: vec![0.0; queries * d],
            dk: vec![0.0; seq * d],
            dv: vec![0.0; seq * e],
            head_scratch: head_rows::Scratch::new(a.head_dim, layout.transform),
        }
    }

    fn pack(&mut self, a: &AttentionConfig, k: &HeadRows, v: &HeadRows) {
        let (d, e, precision) = (a.head_dim, a.value_dim, a.precision);
        for start in (0..a.seq).step_by(KEY_TILE) {
            let n = KEY_TILE.min(a.seq - start);
            let data = &mut self.rows[..n * d];
            k.load(d, start, data, &mut self.head_scratch);
            let rows = Rows::new(&*data, d);
            let steps = precision.steps(d);
            let keys = &mut self.keys_transposed[start / PANEL * steps..];
            pack_transposed(precision, rows, n, d, keys, steps);
            let keys = &mut self.keys[precision.steps(start) * panels(d)..];
            pack(precision, rows, n, d, keys, precision.steps(n));
            let data = &mut self.rows[..n * e];
            v.load(e, start, data, &mut self.head_scratch);
            let steps = precision.steps(e);
            let values = &mut self.values_transposed[start / PANEL * steps..];
            pack_transposed(precision, Rows::new(&*data, e), n, e, values, steps);
        }
    }
}

impl Inputs<'_> {
    /// Computes the gradients of one group; returns its partial gradients of the norm parameters.
    fn backward_group<T: Float>(
        &self,
        a: &AttentionConfig,
        group: &Group,
        mut gradient: GroupGradient<T>,
        scratch: &mut BackwardScratch,
    ) -> [Vec<f32>; 3] {
        let (d, e) = (a.head_dim, a.value_dim);
        let shared = a.heads / a.kv_heads;
        let first_row = group.batch * a.seq;
        let mut grads = match self.layout.transform {
            Some(transform) => transform.zero_gradients(),
            None => Default::default(),
        };
        let [k, v] = self.layout.keys_and_values(a, group.batch, group.kv_head);
        scratch.pack(a, &k, &v);
        scratch.dk.fill(0.0);
        scratch.dv.fill(0.0);
        for query_head in 0..shared {
            let h = group.kv_head * shared + query_head;
            let q = self.layout.queries(a, group.batch, h);
            let stride = a.heads * e;
            let start = first_row * stride + h * e;
            let [ctx, dctx] = [self.ctx, self.dctx].map(|all| Rows::new(all.skip(start), stride));
            for first in (0..a.seq).step_by(QUERY_TILE) {
                let n = QUERY_TILE.min(a.seq - first);
                let tile = QueryTile {
                    first,
                    q,
                    ctx: ctx.from(first),
                    dctx: dctx.from(first),
                    lse: &self.lse[(group.batch * a.heads + h) * a.seq + first..][..n],
                };
                backward_tile(a, &tile, scratch);
                let rows = gradient.q[first * shared..].iter_mut();
                let rows = rows.skip(query_head).step_by(shared).map(|row| &mut **row);
                let dq = &mut scratch.dq[..n * d];
                dq.iter_mut().for_each(|dq| *dq *= a.scale);
                q.backward(d, first, dq, rows, &mut grads, &mut scratch.head_scratch);
            }
        }
        if let Some(cap) = a.softcap {
            // dk was computed from queries divided by the cap.
            scratch.dk.iter_mut().for_each(|dk| *dk *= cap);
        }
        for (head, width, dy, rows) in [
            (k, d, &scratch.dk, gradient.k),
            (v, e, &scratch.dv, gradient.v),
        ] {
            let scratch = &mut scratch.head_scratch;
            head.backward(width, 0, dy, rows.into_iter(), &mut grads, scratch);
        }
        grads
    }
}

/// Inputs of a tile of queries.
struct QueryTile<'a> {
    first: usize,
    q: HeadRows<'a>,
    ctx: Rows<'a>,
    dctx: Rows<'a>,
    lse: &'a [f32],
}

/// Writes the tile's `dq`, without the factor `scale`, and adds its contribution to `dk` and `dv`.
fn backward_tile(a: &AttentionConfig, tile: &QueryTile, scratch: &mut BackwardScratch) {
    let n = tile.lse.len();
    let visible = tile.first + n;
    scratch.load_tile(a, tile);
    let delta = scratch.deltas(a, n);
    let first_tile = a.first_key_tile(tile.first);
    for start in (first_tile..visible).step_by(KEY_TILE) {
        let keys = KeyTile {
            start,
            count: KEY_TILE.min(visible - start),
            first_query: tile.first,
            is_first: start == first_tile,
        };
        scratch.multiply_by_keys_and_values(a, n, &keys);
        let (p, ds) = (
            &mut scratch.p[..n * keys.count],
            &mut scratch.ds[..n * keys.count],
        );
        dispatch(
            #[inline(always)]
            || {
                let rows = p.chunks_exact_mut(keys.count);
                let rows = rows.zip(ds.chunks_exact_mut(keys.count));
                for (i, (p, ds)) in rows.enumerate() {
                    let visible = keys.visible_to(a, i);
                    for row in [&mut *p, &mut *ds] {
                        row[..visible.start].fill(0.0);
                        row[visible.end..].fill(0.0);
                    }
                    let (p, ds) = (&mut p[visible.clone()], &mut ds[visible]);
                    logit_gradient(a.softcap, tile.lse[i], delta[i], p, ds);
                }
            },
        );
        scratch.add_key_and_value_gradients(a, n, &keys);
        scratch.add_query_gradients(a, n, &keys);
    }
}

impl BackwardScratch {
    /// Loads and packs the queries of a tile and the gradient of their context.
    #[inline(always)]
    fn load_tile(&mut self, a: &AttentionConfig, tile: &QueryTile) {
        let (n, d, e) = (tile.lse.len(), a.head_dim, a.value_dim);
        let queries = &mut self.q[..n * d];
        load_queries(a, &tile.q, tile.first, queries, &mut self.head_scratch);
        for (rows, out) in [(tile.ctx, &mut self.ctx), (tile.dctx, &mut self.dctx)] {
            dispatch(
                #[inline(always)]
                || {
                    for (i, row) in out.chunks_exact_mut(e).take(n).enumerate() {
                        rows.row(i, e).widen(row);
                    }
                },
            );
        }
        let (precision, steps) = (a.precision, a.precision.steps(n));
        pack(
            precision,
            Rows::new(&self.q, d),
            n,
            d,
            &mut self.q_panels,
            steps,
        );
        pack(
            precision,
            Rows::new(&self.dctx, e),
            n,
            e,
            &mut self.dctx_panels,
            steps,
        );
    }

    /// Returns sum_j p_ij dp_ij of each query, which equals the dot product of its context and the gradient of its
    /// context.
    #[inline(always)]
    fn deltas(&self, a: &AttentionConfig, n: usize) -> [f32; QUERY_TILE] {
        let e = a.value_dim;
        let mut delta = [0.0; QUERY_TILE];
        dispatch(
            #[inline(always)]
            || {
                let rows = self.ctx.chunks_exact(e).zip(self.dctx.chunks_exact(e));
                for (delta, (ctx, dctx)) in delta.iter_mut().zip(rows).take(n) {
                    *delta = dot(ctx, dctx);
                }
            },
        );
        delta
    }

    /// Computes `q k^T` (in `p`) and `dctx v^T` (in `ds`).
    #[inline(always)]
    fn multiply_by_keys_and_values(&mut self, a: &AttentionConfig, n: usize, keys: &KeyTile) {
        let (d, e) = (a.head_dim, a.value_dim);
        let KeyTile { start, count, .. } = *keys;
        let tile_panels = start / PANEL..start / PANEL + panels(count);
        for (left, right, width, out) in [
            (&self.q, &self.keys_transposed, d, &mut self.p),
            (&self.dctx, &self.values_transposed, e, &mut self.ds),
        ] {
            let steps = a.precision.steps(width);
            TiledMatmul {
                kernel: a.precision.into(),
                left: self
                    .left
                    .row_major(a.precision, Rows::new(left, width), n, width),
                rows: n,
                right: &right[tile_panels.start * steps..tile_panels.end * steps],
                steps,
                columns: count,
                out: OutputRows {
                    data: &mut out[..n * count],
                    stride: count,
                    accumulate: false,
                },
            }
            .run_active(|queries| ActiveRegion {
                inner: 0..width,
                columns: keys.visible_to(a, queries.end - 1).end,
            });
        }
    }

    /// Adds the contribution of a tile to `dk` and `dv`.
    #[inline(always)]
    fn add_key_and_value_gradients(&mut self, a: &AttentionConfig, n: usize, keys: &KeyTile) {
        let (d, e) = (a.head_dim, a.value_dim);
        let KeyTile { start, count, .. } = *keys;
        for (left, right, width, out) in [
            (&self.p, &self.dctx_panels, e, &mut self.dv),
            (&self.ds, &self.q_panels, d, &mut self.dk),
        ] {
            TiledMatmul {
                kernel: a.precision.into(),
                left: self
                    .left
                    .transposed(a.precision, Rows::new(left, count), n, count),
                rows: count,
                right,
                steps: a.precision.steps(n),
                columns: width,
                out: OutputRows {
                    data: &mut out[start * width..],
                    stride: width,
                    accumulate: true,
                },
            }
            .run_active(|rows| ActiveRegion {
                inner: keys.first_query_of(rows.start)..n,
                columns: width,
            });
        }
    }

    /// Adds the contribution of a tile of keys to `dq`; that of the first one overwrites it.
    #[inline(always)]
    fn add_query_gradients(&mut self, a: &AttentionConfig, n: usize, keys: &KeyTile) {
        let d = a.head_dim;
        let KeyTile { start, count, .. } = *keys;
        let (right, steps) = tile_of(a.precision, &self.keys, a.seq, start, d);
        TiledMatmul {
            kernel: a.precision.into(),
            left: self
                .left
                .row_major(a.precision, Rows::new(&self.ds, count), n, count),
            rows: n,
            right,
            steps,
            columns: d,
            out: OutputRows {
                data: &mut self.dq,
                stride: d,
                accumulate: !keys.is_first,
            },
        }
        .run_active(|queries| ActiveRegion {
            inner: keys.visible_to_any(a, queries),
            columns: d,
        });
    }
}

/// Replaces the dot products `q k` by probabilities (`p`), and the gradients of the probabilities by the gradients of
/// the logits before the soft cap, without the factor `scale` (`ds`).
#[inline(always)]
fn logit_gradient(softcap: Option<f32>, lse: f32, delta: f32, p: &mut [f32], ds: &mut [f32]) {
    match softcap {
        None => {
            // One output per loop: a loop with both is not vectorized.
            for p in p.iter_mut() {
                *p = exp_bounded(*p - lse);
            }
            for (ds, p) in ds.iter_mut().zip(p) {
                *ds = *p * (*ds - delta);
            }
        }
        Some(cap) => {
            for (p, ds) in p.iter_mut().zip(ds) {
                let capped = tanh(*p);
                *p = exp_bounded(cap * capped - lse);
                *ds = *p * (*ds - delta) * (1.0 - capped * capped);
            }
        }
    }
}
