use super::*;
use crate::matmul::Precision;
use crate::testing::{
    Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
    to_f64,
};
use proptest::prelude::*;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Draws distinct experts for each token, the first ones more often.
fn assignments(rng: &mut Rng, n: usize, experts: usize, top_k: usize) -> Vec<i32> {
    let mut selected = Vec::new();
    for _ in 0..n {
        let mut order: Vec<(f64, i32)> = (0..experts as i32)
            .map(|e| (rng.uniform() * f64::from(e + 1), e))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        selected.extend(order[..top_k].iter().map(|&(_, e)| e));
    }
    selected
}

/// Returns the integers of a dispatch to the selected experts.
fn filled(selected: &[i32], experts: usize, top_k: usize) -> (DispatchLayout, Vec<i32>) {
    let layout = DispatchLayout { experts, top_k };
    let mut integers = vec![i32::MIN; layout.elements(selected.len() / top_k)];
    let part = layout.selected(integers.len());
    integers[part].copy_from_slice(selected);
    layout.fill(&mut integers);
    (layout, integers)
}

fn skewed(rng: &mut Rng, n: usize, experts: usize) -> Vec<i32> {
    let rest = rng.below(experts, n);
    let often = |(t, e): (usize, i32)| if t % 5 > 0 { 1 } else { e };
    rest.into_iter().enumerate().map(often).collect()
}

/// `y[t] = sum_j weights[t, j] W_e x[t]` over the selected experts e.
fn naive(selected: &[i32], x: &[f64], w: &[f64], weights: &[f64], shape: Shape) -> Vec<f64> {
    let Shape { n, k, i, o, .. } = shape;
    let mut y = vec![0.0; n * o];
    for (assignment, &e) in selected.iter().enumerate() {
        let x = &x[assignment / k * i..][..i];
        for c in 0..o {
            let w = &w[(e as usize * o + c) * i..][..i];
            let product: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            y[assignment / k * o + c] += weights[assignment] * product;
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
    precision: Precision,
}

impl Shape {
    fn linear(self) -> Linear {
        Linear {
            inputs: self.i,
            outputs: self.o,
            precision: self.precision,
        }
    }
}

/// Output and gradients of x, w and the weights, with the weights applied to the outputs.
fn weights_on_outputs(
    dispatch: &Dispatch<'_>,
    x: &[f32],
    w: &[f32],
    weights: &[f32],
    dy: &[f32],
    s: Shape,
) -> [Vec<f32>; 4] {
    let Shape { i, o, .. } = s;
    let m = dispatch.slots();
    let (mut xs, mut ys) = (vec![f32::NAN; m * i], vec![f32::NAN; m * o]);
    let mut y = vec![f32::NAN; dispatch.tokens() * o];
    gather(dispatch, x, &mut xs, i);
    forward(dispatch, &s.linear(), &xs, w, &mut ys);
    combine(dispatch, &ys, Some(weights), &mut y, o);
    let mut dys = vec![f32::NAN; m * o];
    let mut dweights = vec![f32::NAN; weights.len()];
    gather(dispatch, dy, &mut dys, o);
    let mut scratch = vec![f32::NAN; m];
    combine_backward(
        dispatch,
        weights,
        &mut ys,
        &mut dys,
        &mut dweights,
        &mut scratch,
        o,
    );
    let (mut dxs, mut dw) = (vec![f32::NAN; m * i], vec![f32::NAN; w.len()]);
    backward_input(dispatch, &s.linear(), &dys, w, &mut dxs);
    backward_weight(dispatch, &s.linear(), &dys, &xs, &mut dw);
    let mut dx = vec![f32::NAN; x.len()];
    combine(dispatch, &dxs, None, &mut dx, i);
    [y, dx, dw, dweights]
}

/// Gradients with the weights applied to the inputs, whose rows the backward pass multiplies by them.
fn weights_on_inputs(
    dispatch: &Dispatch<'_>,
    x: &[f32],
    w: &[f32],
    weights: &[f32],
    dy: &[f32],
    s: Shape,
) -> [Vec<f32>; 3] {
    let Shape { i, o, .. } = s;
    let m = dispatch.slots();
    let (mut h, mut dys) = (vec![f32::NAN; m * i], vec![f32::NAN; m * o]);
    gather(dispatch, x, &mut h, i);
    gather(dispatch, dy, &mut dys, o);
    let (mut dh, mut dw) = (vec![f32::NAN; m * i], vec![f32::NAN; w.len()]);
    let mut dweights = vec![f32::NAN; weights.len()];
    backward_input(dispatch, &s.linear(), &dys, w, &mut dh);
    let mut scratch = vec![f32::NAN; m];
    combine_backward(
        dispatch,
        weights,
        &mut h,
        &mut dh,
        &mut dweights,
        &mut scratch,
        i,
    );
    backward_weight(dispatch, &s.linear(), &dys, &h, &mut dw);
    let mut dx = vec![f32::NAN; x.len()];
    combine(dispatch, &dh, None, &mut dx, i);
    [dx, dw, dweights]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn matches_the_reference(
        n in 0usize..30, experts in 1usize..7, k in 1usize..4, i in 1usize..9, o in 1usize..9,
    ) {
        let k = k.min(experts);
        let s = Shape { n, k, i, o, precision: Precision::F32 };
        let mut rng = Rng::new(91);
        let selected = assignments(&mut rng, n, experts, k);
        let (x, w) = (rng.normal(n * i), rng.normal(experts * o * i));
        let (weights, dy) = (rng.normal(n * k), rng.normal(n * o));
        let (layout, integers) = filled(&selected, experts, k);
        let dispatch = Dispatch::new(layout, &integers);
        let [y, dx, dw, dweights] = weights_on_outputs(&dispatch, &x, &w, &weights, &dy, s);
        let (x64, w64, weights64) = (to_f64(&x), to_f64(&w), to_f64(&weights));
        assert_all_close(&y, &naive(&selected, &x64, &w64, &weights64, s), 1e-5);
        let loss = |x: &[f64], w: &[f64], weights: &[f64]| {
            dot_f64(&naive(&selected, x, w, weights, s), &dy)
        };
        check_gradient(|x| loss(x, &w64, &weights64), &x, &dx, 1e-5);
        check_gradient(|w| loss(&x64, w, &weights64), &w, &dw, 1e-5);
        check_gradient(|weights| loss(&x64, &w64, weights), &weights, &dweights, 1e-5);
        let again = weights_on_inputs(&dispatch, &x, &w, &weights, &dy, s);
        for (again, first) in again.iter().zip([&dx, &dw, &dweights]) {
            assert_all_close(again, &to_f64(first), 1e-5);
        }
    }

    #[test]
    fn slots_are_sorted_by_expert_and_token(n in 0usize..50, experts in 1usize..9, k in 1usize..5) {
        let k = k.min(experts);
        let selected = assignments(&mut Rng::new(92), n, experts, k);
        let (layout, integers) = filled(&selected, experts, k);
        let dispatch = Dispatch::new(layout, &integers);
        let sizes = (dispatch.tokens(), dispatch.slots(), dispatch.experts(), dispatch.top_k());
        prop_assert_eq!(sizes, (n, n * k, experts, k));
        let mut order: Vec<usize> = (0..n * k).collect();
        order.sort_by_key(|&assignment| (selected[assignment], assignment));
        prop_assert!(dispatch.assignment_of_slot().iter().zip(&order).all(|(&c, &o)| c as usize == o));
        let assignments = dispatch.slot_of_assignment().iter().map(|&slot| order[slot as usize]);
        prop_assert!(assignments.eq(0..n * k));
        prop_assert_eq!(dispatch.expert_of_assignment(), &selected[..]);
        let tokens: Vec<f32> = order.iter().map(|&assignment| (assignment / k) as f32).collect();
        let x: Vec<f32> = (0..n).map(|t| t as f32).collect();
        let mut xs = vec![f32::NAN; n * k];
        gather(&dispatch, &x, &mut xs, 1);
        prop_assert_eq!(xs, tokens);
        for e in 0..experts {
            let rows = dispatch.slots_of_expert(e);
            prop_assert_eq!(rows.len(), dispatch.load()[e] as usize);
            prop_assert!(order[rows].iter().all(|&assignment| selected[assignment] as usize == e));
        }
    }
}

#[test]
fn grouped_matmuls_match_linear_layers() {
    let (i, o) = (70, 150);
    let loads = [0, 1, 2, 3, 4, 5, 17, 0, 127, 128];
    let each = loads.iter().enumerate();
    let selected: Vec<i32> = each.flat_map(|(e, &load)| vec![e as i32; load]).collect();
    let (layout, integers) = filled(&selected, loads.len(), 1);
    let dispatch = Dispatch::new(layout, &integers);
    let (m, size) = (selected.len(), i * o);
    let mut rng = Rng::new(93);
    let (xs, w, dys) = (
        rng.normal(m * i),
        rng.normal(loads.len() * size),
        rng.normal(m * o),
    );
    for precision in PRECISIONS {
        let layer = Linear {
            inputs: i,
            outputs: o,
            precision,
        };
        let (mut ys, mut dxs) = (vec![f32::NAN; m * o], vec![f32::NAN; m * i]);
        let mut dw = vec![f32::NAN; w.len()];
        forward(&dispatch, &layer, &xs, &w, &mut ys);
        backward_input(&dispatch, &layer, &dys, &w, &mut dxs);
        backward_weight(&dispatch, &layer, &dys, &xs, &mut dw);
        for e in 0..loads.len() {
            let rows = dispatch.slots_of_expert(e);
            let inputs = rows.start * i..rows.end * i;
            let outputs = rows.start * o..rows.end * o;
            let weights = e * size..(e + 1) * size;
            let (mut y, mut dx) = (vec![0.0; outputs.len()], vec![0.0; inputs.len()]);
            let mut dw_e = vec![0.0; size];
            let w = &w[weights.clone()];
            layer.forward(&xs[inputs.clone()], w, &mut y);
            layer.backward_input(&dys[outputs.clone()], w, &mut dx);
            layer.backward_weight(&dys[outputs.clone()], &xs[inputs.clone()], &mut dw_e);
            assert_all_close(&ys[outputs], &to_f64(&y), 1e-5);
            assert_eq!(dxs[inputs], dx);
            assert_eq!(dw[weights], dw_e);
        }
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    let shapes = [(1, 8, 2), (600, 8, 2), (600, 5, 1), (70, 40, 3)];
    let cases = shapes.into_iter().flat_map(|s| PRECISIONS.map(|p| (s, p)));
    for ((n, experts, k), precision) in cases {
        let (i, o) = (40, 72);
        let s = Shape {
            n,
            k,
            i,
            o,
            precision,
        };
        let mut rng = Rng::new(94);
        let selected = match k {
            1 => skewed(&mut rng, n, experts),
            _ => assignments(&mut rng, n, experts, k),
        };
        let (x, w) = (rng.normal(n * s.i), rng.normal(experts * s.o * s.i));
        let (weights, dy) = (rng.normal(n * k), rng.normal(n * s.o));
        assert_bit_identical_for_any_thread_count(|| {
            let (layout, integers) = filled(&selected, experts, k);
            let dispatch = Dispatch::new(layout, &integers);
            let weights_on_outputs =
                weights_on_outputs(&dispatch, &x, &w, &weights, &dy, s).concat();
            let weights_on_inputs = weights_on_inputs(&dispatch, &x, &w, &weights, &dy, s).concat();
            [weights_on_outputs, weights_on_inputs].concat()
        });
    }
}

#[test]
fn non_finite_values_stay_within_their_token() {
    let (layout, integers) = filled(&[0, 1, 1, 0], 2, 2);
    let dispatch = Dispatch::new(layout, &integers);
    let mut y = [0.0; 2];
    combine(
        &dispatch,
        &[1.0, 2.0, f32::NAN, 4.0],
        Some(&[1.0, 0.0, 1.0, 1.0]),
        &mut y,
        1,
    );
    assert!(y[0].is_nan() && y[1] == 6.0);
}

#[test]
#[should_panic(expected = "expert 3 is not in 0..3")]
fn expert_out_of_range_is_rejected() {
    filled(&[0, 3], 3, 1);
}

#[test]
#[should_panic(expected = "expert -1 is not in 0..3")]
fn negative_expert_is_rejected() {
    filled(&[0, -1], 3, 1);
}

#[test]
#[should_panic(
    expected = "DispatchLayout: length 10 matches no dispatch with top_k 2 of 1 experts"
)]
fn slice_of_wrong_length_is_rejected() {
    let layout = DispatchLayout {
        experts: 1,
        top_k: 2,
    };
    Dispatch::new(layout, &[0; 10]);
}

#[test]
#[should_panic(expected = "Dispatch::new: offsets end at 0, expected 1, the number of slots")]
fn unfilled_slice_is_rejected() {
    let layout = DispatchLayout {
        experts: 2,
        top_k: 1,
    };
    Dispatch::new(layout, &[0; 8]);
}

#[test]
#[should_panic(expected = "experts::forward: weight is not (4, 3)")]
fn weights_that_are_too_short_are_rejected() {
    let (layout, integers) = filled(&[0, 1], 2, 1);
    let dispatch = Dispatch::new(layout, &integers);
    let layer = Linear {
        inputs: 3,
        outputs: 2,
        precision: Precision::F32,
    };
    forward(&dispatch, &layer, &[0.0f32; 6], &[0.0; 6], &mut [0.0f32; 4]);
}
