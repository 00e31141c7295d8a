//! Attention in bfloat16 against the definition, within bounds that follow from its roundings.

use super::{AttentionConfig, Precision, random, run};
use crate::floats::round_to;
use crate::testing::{BF16_ERROR, Bounded, assert_within};

/// Returns the context and the gradient of `qkv`, for operands that bfloat16 holds.
///
/// Rounded are, as operands of matmuls: scaled queries, exponentials, and gradients of logits. To first order, an error
/// of at most `x` of the logits changes probabilities by a factor of `1 ± 2 x`.
pub(super) fn reference(
    a: &AttentionConfig,
    qkv: &[f32],
    dctx: &[f32],
) -> (Vec<Bounded>, Vec<Bounded>) {
    let (d, e, width) = (a.head_dim, a.value_dim, a.packed_width());
    let scale = f64::from(a.scale);
    let floats = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let mut context = Vec::new();
    let mut gradient = vec![Bounded::default(); qkv.len()];
    for query in 0..a.batch * a.seq * a.heads {
        let (row, h) = (query / a.heads, query % a.heads);
        let (first_row, t) = (row - row % a.seq, row % a.seq);
        let kv_head = h / (a.heads / a.kv_heads);
        let query_at = row * width + h * d;
        let key_at = |s: usize| (first_row + s) * width + (a.heads + kv_head) * d;
        let value_at =
            |s: usize| (first_row + s) * width + (a.heads + a.kv_heads) * d + kv_head * e;
        let q = floats(&qkv[query_at..][..d]);
        let dctx = floats(&dctx[query * e..][..e]);
        // Logits, their derivatives with respect to the products, and bounds on both.
        let keys = a.first_key(t)..t + 1;
        let logits: Vec<[f64; 3]> = keys
            .clone()
            .map(|s| {
                let k = floats(&qkv[key_at(s)..][..d]);
                let terms = q.iter().zip(&k).map(|(q, k)| scale * q * k);
                let (u, size) = terms.fold((0.0, 0.0), |(u, size), x| (u + x, size + x.abs()));
                let Some(cap) = a.softcap.map(f64::from) else {
                    return [u, 1.0, BF16_ERROR * size];
                };
                let tanh = (u / cap).tanh();
                [cap * tanh, 1.0 - tanh * tanh, BF16_ERROR * size]
            })
            .collect();
        let largest = logits.iter().fold(0.0, |x: f64, [.., error]| x.max(*error));
        let relative = (2.0 * largest).exp_m1() + 1e-5;
        let total: f64 = logits.iter().map(|[s, ..]| s.exp()).sum();
        let probabilities: Vec<f64> = logits.iter().map(|[s, ..]| s.exp() / total).collect();
        let mut ctx = vec![Bounded::default(); e];
        for (s, p) in keys.clone().zip(&probabilities) {
            for (ctx, v) in ctx.iter_mut().zip(floats(&qkv[value_at(s)..][..e])) {
                ctx.add(p * v, p * v.abs() * (relative + BF16_ERROR));
            }
        }
        let mut delta = Bounded::default();
        for (ctx, dctx) in ctx.iter().zip(&dctx) {
            delta.add(ctx.value * dctx, ctx.error * dctx.abs());
        }
        for ((s, p), [_, slope, error]) in keys.zip(&probabilities).zip(&logits) {
            let v = floats(&qkv[value_at(s)..][..e]);
            let dp: f64 = v.iter().zip(&dctx).map(|(v, dctx)| v * dctx).sum();
            let term = (dp - delta.value).abs();
            let slope_error = a.softcap.map_or(0.0, |cap| 2.0 * error / f64::from(cap));
            let ds = p * (dp - delta.value) * slope;
            let error = p * (term * (relative * slope + slope_error) + delta.error * slope)
                + BF16_ERROR * ds.abs();
            let (k, keys) = (floats(&qkv[key_at(s)..][..d]), key_at(s));
            for c in 0..d {
                let (q_size, k_size) = ((scale * q[c]).abs(), (scale * k[c]).abs());
                gradient[query_at + c].add(scale * ds * k[c], error * k_size);
                gradient[keys + c].add(scale * ds * q[c], (error + BF16_ERROR * ds.abs()) * q_size);
            }
            for c in 0..e {
                let error = p * dctx[c].abs() * (relative + BF16_ERROR);
                gradient[value_at(s) + c].add(p * dctx[c], error);
            }
        }
        context.append(&mut ctx);
    }
    (context, gradient)
}

/// Returns random operands that bfloat16 holds.
pub(super) fn random_operands(a: &AttentionConfig, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let (mut qkv, mut dctx) = random(a, seed);
    round_to(Precision::Bf16, &mut qkv);
    round_to(Precision::Bf16, &mut dctx);
    (qkv, dctx)
}

/// Checks contexts and gradients.
#[track_caller]
pub(super) fn check(a: &AttentionConfig, seed: u64) {
    let precision = Precision::Bf16;
    let a = AttentionConfig { precision, ..*a };
    let (qkv, dctx) = random_operands(&a, seed);
    let [ctx, _, dqkv] = run(&a, &qkv, &dctx);
    let (want, gradient) = reference(&a, &qkv, &dctx);
    assert_within(&ctx, &want);
    assert_within(&dqkv, &gradient);
}
