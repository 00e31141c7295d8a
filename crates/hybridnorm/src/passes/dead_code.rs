//! Dead-code elimination.

use crate::graph::{Graph, ValueId};

/// Removes ops that update no state and whose outputs are not needed for `outputs`, directly or indirectly.
pub(crate) fn remove_unused(graph: &mut Graph, outputs: &[ValueId]) {
    let mut needed = vec![false; graph.values.len()];
    for output in outputs {
        needed[output.0] = true;
    }
    let mut keep = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let changes_state = !node
            .op
            .operation()
            .state_inputs(node.inputs.len())
            .is_empty();
        keep[index] = changes_state || node.outputs.iter().any(|output| needed[output.0]);
        if keep[index] {
            for input in &node.inputs {
                needed[input.0] = true;
            }
        }
    }
    let mut kept = keep.into_iter();
    graph.nodes.retain(|_| kept.next().unwrap_or(false));
}
