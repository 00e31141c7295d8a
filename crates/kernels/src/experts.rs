//! Dropless dispatch and combine of tokens, and grouped matmuls with one matrix per expert.
//!
//! Each of `n` tokens is routed to `top_k` experts, which makes `n * top_k` slots. Slots are sorted by
//! expert without padding, so that the rows of an expert are one dense matrix (as in MegaBlocks,
//! arXiv 2211.15841, with blocks of any height).

use crate::chunks::{Output, for_each_rows};
use crate::floats::{Float, Floats, FloatsMut, narrow};
use crate::linear::Linear;
use crate::parallel::{ELEMENTS, rows_per_chunk};
use crate::simd::{self, dot};
use rayon::prelude::*;
use std::ops::Range;

mod dispatch;

pub use dispatch::{Dispatch, DispatchLayout};

/// Maximum number of groups that the experts are split into; experts of a group run sequentially. A thread that waits
/// for its part of a matmul may start another group on top of its stack; this bounds the depth.
const MAX_EXPERT_GROUPS: usize = 16;

impl Dispatch<'_> {
    /// Calls `f` with each expert that has rows, its range of rows, and its part of `out` (slots, width).
    fn for_each_expert(
        &self,
        mut out: FloatsMut,
        width: usize,
        f: impl Fn(usize, Range<usize>, FloatsMut) + Sync,
    ) {
        let mut parts = Vec::new();
        let experts = 0..self.experts();
        for expert in experts.filter(|&expert| !self.slots_of_expert(expert).is_empty()) {
            let len = self.slots_of_expert(expert).len() * width;
            let (part, rest) = out.split_at(len);
            parts.push((expert, Some(part)));
            out = rest;
        }
        let size = parts.len().div_ceil(MAX_EXPERT_GROUPS).max(1);
        parts.par_chunks_mut(size).for_each(|group| {
            for (expert, part) in group {
                let part = part.take().expect("each part once");
                f(*expert, self.slots_of_expert(*expert), part);
            }
        });
    }

    fn check(&self, name: &str, slice: &str, len: usize, rows: usize, width: usize) {
        assert!(width > 0, "{name}: the width must be at least 1");
        assert_eq!(
            len,
            rows * width,
            "{name}: {slice} is not ({rows}, {width})"
        );
    }
}

/// Dispatches tokens: `xs` (slots, width) receives the row of `x` (n, width) of each slot's token.
///
/// The backward pass is [`combine`] without weights.
pub fn gather<'a>(
    dispatch: &Dispatch<'_>,
    x: impl Into<Floats<'a>>,
    xs: impl Into<FloatsMut<'a>>,
    width: usize,
) {
    let (x, xs) = (x.into(), xs.into());
    dispatch.check("experts::gather", "x", x.len(), dispatch.tokens(), width);
    dispatch.check("experts::gather", "xs", xs.len(), dispatch.slots(), width);
    match (x, xs) {
        // Without conversion.
        (Floats::Bf16(x), FloatsMut::Bf16(xs)) => copy_rows(dispatch, xs, width, |token, xs| {
            xs.copy_from_slice(&x[token * width..][..width]);
        }),
        (x, FloatsMut::F32(xs)) => copy_rows(dispatch, xs, width, |token, xs| {
            x.slice(token * width..(token + 1) * width).widen(xs);
        }),
        (Floats::F32(x), FloatsMut::Bf16(xs)) => copy_rows(dispatch, xs, width, |token, xs| {
            narrow(&x[token * width..][..width], xs);
        }),
    }
}

/// Calls `copy` with each slot's token and row.
fn copy_rows<T: Send>(
    dispatch: &Dispatch<'_>,
    xs: &mut [T],
    width: usize,
    copy: impl Fn(usize, &mut [T]) + Sync,
) {
    let chunk = rows_per_chunk(dispatch.slots(), width);
    let chunks = xs.par_chunks_mut(chunk * width).enumerate();
    chunks.for_each(|(c, xs)| {
        simd::dispatch(
            #[inline(always)]
            || {
                let tokens = dispatch.tokens_from(c * chunk);
                for (xs, token) in xs.chunks_exact_mut(width).zip(tokens) {
                    copy(token, xs);
                }
            },
        );
    });
}

/// Combines the slots of each token: `y[t] = sum_j weights[t, j] ys[slot(t, j)]`, summed in the order of
/// j, for `ys` (slots, width), `weights` (n, top_k) and `y` (n, width); without weights the plain sum.
///
/// The backward pass is [`gather`] followed by [`combine_backward`].
pub fn combine<'a>(
    dispatch: &Dispatch<'_>,
    ys: impl Into<Floats<'a>>,
    weights: Option<&[f32]>,
    y: impl Into<FloatsMut<'a>>,
    width: usize,
) {
    let (ys, y) = (ys.into(), y.into());
    dispatch.check("experts::combine", "ys", ys.len(), dispatch.slots(), width);
    dispatch.check("experts::combine", "y", y.len(), dispatch.tokens(), width);
    if let Some(weights) = weights {
        check_weights(dispatch, "experts::combine: weights", weights);
    }
    let k = dispatch.top_k();
    for_each_rows(
        rows_per_chunk(dispatch.tokens(), k * width),
        [],
        [(Output::Overwrite(y), width)],
        #[inline(always)]
        |first, [], [y]| {
            for (t, y) in (first..).zip(y.chunks_exact_mut(width)) {
                let assignments = t * k..(t + 1) * k;
                let slots = &dispatch.slot_of_assignment()[assignments.clone()];
                let weights = weights.map(|weights| &weights[assignments]);
                match ys {
                    Floats::F32(ys) => add_rows(ys, slots, weights, y),
                    Floats::Bf16(ys) => add_rows(ys, slots, weights, y),
                }
            }
        },
    );
}

/// Computes the sum of rows of `ys`, weighted if there are weights.
#[inline(always)]
fn add_rows<T: Float>(ys: &[T], slots: &[i32], weights: Option<&[f32]>, y: &mut [f32]) {
    let width = y.len();
    y.fill(0.0);
    for (j, &slot) in slots.iter().enumerate() {
        let row = &ys[slot as usize * width..][..width];
        match weights.map(|weights| weights[j]) {
            Some(weight) => {
                for (y, &row) in y.iter_mut().zip(row) {
                    *y += weight * row.widen();
                }
            }
            None => {
                for (y, &row) in y.iter_mut().zip(row) {
                    *y += row.widen();
                }
            }
        }
    }
}

/// Computes `dweights` (n, top_k), the dot product of each slot's rows of `h` and `dh` (slots, width),
/// and multiplies both rows by the slot's weight in place.
///
/// With `y = W (weight * h)` the rows of `dh` are `W^T dy` before the call and the gradient of `h` after
/// it, and `h` becomes the input for the gradient of `W`. `scratch` has one element per slot.
pub fn combine_backward<'a>(
    dispatch: &Dispatch<'_>,
    weights: &[f32],
    h: impl Into<FloatsMut<'a>>,
    dh: impl Into<FloatsMut<'a>>,
    dweights: &mut [f32],
    scratch: &mut [f32],
    width: usize,
) {
    let (h, dh) = (h.into(), dh.into());
    let name = "experts::combine_backward";
    dispatch.check(name, "h", h.len(), dispatch.slots(), width);
    dispatch.check(name, "dh", dh.len(), dispatch.slots(), width);
    check_weights(dispatch, "experts::combine_backward: weights", weights);
    check_weights(dispatch, "experts::combine_backward: dweights", dweights);
    dispatch.check(name, "scratch", scratch.len(), dispatch.slots(), 1);
    let dot_products = Output::Overwrite((&mut *scratch).into());
    for_each_rows(
        rows_per_chunk(dispatch.slots(), width),
        [],
        [
            (Output::Update(h), width),
            (Output::Update(dh), width),
            (dot_products, 1),
        ],
        #[inline(always)]
        |first, [], [h, dh, scratch]| {
            let assignments = &dispatch.assignment_of_slot()[first..];
            let rows = h.chunks_exact_mut(width).zip(dh.chunks_exact_mut(width));
            let slots = scratch.iter_mut().zip(assignments);
            for ((h, dh), (dot_product, &assignment)) in rows.zip(slots) {
                *dot_product = dot(h, dh);
                let weight = weights[assignment as usize];
                for row in [h, dh] {
                    for value in row {
                        *value *= weight;
                    }
                }
            }
        },
    );
    let slots = dispatch.slot_of_assignment().par_chunks(ELEMENTS);
    dweights
        .par_chunks_mut(ELEMENTS)
        .zip(slots)
        .for_each(|(dweights, slots)| {
            for (dweight, &slot) in dweights.iter_mut().zip(slots) {
                *dweight = scratch[slot as usize];
            }
        });
}

fn check_weights(dispatch: &Dispatch<'_>, name: &str, weights: &[f32]) {
    assert_eq!(
        weights.len(),
        dispatch.slots(),
        "{name} is not ({}, {})",
        dispatch.tokens(),
        dispatch.top_k()
    );
}

/// Computes `ys = xs W_e^T` for the rows of each expert e: `xs` (slots, inputs), `w` (experts * outputs,
/// inputs), `ys` (slots, outputs).
pub fn forward<'a>(
    dispatch: &Dispatch<'_>,
    expert: &Linear,
    xs: impl Into<Floats<'a>>,
    w: impl Into<Floats<'a>>,
    ys: impl Into<FloatsMut<'a>>,
) {
    let (xs, w, ys) = (xs.into(), w.into(), ys.into());
    let Linear {
        inputs, outputs, ..
    } = *expert;
    check_matmul(
        dispatch,
        "experts::forward",
        [xs.len(), w.len(), ys.len()],
        inputs,
        outputs,
    );
    dispatch.for_each_expert(ys, outputs, |e, rows, ys| {
        let xs = xs.slice(rows.start * inputs..rows.end * inputs);
        let size = inputs * outputs;
        expert.forward(xs, w.slice(e * size..(e + 1) * size), ys);
    });
}

/// Computes `dxs = dys W_e` for the rows of each expert e, shaped as in [`forward`].
pub fn backward_input<'a>(
    dispatch: &Dispatch<'_>,
    expert: &Linear,
    dys: impl Into<Floats<'a>>,
    w: impl Into<Floats<'a>>,
    dxs: impl Into<FloatsMut<'a>>,
) {
    let (dys, w, dxs) = (dys.into(), w.into(), dxs.into());
    let Linear {
        inputs, outputs, ..
    } = *expert;
    let lengths = [dxs.len(), w.len(), dys.len()];
    check_matmul(
        dispatch,
        "experts::backward_input",
        lengths,
        inputs,
        outputs,
    );
    dispatch.for_each_expert(dxs, inputs, |e, rows, dxs| {
        let dys = dys.slice(rows.start * outputs..rows.end * outputs);
        let size = inputs * outputs;
        expert.backward_input(dys, w.slice(e * size..(e + 1) * size), dxs);
    });
}

/// Computes `dw_e = dys^T xs` over the rows of each expert e, shaped as in [`forward`]; zeros for an
/// expert without rows.
pub fn backward_weight<'a>(
    dispatch: &Dispatch<'_>,
    expert: &Linear,
    dys: impl Into<Floats<'a>>,
    xs: impl Into<Floats<'a>>,
    dw: &mut [f32],
) {
    let (dys, xs) = (dys.into(), xs.into());
    let Linear {
        inputs, outputs, ..
    } = *expert;
    let lengths = [xs.len(), dw.len(), dys.len()];
    check_matmul(
        dispatch,
        "experts::backward_weight",
        lengths,
        inputs,
        outputs,
    );
    let (size, experts_per_group) = (
        inputs * outputs,
        dispatch.experts().div_ceil(MAX_EXPERT_GROUPS).max(1),
    );
    dw.par_chunks_mut(experts_per_group * size)
        .enumerate()
        .for_each(|(group, dw)| {
            for (e, dw) in dw.chunks_exact_mut(size).enumerate() {
                let rows = dispatch.slots_of_expert(group * experts_per_group + e);
                let dys = dys.slice(rows.start * outputs..rows.end * outputs);
                let xs = xs.slice(rows.start * inputs..rows.end * inputs);
                match rows.is_empty() {
                    true => dw.fill(0.0),
                    false => expert.backward_weight(dys, xs, dw),
                }
            }
        });
}

/// Returns an upper bound on the bytes that [`forward`], [`backward_input`] or [`backward_weight`]
/// allocates on `threads` threads, if each works on one expert at a time. (A thread that waits for others may begin
/// another group of experts, up to sixteen, which is rare.)
pub fn workspace(slots: usize, expert: &Linear, threads: usize) -> usize {
    let rows = slots.div_ceil(threads);
    let by_row = expert
        .forward_workspace(rows, 1)
        .max(expert.backward_workspace(rows, 1));
    threads * by_row.max(expert.backward_workspace(slots, 1))
}

fn check_matmul(
    dispatch: &Dispatch<'_>,
    name: &str,
    [xs, w, ys]: [usize; 3],
    inputs: usize,
    outputs: usize,
) {
    dispatch.check(name, "input side", xs, dispatch.slots(), inputs);
    dispatch.check(name, "weight", w, dispatch.experts() * outputs, inputs);
    dispatch.check(name, "output side", ys, dispatch.slots(), outputs);
}

#[cfg(test)]
mod tests;
