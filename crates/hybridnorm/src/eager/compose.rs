//! Every op as a composition of Burn's ops: the portable path, and the reference for the kernels.

use burn::tensor::activation::{gelu_approximate, log_softmax, silu, softmax};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use hybridnorm_kernels::{
    activation::Activation,
    adamw::{AdamW, Norms, SlotNorms},
    attention::Attention,
    cross_entropy::LossSpec,
    muon::Muon,
    norm::{Gain, Norm, NormFn},
    qkv::{QkOrder, QkvPrep},
};

use super::{MuonUpdate, Update};

/// See [`norm`](super::norm()).
pub fn norm(x_btd: Tensor<3>, params_p: Tensor<1>, spec: Norm) -> Tensor<3> {
    let shape = x_btd.dims();
    let elements: usize = shape.iter().product();
    let rows = elements / (spec.groups * spec.width);
    let x = x_btd.reshape([rows, spec.groups, spec.width]);
    let affine = spec.groups * spec.width;
    let mut taken = 0;
    let mut take = |n: usize| {
        taken += n;
        params_p.clone().narrow(0, taken - n, n)
    };
    let per_channel = |p: Tensor<1>| p.reshape([1, spec.groups, spec.width]);
    let gain = (spec.gain != Gain::None).then(|| per_channel(take(affine)));
    let bias = spec.bias.then(|| per_channel(take(affine)));
    let eps = f64::from(spec.eps);
    let normed = match spec.function {
        NormFn::Rms => x.clone() / (x.square().mean_dim(2) + eps).sqrt(),
        NormFn::L2 => x.clone() / (x.square().sum_dim(2) + eps).sqrt(),
        NormFn::Layer => {
            let centered = x.clone() - x.mean_dim(2);
            centered.clone() / (centered.square().mean_dim(2) + eps).sqrt()
        }
        NormFn::Dyt => (x * take(1).reshape([1, 1, 1])).tanh(),
        NormFn::Derf => {
            let alpha = take(1).reshape([1, 1, 1]);
            (x * alpha + take(1).reshape([1, 1, 1])).erf()
        }
    };
    let scaled = match gain {
        Some(gain) if spec.gain == Gain::OnePlus => normed * (gain + 1.0),
        Some(gain) => normed * gain,
        None => normed,
    };
    let shifted = match bias {
        Some(bias) => scaled + bias,
        None => scaled,
    };
    shifted.reshape(shape)
}

/// See [`linear`](super::linear).
pub fn linear(x_bti: Tensor<3>, w_oi: Tensor<2>) -> Tensor<3> {
    let [b, t, i] = x_bti.dims();
    let o = w_oi.dims()[0];
    x_bti
        .reshape([b * t, i])
        .matmul(w_oi.transpose())
        .reshape([b, t, o])
}

/// See [`qkv_norm_rope`](super::qkv_norm_rope).
pub fn qkv_norm_rope(
    qkv_btc: Tensor<3>,
    [q_p, k_p, v_p]: [Tensor<1>; 3],
    spec: QkvPrep,
    rope: &[f32],
) -> Tensor<3> {
    let qkv = match spec.clip {
        Some(clip) => qkv_btc.clamp(-f64::from(clip), f64::from(clip)),
        None => qkv_btc,
    };
    let (q_width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let q = qkv.clone().narrow(2, 0, q_width);
    let k = qkv.clone().narrow(2, q_width, kv_width);
    let v = qkv.narrow(2, q_width + kv_width, kv_width);
    let maybe_norm = |x: Tensor<3>, p: Tensor<1>, site: Option<Norm>| match site {
        Some(site) => norm(x, p, site),
        None => x,
    };
    let prepare = |x: Tensor<3>, p: Tensor<1>, site: Option<Norm>| {
        let x = match spec.order {
            QkOrder::BeforeRope => rotate(maybe_norm(x, p, site), spec.head_dim, rope),
            QkOrder::AfterRope => maybe_norm(rotate(x, spec.head_dim, rope), p, site),
        };
        x * f64::from(spec.qk_scale)
    };
    let q = prepare(q, q_p, spec.q);
    let k = prepare(k, k_p, spec.k);
    let v = maybe_norm(v, v_p, spec.v);
    Tensor::cat(vec![q, k, v], 2)
}

/// Rotates pairs (i, i + k/2) of every head by its position's angles (arXiv 2104.09864).
pub(super) fn rotate(x_btc: Tensor<3>, head_dim: usize, rope: &[f32]) -> Tensor<3> {
    let [b, t, c] = x_btc.dims();
    let (heads, half) = (c / head_dim, head_dim / 2);
    let table = Tensor::<4>::from_data(
        TensorData::new(rope[..t * head_dim].to_vec(), [1, t, 1, head_dim]),
        (&x_btc.device(), x_btc.dtype()),
    );
    let (cos, sin) = (
        table.clone().narrow(3, 0, half),
        table.narrow(3, half, half),
    );
    let x = x_btc.reshape([b, t, heads, head_dim]);
    let (x1, x2) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let y1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let y2 = x2 * cos + x1 * sin;
    Tensor::cat(vec![y1, y2], 3).reshape([b, t, c])
}

/// See [`causal_attention`](super::causal_attention).
pub fn causal_attention(qkv_btc: Tensor<3>, spec: Attention) -> Tensor<3> {
    let kv = qkv_btc.clone().narrow(
        2,
        spec.heads * spec.head_dim,
        spec.kv_heads * (spec.head_dim + spec.value_dim),
    );
    cached_attention(qkv_btc, &kv, 0, spec)
}

/// See [`cached_attention`](super::cached_attention).
pub fn cached_attention(
    qkv_btc: Tensor<3>,
    cache_bsc: &Tensor<3>,
    past: usize,
    spec: Attention,
) -> Tensor<3> {
    let (b, t, h, g, k) = (
        spec.batch,
        spec.seq,
        spec.heads,
        spec.kv_heads,
        spec.head_dim,
    );
    let value = spec.value_dim;
    let s = past + t;
    let q = qkv_btc.narrow(2, 0, h * k).reshape([b, t, h, k]);
    let heads_first = |first: usize, width: usize| {
        cache_bsc
            .clone()
            .narrow(1, 0, s)
            .narrow(2, first, g * width)
            .reshape([b, s, g, 1, width])
            .repeat_dim(3, h / g)
            .reshape([b, s, h, width])
            .swap_dims(1, 2)
    };
    let (keys, values) = (heads_first(0, k), heads_first(g * k, value));
    let mut scores_bhts = q.swap_dims(1, 2).matmul(keys.swap_dims(2, 3)) * f64::from(spec.scale);
    if let Some(cap) = spec.softcap.map(f64::from) {
        scores_bhts = (scores_bhts / cap).tanh() * cap;
    }
    causal_weights(scores_bhts, past)
        .matmul(values)
        .swap_dims(1, 2)
        .reshape([b, t, h * value])
}

/// Softmax over the positions that query i, at position `past + i`, may see.
pub(super) fn causal_weights(scores_bhts: Tensor<4>, past: usize) -> Tensor<4> {
    let [b, h, t, s] = scores_bhts.dims();
    let hidden = Tensor::<2, Bool>::tril_mask([t, s], past as i64, &scores_bhts.device())
        .reshape([1, 1, t, s])
        .expand([b, h, t, s]);
    softmax(scores_bhts.mask_fill(hidden, f32::NEG_INFINITY), 3)
}

/// See [`activation`](super::activation()).
pub fn activation(x_btf: Tensor<3>, act: Activation) -> Tensor<3> {
    let halves = |x: Tensor<3>| {
        let f = x.dims()[2] / 2;
        (x.clone().narrow(2, 0, f), x.narrow(2, f, f))
    };
    match act {
        Activation::Swiglu => {
            let (gate, up) = halves(x_btf);
            silu(gate) * up
        }
        Activation::Geglu => {
            let (gate, up) = halves(x_btf);
            gelu_approximate(gate) * up
        }
        Activation::Gelu => gelu_approximate(x_btf),
        Activation::Relu2 => x_btf.clamp_min(0.0).square(),
    }
}

/// See [`scale_columns`](super::scale_columns).
pub fn scale_columns(x_btd: Tensor<3>, s: Tensor<1>, repeat: usize) -> Tensor<3> {
    let n = s.dims()[0];
    let s = s.reshape([n, 1]).repeat_dim(1, repeat);
    x_btd * s.reshape([1, 1, n * repeat])
}

/// See [`embedding`](super::embedding()).
pub fn embedding(w_vd: Tensor<2>, ids_bt: Tensor<2, Int>) -> Tensor<3> {
    let ([b, t], d) = (ids_bt.dims(), w_vd.dims()[1]);
    w_vd.select(0, ids_bt.reshape([b * t])).reshape([b, t, d])
}

/// See [`linear_cross_entropy`](super::linear_cross_entropy).
///
/// Burn keeps what it needs to differentiate, so here the logits do stay in memory until the
/// backward pass.
pub fn linear_cross_entropy(
    x_nd: Tensor<2>,
    w_vd: Tensor<2>,
    targets_n: Tensor<1, Int>,
    spec: LossSpec,
) -> Tensor<1> {
    let n = x_nd.dims()[0];
    let mut logits_nv = x_nd.matmul(w_vd.transpose()) * f64::from(spec.logit_scale);
    if let Some(cap) = spec.softcap.map(f64::from) {
        logits_nv = (logits_nv / cap).tanh() * cap;
    }
    let counted_n1 = targets_n.clone().greater_equal_elem(0).reshape([n, 1]);
    let ignored_n1 = counted_n1.bool_not();
    let targets_n1 = targets_n.clamp_min(0).reshape([n, 1]);
    let log_p_nv = log_softmax(logits_nv.clone(), 1);
    let nll_n1 = -log_p_nv.clone().gather(1, targets_n1.clone());
    // logsumexp = z_target − log p_target
    let lse_n1 = logits_nv.gather(1, targets_n1) + nll_n1.clone();
    let divisor = f64::from(spec.divisor);
    let sum = |x: Tensor<2>| x.mask_fill(ignored_n1.clone(), 0.0).sum() / divisor;
    let cross_entropy = sum(nll_n1);
    let total = cross_entropy.clone() + sum(lse_n1.square()) * f64::from(spec.z_loss);
    Tensor::cat(vec![total, cross_entropy.detach()], 0)
}

/// See [`adamw`](super::adamw()).
pub fn adamw(slots: Vec<Update>, step: &AdamW) -> (Norms, Vec<[Tensor<1>; 3]>) {
    let squares = slots.iter().map(|slot| sum_squares(slot.gradient.clone()));
    let squares: Vec<f64> = squares.collect();
    let norm = (squares.iter().sum::<f64>() + step.others).sqrt();
    let AdamW {
        lr,
        beta1,
        beta2,
        eps,
        ..
    } = *step;
    let [correction1, correction2] = [step.bias_correction1, step.bias_correction2].map(f64::from);
    let length = |x: Tensor<1>| sum_squares(x).sqrt();
    let update = |(slot, square): (Update, f64)| {
        let (p, [m, v]) = (slot.value, slot.moments);
        let mut norms = SlotNorms {
            gradient: square.sqrt(),
            ..SlotNorms::default()
        };
        if !norm.is_finite() {
            return (norms, [p, m, v]);
        }
        let g = slot.gradient * step.grad_scale(norm);
        let m = m * beta1 + g.clone() * (1.0 - beta1);
        let v = v * beta2 + g.square() * (1.0 - beta2);
        let denominator = v.clone().sqrt() / correction2.sqrt() + eps;
        let update = m.clone() / denominator * (lr / correction1);
        let new = p.clone() * (1.0 - lr * slot.weight_decay) - update;
        norms.update = length(new.clone() - p.clone());
        norms.value = length(p);
        (norms, [new, m, v])
    };
    let (slots, states) = slots.into_iter().zip(squares).map(update).unzip();
    let gradient = norm;
    (Norms { gradient, slots }, states)
}

/// See [`muon`](super::muon()).
pub fn muon(slot: MuonUpdate, step: &Muon) -> (SlotNorms, [Tensor<1>; 2]) {
    let (p, columns) = (slot.value, slot.columns);
    let gradient = sum_squares(slot.gradient.clone()).sqrt();
    let g = slot.gradient * f64::from(step.grad_scale);
    let m = slot.moment * step.momentum + g.clone();
    let u = match step.nesterov {
        true => g + m.clone() * step.momentum,
        false => m.clone(),
    };
    let sizes = slot.rows.iter().map(|rows| rows * columns).collect();
    let parts = u.split_with_sizes(sizes, 0).into_iter().zip(&slot.rows);
    let orthogonal = parts.map(|(u, &rows)| {
        let size = rows.max(columns) as f64;
        let o = orthogonalized(u.reshape([rows, columns]), step.steps);
        o.reshape([rows * columns]) * (0.2 * size.sqrt())
    });
    let update = Tensor::cat(orthogonal.collect(), 0) * step.lr;
    let new = p.clone() * (1.0 - step.lr * slot.weight_decay) - update;
    let length = |x: Tensor<1>| sum_squares(x).sqrt();
    let norms = SlotNorms {
        gradient,
        update: length(new.clone() - p.clone()),
        value: length(p),
    };
    (norms, [new, m])
}

/// The matrix with its singular values brought close to 1 by Newton–Schulz iterations.
fn orthogonalized(u: Tensor<2>, steps: usize) -> Tensor<2> {
    let [rows, columns] = u.dims();
    let length = u.clone().square().sum().sqrt() + 1e-7;
    let mut x = u / length.reshape([1, 1]);
    if rows > columns {
        x = x.transpose();
    }
    for _ in 0..steps {
        let a = x.clone().matmul(x.clone().transpose());
        let b = a.clone() * -4.7750 + a.clone().matmul(a) * 2.0315;
        x = x.clone() * 3.4445 + b.matmul(x);
    }
    if rows > columns { x.transpose() } else { x }
}

/// Rows (`dim` 1) or columns (`dim` 0) of a flattened matrix at length 1; those of length 0 stay.
pub fn unit(matrix: Tensor<1>, columns: usize, dim: usize) -> Tensor<1> {
    let n = matrix.dims()[0];
    let matrix = matrix.reshape([n / columns, columns]);
    let length = matrix.clone().square().sum_dim(dim).sqrt();
    let length = length.clone().mask_fill(length.equal_elem(0.0), 1.0);
    (matrix / length).reshape([n])
}

/// See [`sum_squares`](super::sum_squares).
pub fn sum_squares(x: Tensor<1>) -> f64 {
    x.square().sum().into_scalar::<f64>()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::eager as ops;

    #[test]
    fn a_step_of_muon_is_that_of_the_kernel() {
        let device = Device::flex();
        let vector = |n: usize, seed: f32| {
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * seed + seed).sin()).collect();
            Tensor::<1>::from_data(TensorData::new(values, [n]), &device)
        };
        let slot = || MuonUpdate {
            value: vector(8 * 5, 1.3),
            gradient: vector(8 * 5, 2.17),
            moment: vector(8 * 5, 0.71),
            columns: 5,
            rows: vec![2, 6],
            weight_decay: 0.1,
        };
        let step = Muon {
            lr: 1e-2,
            momentum: 0.9,
            nesterov: true,
            steps: 5,
            grad_scale: 0.5,
        };
        let (norms, kernel) = ops::muon(vec![slot()], &step);
        let (same_norms, composed) = muon(slot(), &step);
        assert!((norms[0].update - same_norms.update).abs() < 1e-4 * norms[0].update);
        for (one, other) in kernel[0].clone().into_iter().zip(composed) {
            let difference = (one - other).abs().max().into_scalar::<f32>();
            assert!(difference < 1e-5, "{difference}");
        }
    }

    #[test]
    fn an_update_is_that_of_the_kernel() {
        let device = Device::flex();
        let vector = |n: usize, seed: f32| {
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * seed).sin()).collect();
            Tensor::<1>::from_data(TensorData::new(values, [n]), &device)
        };
        let updates = || {
            [(5, 0.1), (300, 0.0)].map(|(n, weight_decay)| Update {
                value: vector(n, 1.3),
                gradient: vector(n, 2.1),
                moments: [vector(n, 0.7), vector(n, 0.9).square()],
                weight_decay,
            })
        };
        for clip in [0.0, 0.5, 100.0] {
            let step = AdamW {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                clip,
                others: 0.0,
                bias_correction1: 0.5,
                bias_correction2: 0.3,
            };
            let (norms, kernel) = ops::adamw(updates().into(), &step);
            let (same_norms, composed) = adamw(updates().into(), &step);
            let all = |norms: &Norms| {
                let slots = norms.slots.iter();
                let slots = slots.flat_map(|slot| [slot.gradient, slot.update, slot.value]);
                slots.chain([norms.gradient]).collect::<Vec<f64>>()
            };
            for (one, other) in all(&norms).into_iter().zip(all(&same_norms)) {
                assert!((one - other).abs() < 1e-4 * one, "{one} {other}");
            }
            for (one, other) in kernel
                .into_iter()
                .flatten()
                .zip(composed.into_iter().flatten())
            {
                let difference = (one - other).abs().max().into_scalar::<f32>();
                assert!(difference < 1e-6, "clip {clip}: {difference}");
            }
        }
    }
}
