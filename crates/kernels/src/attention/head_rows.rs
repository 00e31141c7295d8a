//! Rows of one head: loading with norm and rotation, and the backward pass of both.

use crate::floats::{Float, round_to};
use crate::matmul::{Precision, Rows};
use crate::qkv::{self, BoundQkvTransform};
use crate::simd::{SimdKernel, dispatch, run_simd};
use pulp::Simd;

/// Rows copied before the first of them is transformed. Rows lie far apart in memory, and a core keeps more
/// loads in flight while it only copies.
const PREFETCHED_ROWS: usize = 16;

/// Rows of one head of one sequence, in a packed projection or a cache.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    /// Row i is at position i.
    pub(super) rows: Rows<'a>,
    /// Index of the head in a packed row.
    pub(super) packed_head: usize,
    /// Precision to which transformed rows and their gradients are rounded, as if they were stored.
    pub(super) precision: Precision,
    /// Norm and rotation applied when rows are read.
    pub(super) transform: Option<&'a BoundQkvTransform<'a>>,
}

/// Scratch buffers for loaded rows.
#[derive(Default)]
pub(super) struct Scratch {
    prefetched: Vec<f32>,
    gradients: Vec<f32>,
    rounded: Vec<f32>,
    transform_scratch: qkv::Scratch,
}

impl Scratch {
    /// Creates the buffers; empty without a transform.
    pub(super) fn new(d: usize, transform: Option<&BoundQkvTransform>) -> Self {
        transform.map_or_else(Self::default, |transform| Self {
            prefetched: vec![0.0; PREFETCHED_ROWS * d],
            gradients: vec![0.0; PREFETCHED_ROWS * d],
            rounded: Vec::with_capacity(PREFETCHED_ROWS * d),
            transform_scratch: qkv::Scratch::new(transform.config()),
        })
    }
}

impl HeadRows<'_> {
    /// Writes the transformed rows of positions `first..`, `d` channels each, contiguously.
    pub(super) fn load(&self, d: usize, first: usize, out: &mut [f32], scratch: &mut Scratch) {
        match self.transform {
            None => dispatch(
                #[inline(always)]
                || self.copy(d, first, out),
            ),
            Some(transform) => run_simd(Load {
                head: self,
                transform,
                d,
                first,
                out,
                scratch,
            }),
        }
    }

    /// Copies rows unchanged, in single precision.
    #[inline(always)]
    fn copy(&self, d: usize, first: usize, out: &mut [f32]) {
        for (t, out) in (first..).zip(out.chunks_exact_mut(d)) {
            self.rows.row(t, d).widen(out);
        }
    }

    /// Computes the gradients of the projection from the gradients `dy` of rows loaded by [`HeadRows::load`]; adds to
    /// the gradients of the norm parameters.
    pub(super) fn backward<'b, T: Float + 'b>(
        &self,
        d: usize,
        first: usize,
        dy: &[f32],
        dx: impl Iterator<Item = &'b mut [T]>,
        grads: &mut [Vec<f32>; 3],
        scratch: &mut Scratch,
    ) {
        match self.transform {
            None => dispatch(
                #[inline(always)]
                || {
                    for (dy, dx) in dy.chunks_exact(d).zip(dx) {
                        T::narrow(dy, dx);
                    }
                },
            ),
            Some(transform) => run_simd(HeadBackward {
                head: self,
                transform,
                d,
                first,
                dy,
                dx,
                grads,
                scratch,
            }),
        }
    }
}

struct Load<'a> {
    head: &'a HeadRows<'a>,
    transform: &'a BoundQkvTransform<'a>,
    d: usize,
    first: usize,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl SimdKernel for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let (transform, head, d) = (self.transform, self.head, self.d);
        let Scratch {
            prefetched,
            transform_scratch,
            ..
        } = self.scratch;
        let starts = (self.first..).step_by(PREFETCHED_ROWS);
        for (start, out) in starts.zip(self.out.chunks_mut(PREFETCHED_ROWS * d)) {
            let prefetched = &mut prefetched[..out.len()];
            head.copy(d, start, prefetched);
            transform.transform_head::<S, V>(
                simd,
                head.packed_head,
                start,
                prefetched,
                out,
                transform_scratch,
            );
            round_to(head.precision, out);
        }
    }
}

struct HeadBackward<'a, I> {
    head: &'a HeadRows<'a>,
    transform: &'a BoundQkvTransform<'a>,
    d: usize,
    first: usize,
    /// Gradients of transformed rows, and the destination of those of the projection.
    dy: &'a [f32],
    dx: I,
    grads: &'a mut [Vec<f32>; 3],
    scratch: &'a mut Scratch,
}

impl<'b, T: Float + 'b, I: Iterator<Item = &'b mut [T]>> SimdKernel for HeadBackward<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(mut self, simd: S) {
        let (transform, head, d) = (self.transform, self.head, self.d);
        let Scratch {
            prefetched,
            gradients,
            rounded,
            transform_scratch,
        } = self.scratch;
        let starts = (self.first..).step_by(PREFETCHED_ROWS);
        for (start, dy) in starts.zip(self.dy.chunks(PREFETCHED_ROWS * d)) {
            let prefetched = &mut prefetched[..dy.len()];
            head.copy(d, start, prefetched);
            rounded.clear();
            rounded.extend_from_slice(dy);
            round_to(head.precision, rounded);
            let (gradients, grads) = (&mut gradients[..dy.len()], &mut *self.grads);
            transform.transform_head_backward::<S, V>(
                simd,
                head.packed_head,
                start,
                prefetched,
                rounded,
                gradients.chunks_exact_mut(d),
                grads,
                transform_scratch,
            );
            for (gradient, dx) in gradients.chunks_exact(d).zip(self.dx.by_ref()) {
                T::narrow(gradient, dx);
            }
        }
    }
}
