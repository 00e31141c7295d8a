//! Rows of one head: how they are read, and how their gradients find the way back.

use crate::panels::Rows;
use crate::qkv::{self, Preparation};
use crate::simd::{Chunked, by_chunks};
use pulp::Simd;

/// Rows that are fetched before the first of them is prepared. They lie far apart, and a core has
/// more of them on their way from memory while it only copies.
const FETCHED: usize = 16;

/// Rows of one head of one sequence, as they lie in a packed projection or in a cache.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    /// Row i is that of position i.
    pub(super) rows: Rows<'a>,
    /// Which head of a packed row this is.
    pub(super) part: usize,
    /// Norm and rotation of the rows before attention reads them.
    pub(super) preparation: Option<&'a Preparation<'a>>,
}

/// Buffers for rows between memory and attention.
#[derive(Default)]
pub(super) struct Scratch {
    fetched: Vec<f32>,
    steps: qkv::Scratch,
}

impl Scratch {
    /// Empty where nothing is prepared.
    pub(super) fn new(d: usize, preparation: Option<&Preparation>) -> Self {
        preparation.map_or_else(Self::default, |p| Self {
            fetched: vec![0.0; FETCHED * d],
            steps: qkv::Scratch::new(p.form()),
        })
    }
}

impl HeadRows<'_> {
    /// Writes the prepared rows of positions `first..`, `d` channels each, one after another.
    pub(super) fn load(&self, d: usize, first: usize, out: &mut [f32], scratch: &mut Scratch) {
        match self.preparation {
            None => self.copy(d, first, out),
            Some(preparation) => by_chunks(Load {
                head: self,
                preparation,
                d,
                first,
                out,
                scratch,
            }),
        }
    }

    /// Copies rows as they are.
    fn copy(&self, d: usize, first: usize, out: &mut [f32]) {
        for (t, out) in (first..).zip(out.chunks_exact_mut(d)) {
            out.copy_from_slice(self.rows.row(t, d));
        }
    }

    /// From the gradients `dy` of rows that [`HeadRows::load`] gave to those of the projection, and to
    /// the norms' parameters, which are added to.
    pub(super) fn pull_back<'b>(
        &self,
        d: usize,
        first: usize,
        dy: &[f32],
        dx: impl Iterator<Item = &'b mut [f32]>,
        grads: &mut [Vec<f32>; 3],
        scratch: &mut Scratch,
    ) {
        match self.preparation {
            None => {
                for (dy, dx) in dy.chunks_exact(d).zip(dx) {
                    dx.copy_from_slice(dy);
                }
            }
            Some(preparation) => by_chunks(PullBack {
                head: self,
                preparation,
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
    preparation: &'a Preparation<'a>,
    d: usize,
    first: usize,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Chunked for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let (p, head, d) = (self.preparation, self.head, self.d);
        let Scratch { fetched, steps } = self.scratch;
        let starts = (self.first..).step_by(FETCHED);
        for (start, out) in starts.zip(self.out.chunks_mut(FETCHED * d)) {
            let fetched = &mut fetched[..out.len()];
            head.copy(d, start, fetched);
            p.head::<S, V>(simd, head.part, start, fetched, out, steps);
        }
    }
}

struct PullBack<'a, I> {
    head: &'a HeadRows<'a>,
    preparation: &'a Preparation<'a>,
    d: usize,
    first: usize,
    /// Gradients of prepared rows, and where those of the projection go.
    dy: &'a [f32],
    dx: I,
    grads: &'a mut [Vec<f32>; 3],
    scratch: &'a mut Scratch,
}

impl<'b, I: Iterator<Item = &'b mut [f32]>> Chunked for PullBack<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(mut self, simd: S) {
        let (p, head, d) = (self.preparation, self.head, self.d);
        let Scratch { fetched, steps } = self.scratch;
        let starts = (self.first..).step_by(FETCHED);
        for (start, dy) in starts.zip(self.dy.chunks(FETCHED * d)) {
            let fetched = &mut fetched[..dy.len()];
            head.copy(d, start, fetched);
            let (dx, grads) = (self.dx.by_ref(), &mut *self.grads);
            p.head_backward::<S, V>(simd, head.part, start, fetched, dy, dx, grads, steps);
        }
    }
}
