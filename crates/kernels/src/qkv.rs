//! Norm and rotation of queries, keys and values of the packed projection, in one pass.
//!
//! Per token: clamp, then either norm and rotate (HybridNorm, Qwen3, Gemma 3) or rotate and norm
//! (nanochat, nGPT), then multiply queries and keys by `qk_scale`; values are only clamped and
//! normalized. The rotation is that of RoFormer (Su et al. 2021, arXiv 2104.09864) in the "rotate
//! half" pairing of LLaMA and OLMo: channel i is rotated together with channel i + head_dim/2.

use crate::chunks::{Output, fold_rows};
use crate::floats::{Floats, FloatsMut};
use crate::norm::NormConfig;
use crate::parallel::{rows_per_chunk, sum_partials};
use crate::simd::{SimdKernel, run_simd};
use fused::FusedHead;
use pulp::Simd;
use segment::{Segment, backward_segment, forward_segment};
use steps::{backward_unfused, forward_unfused};

mod fused;
mod segment;
mod steps;

pub(crate) use steps::rotate;

/// Order of norm and rotation for queries and keys.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum QkOrder {
    /// Norm, then rotate.
    #[default]
    BeforeRope,
    /// Rotate, then norm.
    AfterRope,
}

/// Clamp, norms and rotation between the projection and the attention logits.
///
/// The width of a norm is `head_dim`, with one group for all heads or one per head, or the width
/// of its whole segment with one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkvTransform {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels per head; even.
    pub head_dim: usize,
    /// Norm of the queries.
    pub q: Option<NormConfig>,
    /// Norm of the keys.
    pub k: Option<NormConfig>,
    /// Norm of the values.
    pub v: Option<NormConfig>,
    /// Order of norm and rotation.
    pub order: QkOrder,
    /// Factor on queries and keys after norm and rotation.
    pub qk_scale: f32,
    /// Limit to which queries, keys and values are clamped before anything else; the gradient is zero
    /// outside.
    pub clip: Option<f32>,
}

/// Returns the rotary frequencies `theta^(-2i/channels)` of `channels` rotary channels, (channels/2).
pub fn rope_frequencies(theta: f64, channels: usize) -> Vec<f64> {
    let frequency = |i: usize| theta.powf(-((2 * i) as f64) / channels as f64);
    (0..channels / 2).map(frequency).collect()
}

/// Returns the rotary table of positions `start..start + len`, (len, head_dim): each row holds the head_dim/2 cosines,
/// then the sines, of `position * frequency`, times `magnitude`. A channel pair of frequency 0 is not rotated. Computed
/// in `f64`.
pub fn rope_table(frequencies: &[f64], magnitude: f64, start: usize, len: usize) -> Vec<f32> {
    assert!(
        !frequencies.is_empty(),
        "rope_table: there must be at least one frequency"
    );
    let mut table = Vec::with_capacity(len * 2 * frequencies.len());
    for position in start..start + len {
        let angles = || frequencies.iter().map(|f| position as f64 * f);
        table.extend(angles().map(|a| (magnitude * a.cos()) as f32));
        table.extend(angles().map(|a| (magnitude * a.sin()) as f32));
    }
    table
}

/// A [`QkvTransform`] with its inputs: the rotary table of `t` positions and the norm parameters.
pub struct BoundQkvTransform<'a> {
    config: QkvTransform,
    rope: &'a [f32],
    segments: [Segment<'a>; 3],
}

impl<'a> BoundQkvTransform<'a> {
    /// Binds a transform to its rotary table and norm parameters. `rope` is a [`rope_table`], (t, head_dim); `params`
    /// are the parameters of the norms `q`, `k` and `v`, empty for an absent norm.
    ///
    /// # Panics
    ///
    /// If a norm does not fit the heads, or a slice has the wrong length.
    pub fn new(config: &QkvTransform, rope: &'a [f32], params: [&'a [f32]; 3]) -> Self {
        config.check(rope, params);
        BoundQkvTransform {
            config: *config,
            rope,
            segments: config.segments(params),
        }
    }

    /// Returns zeros in the shape of the three norms' parameters.
    pub(crate) fn zero_gradients(&self) -> [Vec<f32>; 3] {
        let len = |s: &Segment| s.norm.as_ref().map_or(0, |(n, _)| n.params_len());
        self.segments.each_ref().map(|s| vec![0.0; len(s)])
    }

    pub(crate) fn config(&self) -> &QkvTransform {
        &self.config
    }

    /// Returns the number of positions of the table.
    pub(crate) fn positions(&self) -> usize {
        self.rope.len() / self.config.head_dim
    }

    fn cos_sin(&self, position: usize) -> &[f32] {
        &self.rope[position * self.config.head_dim..][..self.config.head_dim]
    }

    /// Returns the segment of head `packed_head` of a packed row, and the index of the head in it.
    fn segment_of(&self, packed_head: usize) -> (usize, usize) {
        let QkvTransform {
            heads, kv_heads, ..
        } = self.config;
        match packed_head {
            _ if packed_head < heads => (0, packed_head),
            _ if packed_head < heads + kv_heads => (1, packed_head - heads),
            _ => (2, packed_head - heads - kv_heads),
        }
    }

    /// Transforms rows `x` of head `packed_head` at consecutive positions from `position` on; see
    /// [`QkvTransform::is_per_head`].
    #[inline(always)]
    pub(crate) fn transform_head<S: Simd, const V: usize>(
        &self,
        simd: S,
        packed_head: usize,
        position: usize,
        x: &[f32],
        y: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (config, d) = (&self.config, self.config.head_dim);
        let (segment, head) = self.segment_of(packed_head);
        let s = &self.segments[segment];
        let rows = x.chunks_exact(d).zip(y.chunks_exact_mut(d));
        let rows = (position..).zip(rows);
        match FusedHead::new(config, s, head) {
            Some(fused) => {
                for (t, (x, y)) in rows {
                    fused.forward::<S, V>(simd, x, self.cos_sin(t), y);
                }
            }
            None => {
                for (t, (x, y)) in rows {
                    forward_unfused(config, s, head, x, self.cos_sin(t), y, scratch);
                }
            }
        }
    }

    /// Computes the gradient of [`BoundQkvTransform::transform_head`]; adds to the parameter gradients `grads`.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "head index, values, gradients and scratch"
    )]
    pub(crate) fn transform_head_backward<'b, S: Simd, const V: usize>(
        &self,
        simd: S,
        packed_head: usize,
        position: usize,
        x: &[f32],
        dy: &[f32],
        dx: impl Iterator<Item = &'b mut [f32]>,
        grads: &mut [Vec<f32>; 3],
        scratch: &mut Scratch,
    ) {
        let (config, d) = (&self.config, self.config.head_dim);
        let (segment, head) = self.segment_of(packed_head);
        let (s, grads) = (&self.segments[segment], &mut grads[segment]);
        let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx);
        let rows = (position..).zip(rows);
        match FusedHead::new(config, s, head) {
            Some(fused) => {
                let mut grads = s.gradients_of(grads, head);
                for (t, ((x, dy), dx)) in rows {
                    let scratch_row = &mut scratch.buffers[0];
                    fused.backward::<S, V>(
                        simd,
                        x,
                        self.cos_sin(t),
                        dy,
                        dx,
                        &mut grads,
                        scratch_row,
                    );
                }
            }
            None => {
                for (t, ((x, dy), dx)) in rows {
                    backward_unfused(config, s, head, x, self.cos_sin(t), dy, dx, grads, scratch);
                }
            }
        }
    }
}

/// Computes `out` from `qkv`, both (batch * t, (heads + 2 kv_heads) * head_dim) with rows
/// `[q heads | k heads | v heads]`; row r is at position `r % t`.
pub fn forward<'a>(
    transform: &BoundQkvTransform,
    qkv: impl Into<Floats<'a>>,
    out: impl Into<FloatsMut<'a>>,
) {
    let (qkv, out) = (qkv.into(), out.into());
    transform.check_rows("qkv::forward", qkv.len());
    assert_eq!(
        out.len(),
        qkv.len(),
        "qkv::forward: out is not as long as qkv"
    );
    let width = transform.config.width();
    fold_rows(
        rows_per_chunk(qkv.len() / width, width),
        [(qkv, width)],
        [(Output::Overwrite(out), width)],
        || Scratch::new(&transform.config),
        || (),
        #[inline(always)]
        |scratch, (), first, [qkv], [out]| {
            run_simd(Forward {
                transform,
                first,
                qkv,
                out,
                scratch,
            });
        },
    );
}

struct Forward<'a> {
    transform: &'a BoundQkvTransform<'a>,
    /// Index of the first row.
    first: usize,
    qkv: &'a [f32],
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl SimdKernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let (config, width) = (&self.transform.config, self.transform.config.width());
        let rows = self.qkv.chunks_exact(width);
        let rows = rows.zip(self.out.chunks_exact_mut(width));
        for (r, (x, y)) in (self.first..).zip(rows) {
            let cos_sin = self.transform.cos_sin(r % self.transform.positions());
            for s in &self.transform.segments {
                let (x, y) = (&x[s.range.clone()], &mut y[s.range.clone()]);
                forward_segment::<S, V>(simd, config, s, x, cos_sin, y, self.scratch);
            }
        }
    }
}

/// Computes the gradients of [`forward`]: `dqkv` from `dout`, both shaped like `qkv`, and those of the
/// parameters of the q, k and v norms.
pub fn backward<'a>(
    transform: &BoundQkvTransform,
    qkv: impl Into<Floats<'a>>,
    dout: impl Into<Floats<'a>>,
    dqkv: impl Into<FloatsMut<'a>>,
    dparams: [&mut [f32]; 3],
) {
    let (qkv, dout, dqkv) = (qkv.into(), dout.into(), dqkv.into());
    transform.check_rows("qkv::backward", qkv.len());
    assert_eq!(
        dout.len(),
        qkv.len(),
        "qkv::backward: dout is not as long as qkv"
    );
    assert_eq!(
        dqkv.len(),
        qkv.len(),
        "qkv::backward: dqkv is not as long as qkv"
    );
    let width = transform.config.width();
    let partials = fold_rows(
        rows_per_chunk(qkv.len() / width, width),
        [(qkv, width), (dout, width)],
        [(Output::Overwrite(dqkv), width)],
        || Scratch::new(&transform.config),
        || transform.zero_gradients(),
        #[inline(always)]
        |scratch, grads, first, [qkv, dout], [dqkv]| {
            run_simd(Backward {
                transform,
                first,
                qkv,
                dout,
                dqkv,
                grads,
                scratch,
            });
        },
    );
    sum_gradients("qkv::backward", partials, dparams);
}

struct Backward<'a> {
    transform: &'a BoundQkvTransform<'a>,
    /// Index of the first row.
    first: usize,
    qkv: &'a [f32],
    dout: &'a [f32],
    dqkv: &'a mut [f32],
    /// Gradients of the norm parameters, which are added to.
    grads: &'a mut [Vec<f32>; 3],
    scratch: &'a mut Scratch,
}

impl SimdKernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let (config, width) = (&self.transform.config, self.transform.config.width());
        let inputs = self.qkv.chunks_exact(width);
        let inputs = inputs.zip(self.dout.chunks_exact(width));
        let rows = inputs.zip(self.dqkv.chunks_exact_mut(width));
        for (r, ((x, dy), dx)) in (self.first..).zip(rows) {
            let cos_sin = self.transform.cos_sin(r % self.transform.positions());
            for (s, grads) in self.transform.segments.iter().zip(&mut *self.grads) {
                let (x, dy) = (&x[s.range.clone()], &dy[s.range.clone()]);
                let dx = &mut dx[s.range.clone()];
                backward_segment::<S, V>(simd, config, s, x, cos_sin, dy, dx, grads, self.scratch);
            }
        }
    }
}

/// Sums the parameter gradients of all tasks in order.
pub(crate) fn sum_gradients(name: &str, partials: Vec<[Vec<f32>; 3]>, totals: [&mut [f32]; 3]) {
    let mut each: [Vec<Vec<f32>>; 3] = Default::default();
    for partial in partials {
        for (all, one) in each.iter_mut().zip(partial) {
            all.push(one);
        }
    }
    for (partials, total) in each.iter().zip(totals) {
        for partial in partials {
            assert_eq!(
                total.len(),
                partial.len(),
                "{name}: a parameter gradient is not as long as its parameters"
            );
        }
        sum_partials(partials, total);
    }
}

/// Intermediate values of one segment.
#[derive(Default)]
pub(crate) struct Scratch {
    clamped: Vec<f32>,
    buffers: [Vec<f32>; 3],
}

impl Scratch {
    pub(crate) fn new(p: &QkvTransform) -> Self {
        let zeros = || vec![0.0; p.heads.max(p.kv_heads) * p.head_dim];
        Scratch {
            clamped: zeros(),
            buffers: std::array::from_fn(|_| zeros()),
        }
    }
}

impl BoundQkvTransform<'_> {
    fn check_rows(&self, name: &str, qkv: usize) {
        let (width, positions) = (self.config.width(), self.positions());
        assert_eq!(
            qkv % width,
            0,
            "{name}: the length of qkv is not a multiple of {width}"
        );
        let rows = qkv / width;
        assert_eq!(
            rows % positions,
            0,
            "{name}: {rows} rows are not a multiple of the {positions} positions of the table"
        );
    }
}

impl QkvTransform {
    /// True if heads can be transformed separately, i.e. no norm spans several of them.
    pub fn is_per_head(&self) -> bool {
        let mut norms = [self.q, self.k, self.v].into_iter().flatten();
        norms.all(|n| n.width == self.head_dim)
    }

    /// Returns the width of a packed row.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self, rope: &[f32], params: [&[f32]; 3]) {
        let (width, head_dim) = (self.width(), self.head_dim);
        let name = "qkv::BoundQkvTransform";
        assert!(
            width > 0 && head_dim.is_multiple_of(2),
            "{name}: heads, kv_heads and head_dim must be at least 1, and head_dim even"
        );
        assert!(
            !rope.is_empty() && rope.len().is_multiple_of(head_dim),
            "{name}: rope is not (t, {head_dim})"
        );
        let norms = [("q", self.q, self.heads), ("k", self.k, self.kv_heads)];
        let norms = norms.into_iter().chain([("v", self.v, self.kv_heads)]);
        for ((which, norm, heads), params) in norms.zip(params) {
            let Some(norm) = norm else {
                assert!(
                    params.is_empty(),
                    "{name}: parameters for {which}, which has no norm"
                );
                continue;
            };
            norm.check_params(&format!("{name}: norm of {which}"), params);
            let per_head = norm.width == head_dim && heads.is_multiple_of(norm.groups);
            let full = norm.width == heads * head_dim && norm.groups == 1;
            assert!(
                per_head || full,
                "{name}: the norm of {which} has width {} and {} groups; for {heads} heads of {head_dim} channels \
                 expected that width with a number of groups that divides the heads, or the width of all heads with 1 \
                 group",
                norm.width,
                norm.groups
            );
        }
    }

    fn segments<'a>(&self, [q, k, v]: [&'a [f32]; 3]) -> [Segment<'a>; 3] {
        let ends = [
            self.heads,
            self.heads + self.kv_heads,
            self.heads + 2 * self.kv_heads,
        ];
        let [q_end, k_end, v_end] = ends.map(|heads| heads * self.head_dim);
        let segment = |range, norm: Option<NormConfig>, params, rotates| Segment {
            range,
            norm: norm.map(|n| (n, n.resolve(params))),
            rotates,
        };
        [
            segment(0..q_end, self.q, q, true),
            segment(q_end..k_end, self.k, k, true),
            segment(k_end..v_end, self.v, v, false),
        ]
    }
}

#[cfg(test)]
mod tests;
