//! Gradient of the attention, scores computed anew tile by tile.

use super::{Attention, KEYS, QUERIES, Rows, products};
use crate::gemm::matmul;
use crate::math::{exp, tanh};
use crate::simd::{dispatch, dot};
use rayon::prelude::*;

/// Gradient of [`forward`](super::forward): from its inputs and outputs and `dctx`, shaped like `ctx`, to `dqkv`,
/// shaped like `qkv`.
pub fn backward(
    a: &Attention,
    qkv: &[f32],
    ctx: &[f32],
    lse: &[f32],
    dctx: &[f32],
    dqkv: &mut [f32],
) {
    a.check_packed("attention::backward", qkv, ctx, lse);
    assert_eq!(
        dctx.len(),
        ctx.len(),
        "attention::backward: dctx is not as long as ctx"
    );
    assert_eq!(
        dqkv.len(),
        qkv.len(),
        "attention::backward: dqkv is not as long as qkv"
    );
    let groups = split_gradient(a, dqkv);
    groups.into_par_iter().enumerate().for_each_init(
        || BackwardScratch::new(a),
        |scratch, (index, gradient)| {
            let group = Group {
                batch: index / a.kv_heads,
                kv_head: index % a.kv_heads,
            };
            backward_group(a, &group, qkv, ctx, lse, dctx, gradient, scratch);
        },
    );
}

/// A key and value head of a sequence, with the query heads that read it.
struct Group {
    batch: usize,
    kv_head: usize,
}

/// The parts of `dqkv` that belong to one group: rows of queries in the order (position, head),
/// rows of keys and of values.
#[derive(Default)]
struct GroupGradient<'a> {
    q: Vec<&'a mut [f32]>,
    k: Vec<&'a mut [f32]>,
    v: Vec<&'a mut [f32]>,
}

fn split_gradient<'a>(a: &Attention, dqkv: &'a mut [f32]) -> Vec<GroupGradient<'a>> {
    let mut groups: Vec<GroupGradient> = (0..a.batch * a.kv_heads)
        .map(|_| GroupGradient::default())
        .collect();
    let shared = a.heads / a.kv_heads;
    for (row, values) in dqkv.chunks_exact_mut(a.packed_width()).enumerate() {
        let groups = &mut groups[row / a.seq * a.kv_heads..][..a.kv_heads];
        for (part, head) in values.chunks_exact_mut(a.head_dim).enumerate() {
            if part < a.heads {
                groups[part / shared].q.push(head);
            } else if part < a.heads + a.kv_heads {
                groups[part - a.heads].k.push(head);
            } else {
                groups[part - a.heads - a.kv_heads].v.push(head);
            }
        }
    }
    groups
}

struct BackwardScratch {
    /// Probabilities of a tile.
    p: Vec<f32>,
    /// Gradient of the probabilities, then of the scores.
    ds: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl BackwardScratch {
    fn new(a: &Attention) -> Self {
        BackwardScratch {
            p: vec![0.0; QUERIES * KEYS],
            ds: vec![0.0; QUERIES * KEYS],
            dq: vec![0.0; QUERIES * a.head_dim],
            dk: vec![0.0; a.seq * a.head_dim],
            dv: vec![0.0; a.seq * a.head_dim],
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "inputs, outputs and gradients of the forward pass"
)]
fn backward_group(
    a: &Attention,
    group: &Group,
    qkv: &[f32],
    ctx: &[f32],
    lse: &[f32],
    dctx: &[f32],
    mut gradient: GroupGradient,
    scratch: &mut BackwardScratch,
) {
    let (d, width) = (a.head_dim, a.packed_width());
    let shared = a.heads / a.kv_heads;
    let first_row = group.batch * a.seq;
    let packed = |part: usize| Rows {
        data: &qkv[first_row * width + part * d..],
        stride: width,
    };
    let (k, v) = (
        packed(a.heads + group.kv_head),
        packed(a.heads + a.kv_heads + group.kv_head),
    );
    scratch.dk.fill(0.0);
    scratch.dv.fill(0.0);
    for member in 0..shared {
        let h = group.kv_head * shared + member;
        let context = |data| {
            let stride = a.heads * d;
            let all: Rows = Rows { data, stride };
            Rows {
                data: &all.from(first_row).data[h * d..],
                stride,
            }
        };
        for first in (0..a.seq).step_by(QUERIES) {
            let n = QUERIES.min(a.seq - first);
            let tile = QueryTile {
                first,
                q: packed(h).from(first),
                ctx: context(ctx).from(first),
                dctx: context(dctx).from(first),
                lse: &lse[(group.batch * a.heads + h) * a.seq + first..][..n],
            };
            backward_tile(a, &tile, k, v, scratch);
            for (i, dq) in scratch.dq.chunks_exact(d).take(n).enumerate() {
                gradient.q[(first + i) * shared + member].copy_from_slice(dq);
            }
        }
    }
    for (rows, values) in [(gradient.k, &scratch.dk), (gradient.v, &scratch.dv)] {
        for (row, value) in rows.into_iter().zip(values.chunks_exact(d)) {
            row.copy_from_slice(value);
        }
    }
}

/// What the backward pass knows about a tile of queries.
struct QueryTile<'a> {
    first: usize,
    q: Rows<'a>,
    ctx: Rows<'a>,
    dctx: Rows<'a>,
    lse: &'a [f32],
}

/// Writes the tile's `dq` and adds its share to `dk` and `dv`.
fn backward_tile(a: &Attention, tile: &QueryTile, k: Rows, v: Rows, scratch: &mut BackwardScratch) {
    let (n, d) = (tile.lse.len(), a.head_dim);
    let visible = tile.first + n;
    let BackwardScratch { p, ds, dq, dk, dv } = scratch;
    // sum_j p_ij dp_ij, which is the same as the product of a context with its gradient.
    let mut along = [0.0; QUERIES];
    dispatch(
        #[inline(always)]
        || {
            for (i, along) in along.iter_mut().enumerate().take(n) {
                *along = dot(tile.ctx.row(i, d), tile.dctx.row(i, d));
            }
        },
    );
    for start in (0..visible).step_by(KEYS) {
        let count = KEYS.min(visible - start);
        let (k, v) = (k.from(start), v.from(start));
        let (p, ds) = (&mut p[..n * count], &mut ds[..n * count]);
        products(a, tile.q, k, n, count, p);
        let (dctx, by_key) = ((tile.dctx.stride, 1), (1, count));
        let dout = tile.dctx.data;
        let (by_row, flat) = ((count, 1), (d, 1));
        matmul(
            n,
            count,
            d,
            dout,
            dctx,
            v.data,
            (1, v.stride),
            ds,
            by_row,
            1.0,
            false,
            false,
        );
        dispatch(
            #[inline(always)]
            || {
                let rows = p.chunks_exact_mut(count).zip(ds.chunks_exact_mut(count));
                for (i, (p, ds)) in rows.enumerate() {
                    let seen = (tile.first + i + 1).saturating_sub(start).min(count);
                    p[seen..].fill(0.0);
                    ds[seen..].fill(0.0);
                    let (p, ds) = (&mut p[..seen], &mut ds[..seen]);
                    score_gradient(a.softcap, tile.lse[i], along[i], p, ds);
                }
            },
        );
        let (dk, dv) = (&mut dk[start * d..], &mut dv[start * d..]);
        let (q, alpha) = ((tile.q.stride, 1), a.scale);
        matmul(
            count, d, n, p, by_key, dout, dctx, dv, flat, 1.0, true, false,
        );
        matmul(
            count,
            d,
            n,
            ds,
            by_key,
            tile.q.data,
            q,
            dk,
            flat,
            alpha,
            true,
            false,
        );
        matmul(
            n,
            d,
            count,
            ds,
            by_row,
            k.data,
            (k.stride, 1),
            dq,
            flat,
            alpha,
            start > 0,
            false,
        );
    }
}

/// Turns products into probabilities (`p`), and their gradients into those of the scores before
/// the cap, up to `scale` (`ds`).
#[inline(always)]
fn score_gradient(softcap: Option<f32>, lse: f32, along: f32, p: &mut [f32], ds: &mut [f32]) {
    match softcap {
        None => {
            // Two loops with one output each: a loop with both is not vectorized.
            for p in p.iter_mut() {
                *p = exp(*p - lse);
            }
            for (ds, p) in ds.iter_mut().zip(p) {
                *ds = *p * (*ds - along);
            }
        }
        Some(cap) => {
            for (p, ds) in p.iter_mut().zip(ds) {
                let bent = tanh(*p);
                *p = exp(cap * bent - lse);
                *ds = *p * (*ds - along) * (1.0 - bent * bent);
            }
        }
    }
}
