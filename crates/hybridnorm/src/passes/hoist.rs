//! Taps and sums of gradients run as soon as what they read is there, so that it need not live any longer.

use crate::graph::Graph;

/// Moves ops that [run early](crate::ops::Operation::runs_early) right behind what makes their inputs.
pub(crate) fn hoist(graph: &mut Graph) {
    let producers = graph.producers();
    let mut behind: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        let made = node
            .inputs
            .iter()
            .filter_map(|input| producers[input.0])
            .max();
        if let Some(made) = made.filter(|_| node.op.rule().runs_early()) {
            behind[made].push(index);
        }
    }
    let old = std::mem::take(&mut graph.nodes);
    let moved: Vec<bool> = {
        let mut moved = vec![false; old.len()];
        behind
            .iter()
            .flatten()
            .for_each(|&index| moved[index] = true);
        moved
    };
    for (index, node) in old.iter().enumerate() {
        if moved[index] {
            continue;
        }
        graph.nodes.push(node.clone());
        graph
            .nodes
            .extend(behind[index].iter().map(|&tap| old[tap].clone()));
    }
}
