//! Memory plan: offsets of values in one arena, from their lifetimes.

use super::Target;
use super::step::{Region, Storage};
use crate::graph::{Graph, Source, Type, ValueId};

/// Alignment of values: a cache line.
const CACHE_LINE: usize = 64;

/// Memory regions of values and of the scratch memory of ops.
#[derive(Debug, Default)]
pub(crate) struct MemoryLayout {
    /// Region of each value; `None` if the program does not use it.
    pub(crate) regions: Vec<Option<Region>>,
    /// Scratch region of each op that needs one.
    pub(crate) scratch: Vec<Option<Region>>,
    /// For each op and each of its in-place (input, output) pairs, true if the output reuses the region of the input.
    pub(crate) aliased: Vec<Vec<bool>>,
    /// Size of the arena in bytes.
    pub(crate) bytes: usize,
}

/// A block of memory with a lifetime.
#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: usize,
    /// First and last op that need it.
    first: usize,
    last: usize,
    offset: usize,
}

/// Assigns a region to every value of the graph.
pub(crate) fn plan_memory(graph: &Graph, outputs: &[ValueId], target: Target) -> MemoryLayout {
    let mut lifetimes = Lifetimes::new(graph, outputs);
    let mut scratch_blocks = Vec::with_capacity(graph.nodes.len());
    let mut aliased = Vec::with_capacity(graph.nodes.len());
    for at in 0..graph.nodes.len() {
        aliased.push(lifetimes.add_outputs(at));
        scratch_blocks.push(lifetimes.add_scratch(at, target));
    }
    let Lifetimes {
        mut blocks,
        block_of,
        ..
    } = lifetimes;
    let bytes = assign_offsets(&mut blocks);
    let region = |block: usize, bytes: usize| Region {
        storage: Storage::Arena,
        start: blocks[block].offset,
        end: blocks[block].offset.saturating_add(bytes),
    };
    let regions = graph.values.iter().zip(block_of).map(|(value, block)| {
        let bytes = value.ty.bytes();
        let of_state = |storage, offset: usize| {
            let start = offset * value.ty.dtype.bytes();
            Some(Region {
                storage,
                start,
                end: start + bytes,
            })
        };
        match value.source {
            Source::State(buffer, offset) => of_state(Storage::Buffer(buffer), offset),
            Source::RoundedState(buffer, offset) => of_state(Storage::Rounded(buffer), offset),
            _ => block.map(|block| region(block, bytes)),
        }
    });
    MemoryLayout {
        regions: regions.collect(),
        scratch: scratch_blocks
            .iter()
            .map(|found| found.map(|(block, bytes)| region(block, bytes)))
            .collect(),
        aliased,
        bytes,
    }
}

/// Blocks of memory with the ops that need them.
struct Lifetimes<'a> {
    graph: &'a Graph,
    last_use: Vec<Option<usize>>,
    blocks: Vec<Block>,
    /// Block of each value, if it is in the arena.
    block_of: Vec<Option<usize>>,
}

impl<'a> Lifetimes<'a> {
    /// Creates the blocks of inputs.
    fn new(graph: &'a Graph, outputs: &[ValueId]) -> Self {
        let mut lifetimes = Self {
            graph,
            last_use: last_uses(graph, outputs, graph.nodes.len()),
            blocks: Vec::new(),
            block_of: vec![None; graph.values.len()],
        };
        for (index, value) in graph.values.iter().enumerate() {
            if let (Source::Input(_), Some(last)) = (&value.source, lifetimes.last_use[index]) {
                lifetimes.block_of[index] = Some(lifetimes.add(value.ty.bytes(), 0, last));
            }
        }
        lifetimes
    }

    fn add(&mut self, bytes: usize, first: usize, last: usize) -> usize {
        self.blocks.push(Block {
            bytes: bytes
                .checked_next_multiple_of(CACHE_LINE)
                .unwrap_or(usize::MAX),
            first,
            last,
            offset: 0,
        });
        self.blocks.len() - 1
    }

    /// Creates the blocks of an op's outputs. An output computed in place gets the block of its input if nothing else
    /// needs that input; returns this for each in-place pair of the op.
    fn add_outputs(&mut self, at: usize) -> Vec<bool> {
        let (graph, node) = (self.graph, &self.graph.nodes[at]);
        let mut shares = Vec::new();
        for &(input, output) in node.op.operation().in_place() {
            let (from, to) = (node.inputs[input], node.outputs[output]);
            let reads = node.inputs.iter().filter(|id| **id == from).count();
            let is_free = self.last_use[from.0] == Some(at) && reads == 1;
            let block = self.block_of[from.0];
            let block = block.filter(|_| is_free && graph.ty(from) == graph.ty(to));
            if let Some(block) = block {
                self.block_of[to.0] = Some(block);
                let last = self.last_use[to.0].unwrap_or(at);
                self.blocks[block].last = self.blocks[block].last.max(last);
            }
            shares.push(block.is_some());
        }
        for output in &node.outputs {
            if self.block_of[output.0].is_none() {
                let last = self.last_use[output.0].unwrap_or(at);
                let bytes = graph.ty(*output).bytes();
                self.block_of[output.0] = Some(self.add(bytes, at, last));
            }
        }
        shares
    }

    /// Creates the block of an op's scratch memory, if it needs some; returns it with its bytes.
    fn add_scratch(&mut self, at: usize, target: Target) -> Option<(usize, usize)> {
        let node = &self.graph.nodes[at];
        let types = |ids: &[ValueId]| {
            ids.iter()
                .map(|id| self.graph.ty(*id))
                .collect::<Vec<Type>>()
        };
        let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
        let bytes = target.scratch_bytes(node.op.operation(), &inputs, &outputs);
        (bytes > 0).then(|| (self.add(bytes, at, at), bytes))
    }
}

/// Returns the last op that needs each value; the host's reading of outputs counts as op `end`.
fn last_uses(graph: &Graph, outputs: &[ValueId], end: usize) -> Vec<Option<usize>> {
    let mut last = vec![None; graph.values.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            last[input.0] = Some(at);
        }
    }
    for output in outputs {
        last[output.0] = Some(end);
    }
    last
}

/// Assigns an offset to every block so that blocks with overlapping lifetimes do not overlap: largest first, each
/// as low as possible. Returns the total bytes.
fn assign_offsets(blocks: &mut [Block]) -> usize {
    let mut order: Vec<usize> = (0..blocks.len()).filter(|&i| blocks[i].bytes > 0).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), i));
    // Placed blocks, ordered by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut total = 0;
    for index in order {
        let block = blocks[index];
        let mut offset = 0usize;
        for &other in &placed {
            let other = blocks[other];
            if other.first > block.last || block.first > other.last {
                continue;
            }
            if other.offset >= offset.saturating_add(block.bytes) {
                break;
            }
            offset = offset.max(other.offset.saturating_add(other.bytes));
        }
        blocks[index].offset = offset;
        total = total.max(offset.saturating_add(block.bytes));
        let at = placed.partition_point(|&other| blocks[other].offset < offset);
        placed.insert(at, index);
    }
    total
}
