//! Sums, scales, the embedding and the optimizer.

use hybridnorm_kernels::adamw::{AdamW, Slot, grad_scale};

use super::add_scaled;

/// `sum += x`.
pub fn add_to(x: &[f32], sum: &mut [f32]) {
    for i in 0..sum.len() {
        sum[i] += x[i];
    }
}

/// Multiplies each run of `repeat` channels by its factor.
pub fn scale_columns(x: &[f32], s: &[f32], repeat: usize, y: &mut [f32]) {
    let width = s.len() * repeat;
    for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
        for c in 0..width {
            y[c] = x[c] * s[c / repeat];
        }
    }
}

/// `dx` and `ds` from `dy`.
pub fn scale_columns_backward(
    x: &[f32],
    s: &[f32],
    repeat: usize,
    dy: &[f32],
    dx: &mut [f32],
    ds: &mut [f32],
) {
    let width = s.len() * repeat;
    ds.fill(0.0);
    let rows = x.chunks(width).zip(dy.chunks(width));
    for ((x, dy), dx) in rows.zip(dx.chunks_mut(width)) {
        for c in 0..width {
            dx[c] = dy[c] * s[c / repeat];
            ds[c / repeat] += dy[c] * x[c];
        }
    }
}

/// Rows of the table by id.
pub fn embedding(ids: &[i32], w: &[f32], y: &mut [f32], width: usize) {
    for (&id, y) in ids.iter().zip(y.chunks_mut(width)) {
        y.copy_from_slice(&w[id as usize * width..][..width]);
    }
}

/// For each row of the table the sum of the rows that read it.
pub fn embedding_backward(ids: &[i32], dy: &[f32], dw: &mut [f32], width: usize) {
    dw.fill(0.0);
    for (&id, dy) in ids.iter().zip(dy.chunks(width)) {
        add_scaled(1.0, dy, &mut dw[id as usize * width..][..width]);
    }
}

/// One step in place on a model of one parameter.
pub fn adamw(
    a: &AdamW,
    Slot {
        p,
        g,
        m,
        v,
        weight_decay,
    }: Slot,
) {
    let (beta1, beta2) = (a.beta1 as f32, a.beta2 as f32);
    let scale = grad_scale(1.0, sum_squares(g).sqrt());
    for i in 0..p.len() {
        let g = scale * g[i];
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        let mean = m[i] / a.bias_correction1;
        let root = (v[i] / a.bias_correction2).sqrt();
        p[i] -= a.lr as f32 * (mean / (root + a.eps as f32) + weight_decay as f32 * p[i]);
    }
}

/// `Σ x²`. In double precision: so many numbers add up to nothing exact otherwise.
pub fn sum_squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}
