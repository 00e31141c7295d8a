//! Grouped GEMM over dispatched tokens: input projections of the experts.

use hybridnorm_cuda::ElementType;
use hybridnorm_kernels::experts::{self, Dispatch, DispatchLayout};

use super::dispatch::dispatch_type;
use super::reference_math::operand;
use super::experts::{ExpertLinear, RowOrder, add_outer, matvec, matvec_transposed};
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// `W_e x` in every slot, for the row x of its token and its expert e.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertUp(pub(crate) ExpertLinear);

/// Gradients of x and of the weight from that of [`ExpertUp`]'s output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertUpGrad(pub(crate) ExpertLinear);

/// Multiplies each token's row of x (.., d) by the matrices of its experts, (o, d) each in `w_eo_d`: returns
/// (1, m, o), slots in dispatch order.
///
/// # Panics
/// If widths differ, or the dispatch has another number of tokens.
pub fn expert_up<'g>(
    x: Value<'g>,
    w_eo_d: Value<'g>,
    dispatch: Value<'g>,
    layout: DispatchLayout,
) -> Value<'g> {
    let linear = ExpertLinear::new("expert_up", layout, w_eo_d);
    let [y] = x.builder().op(ExpertUp(linear), &[x, w_eo_d, dispatch]);
    y
}

impl Operation for ExpertUp {
    fn name(&self) -> &'static str {
        "experts up"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let &[x, w, dispatch] = inputs else {
            panic!("experts up: expected rows, a weight and a dispatch")
        };
        let (ExpertLinear { layout, .. }, n) = (self.0, x.shape.rows());
        assert_eq!(w, self.0.weight(), "experts up: weight");
        assert_eq!(x.shape.width(), self.0.inputs, "experts up: width");
        let expected = dispatch_type(layout, n);
        assert_eq!(dispatch, expected, "experts up: dispatch of {n} tokens");
        vec![Type::f32([1, self.0.slots(n), self.0.outputs])]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.input(1), at.input(2), at.gradient()];
        let [dx, dw] = at.graph().op(ExpertUpGrad(self.0), &inputs);
        vec![Some(dx), Some(dw), None]
    }

    /// Rows in slot order.
    fn scratch(&self, inputs: &[Type]) -> usize {
        self.0.rows_len(self.0.slots(inputs[0].shape.rows()) * self.0.inputs)
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        self.0.flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let ExpertLinear {
            inputs, outputs, ..
        } = self.0;
        let [x, w] = [0, 1].map(|i| operand(self.0.precision, io.read(i)));
        let y = io.write();
        for assignment in self.0.assignments(io.ints(2)) {
            let x = &x[assignment.token * inputs..][..inputs];
            let w = &w[self.0.matrix(assignment.expert)];
            y[assignment.slot * outputs..][..outputs].copy_from_slice(&matvec(w, x));
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let ExpertLinear {
            layout, inputs, ..
        } = self.0;
        let dispatch = Dispatch::new(layout, io.ints(2));
        let (x, w, y) = (io.floats(0), io.floats(1), io.write_floats());
        let (mut slots, _) = self.0.rows(io.write(), dispatch.slots() * inputs);
        experts::gather(&dispatch, x, slots.reborrow(), inputs);
        experts::forward(&dispatch, &self.0.of_expert(), slots.as_floats(), w, y);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, w, dispatch, y) = (io.read(0), io.read(1), io.read(2), io.write());
        let [x, w] = [x, w].map(|operand| io.converted(operand, self.0.operand_type()));
        self.0.record_product(io, [x, w, dispatch, y], RowOrder::Token, false)?;
        Ok(())
    }
}

impl Operation for ExpertUpGrad {
    fn name(&self) -> &'static str {
        "experts up, gradients"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[1]]
    }

    /// Rows in slot order, or their gradients.
    fn scratch(&self, inputs: &[Type]) -> usize {
        self.0.rows_len(self.0.slots(inputs[0].shape.rows()) * self.0.inputs)
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        2 * self.0.flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let ExpertLinear {
            inputs, outputs, ..
        } = self.0;
        let [x, w, dy] = [0, 1, 3].map(|i| operand(self.0.precision, io.read(i)));
        let (dx, dw) = (io.write(), io.write());
        dx.fill(0.0);
        dw.fill(0.0);
        for assignment in self.0.assignments(io.ints(2)) {
            let matrix = self.0.matrix(assignment.expert);
            let row = assignment.token * inputs..(assignment.token + 1) * inputs;
            let dy = &dy[assignment.slot * outputs..][..outputs];
            let dx_of_slot = matvec_transposed(&w[matrix.clone()], dy);
            for (dx, d) in dx[row.clone()].iter_mut().zip(dx_of_slot) {
                *dx += d;
            }
            add_outer(1.0, dy, &x[row], &mut dw[matrix]);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let ExpertLinear {
            layout, inputs, ..
        } = self.0;
        let (dispatch, expert) = (Dispatch::new(layout, io.ints(2)), self.0.of_expert());
        let (x, w, dy) = (io.floats(0), io.floats(1), io.floats(3));
        let (dx, dw) = (io.write_floats(), io.write());
        let (mut slots, _) = self.0.rows(io.write(), dispatch.slots() * inputs);
        experts::backward_input(&dispatch, &expert, dy, w, slots.reborrow());
        experts::combine(&dispatch, slots.as_floats(), None, dx, inputs);
        // The rows are gathered again: saving them would take k times the memory of x.
        experts::gather(&dispatch, x, slots.reborrow(), inputs);
        experts::backward_weight(&dispatch, &expert, dy, slots.as_floats(), dw);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dispatch, dx, dw) = (io.read(2), io.write(), io.write());
        let [x, w, dy] = [0, 1, 3].map(|i| io.converted(io.read(i), self.0.operand_type()));
        let slots = self.0.layout.selected(dispatch.len()).len();
        let dslots = io.scratch(ElementType::F32, slots * self.0.inputs);
        self.0.record_product(io, [dy, w, dispatch, dslots], RowOrder::Slot, true)?;
        self.0.record_combine(io, dslots, None, dispatch, dx, self.0.inputs);
        self.0.record_weight_gradient(io, (dy, RowOrder::Slot), (x, RowOrder::Token), dispatch, dw)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::experts::tests::{SIZES, dispatch};
    use super::super::testing::{check, floats, ints};
    use super::*;

    #[test]
    fn rows_are_multiplied_by_the_matrices_of_their_experts() {
        for (n, experts, top_k) in SIZES {
            for (d, o) in [(1, 1), (5, 3), (17, 40)] {
                let layout = DispatchLayout { experts, top_k };
                let given = [
                    floats(1, [1, n, d]),
                    floats(2, [experts * o, d]),
                    ints([layout.elements(n)], &dispatch(n, layout)),
                ];
                check(&given, |_, x| expert_up(x[0], x[1], x[2], layout));
            }
        }
    }
}
