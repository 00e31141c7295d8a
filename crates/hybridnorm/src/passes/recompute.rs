//! Activation checkpointing: segments of the forward pass are recomputed in the backward pass, so that their
//! activations need not be saved (Chen et al. 2016, arXiv 1604.06174).

use std::collections::HashMap;

use crate::graph::{Graph, Node, Source, ValueId};

/// Makes the backward pass recompute activations of the first `segments` segments from the inputs of each. The
/// copies are bit-identical, since they are the same ops on the same values.
pub(crate) fn recompute(graph: &mut Graph, segments: usize) {
    let producers = graph.producers();
    let saved = saved(graph, segments, &producers);
    let old = std::mem::take(&mut graph.nodes);
    let mut pass = Pass {
        graph,
        old: &old,
        producers,
        saved,
        copies: HashMap::new(),
    };
    for node in &old {
        let mut node = node.clone();
        if node.is_backward {
            for input in &mut node.inputs {
                *input = pass.recomputed(*input);
            }
        }
        pass.graph.nodes.push(node);
    }
}

/// True for every saved value: those computed in no segment, and those read outside the segment that computes them.
fn saved(graph: &Graph, segments: usize, producers: &[Option<usize>]) -> Vec<bool> {
    let segment = |node: &Node| node.segment.filter(|&segment| segment < segments);
    let mut saved: Vec<bool> = producers
        .iter()
        .map(|made| made.is_none_or(|at| segment(&graph.nodes[at]).is_none()))
        .collect();
    // Taps run in the forward pass, wherever they were recorded.
    let stays = |node: &&Node| !node.is_backward && !node.op.operation().is_scheduled_early();
    for node in graph.nodes.iter().filter(stays) {
        for input in &node.inputs {
            let made = producers[input.0].map(|at| &graph.nodes[at]);
            if made.is_some_and(|made| made.segment != node.segment) {
                saved[input.0] = true;
            }
        }
    }
    saved
}

struct Pass<'a> {
    graph: &'a mut Graph,
    old: &'a [Node],
    producers: Vec<Option<usize>>,
    saved: Vec<bool>,
    copies: HashMap<ValueId, ValueId>,
}

impl Pass<'_> {
    /// Returns the value that the backward pass reads instead of `id`; records its recomputation if that was
    /// not done yet.
    fn recomputed(&mut self, id: ValueId) -> ValueId {
        // Outputs of recorded copies are not recomputed.
        let Some(Some(at)) = self.producers.get(id.0).copied() else {
            return id;
        };
        if self.saved[id.0] || self.old[at].is_backward {
            return id;
        }
        if let Some(copy) = self.copies.get(&id) {
            return *copy;
        }
        let node = &self.old[at];
        let inputs = node
            .inputs
            .iter()
            .map(|&input| self.recomputed(input))
            .collect();
        let outputs: Vec<ValueId> = node
            .outputs
            .iter()
            .map(|output| {
                let copy = self
                    .graph
                    .add_value(self.graph.ty(*output), Source::Computed);
                self.copies.insert(*output, copy);
                copy
            })
            .collect();
        self.graph.nodes.push(Node {
            inputs,
            outputs: outputs.clone(),
            is_backward: true,
            ..node.clone()
        });
        self.copies[&id]
    }
}
