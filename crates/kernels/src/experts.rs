//! Tokens sorted by the expert they go to, and products with one matrix per expert, without padding.
//!
//! Each of `n` tokens goes to `top_k` experts, which makes `n * top_k` slots. Their rows lie by
//! expert, so that an expert's rows are one dense matrix (as in MegaBlocks, arXiv 2211.15841, with
//! blocks of any height).

use crate::gemm::matmul;
use crate::linear::{self, OUTPUTS_PER_TASK, WORTH_SPREADING};
use crate::parallel::{ELEMENTS, rows_per_chunk};
use crate::simd::{dispatch, dot, dots};
use rayon::prelude::*;
use std::ops::Range;

/// Most pieces the experts are split into; those of a piece come in turn. A thread that waits for its
/// part of a product takes up another piece on top of its stack, which this bounds.
const PIECES: usize = 16;
/// Rows and columns that are transposed together: one line of the cache.
const TILE: usize = 16;

/// Which rows go to which expert: slots sorted by expert, within one by token.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    top_k: usize,
    load: Vec<u32>,
    /// First slot of each expert, and the end.
    offsets: Vec<usize>,
    /// The choice (token * top_k + j) of each slot.
    choices: Vec<u32>,
    /// The slot of each choice.
    slots: Vec<u32>,
}

impl Plan {
    /// The plan for `chosen` (n, top_k), the experts of each token.
    ///
    /// # Panics
    ///
    /// If an expert is not below `experts`.
    pub fn new(chosen: &[u32], experts: usize, top_k: usize) -> Self {
        assert!(top_k > 0, "Plan::new: top_k is 0");
        assert_eq!(
            chosen.len() % top_k,
            0,
            "Plan::new: chosen is not made of rows of {top_k}"
        );
        assert!(
            u32::try_from(chosen.len()).is_ok(),
            "Plan::new: chosen is longer than 2^32"
        );
        let mut load = vec![0; experts];
        for &expert in chosen {
            let known = (expert as usize) < experts;
            assert!(
                known,
                "Plan::new: expert {expert} is outside of {experts} experts"
            );
            load[expert as usize] += 1;
        }
        let mut offsets = vec![0; experts + 1];
        for (expert, &load) in load.iter().enumerate() {
            offsets[expert + 1] = offsets[expert] + load as usize;
        }
        let mut next = offsets.clone();
        let mut choices = vec![0; chosen.len()];
        let mut slots = vec![0; chosen.len()];
        for (choice, (&expert, slot)) in chosen.iter().zip(&mut slots).enumerate() {
            let next = &mut next[expert as usize];
            choices[*next] = choice as u32;
            *slot = *next as u32;
            *next += 1;
        }
        Self {
            top_k,
            load,
            offsets,
            choices,
            slots,
        }
    }

    /// Tokens n.
    pub fn tokens(&self) -> usize {
        self.slots.len() / self.top_k
    }

    /// Experts of each token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Slots, `n * top_k`.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Experts, with and without rows.
    pub fn experts(&self) -> usize {
        self.load.len()
    }

    /// Slots of each expert.
    pub fn load(&self) -> &[u32] {
        &self.load
    }

    /// The choice, `token * top_k + j`, that each slot is for.
    pub fn choices(&self) -> &[u32] {
        &self.choices
    }

    /// The slot of each choice.
    pub fn slot_of_choice(&self) -> &[u32] {
        &self.slots
    }

    /// The slots of an expert.
    pub fn rows(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    /// The token of each of the slots from `first` on.
    fn tokens_from(&self, first: usize) -> impl Iterator<Item = usize> {
        let choices = self.choices[first..].iter();
        choices.map(|&choice| choice as usize / self.top_k)
    }

    /// Calls `f` with each expert that has rows, these, and their part of `out` (slots, width).
    fn each(
        &self,
        mut out: &mut [f32],
        width: usize,
        f: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        let mut parts = Vec::new();
        for expert in (0..self.experts()).filter(|&expert| self.load[expert] > 0) {
            let len = self.rows(expert).len() * width;
            let (part, rest) = out.split_at_mut(len);
            parts.push((expert, part));
            out = rest;
        }
        let size = parts.len().div_ceil(PIECES).max(1);
        parts.par_chunks_mut(size).for_each(|piece| {
            for (expert, part) in piece {
                f(*expert, self.rows(*expert), part);
            }
        });
    }

    fn check(&self, name: &str, slice: &str, len: usize, rows: usize, width: usize) {
        assert!(width > 0, "{name}: width 0");
        assert_eq!(
            len,
            rows * width,
            "{name}: {slice} is not ({rows}, {width})"
        );
    }
}

/// `xs` (slots, width): the row of `x` (n, width) that each slot's token has.
///
/// Its backward pass is [`combine`] without weights.
pub fn gather(plan: &Plan, x: &[f32], xs: &mut [f32], width: usize) {
    plan.check("experts::gather", "x", x.len(), plan.tokens(), width);
    plan.check("experts::gather", "xs", xs.len(), plan.slots(), width);
    let chunk = rows_per_chunk(plan.slots(), width);
    let chunks = xs.par_chunks_mut(chunk * width).enumerate();
    chunks.for_each(|(c, xs)| {
        let tokens = plan.tokens_from(c * chunk);
        for (xs, token) in xs.chunks_exact_mut(width).zip(tokens) {
            xs.copy_from_slice(&x[token * width..][..width]);
        }
    });
}

/// `y` (n, width) from `ys` (slots, width): `y[t] = sum_j weights[t, j] ys[slot(t, j)]`, added up in
/// the order of j, for `weights` (n, top_k); without them the plain sum.
///
/// Its backward pass is [`gather`] and then [`weigh_backward`].
pub fn combine(plan: &Plan, ys: &[f32], weights: Option<&[f32]>, y: &mut [f32], width: usize) {
    plan.check("experts::combine", "ys", ys.len(), plan.slots(), width);
    plan.check("experts::combine", "y", y.len(), plan.tokens(), width);
    if let Some(weights) = weights {
        check_weights(plan, "experts::combine: weights", weights);
    }
    let k = plan.top_k;
    let chunk = rows_per_chunk(plan.tokens(), k * width);
    let chunks = y.par_chunks_mut(chunk * width).enumerate();
    chunks.for_each(|(c, y)| {
        let first = c * chunk;
        dispatch(
            #[inline(always)]
            || {
                for (t, y) in y.chunks_exact_mut(width).enumerate() {
                    let choices = (first + t) * k..(first + t + 1) * k;
                    match weights {
                        Some(weights) => add_weighed(plan, ys, weights, choices, y),
                        None => add_rows(plan, ys, choices, y),
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn add_weighed(plan: &Plan, ys: &[f32], weights: &[f32], choices: Range<usize>, y: &mut [f32]) {
    let width = y.len();
    for (j, choice) in choices.enumerate() {
        let row = &ys[plan.slots[choice] as usize * width..][..width];
        let weight = weights[choice];
        if j == 0 {
            for (y, &row) in y.iter_mut().zip(row) {
                *y = weight * row;
            }
        } else {
            for (y, &row) in y.iter_mut().zip(row) {
                *y += weight * row;
            }
        }
    }
}

#[inline(always)]
fn add_rows(plan: &Plan, ys: &[f32], choices: Range<usize>, y: &mut [f32]) {
    let width = y.len();
    for (j, choice) in choices.enumerate() {
        let row = &ys[plan.slots[choice] as usize * width..][..width];
        if j == 0 {
            y.copy_from_slice(row);
        } else {
            for (y, &row) in y.iter_mut().zip(row) {
                *y += row;
            }
        }
    }
}

/// `dweights` (n, top_k): the dot product of each slot's rows of `h` and `dh` (slots, width). Then
/// both rows are multiplied by the slot's weight, in place.
///
/// With `y = W (weight * h)` the rows of `dh` are `W^T dy` before the call; after it, they are the
/// gradient of `h`, and `h` is what the gradient of `W` needs.
pub fn weigh_backward(
    plan: &Plan,
    weights: &[f32],
    h: &mut [f32],
    dh: &mut [f32],
    dweights: &mut [f32],
    width: usize,
) {
    let name = "experts::weigh_backward";
    plan.check(name, "h", h.len(), plan.slots(), width);
    plan.check(name, "dh", dh.len(), plan.slots(), width);
    check_weights(plan, "experts::weigh_backward: weights", weights);
    check_weights(plan, "experts::weigh_backward: dweights", dweights);
    let chunk = rows_per_chunk(plan.slots(), width);
    let mut products = vec![0.0; plan.slots()];
    let rows = h.par_chunks_mut(chunk * width);
    let rows = rows.zip(dh.par_chunks_mut(chunk * width));
    let slots = products
        .par_chunks_mut(chunk)
        .zip(plan.choices.par_chunks(chunk));
    rows.zip(slots).for_each(|((h, dh), (products, choices))| {
        dispatch(
            #[inline(always)]
            || {
                let rows = h.chunks_exact_mut(width).zip(dh.chunks_exact_mut(width));
                let slots = products.iter_mut().zip(choices);
                for ((h, dh), (product, &choice)) in rows.zip(slots) {
                    *product = dot(h, dh);
                    let weight = weights[choice as usize];
                    for row in [h, dh] {
                        for value in row {
                            *value *= weight;
                        }
                    }
                }
            },
        );
    });
    let slots = plan.slots.par_chunks(ELEMENTS);
    dweights
        .par_chunks_mut(ELEMENTS)
        .zip(slots)
        .for_each(|(dweights, slots)| {
            for (dweight, &slot) in dweights.iter_mut().zip(slots) {
                *dweight = products[slot as usize];
            }
        });
}

fn check_weights(plan: &Plan, name: &str, weights: &[f32]) {
    assert_eq!(
        weights.len(),
        plan.slots(),
        "{name} is not ({}, {})",
        plan.tokens(),
        plan.top_k
    );
}

/// `ys = xs W_e^T` for the rows of each expert e: `xs` (slots, inputs), `w` (experts * outputs,
/// inputs), `ys` (slots, outputs).
pub fn forward(plan: &Plan, xs: &[f32], w: &[f32], ys: &mut [f32], inputs: usize, outputs: usize) {
    check_product(plan, "experts::forward", [xs, w, ys], inputs, outputs);
    plan.each(ys, outputs, |expert, rows, ys| {
        let xs = &xs[rows.start * inputs..rows.end * inputs];
        let w = of_expert(w, expert, inputs * outputs);
        match rows.len() {
            2..WORTH_SPREADING => forward_few(xs, w, ys, inputs, outputs),
            _ => linear::forward(xs, w, ys, inputs, outputs),
        }
    });
}

/// `y = x w^T` for few rows, as columns that are transposed in the end: `w` is read where it lies.
/// To pack its rows, as a product by rows does, would take longer than to multiply them.
fn forward_few(x: &[f32], w: &[f32], y: &mut [f32], inputs: usize, outputs: usize) {
    let n = y.len() / outputs;
    let mut columns = vec![0.0; y.len()];
    match n {
        2 => columns_of_rows::<2>(x, w, &mut columns, inputs),
        3 => columns_of_rows::<3>(x, w, &mut columns, inputs),
        4 => columns_of_rows::<4>(x, w, &mut columns, inputs),
        _ => {
            let (x_strides, w_strides) = ((inputs, 1), (1, inputs));
            let out = &mut columns;
            matmul(
                n,
                outputs,
                inputs,
                x,
                x_strides,
                w,
                w_strides,
                out,
                (1, n),
                1.0,
                false,
                true,
            );
        }
    }
    let tiles = y.par_chunks_mut(TILE * outputs).enumerate();
    tiles.for_each(|(tile, y)| {
        for (c, columns) in columns.chunks(TILE * n).enumerate() {
            for (r, y) in y.chunks_exact_mut(outputs).enumerate() {
                let columns = columns.chunks_exact(n);
                for (y, column) in y[c * TILE..].iter_mut().zip(columns) {
                    *y = column[tile * TILE + r];
                }
            }
        }
    });
}

/// Columns of a product with `N` rows as dot products: bound by reading the weights, as with one row.
fn columns_of_rows<const N: usize>(x: &[f32], w: &[f32], columns: &mut [f32], inputs: usize) {
    let rows: [&[f32]; N] = std::array::from_fn(|r| &x[r * inputs..][..inputs]);
    columns
        .par_chunks_mut(OUTPUTS_PER_TASK * N)
        .zip(w.par_chunks(OUTPUTS_PER_TASK * inputs))
        .for_each(|(columns, w)| {
            let (columns, _) = columns.as_chunks_mut::<N>();
            for (column, w) in columns.iter_mut().zip(w.chunks_exact(inputs)) {
                *column = dots(w, rows);
            }
        });
}

/// `dxs = dys W_e` for the rows of each expert e, shaped as in [`forward`].
pub fn backward_input(
    plan: &Plan,
    dys: &[f32],
    w: &[f32],
    dxs: &mut [f32],
    inputs: usize,
    outputs: usize,
) {
    check_product(
        plan,
        "experts::backward_input",
        [dxs, w, dys],
        inputs,
        outputs,
    );
    plan.each(dxs, inputs, |expert, rows, dxs| {
        let dys = &dys[rows.start * outputs..rows.end * outputs];
        let w = of_expert(w, expert, inputs * outputs);
        linear::backward_input(dys, w, dxs, inputs, outputs);
    });
}

/// `dw_e = dys^T xs` over the rows of each expert e, shaped as in [`forward`]; zeros for an expert
/// without rows.
pub fn backward_weight(
    plan: &Plan,
    dys: &[f32],
    xs: &[f32],
    dw: &mut [f32],
    inputs: usize,
    outputs: usize,
) {
    check_product(
        plan,
        "experts::backward_weight",
        [xs, dw, dys],
        inputs,
        outputs,
    );
    let (size, piece) = (inputs * outputs, plan.experts().div_ceil(PIECES).max(1));
    dw.par_chunks_mut(piece * size)
        .enumerate()
        .for_each(|(p, dw)| {
            for (e, dw) in dw.chunks_exact_mut(size).enumerate() {
                let rows = plan.rows(p * piece + e);
                let dys = &dys[rows.start * outputs..rows.end * outputs];
                let xs = &xs[rows.start * inputs..rows.end * inputs];
                match rows.is_empty() {
                    true => dw.fill(0.0),
                    false => linear::backward_weight(dys, xs, dw, inputs, outputs),
                }
            }
        });
}

fn of_expert(w: &[f32], expert: usize, size: usize) -> &[f32] {
    &w[expert * size..][..size]
}

fn check_product(plan: &Plan, name: &str, slices: [&[f32]; 3], inputs: usize, outputs: usize) {
    let [xs, w, ys] = slices.map(<[f32]>::len);
    plan.check(name, "input side", xs, plan.slots(), inputs);
    plan.check(name, "weight", w, plan.experts() * outputs, inputs);
    plan.check(name, "output side", ys, plan.slots(), outputs);
}

#[cfg(test)]
mod tests;
