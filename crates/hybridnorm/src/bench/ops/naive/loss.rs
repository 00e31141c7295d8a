//! Output projection and cross-entropy, a row at a time, without a cap; every row has a target.

use hybridnorm_kernels::cross_entropy::LossSpec;

use super::{add_scaled, dot};

/// Writes the logits of a row; returns the log of the sum of their exponentials.
fn logits(spec: &LossSpec, x: &[f32], w: &[f32], z: &mut [f32]) -> f32 {
    for (z, w) in z.iter_mut().zip(w.chunks(spec.width)) {
        *z = spec.logit_scale * dot(x, w);
    }
    let largest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = z.iter().map(|z| (z - largest).exp()).sum();
    largest + sum.ln()
}

/// `sums`: the cross-entropy, and the square of the log-sum-exp, over all rows.
pub fn loss(spec: &LossSpec, x: &[f32], w: &[f32], targets: &[i32], sums: &mut [f32]) {
    sums.fill(0.0);
    let mut z = vec![0.0; spec.vocab];
    for (x, &target) in x.chunks(spec.width).zip(targets) {
        let log_sum = logits(spec, x, w, &mut z);
        sums[0] += log_sum - z[target as usize];
        sums[1] += log_sum * log_sum;
    }
}

/// As [`loss`], and the gradients `dx` and `dw` of what is trained on.
pub fn loss_and_gradients(
    spec: &LossSpec,
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    sums: &mut [f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    sums.fill(0.0);
    dx.fill(0.0);
    dw.fill(0.0);
    let mut z = vec![0.0; spec.vocab];
    let rows = x.chunks(spec.width).zip(dx.chunks_mut(spec.width));
    for ((x, dx), &target) in rows.zip(targets) {
        let target = target as usize;
        let log_sum = logits(spec, x, w, &mut z);
        sums[0] += log_sum - z[target];
        sums[1] += log_sum * log_sum;
        let weight = 1.0 + 2.0 * spec.z_loss * log_sum;
        let rows = w.chunks(spec.width).zip(dw.chunks_mut(spec.width));
        for (c, (w, dw)) in rows.enumerate() {
            let hit = if c == target { 1.0 } else { 0.0 };
            let dz = (weight * (z[c] - log_sum).exp() - hit) / spec.divisor;
            add_scaled(spec.logit_scale * dz, w, dx);
            add_scaled(spec.logit_scale * dz, x, dw);
        }
    }
}
