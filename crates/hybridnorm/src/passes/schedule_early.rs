//! Early scheduling: taps and gradient accumulation run as soon as their inputs are available, which shortens the
//! lifetimes of the inputs.

use crate::graph::Graph;

/// Moves ops that are [scheduled early](crate::ops::Operation::is_scheduled_early) right after the last op that
/// computes one of their inputs.
pub(crate) fn schedule_early(graph: &mut Graph) {
    let producers = graph.producers();
    // The op after which each one runs: itself, unless it moves.
    let mut runs_after: Vec<usize> = (0..graph.nodes.len()).collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        if node.op.operation().is_scheduled_early() {
            let made = node.inputs.iter().filter_map(|input| producers[input.0]);
            runs_after[index] = made.map(|made| runs_after[made]).max().unwrap_or(index);
        }
    }
    let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
    order.sort_by_key(|&index| (runs_after[index], index));
    graph.nodes = order
        .iter()
        .map(|&index| graph.nodes[index].clone())
        .collect();
}
