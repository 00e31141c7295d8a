//! The graph node of a fused op: a forward closure that says what to keep, a backward closure that
//! turns it and the output's gradient into the inputs' gradients.

use std::fmt;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn_flex::FlexTensor;

use super::profile::timed;

/// Runs `forward` of the op with that name and, when an input records gradients, registers `backward` with what `forward`
/// kept (its second result).
pub(super) fn node<C, S, const N: usize>(
    op: &'static str,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    forward: impl FnOnce([FlexTensor; N]) -> (FlexTensor, S),
    backward: impl FnOnce(S, FlexTensor) -> [FlexTensor; N] + Send + 'static,
) -> FloatTensor<Autodiff<Flex, C>>
where
    C: CheckpointStrategy,
    S: Clone + Send + 'static,
{
    let mut guards = Vec::with_capacity(N);
    let primitives = inputs.map(|input| {
        let (primitive, guard) = input.into_parts();
        guards.push(guard);
        primitive
    });
    let guards = guards.try_into().expect("one guard per input");
    let prepared = Node {
        op,
        backward,
        kept: std::marker::PhantomData,
    }
    .prepare::<C>(guards)
    .compute_bound()
    .stateful();
    let (output, kept) = timed(op, || forward(primitives));
    match prepared {
        OpsKind::Tracked(prepared) => prepared.finish(Kept(kept), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

struct Node<F, S> {
    op: &'static str,
    backward: F,
    kept: std::marker::PhantomData<fn(S)>,
}

impl<F, S> fmt::Debug for Node<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op)
    }
}

/// What an op keeps from forward to backward.
#[derive(Clone)]
struct Kept<S>(S);

impl<S> fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kept tensors")
    }
}

impl<F, S, const N: usize> Backward<Flex, N> for Node<F, S>
where
    F: FnOnce(S, FlexTensor) -> [FlexTensor; N] + Send + 'static,
    S: Clone + Send + 'static,
{
    type State = Kept<S>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let dy = grads.consume::<Flex>(&ops.node);
        let gradients = timed(self.op, || (self.backward)(ops.state.0, dy));
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}
