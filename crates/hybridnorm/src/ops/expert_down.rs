//! Grouped GEMM over dispatched tokens: output projections of the experts, and the combine.

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::activation::{self, Activation};
use hybridnorm_kernels::experts::{self, Dispatch, DispatchLayout};

use super::activation as reference;
use super::device::Grid;
use super::dispatch::dispatch_type;
use super::reference_math::operand;
use super::experts::{ExpertLinear, RowOrder, add_outer, matvec, matvec_transposed};
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Shape, Type, Value};

/// `Σ_j weight_j · W_e act(hidden_j)` over the slots j of every token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertDown {
    pub(crate) linear: ExpertLinear,
    /// Activation that the kernel applies to the hidden rows.
    pub(crate) activation: Option<Activation>,
    /// Output shape: any shape with n rows.
    pub(crate) shape: Shape,
}

/// Gradients of the hidden rows, the weight and the gate weights from that of [`ExpertDown`]'s
/// output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertDownGrad(pub(crate) ExpertDown);

/// Combines the outputs of each token's experts with the gate weights: from hidden rows (1, m, f), or
/// pre-activations if `activation` is set, and a matrix (d, f) per expert to the `shape` of the residual
/// stream, n rows of width d.
///
/// # Panics
/// If widths differ, or the dispatch, its slots or the gate weights are not those of n tokens.
pub fn expert_down<'g>(
    hidden_1mf: Value<'g>,
    activation: Option<Activation>,
    w_ed_f: Value<'g>,
    weights_nk: Value<'g>,
    dispatch: Value<'g>,
    layout: DispatchLayout,
    shape: Shape,
) -> Value<'g> {
    let op = ExpertDown {
        linear: ExpertLinear::new("expert_down", layout, w_ed_f),
        activation,
        shape,
    };
    let inputs = [hidden_1mf, w_ed_f, weights_nk, dispatch];
    let [y] = hidden_1mf.builder().op(op, &inputs);
    y
}

impl ExpertDown {
    fn tokens(&self) -> usize {
        self.shape.rows()
    }

    fn slots(&self) -> usize {
        self.linear.slots(self.tokens())
    }

    /// Records the input of the matrix product, in its type; the input of the op without an activation.
    fn record_hidden(&self, io: &mut DeviceOperands, x: Elements) -> Elements {
        let Some(function) = self.activation else {
            return io.converted(x, self.linear.operand_type());
        };
        let f = self.linear.inputs;
        let hidden = io.scratch(self.linear.operand_type(), self.slots() * f);
        reference::record_forward(io, function, f, x, hidden);
        hidden
    }

    /// Returns the width of the input rows.
    fn width(&self) -> usize {
        let f = self.linear.inputs;
        self.activation.map_or(f, |act| act.inputs(f))
    }
}

impl Operation for ExpertDown {
    fn name(&self) -> &'static str {
        "experts down"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let &[hidden, w, weights, dispatch] = inputs else {
            panic!("experts down: expected hidden rows, a weight, gate weights and a dispatch")
        };
        let ExpertLinear {
            layout, outputs, ..
        } = self.linear;
        let (n, k) = (self.tokens(), layout.top_k);
        assert_eq!(self.shape.width(), outputs, "experts down: result");
        assert_eq!(w, self.linear.weight(), "experts down: weight");
        let rows = Type::f32([1, self.slots(), self.width()]);
        assert_eq!(hidden, rows, "experts down: hidden rows");
        assert_eq!(weights, Type::f32([n, k]), "experts down: gate weights");
        let expected = dispatch_type(layout, n);
        assert_eq!(dispatch, expected, "experts down: dispatch of {n} tokens");
        vec![Type::f32(self.shape)]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.inputs(), &[at.gradient()]].concat();
        let [dhidden, dw, dweights] = at.graph().op(ExpertDownGrad(*self), &inputs);
        vec![Some(dhidden), Some(dw), Some(dweights), None]
    }

    /// Outputs of the experts, and of the activation if there is one.
    fn scratch(&self, _inputs: &[Type]) -> usize {
        let ExpertLinear {
            inputs, outputs, ..
        } = self.linear;
        let hidden = self.activation.map_or(0, |_| inputs);
        let rows = [outputs, hidden].map(|width| self.linear.rows_len(self.slots() * width));
        rows.iter().sum()
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        self.linear.flops(self.tokens())
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        self.linear.workspace(self.tokens(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (linear, d) = (&self.linear, self.linear.outputs);
        let (x, weights, y) = (io.read(0), io.read(2), io.write());
        let w = operand(linear.precision, io.read(1));
        y.fill(0.0);
        for assignment in linear.assignments(io.ints(3)) {
            let x = &x[assignment.slot * self.width()..][..self.width()];
            let hidden = activated(self.activation, x);
            let hidden = operand(linear.precision, &hidden);
            let out = matvec(&w[linear.matrix(assignment.expert)], &hidden);
            let y = &mut y[assignment.token * d..][..d];
            for (y, out) in y.iter_mut().zip(out) {
                *y += weights[assignment.index] * out;
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let ExpertLinear {
            layout,
            inputs: f,
            outputs: d,
            ..
        } = self.linear;
        let dispatch = Dispatch::new(layout, io.ints(3));
        let (x, w, weights) = (io.floats(0), io.floats(1), io.read(2));
        let (y, scratch) = (io.write_floats(), io.write());
        let (mut slots, scratch) = self.linear.rows(scratch, self.slots() * d);
        let hidden_len = self.activation.map_or(0, |_| self.slots() * f);
        let (mut hidden, _) = self.linear.rows(scratch, hidden_len);
        let hidden = match self.activation {
            None => x,
            Some(act) => {
                activation::forward(act, x, hidden.reborrow(), f);
                hidden.as_floats()
            }
        };
        experts::forward(&dispatch, &self.linear.of_expert(), hidden, w, slots.reborrow());
        experts::combine(&dispatch, slots.as_floats(), Some(weights), y, d);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, w, weights, dispatch) = (io.read(0), io.read(1), io.read(2), io.read(3));
        let (y, d) = (io.write(), self.linear.outputs);
        let hidden = self.record_hidden(io, x);
        let w = io.converted(w, self.linear.operand_type());
        let slots = io.scratch(ElementType::F32, self.slots() * d);
        self.linear.record_product(io, [hidden, w, dispatch, slots], RowOrder::Slot, false)?;
        self.linear.record_combine(io, slots, Some(weights), dispatch, y, d);
        Ok(())
    }
}

impl Operation for ExpertDownGrad {
    fn name(&self) -> &'static str {
        "experts down, gradients"
    }

    /// Reads the inputs of [`ExpertDown`], and the gradient of its output.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        inputs[..3].to_vec()
    }

    /// Gradients of the experts' outputs, hidden rows, their gradients, and per slot the dot product of both.
    fn scratch(&self, _inputs: &[Type]) -> usize {
        let ExpertLinear {
            inputs, outputs, ..
        } = self.0.linear;
        let rows = [outputs, inputs, inputs].map(|width| self.0.linear.rows_len(self.0.slots() * width));
        rows.iter().sum::<usize>() + self.0.slots()
    }

    fn flops(&self, _inputs: &[Type]) -> u64 {
        2 * self.0.linear.flops(self.0.tokens())
    }

    fn workspace(&self, _inputs: &[Type], threads: usize) -> usize {
        self.0.linear.workspace(self.0.tokens(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let ExpertDown {
            linear,
            activation,
            ..
        } = self.0;
        let (width, d) = (self.0.width(), linear.outputs);
        let (x, weights) = (io.read(0), io.read(2));
        let [w, dy] = [1, 4].map(|i| operand(linear.precision, io.read(i)));
        let (dx, dw, dweights) = (io.write(), io.write(), io.write());
        dw.fill(0.0);
        for assignment in linear.assignments(io.ints(3)) {
            let matrix = linear.matrix(assignment.expert);
            let row = assignment.slot * width..(assignment.slot + 1) * width;
            let (x, dy) = (&x[row.clone()], &dy[assignment.token * d..][..d]);
            let hidden = activated(activation, x);
            let weight = weights[assignment.index];
            let out = matvec(&w[matrix.clone()], &hidden);
            dweights[assignment.index] = out.iter().zip(dy).map(|(out, dy)| out * dy).sum();
            let dhidden_unweighted = matvec_transposed(&w[matrix.clone()], dy);
            let dhidden: Vec<f64> = dhidden_unweighted.iter().map(|d| weight * d).collect();
            add_outer(weight, dy, &hidden, &mut dw[matrix]);
            dx[row].copy_from_slice(&activated_backward(activation, x, &dhidden));
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let ExpertLinear {
            layout,
            inputs: f,
            outputs: d,
            ..
        } = self.0.linear;
        let (m, expert) = (self.0.slots(), self.0.linear.of_expert());
        let dispatch = Dispatch::new(layout, io.ints(3));
        let (x, w, weights, dy) = (io.floats(0), io.floats(1), io.read(2), io.floats(4));
        let (dx, dw, dweights, scratch) = (io.write_floats(), io.write(), io.write(), io.write());
        let (mut dslots, scratch) = self.0.linear.rows(scratch, m * d);
        let (mut hidden, scratch) = self.0.linear.rows(scratch, m * f);
        let (mut dhidden, dot_products) = self.0.linear.rows(scratch, m * f);
        match self.0.activation {
            None => hidden.reborrow().copy_from(x),
            Some(act) => activation::forward(act, x, hidden.reborrow(), f),
        }
        // Gate weights are applied to the hidden rows, which are narrower, and to only one operand of each matmul: with
        // dy unweighted, <hidden, dhidden> is the gradient of a slot's gate weight.
        experts::gather(&dispatch, dy, dslots.reborrow(), d);
        experts::backward_input(&dispatch, &expert, dslots.as_floats(), w, dhidden.reborrow());
        let (h, dh) = (hidden.reborrow(), dhidden.reborrow());
        experts::combine_backward(&dispatch, weights, h, dh, dweights, dot_products, f);
        experts::backward_weight(&dispatch, &expert, dslots.as_floats(), hidden.as_floats(), dw);
        match self.0.activation {
            None => dx.copy_from(dhidden.as_floats()),
            Some(act) => activation::backward(act, x, dhidden, dx, f),
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let ExpertDown { linear, activation, .. } = self.0;
        let f = linear.inputs;
        let (x, weights, dispatch) = (io.read(0), io.read(2), io.read(3));
        let (dx, dw, dweights) = (io.write(), io.write(), io.write());
        let [w, dy] = [1, 4].map(|i| io.converted(io.read(i), linear.operand_type()));
        // Weighted in place.
        let hidden = match activation {
            Some(_) => self.0.record_hidden(io, x),
            None if x.element_type != linear.operand_type() => self.0.record_hidden(io, x),
            None => {
                let hidden = io.scratch(x.element_type, x.len());
                io.copy(x, hidden);
                hidden
            }
        };
        let dhidden = io.scratch(ElementType::F32, self.0.slots() * f);
        // With dy unweighted, <hidden, dhidden> is the gradient of a slot's gate weight.
        linear.record_product(io, [dy, w, dispatch, dhidden], RowOrder::Token, true)?;
        let arguments = cuda::Arguments::default()
            .floats(hidden)
            .floats(dhidden)
            .address(weights.span)
            .address(dweights.span)
            .address(dispatch.span)
            .long(self.0.slots() as i64)
            .count(linear.layout.experts)
            .count(f);
        io.launch("weight_slots", Grid::warps(self.0.slots()), arguments);
        linear.record_weight_gradient(io, (dy, RowOrder::Token), (hidden, RowOrder::Slot), dispatch, dw)?;
        match activation {
            Some(function) => reference::record_backward(io, function, f, [x, dx, dhidden]),
            None => io.convert(dhidden, dx),
        }
        Ok(())
    }
}

/// Returns the input of the experts' output projection: the activation of a row, if there is one.
fn activated(act: Option<Activation>, x: &[f64]) -> Vec<f64> {
    let Some(act) = act else {
        return x.to_vec();
    };
    let mut y = vec![0.0; x.len() / act.inputs(1)];
    reference::forward(act, y.len(), x, &mut y);
    y
}

/// Returns the gradient of a row from that of its activation.
fn activated_backward(act: Option<Activation>, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let Some(act) = act else {
        return dy.to_vec();
    };
    let mut dx = vec![0.0; x.len()];
    reference::backward(act, dy.len(), x, dy, &mut dx);
    dx
}

#[cfg(test)]
mod tests {
    use hybridnorm_kernels::router::{Router, Scoring};

    use super::super::experts::tests::{SIZES, dispatch};
    use super::super::testing::{check, floats, ints, mapped_floats};
    use super::super::{expert_up, gate_weights, linear, top_k_dispatch};
    use super::*;

    const ACTIVATIONS: [Option<Activation>; 5] = [
        None,
        Some(Activation::Swiglu),
        Some(Activation::Geglu),
        Some(Activation::Gelu),
        Some(Activation::Relu2),
    ];

    #[test]
    fn hidden_rows_are_combined_with_any_activation() {
        for (n, experts, top_k) in SIZES {
            for ((f, d), act) in [(1, 1), (5, 3), (17, 40)]
                .into_iter()
                .flat_map(|sizes| ACTIVATIONS.map(|act| (sizes, act)))
            {
                let layout = DispatchLayout { experts, top_k };
                let width = act.map_or(f, |act| act.inputs(f));
                let given = [
                    mapped_floats(1, [1, n * top_k, width], |x| 2.0 * x),
                    floats(2, [experts * d, f]),
                    floats(3, [n, top_k]),
                    ints([layout.elements(n)], &dispatch(n, layout)),
                ];
                check(&given, |_, x| {
                    let shape = Shape::from([1, n, d]);
                    expert_down(x[0], act, x[1], x[2], x[3], layout, shape)
                });
            }
        }
    }

    #[test]
    fn a_mixture_is_differentiated_as_a_whole() {
        for (scoring, renormalize) in [(Scoring::Softmax, false), (Scoring::Sigmoid, true)] {
            let router = Router {
                experts: 5,
                top_k: 2,
                scoring,
                renormalize,
                groups: 1,
                top_groups: 1,
                scaling: 1.5,
            };
            let (b, t, d, f, e) = (3, 7, 11, 9, router.experts);
            let act = Activation::Swiglu;
            let given = [
                floats(1, [b, t, d]),
                floats(2, [e, d]),
                floats(3, [e * act.inputs(f), d]),
                floats(4, [e * d, f]),
            ];
            check(&given, |_, x| {
                let &[u, w_router, w_up, w_down] = x else {
                    panic!("four inputs")
                };
                let logits = linear(u, w_router);
                let dispatch = top_k_dispatch(logits, None, router);
                let weights = gate_weights(logits, dispatch, router);
                let layout = router.layout();
                let hidden = expert_up(u, w_up, dispatch, layout);
                let shape = u.shape();
                expert_down(hidden, Some(act), w_down, weights, dispatch, layout, shape)
            });
        }
    }
}
