//! One head at a time in explicit vectors: norm and rotation go through registers together.
//!
//! For the common forms only, [`Head::new`] says which; the others take the steps one by one.

use super::{QkOrder, QkvPrep, Segment};
use crate::norm::NormFn;
use crate::simd::{Chunk, LANES, total, vectors, vectors_mut};
use pulp::Simd;

/// A head of a segment, and what is done to it.
pub(super) struct Head<'a> {
    norm: Option<HeadNorm<'a>>,
    rotates: bool,
    factor: f32,
}

struct HeadNorm<'a> {
    gain: &'a [Chunk],
    bias: &'a [Chunk],
    /// Divides the sum of squares.
    count: f32,
    eps: f32,
    has_gain: bool,
    has_bias: bool,
}

impl<'a> Head<'a> {
    /// Head number `head` of a segment. None for a form that is not done here: with a clamp, a
    /// rotation before the norm, a norm with a mean or without a sum of squares, or halves of a
    /// head that are not whole chunks.
    #[inline(always)]
    pub(super) fn new(p: &QkvPrep, s: &'a Segment, head: usize) -> Option<Self> {
        let d = p.head_dim;
        if p.clip.is_some() || !d.is_multiple_of(2 * LANES) {
            return None;
        }
        let norm = match &s.norm {
            None => None,
            Some((n, params)) => {
                let count = match n.function {
                    NormFn::Rms => d as f32,
                    NormFn::L2 => 1.0,
                    _ => return None,
                };
                if n.width != d || (s.rotates && p.order == QkOrder::AfterRope) {
                    return None;
                }
                let [gain, bias] = params.of_group(n, head % n.groups);
                Some(HeadNorm {
                    gain: gain.as_chunks().0,
                    bias: bias.as_chunks().0,
                    count,
                    eps: n.eps,
                    has_gain: n.has_gain(),
                    has_bias: n.bias,
                })
            }
        };
        Some(Head {
            norm,
            rotates: s.rotates,
            factor: if s.rotates { p.qk_scale } else { 1.0 },
        })
    }

    /// `y = rotate(gain x / rms(x) + bias)`.
    #[inline(always)]
    pub(super) fn forward<S: Simd, const V: usize>(
        &self,
        simd: S,
        x: &[f32],
        turn: &[f32],
        y: &mut [f32],
    ) {
        let (x, turn) = (x.as_chunks::<LANES>().0, turn.as_chunks::<LANES>().0);
        let y = y.as_chunks_mut::<LANES>().0;
        let half = x.len() / 2;
        let slope = match &self.norm {
            Some(norm) => norm.slope::<S, V>(simd, x),
            None => 1.0,
        };
        let slope = simd.splat_f32s(slope);
        let normed = |i: usize, v: usize| {
            let x = vectors::<S, V>(&x[i])[v];
            match &self.norm {
                None => x,
                Some(n) => {
                    let gain = vectors::<S, V>(&n.gain[i])[v];
                    let h = simd.mul_f32s(simd.mul_f32s(x, slope), gain);
                    match n.has_bias {
                        true => simd.add_f32s(h, vectors::<S, V>(&n.bias[i])[v]),
                        false => h,
                    }
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
                let (cos, sin) = rotation::<S, V>(turn, i, v);
                let (a, b) = (normed(i, v), normed(i + half, v));
                let [first, second] = rotate(simd, [a, b], cos, sin, factor);
                vectors_mut::<S, V>(&mut y[i])[v] = first;
                vectors_mut::<S, V>(&mut y[i + half])[v] = second;
            }
        }
    }

    /// Gradient of [`Head::forward`]; adds to that of the norm's parameters, `[gain][bias]` where
    /// there are such. `between` is a place for as many values as the head has.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "values, gradients and a place to work"
    )]
    pub(super) fn backward<S: Simd, const V: usize>(
        &self,
        simd: S,
        x: &[f32],
        turn: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        [dgain, dbias]: [&mut [f32]; 2],
        between: &mut [f32],
    ) {
        let (x, turn) = (x.as_chunks::<LANES>().0, turn.as_chunks::<LANES>().0);
        let (dy, dx) = (dy.as_chunks::<LANES>().0, dx.as_chunks_mut::<LANES>().0);
        let half = x.len() / 2;
        let dh = between[..LANES * x.len()].as_chunks_mut::<LANES>().0;
        if self.rotates {
            let factor = simd.splat_f32s(self.factor);
            for i in 0..half {
                for v in 0..V {
                    let (cos, sin) = rotation::<S, V>(turn, i, v);
                    let both = [
                        vectors::<S, V>(&dy[i])[v],
                        vectors::<S, V>(&dy[i + half])[v],
                    ];
                    let [first, second] = rotate(simd, both, cos, simd.neg_f32s(sin), factor);
                    vectors_mut::<S, V>(&mut dh[i])[v] = first;
                    vectors_mut::<S, V>(&mut dh[i + half])[v] = second;
                }
            }
        } else {
            dh.copy_from_slice(dy);
        }
        let dh = &*dh;
        let Some(norm) = &self.norm else {
            dx.copy_from_slice(dh);
            return;
        };
        // The sum of squares and the gradient along x do not wait for each other.
        let zero = simd.splat_f32s(0.0);
        let (mut squares, mut along) = ([zero; V], [zero; V]);
        for i in 0..x.len() {
            let (x, dh) = (vectors::<S, V>(&x[i]), vectors::<S, V>(&dh[i]));
            let gain = vectors::<S, V>(&norm.gain[i]);
            for v in 0..V {
                squares[v] = simd.mul_add_f32s(x[v], x[v], squares[v]);
                let weighed = simd.mul_f32s(gain[v], dh[v]);
                along[v] = simd.mul_add_f32s(weighed, x[v], along[v]);
            }
        }
        let slope = norm.slope_of(total(simd, squares));
        let along = simd.splat_f32s(total(simd, along) * slope / norm.count);
        let slope = simd.splat_f32s(slope);
        for i in 0..x.len() {
            let (x, dh) = (vectors::<S, V>(&x[i]), vectors::<S, V>(&dh[i]));
            let gain = vectors::<S, V>(&norm.gain[i]);
            let dx = vectors_mut::<S, V>(&mut dx[i]);
            for v in 0..V {
                let h = simd.mul_f32s(x[v], slope);
                let straight = simd.mul_f32s(gain[v], dh[v]);
                let bent = simd.sub_f32s(straight, simd.mul_f32s(h, along));
                dx[v] = simd.mul_f32s(bent, slope);
            }
        }
        if norm.has_gain {
            let dgain = dgain.as_chunks_mut::<LANES>().0;
            for i in 0..x.len() {
                let (x, dh) = (vectors::<S, V>(&x[i]), vectors::<S, V>(&dh[i]));
                let dgain = vectors_mut::<S, V>(&mut dgain[i]);
                for v in 0..V {
                    let h = simd.mul_f32s(x[v], slope);
                    dgain[v] = simd.mul_add_f32s(dh[v], h, dgain[v]);
                }
            }
        }
        if norm.has_bias {
            let dbias = dbias.as_chunks_mut::<LANES>().0;
            for i in 0..x.len() {
                let dh = vectors::<S, V>(&dh[i]);
                let dbias = vectors_mut::<S, V>(&mut dbias[i]);
                for v in 0..V {
                    dbias[v] = simd.add_f32s(dbias[v], dh[v]);
                }
            }
        }
    }
}

impl HeadNorm<'_> {
    /// Factor of the row, `1 / sqrt(... + eps)`.
    #[inline(always)]
    fn slope<S: Simd, const V: usize>(&self, simd: S, x: &[Chunk]) -> f32 {
        let mut squares = [simd.splat_f32s(0.0); V];
        for i in 0..x.len() {
            let x = vectors::<S, V>(&x[i]);
            for v in 0..V {
                squares[v] = simd.mul_add_f32s(x[v], x[v], squares[v]);
            }
        }
        self.slope_of(total(simd, squares))
    }

    #[inline(always)]
    fn slope_of(&self, squares: f32) -> f32 {
        1.0 / (squares / self.count + self.eps).sqrt()
    }
}

/// Cosines and sines of vector `v` of chunk `i`.
#[inline(always)]
fn rotation<S: Simd, const V: usize>(turn: &[Chunk], i: usize, v: usize) -> (S::f32s, S::f32s) {
    let half = turn.len() / 2;
    (
        vectors::<S, V>(&turn[i])[v],
        vectors::<S, V>(&turn[i + half])[v],
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
