//! Queries, keys or values of a packed row.

use super::fused::FusedHead;
use super::steps::{backward_unfused, forward_unfused};
use super::{QkvTransform, Scratch};
use crate::norm::{NormConfig, Params};
use pulp::Simd;
use std::ops::Range;

/// Queries, keys or values of a row, with their norm and rotation.
pub(super) struct Segment<'a> {
    pub(super) range: Range<usize>,
    pub(super) norm: Option<(NormConfig, Params<'a>)>,
    pub(super) rotates: bool,
}

impl Segment<'_> {
    /// Returns the gradients of gain and bias of head `head` within those of the norm parameters; empty if
    /// absent.
    #[inline(always)]
    pub(super) fn gradients_of<'a>(&self, grads: &'a mut [f32], head: usize) -> [&'a mut [f32]; 2] {
        match &self.norm {
            Some((n, _)) => n.group_of(grads, head % n.groups),
            None => Default::default(),
        }
    }
}

/// Transforms all heads of a segment of one row.
#[inline(always)]
pub(super) fn forward_segment<S: Simd, const V: usize>(
    simd: S,
    p: &QkvTransform,
    s: &Segment,
    x: &[f32],
    cos_sin: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
    if !FusedHead::supports(p, s) {
        return forward_unfused(p, s, 0, x, cos_sin, y, scratch);
    }
    let d = p.head_dim;
    let heads = x.chunks_exact(d).zip(y.chunks_exact_mut(d));
    for (h, (x, y)) in heads.enumerate() {
        let fused = FusedHead::new(p, s, h).expect("heads of this segment fit");
        fused.forward::<S, V>(simd, x, cos_sin, y);
    }
}

/// Computes the gradient of [`forward_segment`]; adds to that of the norm parameters.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "values, gradients and scratch of a segment"
)]
pub(super) fn backward_segment<S: Simd, const V: usize>(
    simd: S,
    p: &QkvTransform,
    s: &Segment,
    x: &[f32],
    cos_sin: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    grads: &mut [f32],
    scratch: &mut Scratch,
) {
    if !FusedHead::supports(p, s) {
        return backward_unfused(p, s, 0, x, cos_sin, dy, dx, grads, scratch);
    }
    let d = p.head_dim;
    let heads = x.chunks_exact(d).zip(dy.chunks_exact(d));
    for (h, ((x, dy), dx)) in heads.zip(dx.chunks_exact_mut(d)).enumerate() {
        let fused = FusedHead::new(p, s, h).expect("heads of this segment fit");
        let mut grads = s.gradients_of(grads, h);
        let scratch_row = &mut scratch.buffers[0];
        fused.backward::<S, V>(simd, x, cos_sin, dy, dx, &mut grads, scratch_row);
    }
}
