//! From a graph to a program: the order of its ops and a place in memory for every value.
//!
//! All values of a run lie in one arena. A value occupies its place from the op that makes it to the last
//! one that reads it; values whose times do not meet share places. So the memory of a program is known
//! exactly before it runs.

mod arena;
mod recompute;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::graph::{Graph, Node, Source, Type, ValueId};
use crate::passes;
use crate::threads;
pub(crate) use step::{Operand, Region, Step, Storage};

/// Settings of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// True if neighbouring ops become one kernel where there is such.
    pub fuse: bool,
    /// Recomputation (activation checkpointing) in the backward pass.
    pub recompute: Recompute,
}

/// Which activations the backward pass recomputes (activation checkpointing, Chen et al. 2016, arXiv
/// 1604.06174). The results have the same bits in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Recompute {
    /// None but those that are cheap.
    #[default]
    None,
    /// All within a segment of the forward pass, a block of a model: only what enters it is saved.
    Block,
    /// Those of as few segments as keep the arena within so many bytes, the first ones; where no number does,
    /// of as many as need the least.
    Budget(u64),
}

/// Programs that are planned before a budget that cannot be met is given up.
const MOST_TRIED: usize = 16;

impl Default for Options {
    fn default() -> Self {
        Self {
            fuse: true,
            recompute: Recompute::None,
        }
    }
}

/// Ops in order with places for what they read and write, for an [`Executor`](crate::exec::Executor).
#[derive(Debug)]
pub struct Program {
    graph: Graph,
    steps: Vec<Step>,
    places: Vec<Option<Region>>,
    arena_bytes: usize,
    inputs: Vec<(Arc<str>, ValueId)>,
    outputs: Vec<ValueId>,
}

impl Program {
    /// Plans a graph whose `outputs` the host reads after a run. What they do not need is left out.
    pub fn new(mut graph: Graph, outputs: &[ValueId], options: Options) -> Self {
        passes::remove_unused(&mut graph, outputs);
        passes::narrow(&mut graph, outputs);
        let segments = graph.nodes.iter().filter_map(|node| node.segment).max();
        let segments = segments.map_or(0, |last| last + 1);
        let first = |count: usize| {
            let mut graph = graph.clone();
            passes::recompute(&mut graph, count);
            Self::of(graph, outputs, options.fuse)
        };
        match options.recompute {
            Recompute::None => Self::of(graph, outputs, options.fuse),
            Recompute::Block => first(segments),
            Recompute::Budget(bytes) => {
                // The fewest that fit, by halving, as if more recomputation always needed less memory. Where
                // gradients outweigh activations it need not: then the least of some numbers.
                let fits = |program: &Self| program.arena_bytes as u64 <= bytes;
                let counts: Vec<usize> = (0..=segments).collect();
                let count = counts.partition_point(|&count| !fits(&first(count)));
                let found = first(count.min(segments));
                if fits(&found) {
                    return found;
                }
                let some = (0..segments).step_by(segments.div_ceil(MOST_TRIED).max(1));
                let all = some.map(first).chain([found]);
                all.min_by_key(|program| program.arena_bytes)
                    .expect("the program that was found first")
            }
        }
    }

    fn of(mut graph: Graph, outputs: &[ValueId], fuse: bool) -> Self {
        passes::remove_unused(&mut graph, outputs);
        if fuse {
            passes::fuse(&mut graph, outputs);
        }
        passes::hoist(&mut graph);
        let layout = arena::lay_out(&graph, outputs);
        let steps = (0..graph.nodes.len())
            .map(|index| Step::new(&graph, index, &layout))
            .collect();
        let inputs = graph.values.iter().enumerate();
        let inputs = inputs.filter_map(|(index, value)| match &value.source {
            Source::Input(name) if layout.places[index].is_some() => {
                Some((name.clone(), ValueId(index)))
            }
            _ => None,
        });
        Self {
            steps,
            arena_bytes: layout.bytes,
            inputs: inputs.collect(),
            places: layout.places,
            outputs: outputs.to_vec(),
            graph,
        }
    }

    /// The ops and the values between them, as they run.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Bytes of all values of a run, the executor's state not counted.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes that the kernels allocate at most beyond that while a run is at one of its ops, on as many threads
    /// as compute here.
    pub fn workspace_bytes(&self) -> usize {
        let of = |node: &Node| {
            let types: Vec<Type> = node.inputs.iter().map(|id| self.graph.ty(*id)).collect();
            node.op.rule().workspace(&types, threads::count())
        };
        self.graph.nodes.iter().map(of).max().unwrap_or(0)
    }

    /// The values that the host gives before a run, by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, ValueId)> {
        self.inputs.iter().map(|(name, id)| (&**name, *id))
    }

    /// The values that the host may read after a run.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Type of a value.
    pub fn ty(&self, id: ValueId) -> Type {
        self.graph.ty(id)
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Place of a value; `None` if no op of the program makes or reads it.
    pub(crate) fn place(&self, id: ValueId) -> Option<Region> {
        self.places[id.0]
    }
}
