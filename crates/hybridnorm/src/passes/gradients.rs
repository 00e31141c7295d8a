//! Reverse-mode differentiation: the gradients of a value as further ops of its graph.

use crate::graph::{Graph, Value, ValueId};
use crate::ops::{BackwardContext, fill};

/// Records the gradients of the single element of `output` with respect to `sources`; `None` for sources that it does
/// not depend on.
///
/// The order of every sum is determined by the graph: gradients of a value that several ops read are added
/// in the reverse order of these ops.
///
/// # Panics
/// If `output` does not have exactly one element, or depends on `sources` through an op that has no vector-Jacobian
/// product.
pub fn gradients<'g>(output: Value<'g>, sources: &[Value<'g>]) -> Vec<Option<Value<'g>>> {
    assert_eq!(
        output.shape().elements(),
        1,
        "gradients: `output` must have one element"
    );
    vector_jacobian_product(output, fill(output.builder(), 1.0, output.ty()), sources)
}

/// Records the product of the vector `seed` and the Jacobian of `output` with respect to `sources`.
///
/// # Panics
/// As [`gradients`].
pub fn vector_jacobian_product<'g>(
    output: Value<'g>,
    seed: Value<'g>,
    sources: &[Value<'g>],
) -> Vec<Option<Value<'g>>> {
    let builder = output.builder();
    let graph = builder.snapshot();
    let needs_gradient = depending_on(&graph, sources);
    let mut gradients: Vec<Option<Value<'g>>> = vec![None; graph.values.len()];
    gradients[output.id().0] = Some(seed);
    for node in graph.nodes.iter().rev() {
        let of_outputs: Vec<_> = node.outputs.iter().map(|id| gradients[id.0]).collect();
        let is_wanted = node.inputs.iter().any(|id| needs_gradient[id.0]);
        if !is_wanted || of_outputs.iter().all(Option::is_none) {
            continue;
        }
        let values = |ids: &[ValueId]| ids.iter().map(|&id| builder.value(id)).collect();
        let at = BackwardContext::new(
            builder,
            values(&node.inputs),
            values(&node.outputs),
            of_outputs,
            node.inputs.iter().map(|id| needs_gradient[id.0]).collect(),
        );
        let of_inputs = builder
            .backward(|| builder.named_scope(&node.path, || node.op.operation().backward(&at)));
        for (input, gradient) in node.inputs.iter().zip(of_inputs) {
            let Some(gradient) = gradient.filter(|_| needs_gradient[input.0]) else {
                continue;
            };
            let sum = &mut gradients[input.0];
            *sum = Some(match *sum {
                Some(sum) => {
                    builder.backward(|| builder.named_scope(&node.path, || sum + gradient))
                }
                None => gradient,
            });
        }
    }
    sources
        .iter()
        .map(|value| gradients[value.id().0])
        .collect()
}

/// True for every value that depends on one of `sources`.
fn depending_on(graph: &Graph, sources: &[Value<'_>]) -> Vec<bool> {
    let mut depends = vec![false; graph.values.len()];
    for source in sources {
        depends[source.id().0] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().any(|input| depends[input.0]) {
            for output in &node.outputs {
                depends[output.0] = true;
            }
        }
    }
    depends
}
