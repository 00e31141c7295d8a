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
mod tests {
    use super::*;
    use crate::testing::{Rng, all_close, check_gradient, same_bits_on_any_pool, weigh, wide};
    use proptest::prelude::*;

    /// Distinct experts for each token, the first ones more often.
    fn choices(rng: &mut Rng, n: usize, experts: usize, top_k: usize) -> Vec<u32> {
        let mut chosen = Vec::new();
        for _ in 0..n {
            let mut order: Vec<(f64, u32)> = (0..experts as u32)
                .map(|e| (rng.uniform() * f64::from(e + 1), e))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            chosen.extend(order[..top_k].iter().map(|&(_, e)| e));
        }
        chosen
    }

    fn skewed(rng: &mut Rng, n: usize, experts: usize) -> Vec<u32> {
        let rest = rng.below(experts, n);
        let often = |(t, e): (usize, i32)| if t % 5 > 0 { 1 } else { e as u32 };
        rest.into_iter().enumerate().map(often).collect()
    }

    /// `y[t] = sum_j weights[t, j] W_e x[t]` over the chosen experts e.
    fn naive(chosen: &[u32], x: &[f64], w: &[f64], weights: &[f64], shape: Shape) -> Vec<f64> {
        let Shape { n, k, i, o } = shape;
        let mut y = vec![0.0; n * o];
        for (choice, &e) in chosen.iter().enumerate() {
            let x = &x[choice / k * i..][..i];
            for c in 0..o {
                let w = &w[(e as usize * o + c) * i..][..i];
                let product: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                y[choice / k * o + c] += weights[choice] * product;
            }
        }
        y
    }

    #[derive(Clone, Copy)]
    struct Shape {
        n: usize,
        k: usize,
        i: usize,
        o: usize,
    }

    /// Output and gradients of x, w and the weights, with the weights applied to the outputs.
    fn outside(
        plan: &Plan,
        x: &[f32],
        w: &[f32],
        weights: &[f32],
        dy: &[f32],
        s: Shape,
    ) -> [Vec<f32>; 4] {
        let Shape { i, o, .. } = s;
        let m = plan.slots();
        let (mut xs, mut ys) = (vec![f32::NAN; m * i], vec![f32::NAN; m * o]);
        let mut y = vec![f32::NAN; plan.tokens() * o];
        gather(plan, x, &mut xs, i);
        forward(plan, &xs, w, &mut ys, i, o);
        combine(plan, &ys, Some(weights), &mut y, o);
        let mut dys = vec![f32::NAN; m * o];
        let mut dweights = vec![f32::NAN; weights.len()];
        gather(plan, dy, &mut dys, o);
        weigh_backward(plan, weights, &mut ys, &mut dys, &mut dweights, o);
        let (mut dxs, mut dw) = (vec![f32::NAN; m * i], vec![f32::NAN; w.len()]);
        backward_input(plan, &dys, w, &mut dxs, i, o);
        backward_weight(plan, &dys, &xs, &mut dw, i, o);
        let mut dx = vec![f32::NAN; x.len()];
        combine(plan, &dxs, None, &mut dx, i);
        [y, dx, dw, dweights]
    }

    /// The same with the weights applied to the inputs, whose rows the backward pass weighs.
    fn inside(
        plan: &Plan,
        x: &[f32],
        w: &[f32],
        weights: &[f32],
        dy: &[f32],
        s: Shape,
    ) -> [Vec<f32>; 3] {
        let Shape { i, o, .. } = s;
        let m = plan.slots();
        let (mut h, mut dys) = (vec![f32::NAN; m * i], vec![f32::NAN; m * o]);
        gather(plan, x, &mut h, i);
        gather(plan, dy, &mut dys, o);
        let (mut dh, mut dw) = (vec![f32::NAN; m * i], vec![f32::NAN; w.len()]);
        let mut dweights = vec![f32::NAN; weights.len()];
        backward_input(plan, &dys, w, &mut dh, i, o);
        weigh_backward(plan, weights, &mut h, &mut dh, &mut dweights, i);
        backward_weight(plan, &dys, &h, &mut dw, i, o);
        let mut dx = vec![f32::NAN; x.len()];
        combine(plan, &dh, None, &mut dx, i);
        [dx, dw, dweights]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn matches_the_reference(
            n in 0usize..30, experts in 1usize..7, k in 1usize..4, i in 1usize..9, o in 1usize..9,
        ) {
            let k = k.min(experts);
            let s = Shape { n, k, i, o };
            let mut rng = Rng::new(91);
            let chosen = choices(&mut rng, n, experts, k);
            let (x, w) = (rng.normal(n * i), rng.normal(experts * o * i));
            let (weights, dy) = (rng.normal(n * k), rng.normal(n * o));
            let plan = Plan::new(&chosen, experts, k);
            let [y, dx, dw, dweights] = outside(&plan, &x, &w, &weights, &dy, s);
            let (x64, w64, weights64) = (wide(&x), wide(&w), wide(&weights));
            all_close(&y, &naive(&chosen, &x64, &w64, &weights64, s), 1e-5);
            let loss = |x: &[f64], w: &[f64], weights: &[f64]| {
                weigh(&naive(&chosen, x, w, weights, s), &dy)
            };
            check_gradient(|x| loss(x, &w64, &weights64), &x, &dx, 1e-5);
            check_gradient(|w| loss(&x64, w, &weights64), &w, &dw, 1e-5);
            check_gradient(|weights| loss(&x64, &w64, weights), &weights, &dweights, 1e-5);
            let again = inside(&plan, &x, &w, &weights, &dy, s);
            for (again, first) in again.iter().zip([&dx, &dw, &dweights]) {
                all_close(again, &wide(first), 1e-5);
            }
        }

        #[test]
        fn a_plan_sorts_by_expert_and_token(n in 0usize..50, experts in 1usize..9, k in 1usize..5) {
            let k = k.min(experts);
            let chosen = choices(&mut Rng::new(92), n, experts, k);
            let plan = Plan::new(&chosen, experts, k);
            let sizes = (plan.tokens(), plan.slots(), plan.experts(), plan.top_k());
            prop_assert_eq!(sizes, (n, n * k, experts, k));
            let mut order: Vec<usize> = (0..n * k).collect();
            order.sort_by_key(|&choice| (chosen[choice], choice));
            let tokens: Vec<f32> = order.iter().map(|&choice| (choice / k) as f32).collect();
            let x: Vec<f32> = (0..n).map(|t| t as f32).collect();
            let mut xs = vec![f32::NAN; n * k];
            gather(&plan, &x, &mut xs, 1);
            prop_assert_eq!(xs, tokens);
            for e in 0..experts {
                let rows = plan.rows(e);
                prop_assert_eq!(rows.len(), plan.load()[e] as usize);
                prop_assert!(order[rows].iter().all(|&choice| chosen[choice] as usize == e));
            }
        }
    }

    #[test]
    fn products_of_any_height_match_those_of_linear_maps() {
        let (i, o) = (70, 150);
        let loads = [
            0,
            1,
            2,
            3,
            4,
            5,
            17,
            0,
            WORTH_SPREADING - 1,
            WORTH_SPREADING,
        ];
        let each = loads.iter().enumerate();
        let chosen: Vec<u32> = each.flat_map(|(e, &load)| vec![e as u32; load]).collect();
        let plan = Plan::new(&chosen, loads.len(), 1);
        let (m, size) = (chosen.len(), i * o);
        let mut rng = Rng::new(93);
        let (xs, w, dys) = (
            rng.normal(m * i),
            rng.normal(loads.len() * size),
            rng.normal(m * o),
        );
        let (mut ys, mut dxs) = (vec![f32::NAN; m * o], vec![f32::NAN; m * i]);
        let mut dw = vec![f32::NAN; w.len()];
        forward(&plan, &xs, &w, &mut ys, i, o);
        backward_input(&plan, &dys, &w, &mut dxs, i, o);
        backward_weight(&plan, &dys, &xs, &mut dw, i, o);
        for e in 0..loads.len() {
            let rows = plan.rows(e);
            let inputs = rows.start * i..rows.end * i;
            let outputs = rows.start * o..rows.end * o;
            let weights = e * size..(e + 1) * size;
            let (mut y, mut dx) = (vec![0.0; outputs.len()], vec![0.0; inputs.len()]);
            let mut dw_e = vec![0.0; size];
            let w = &w[weights.clone()];
            linear::forward(&xs[inputs.clone()], w, &mut y, i, o);
            linear::backward_input(&dys[outputs.clone()], w, &mut dx, i, o);
            linear::backward_weight(&dys[outputs.clone()], &xs[inputs.clone()], &mut dw_e, i, o);
            all_close(&ys[outputs], &wide(&y), 1e-5);
            assert_eq!(dxs[inputs], dx);
            assert_eq!(dw[weights], dw_e);
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        for (n, experts, k) in [(1, 8, 2), (600, 8, 2), (600, 5, 1), (70, 40, 3)] {
            let s = Shape { n, k, i: 40, o: 72 };
            let mut rng = Rng::new(94);
            let chosen = match k {
                1 => skewed(&mut rng, n, experts),
                _ => choices(&mut rng, n, experts, k),
            };
            let (x, w) = (rng.normal(n * s.i), rng.normal(experts * s.o * s.i));
            let (weights, dy) = (rng.normal(n * k), rng.normal(n * s.o));
            same_bits_on_any_pool(|| {
                let plan = Plan::new(&chosen, experts, k);
                let outside = outside(&plan, &x, &w, &weights, &dy, s).concat();
                let inside = inside(&plan, &x, &w, &weights, &dy, s).concat();
                [outside, inside].concat()
            });
        }
    }

    #[test]
    fn what_is_not_finite_stays_with_its_token() {
        let plan = Plan::new(&[0, 1, 1, 0], 2, 2);
        let mut y = [0.0; 2];
        combine(
            &plan,
            &[1.0, 2.0, f32::NAN, 4.0],
            Some(&[1.0, 0.0, 1.0, 1.0]),
            &mut y,
            1,
        );
        assert!(y[0].is_nan() && y[1] == 6.0);
    }

    #[test]
    #[should_panic(expected = "expert 3 is outside of 3 experts")]
    fn an_unknown_expert_is_refused() {
        Plan::new(&[0, 3], 3, 1);
    }

    #[test]
    #[should_panic(expected = "experts::forward: weight is not (4, 3)")]
    fn short_weights_are_refused() {
        let plan = Plan::new(&[0, 1], 2, 1);
        forward(&plan, &[0.0; 6], &[0.0; 6], &mut [0.0; 4], 3, 2);
    }
}
