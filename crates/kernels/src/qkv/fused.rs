//! Norm and rotation of one head at a time, fused in explicit vector code.
//!
//! Supports the common configurations only, see [`FusedHead::supports`]; other configurations run the steps one by one.

use super::segment::Segment;
use super::{QkOrder, QkvTransform};
use crate::simd::{Chunk, LANES, horizontal_sum, vectors, vectors_mut};
use pulp::Simd;

/// A head of a segment, with its norm and rotation.
pub(super) struct FusedHead<'a> {
    norm: Option<HeadNorm<'a>>,
    rotates: bool,
    /// Factor on a rotated head.
    factor: f32,
}

struct HeadNorm<'a> {
    gain: &'a [Chunk],
    bias: &'a [Chunk],
    /// See [`NormConfig::uncentered_divisor_of_squares`](crate::norm::NormConfig::uncentered_divisor_of_squares).
    divisor: f32,
    eps: f32,
}

impl<'a> FusedHead<'a> {
    /// True if the heads of a segment are supported: whole chunks in each half, no clamp, and either no norm, or one
    /// that scales each head by its sum of squares before the rotation.
    #[inline(always)]
    pub(super) fn supports(p: &QkvTransform, s: &Segment) -> bool {
        let is_norm_supported = s.norm.as_ref().is_none_or(|(n, _)| {
            n.uncentered_divisor_of_squares().is_some()
                && n.width == p.head_dim
                && !(s.rotates && p.order == QkOrder::AfterRope)
        });
        p.clip.is_none() && p.head_dim.is_multiple_of(2 * LANES) && is_norm_supported
    }

    /// Returns head `head` of a segment, if supported.
    #[inline(always)]
    pub(super) fn new(p: &QkvTransform, s: &'a Segment, head: usize) -> Option<Self> {
        if !Self::supports(p, s) {
            return None;
        }
        let norm = s.norm.as_ref().map(|(n, params)| {
            let [gain, bias] = params.of_group(n, head % n.groups);
            HeadNorm {
                gain: gain.as_chunks().0,
                bias: bias.as_chunks().0,
                divisor: n.uncentered_divisor_of_squares().unwrap_or(1.0),
                eps: n.eps,
            }
        });
        Some(FusedHead {
            norm,
            rotates: s.rotates,
            factor: p.qk_scale,
        })
    }

    /// Computes `y = factor * rotate(gain x inv_rms + bias)`; without factor and rotation for values.
    #[inline(always)]
    pub(super) fn forward<S: Simd, const V: usize>(
        &self,
        simd: S,
        x: &[f32],
        cos_sin: &[f32],
        y: &mut [f32],
    ) {
        let (x, cos_sin) = (x.as_chunks::<LANES>().0, cos_sin.as_chunks::<LANES>().0);
        let y = y.as_chunks_mut::<LANES>().0;
        let half = x.len() / 2;
        let inv_rms = match &self.norm {
            Some(norm) => norm.inv_rms::<S, V>(simd, x),
            None => 1.0,
        };
        let inv_rms = simd.splat_f32s(inv_rms);
        let normed = |i: usize, v: usize| {
            let x = vectors::<S, V>(&x[i])[v];
            match &self.norm {
                None => x,
                Some(n) => {
                    let gain = vectors::<S, V>(&n.gain[i])[v];
                    let h = simd.mul_f32s(simd.mul_f32s(x, inv_rms), gain);
                    simd.add_f32s(h, vectors::<S, V>(&n.bias[i])[v])
                }
            }
        };
        if !self.rotates {
            for (i, y) in y.iter_mut().enumerate() {
                for (v, y) in vectors_mut::<S, V>(y).iter_mut().enumerate() {
                    *y = normed(i, v);
                }
            }
            return;
        }
        let factor = simd.splat_f32s(self.factor);
        for i in 0..half {
            for v in 0..V {
                let (cos, sin) = rotation::<S, V>(cos_sin, i, v);
                let (a, b) = (normed(i, v), normed(i + half, v));
                let [first, second] = rotate(simd, [a, b], cos, sin, factor);
                vectors_mut::<S, V>(&mut y[i])[v] = first;
                vectors_mut::<S, V>(&mut y[i + half])[v] = second;
            }
        }
    }

    /// Computes the gradient of [`FusedHead::forward`]; adds to those of the norm's gain and bias, empty if
    /// absent. `scratch_row` is scratch for as many values as the head has.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "values, gradients and scratch")]
    pub(super) fn backward<S: Simd, const V: usize>(
        &self,
        simd: S,
        x: &[f32],
        cos_sin: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        [dgain, dbias]: &mut [&mut [f32]; 2],
        scratch_row: &mut [f32],
    ) {
        let (x, cos_sin) = (x.as_chunks::<LANES>().0, cos_sin.as_chunks::<LANES>().0);
        let (dy, dx) = (dy.as_chunks::<LANES>().0, dx.as_chunks_mut::<LANES>().0);
        let dh = scratch_row[..LANES * x.len()].as_chunks_mut::<LANES>().0;
        self.rotate_back::<S, V>(simd, dy, cos_sin, dh);
        match &self.norm {
            Some(norm) => norm.backward::<S, V>(simd, x, dh, dx, dgain, dbias),
            None => dx.copy_from_slice(dh),
        }
    }

    /// Computes the gradient of a head before its rotation.
    #[inline(always)]
    fn rotate_back<S: Simd, const V: usize>(
        &self,
        simd: S,
        dy: &[Chunk],
        cos_sin: &[Chunk],
        dh: &mut [Chunk],
    ) {
        if !self.rotates {
            dh.copy_from_slice(dy);
            return;
        }
        let half = dy.len() / 2;
        let factor = simd.splat_f32s(self.factor);
        for i in 0..half {
            for v in 0..V {
                let (cos, sin) = rotation::<S, V>(cos_sin, i, v);
                let both = [
                    vectors::<S, V>(&dy[i])[v],
                    vectors::<S, V>(&dy[i + half])[v],
                ];
                let [first, second] = rotate(simd, both, cos, simd.neg_f32s(sin), factor);
                vectors_mut::<S, V>(&mut dh[i])[v] = first;
                vectors_mut::<S, V>(&mut dh[i + half])[v] = second;
            }
        }
    }
}

impl HeadNorm<'_> {
    /// Computes the gradient `dx` of the norm's input from `dh`; adds to those of gain and bias.
    #[inline(always)]
    fn backward<S: Simd, const V: usize>(
        &self,
        simd: S,
        x: &[Chunk],
        dh: &[Chunk],
        dx: &mut [Chunk],
        dgain: &mut [f32],
        dbias: &mut [f32],
    ) {
        // The sum of squares and the gradient along x do not depend on each other, so one loop computes both.
        let zero = simd.splat_f32s(0.0);
        let (mut squares, mut projection) = ([zero; V], [zero; V]);
        for i in 0..x.len() {
            let (x, dh) = (vectors::<S, V>(&x[i]), vectors::<S, V>(&dh[i]));
            let gain = vectors::<S, V>(&self.gain[i]);
            for v in 0..V {
                squares[v] = simd.mul_add_f32s(x[v], x[v], squares[v]);
                let weighted = simd.mul_f32s(gain[v], dh[v]);
                projection[v] = simd.mul_add_f32s(weighted, x[v], projection[v]);
            }
        }
        let inv_rms = self.inv_rms_of(horizontal_sum(simd, squares));
        let projection = simd.splat_f32s(horizontal_sum(simd, projection) * inv_rms / self.divisor);
        let inv_rms = simd.splat_f32s(inv_rms);
        for i in 0..x.len() {
            let (x, dh) = (vectors::<S, V>(&x[i]), vectors::<S, V>(&dh[i]));
            let gain = vectors::<S, V>(&self.gain[i]);
            let dx = vectors_mut::<S, V>(&mut dx[i]);
            for v in 0..V {
                let h = simd.mul_f32s(x[v], inv_rms);
                let dnormed = simd.mul_f32s(gain[v], dh[v]);
                let dx_scaled = simd.sub_f32s(dnormed, simd.mul_f32s(h, projection));
                dx[v] = simd.mul_f32s(dx_scaled, inv_rms);
            }
        }
        for (i, dgain) in dgain.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let (x, dh) = (vectors::<S, V>(&x[i]), vectors::<S, V>(&dh[i]));
            let dgain = vectors_mut::<S, V>(dgain);
            for v in 0..V {
                let h = simd.mul_f32s(x[v], inv_rms);
                dgain[v] = simd.mul_add_f32s(dh[v], h, dgain[v]);
            }
        }
        for (i, dbias) in dbias.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let dh = vectors::<S, V>(&dh[i]);
            let dbias = vectors_mut::<S, V>(dbias);
            for v in 0..V {
                dbias[v] = simd.add_f32s(dbias[v], dh[v]);
            }
        }
    }

    /// Returns the scale of a head, `1 / sqrt(sum(x^2) / divisor + eps)`.
    #[inline(always)]
    fn inv_rms<S: Simd, const V: usize>(&self, simd: S, x: &[Chunk]) -> f32 {
        let mut squares = [simd.splat_f32s(0.0); V];
        for i in 0..x.len() {
            let x = vectors::<S, V>(&x[i]);
            for v in 0..V {
                squares[v] = simd.mul_add_f32s(x[v], x[v], squares[v]);
            }
        }
        self.inv_rms_of(horizontal_sum(simd, squares))
    }

    #[inline(always)]
    fn inv_rms_of(&self, squares: f32) -> f32 {
        1.0 / (squares / self.divisor + self.eps).sqrt()
    }
}

/// Cosines and sines of vector `v` of chunk `i`.
#[inline(always)]
fn rotation<S: Simd, const V: usize>(cos_sin: &[Chunk], i: usize, v: usize) -> (S::f32s, S::f32s) {
    let half = cos_sin.len() / 2;
    (
        vectors::<S, V>(&cos_sin[i])[v],
        vectors::<S, V>(&cos_sin[i + half])[v],
    )
}

/// `factor (a cos - b sin, b cos + a sin)`.
#[inline(always)]
fn rotate<S: Simd>(
    simd: S,
    [a, b]: [S::f32s; 2],
    cos: S::f32s,
    sin: S::f32s,
    factor: S::f32s,
) -> [S::f32s; 2] {
    let first = simd.sub_f32s(simd.mul_f32s(a, cos), simd.mul_f32s(b, sin));
    let second = simd.add_f32s(simd.mul_f32s(b, cos), simd.mul_f32s(a, sin));
    [simd.mul_f32s(factor, first), simd.mul_f32s(factor, second)]
}
