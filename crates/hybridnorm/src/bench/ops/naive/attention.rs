//! Causal attention, one query at a time, without a cap.

use hybridnorm_kernels::attention::Attention;

use super::{add_scaled, dot};

/// Where queries, keys and values of a packed row begin.
struct Packed {
    width: usize,
    heads: usize,
    group: usize,
    kv_heads: usize,
    k: usize,
}

impl Packed {
    fn of(a: &Attention) -> Self {
        Self {
            width: (a.heads + 2 * a.kv_heads) * a.head_dim,
            heads: a.heads,
            group: a.heads / a.kv_heads,
            kv_heads: a.kv_heads,
            k: a.head_dim,
        }
    }

    fn query(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        let first = row * self.width + head * self.k;
        first..first + self.k
    }

    /// Of the query head's key head.
    fn key(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        self.query(row, self.heads + head / self.group)
    }

    fn value(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        self.query(row, self.heads + self.kv_heads + head / self.group)
    }
}

/// Turns scores into weights; returns the log of the sum of their exponentials.
fn softmax(scores: &mut [f32]) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in &mut *scores {
        *score = (*score - largest).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
    largest + sum.ln()
}

/// `ctx` (batch, seq, heads · head_dim) and `lse` (batch, heads, seq) from packed `qkv`.
pub fn forward(a: &Attention, qkv: &[f32], ctx: &mut [f32], lse: &mut [f32]) {
    let p = Packed::of(a);
    let mut weights = vec![0.0; a.seq];
    for b in 0..a.batch {
        for head in 0..a.heads {
            for i in 0..a.seq {
                let row = b * a.seq + i;
                let q = &qkv[p.query(row, head)];
                let weights = &mut weights[..=i];
                for (j, weight) in weights.iter_mut().enumerate() {
                    *weight = a.scale * dot(q, &qkv[p.key(b * a.seq + j, head)]);
                }
                lse[(b * a.heads + head) * a.seq + i] = softmax(weights);
                let out = &mut ctx[(row * a.heads + head) * p.k..][..p.k];
                out.fill(0.0);
                for (j, weight) in weights.iter().enumerate() {
                    add_scaled(*weight, &qkv[p.value(b * a.seq + j, head)], out);
                }
            }
        }
    }
}

/// `dqkv` from `dctx`, with the weights made again from `lse`.
pub fn backward(
    a: &Attention,
    qkv: &[f32],
    ctx: &[f32],
    lse: &[f32],
    dctx: &[f32],
    dqkv: &mut [f32],
) {
    let p = Packed::of(a);
    dqkv.fill(0.0);
    for b in 0..a.batch {
        for head in 0..a.heads {
            for i in 0..a.seq {
                let row = b * a.seq + i;
                let at = (row * a.heads + head) * p.k;
                let dctx = &dctx[at..at + p.k];
                let along = dot(dctx, &ctx[at..at + p.k]);
                let log_sum = lse[(b * a.heads + head) * a.seq + i];
                let query = p.query(row, head);
                for j in 0..=i {
                    let (key, value) = (p.key(b * a.seq + j, head), p.value(b * a.seq + j, head));
                    let (q, k) = (&qkv[query.clone()], &qkv[key.clone()]);
                    let weight = (a.scale * dot(q, k) - log_sum).exp();
                    let dweight = dot(dctx, &qkv[value.clone()]);
                    let dscore = a.scale * weight * (dweight - along);
                    add_scaled(weight, dctx, &mut dqkv[value]);
                    add_scaled(dscore, k, &mut dqkv[query.clone()]);
                    add_scaled(dscore, q, &mut dqkv[key]);
                }
            }
        }
    }
}

/// `ctx` of one new position per sequence over a cache with rows `[k heads | v heads]` that holds
/// it behind `past` others. For a batch of one.
pub fn cached(a: &Attention, qkv: &[f32], cache: &[f32], past: usize, ctx: &mut [f32]) {
    let (k, stride) = (a.head_dim, 2 * a.kv_heads * a.head_dim);
    let mut weights = vec![0.0; past + 1];
    for head in 0..a.heads {
        let kv_head = head / (a.heads / a.kv_heads);
        let q = &qkv[head * k..][..k];
        for (j, weight) in weights.iter_mut().enumerate() {
            *weight = a.scale * dot(q, &cache[j * stride + kv_head * k..][..k]);
        }
        softmax(&mut weights);
        let out = &mut ctx[head * k..][..k];
        out.fill(0.0);
        for (j, weight) in weights.iter().enumerate() {
            let value = &cache[j * stride + (a.kv_heads + kv_head) * k..][..k];
            add_scaled(*weight, value, out);
        }
    }
}
