//! Taps and sums of gradients run as soon as their inputs are there, so that these need not live any longer.

use crate::graph::Graph;

/// Moves ops that [run early](crate::ops::Operation::runs_early) right behind the last op that makes one of their
/// inputs.
pub(crate) fn hoist(graph: &mut Graph) {
    let producers = graph.producers();
    // The op behind which each one runs: itself, unless it moves.
    let mut behind: Vec<usize> = (0..graph.nodes.len()).collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        if node.op.rule().runs_early() {
            let made = node.inputs.iter().filter_map(|input| producers[input.0]);
            behind[index] = made.map(|made| behind[made]).max().unwrap_or(index);
        }
    }
    let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
    order.sort_by_key(|&index| (behind[index], index));
    graph.nodes = order
        .iter()
        .map(|&index| graph.nodes[index].clone())
        .collect();
}
