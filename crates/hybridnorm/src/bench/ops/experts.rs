//! Grouped products of a mixture of experts, with even and with uneven loads.

use hybridnorm_kernels::experts::{self, Dispatch, Layout};

use super::Bound::Arithmetic;
use super::naive::linear as naive;
use super::problem::{Case, Draw, Experts, Problem, Shape, problem};

/// How tokens are spread.
#[derive(Clone, Copy)]
enum Load {
    /// Every expert gets as many as the others.
    Even,
    /// The first expert gets every token, the others share the rest.
    Uneven,
}

/// All of them; none where there are no experts.
pub fn cases(shape: &Shape) -> Vec<Case> {
    let Some(experts) = shape.experts else {
        return Vec::new();
    };
    let (d, f, up) = (shape.d_model, experts.width, experts.up);
    let mut cases = Vec::new();
    for (op, load, inputs, outputs) in [
        ("experts up, even", Load::Even, d, up),
        ("experts up, uneven", Load::Uneven, d, up),
        ("experts down, even", Load::Even, f, d),
        ("experts down, uneven", Load::Uneven, f, d),
    ] {
        cases.extend(products(op, load, experts, shape.rows(), [inputs, outputs]));
    }
    cases
}

/// The products of so many tokens.
fn products(
    op: &'static str,
    load: Load,
    experts: Experts,
    tokens: usize,
    [i, o]: [usize; 2],
) -> [Case; 3] {
    let Experts { count, top_k, .. } = experts;
    let case = |direction, problem: fn(Plan, usize, usize) -> Problem| {
        Case::new(op, direction, Arithmetic, tokens, move |tokens| {
            let flop = 2.0 * (tokens * top_k * i * o) as f64;
            problem(plan(load, count, top_k, tokens), i, o).work(flop)
        })
    };
    [
        case("forward", |plan, i, o| {
            let mut draw = Draw::new();
            let (m, e) = (plan.view().slots(), plan.view().experts());
            let same = plan.clone();
            problem(
                [draw.values(m * i), draw.values(e * o * i)],
                [vec![0.0; m * o]],
                move |[x, w], [y]| experts::forward(&plan.view(), x, w, y, i, o),
                move |[x, w], [y]| {
                    for (expert, w) in w.chunks(o * i).enumerate() {
                        let rows = same.view().rows(expert);
                        let x = &x[rows.start * i..rows.end * i];
                        naive::forward(x, w, &mut y[rows.start * o..rows.end * o], i, o);
                    }
                },
            )
        }),
        case("backward input", |plan, i, o| {
            let mut draw = Draw::new();
            let (m, e) = (plan.view().slots(), plan.view().experts());
            let same = plan.clone();
            problem(
                [draw.values(m * o), draw.values(e * o * i)],
                [vec![0.0; m * i]],
                move |[dy, w], [dx]| experts::backward_input(&plan.view(), dy, w, dx, i, o),
                move |[dy, w], [dx]| {
                    for (expert, w) in w.chunks(o * i).enumerate() {
                        let rows = same.view().rows(expert);
                        let dy = &dy[rows.start * o..rows.end * o];
                        naive::backward_input(dy, w, &mut dx[rows.start * i..rows.end * i], i, o);
                    }
                },
            )
        }),
        case("backward weight", |plan, i, o| {
            let mut draw = Draw::new();
            let (m, e) = (plan.view().slots(), plan.view().experts());
            let same = plan.clone();
            problem(
                [draw.values(m * o), draw.values(m * i)],
                [vec![0.0; e * o * i]],
                move |[dy, x], [dw]| experts::backward_weight(&plan.view(), dy, x, dw, i, o),
                move |[dy, x], [dw]| {
                    for (expert, dw) in dw.chunks_mut(o * i).enumerate() {
                        let rows = same.view().rows(expert);
                        let dy = &dy[rows.start * o..rows.end * o];
                        naive::backward_weight(dy, &x[rows.start * i..rows.end * i], dw, i, o);
                    }
                },
            )
        }),
    ]
}

/// A dispatch of its own.
#[derive(Clone)]
struct Plan {
    layout: Layout,
    dispatch: Vec<i32>,
}

impl Plan {
    fn view(&self) -> Dispatch<'_> {
        Dispatch::new(self.layout, &self.dispatch)
    }
}

fn plan(load: Load, experts: usize, top_k: usize, tokens: usize) -> Plan {
    let turn = |slot: usize| match load {
        Load::Even => slot % experts,
        Load::Uneven if slot.is_multiple_of(top_k) || experts == 1 => 0,
        Load::Uneven => 1 + slot % (experts - 1),
    };
    let layout = Layout { experts, top_k };
    let mut dispatch = vec![0; layout.elements(tokens)];
    let chosen = layout.chosen(dispatch.len());
    for (slot, chosen) in dispatch[chosen].iter_mut().enumerate() {
        *chosen = turn(slot) as i32;
    }
    layout.fill(&mut dispatch);
    Plan { layout, dispatch }
}
