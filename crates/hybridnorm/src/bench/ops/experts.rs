//! Grouped GEMMs over dispatched tokens of a mixture of experts, with balanced and unbalanced load.

use hybridnorm_kernels::activation::Activation;
use hybridnorm_kernels::experts::DispatchLayout;

use super::Bound::Compute;
use super::case::{Case, Operand, OutputRole, Problem, floats, given, vjp};
use super::shape::ModelShape;
use crate::exec::Tensor;
use crate::graph::{Type, Value};
use crate::ops;

/// Distribution of tokens over experts.
#[derive(Clone, Copy)]
enum Load {
    /// Every expert gets the same number of tokens.
    Balanced,
    /// The first expert gets every token; the remaining assignments are shared by the other experts.
    Unbalanced,
}

/// Returns all cases; none if there are no experts.
pub fn cases(shape: &ModelShape) -> Vec<Case> {
    let Some(experts) = shape.experts else {
        return Vec::new();
    };
    let sizes = Sizes {
        tokens: shape.rows(),
        d_model: shape.d_model,
        width: experts.width,
        activation: shape.activation,
        layout: DispatchLayout {
            experts: experts.count,
            top_k: experts.top_k,
        },
    };
    [
        up("experts up, even", Load::Balanced, sizes),
        up("experts up, uneven", Load::Unbalanced, sizes),
        down("experts down, even", Load::Balanced, sizes),
        down("experts down, uneven", Load::Unbalanced, sizes),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Sizes of the experts and of their inputs.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    d_model: usize,
    width: usize,
    activation: Activation,
    layout: DispatchLayout,
}

impl Sizes {
    /// Returns the width of the activation's input.
    fn up_width(&self) -> usize {
        self.activation.inputs(self.width)
    }

    fn assignments(&self) -> usize {
        self.tokens * self.layout.top_k
    }

    fn case(
        self,
        op: &'static str,
        direction: &'static str,
        problem: impl Fn(Self) -> Problem + 'static,
    ) -> Case {
        Case::new(op, direction, Compute, self.tokens, move |tokens| {
            problem(Self { tokens, ..self })
        })
    }

    /// Records the up projection: from rows of tokens to rows of assignments.
    fn up<'g>(self, [x, w, dispatch]: [Value<'g>; 3]) -> Value<'g> {
        ops::expert_up(x, w, dispatch, self.layout)
    }

    /// Records the activation and the down projection: from rows of assignments back to rows of tokens.
    fn down<'g>(self, [x, w, weights, dispatch]: [Value<'g>; 4]) -> Value<'g> {
        let hidden = ops::activation(x, self.activation);
        let shape = [1, self.tokens, self.d_model].into();
        ops::expert_down(hidden, None, w, weights, dispatch, self.layout, shape)
    }
}

fn up(op: &'static str, load: Load, sizes: Sizes) -> [Case; 2] {
    let operands = move |s: Sizes| {
        [
            floats([1, s.tokens, s.d_model]),
            floats([s.layout.experts * s.up_width(), s.d_model]),
            dispatch(load, s),
        ]
    };
    let forward = move |s: Sizes| Problem::new(operands(s), move |x| vec![s.up(x)]);
    let backward = move |s: Sizes| {
        let [x, w, dispatch] = operands(s);
        let dy = floats([1, s.assignments(), s.up_width()]);
        Problem::new([x, w, dispatch, dy], move |[x, w, dispatch, dy]| {
            vjp(s.up([x, w, dispatch]), dy, &[x, w])
        })
    };
    [
        sizes.case(op, "forward", forward),
        sizes.case(op, "backward", backward),
    ]
}

fn down(op: &'static str, load: Load, sizes: Sizes) -> [Case; 2] {
    let operands = move |s: Sizes| {
        [
            floats([1, s.assignments(), s.up_width()]),
            floats([s.layout.experts * s.d_model, s.width]),
            floats([s.tokens, s.layout.top_k]),
            dispatch(load, s),
        ]
    };
    let forward = move |s: Sizes| {
        Problem::new(operands(s), move |x| vec![s.down(x)]).with_outputs(OutputRole::Residual)
    };
    // With the output as its own gradient, the forward op is part of the program, as in training, and the
    // activation is fused with both. (In mixed precision this output is in bfloat16, in a model in the type of the
    // residual stream.)
    let backward = move |s: Sizes| {
        Problem::new(operands(s), move |[x, w, weights, dispatch]| {
            let y = s.down([x, w, weights, dispatch]);
            vjp(y, y, &[x, w, weights])
        })
    };
    [
        sizes.case(op, "forward", forward),
        sizes.case(op, "backward", backward),
    ]
}

/// Returns the dispatch of tokens to their experts.
fn dispatch(load: Load, sizes: Sizes) -> Operand {
    let DispatchLayout { experts, top_k } = sizes.layout;
    let expert_of_assignment = |assignment: usize| match load {
        Load::Balanced => assignment % experts,
        Load::Unbalanced if assignment.is_multiple_of(top_k) || experts == 1 => 0,
        Load::Unbalanced => 1 + assignment % (experts - 1),
    };
    let mut dispatch = vec![0; sizes.layout.elements(sizes.tokens)];
    let selected = sizes.layout.selected(dispatch.len());
    for (assignment, expert) in dispatch[selected].iter_mut().enumerate() {
        *expert = expert_of_assignment(assignment) as i32;
    }
    sizes.layout.fill(&mut dispatch);
    given(Type::i32([dispatch.len()]), Tensor::I32(dispatch))
}
