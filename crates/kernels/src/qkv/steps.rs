//! Clamp, norm and rotation one after another, for configurations that [`FusedHead`](super::fused::FusedHead) does not
//! support.

use super::segment::Segment;
use super::{QkOrder, QkvTransform, Scratch};
use crate::norm::{self, NormConfig, Params};

/// Transforms heads of a segment from head `first` on step by step; all of them if a norm spans several.
#[inline(always)]
pub(super) fn forward_unfused(
    p: &QkvTransform,
    s: &Segment,
    first: usize,
    x: &[f32],
    cos_sin: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
    let x = clamp(p.clip, x, &mut scratch.clamped);
    let Some((n, params)) = &s.norm else {
        if s.rotates {
            rotate(x, cos_sin, 1.0, p.qk_scale, y);
        } else {
            y.copy_from_slice(x);
        }
        return;
    };
    let scratch_row = &mut scratch.buffers[0][..x.len()];
    match (s.rotates, p.order) {
        (false, _) => normalize(n, params, first, x, y),
        (true, QkOrder::BeforeRope) => {
            normalize(n, params, first, x, scratch_row);
            rotate(scratch_row, cos_sin, 1.0, p.qk_scale, y);
        }
        (true, QkOrder::AfterRope) => {
            rotate(x, cos_sin, 1.0, 1.0, scratch_row);
            normalize(n, params, first, scratch_row, y);
            scale(p.qk_scale, y);
        }
    }
}

/// Computes the gradient of [`forward_unfused`]; adds to that of the norm parameters.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "head indices, values, gradients and scratch"
)]
pub(super) fn backward_unfused(
    p: &QkvTransform,
    s: &Segment,
    first: usize,
    x: &[f32],
    cos_sin: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    grads: &mut [f32],
    scratch: &mut Scratch,
) {
    let Some((n, params)) = &s.norm else {
        if s.rotates {
            rotate(dy, cos_sin, -1.0, p.qk_scale, dx);
        } else {
            dx.copy_from_slice(dy);
        }
        return mask(p.clip, x, dx);
    };
    let clamped = clamp(p.clip, x, &mut scratch.clamped);
    let [rotated, scaled, scratch_row] = scratch.buffers.each_mut().map(|s| &mut s[..x.len()]);
    match (s.rotates, p.order) {
        (false, _) => normalize_backward(n, params, first, clamped, dy, dx, grads),
        (true, QkOrder::BeforeRope) => {
            rotate(dy, cos_sin, -1.0, p.qk_scale, rotated);
            normalize_backward(n, params, first, clamped, rotated, dx, grads);
        }
        (true, QkOrder::AfterRope) => {
            rotate(clamped, cos_sin, 1.0, 1.0, rotated);
            scaled.copy_from_slice(dy);
            scale(p.qk_scale, scaled);
            normalize_backward(n, params, first, rotated, scaled, scratch_row, grads);
            rotate(scratch_row, cos_sin, -1.0, 1.0, dx);
        }
    }
    mask(p.clip, x, dx);
}

#[inline(always)]
fn clamp<'a>(clip: Option<f32>, x: &'a [f32], buffer: &'a mut [f32]) -> &'a [f32] {
    let Some(clip) = clip else { return x };
    let buffer = &mut buffer[..x.len()];
    for (y, &x) in buffer.iter_mut().zip(x) {
        *y = x.clamp(-clip, clip);
    }
    buffer
}

/// Applies the gradient of the clamp: zero where the input was outside.
#[inline(always)]
fn mask(clip: Option<f32>, x: &[f32], dx: &mut [f32]) {
    let Some(clip) = clip else { return };
    for (dx, &x) in dx.iter_mut().zip(x) {
        *dx = if x.abs() > clip { 0.0 } else { *dx };
    }
}

#[inline(always)]
fn scale(factor: f32, y: &mut [f32]) {
    if factor != 1.0 {
        for y in y {
            *y *= factor;
        }
    }
}

/// Rotates each head by the angles of `cos_sin` times `sign`, and multiplies by `factor`.
#[inline(always)]
pub(crate) fn rotate(x: &[f32], cos_sin: &[f32], sign: f32, factor: f32, y: &mut [f32]) {
    let half = cos_sin.len() / 2;
    let (cos, sin) = cos_sin.split_at(half);
    for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
        let (x1, x2) = x.split_at(half);
        let (y1, y2) = y.split_at_mut(half);
        let cos_sin_pairs = cos.iter().zip(sin);
        for (((y1, y2), (&x1, &x2)), (&c, &s)) in y1
            .iter_mut()
            .zip(y2)
            .zip(x1.iter().zip(x2))
            .zip(cos_sin_pairs)
        {
            let s = sign * s;
            *y1 = factor * (x1 * c - x2 * s);
            *y2 = factor * (x2 * c + x1 * s);
        }
    }
}

#[inline(always)]
fn normalize(n: &NormConfig, params: &Params, first: usize, x: &[f32], y: &mut [f32]) {
    let rows = x.chunks_exact(n.width).zip(y.chunks_exact_mut(n.width));
    for (h, (x, y)) in (first..).zip(rows) {
        norm::forward_row(n, params, h % n.groups, x, y);
    }
}

#[inline(always)]
fn normalize_backward(
    n: &NormConfig,
    params: &Params,
    first: usize,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    grads: &mut [f32],
) {
    let inputs = x.chunks_exact(n.width).zip(dy.chunks_exact(n.width));
    for (h, ((x, dy), dx)) in (first..).zip(inputs.zip(dx.chunks_exact_mut(n.width))) {
        norm::backward_row(n, params, h % n.groups, x, dy, dx, grads);
    }
}
