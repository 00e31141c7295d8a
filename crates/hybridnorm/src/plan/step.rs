//! One op of a program with the memory regions of its operands.

use super::arena::MemoryLayout;
use crate::graph::{Buffer, DType, Graph};

/// Memory that outlives an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Storage {
    /// The arena of a run.
    Arena,
    /// State of the executor.
    Buffer(Buffer),
    /// Copy of state, rounded to bfloat16.
    Rounded(Buffer),
}

/// A range of bytes in a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Region {
    pub(crate) storage: Storage,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Operand of an op: a region of memory and the type of the value in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) region: usize,
    pub(crate) dtype: DType,
}

/// An op with the disjoint regions that it accesses.
#[derive(Debug)]
pub(crate) struct Step {
    /// By storage and offset; true for those that are written.
    pub(crate) regions: Vec<(Region, bool)>,
    /// Inputs in order; `None` for those computed in place.
    pub(crate) reads: Vec<Option<Operand>>,
    /// Outputs, updated inputs, scratch.
    pub(crate) writes: Vec<Operand>,
    /// Regions to be copied to another one first: from, to.
    pub(crate) copies: Vec<(usize, usize)>,
}

impl Step {
    /// Collects the regions of op `index` of a graph.
    ///
    /// # Panics
    /// If its regions overlap without being equal, which is a defect of the plan.
    pub(crate) fn new(graph: &Graph, index: usize, layout: &MemoryLayout) -> Self {
        let node = &graph.nodes[index];
        let operation = node.op.operation();
        let region =
            |id: crate::graph::ValueId| layout.regions[id.0].expect("every operand has a region");
        let updates = operation.state_inputs(node.inputs.len());
        let pairs = operation.in_place().iter().zip(&layout.aliased[index]);
        let in_place: Vec<(usize, usize, bool)> =
            pairs.map(|(&(i, o), &aliased)| (i, o, aliased)).collect();
        let is_in_place = |input: usize| in_place.iter().any(|&(i, ..)| i == input);

        let written: Vec<(Region, DType)> = node
            .outputs
            .iter()
            .chain(&node.inputs[updates.clone()])
            .map(|&id| (region(id), graph.ty(id).dtype))
            .chain(layout.scratch[index].map(|region| (region, DType::F32)))
            .collect();
        let copied: Vec<(Region, Region)> = in_place
            .iter()
            .filter(|(.., aliased)| !aliased)
            .map(|&(i, o, _)| (region(node.inputs[i]), region(node.outputs[o])))
            .collect();
        let read: Vec<Option<(Region, DType)>> = node
            .inputs
            .iter()
            .enumerate()
            .map(|(i, &id)| {
                let elsewhere = updates.contains(&i) || is_in_place(i);
                (!elsewhere).then(|| (region(id), graph.ty(id).dtype))
            })
            .collect();

        let sources = copied.iter().map(|&(from, _)| from);
        let reads = read.iter().flatten().map(|&(region, _)| region);
        let written_regions = written.iter().map(|&(region, _)| region);
        let regions = disjoint_regions(operation.name(), written_regions, sources.chain(reads));
        // An optimizer op has thousands of regions.
        let find = |region: Region| {
            let found = regions.binary_search_by_key(&region, |&(other, _)| other);
            found.unwrap_or(Self::EMPTY)
        };
        let operand = |(region, dtype): (Region, DType)| Operand {
            region: find(region),
            dtype,
        };
        Self {
            reads: read.into_iter().map(|found| found.map(operand)).collect(),
            writes: written.into_iter().map(operand).collect(),
            copies: copied
                .into_iter()
                .map(|(from, to)| (find(from), find(to)))
                .filter(|&(from, _)| from != Self::EMPTY)
                .collect(),
            regions,
        }
    }

    /// Region index of operands without elements.
    pub(crate) const EMPTY: usize = usize::MAX;
}

/// Returns written and read regions in order; true for those that are written.
fn disjoint_regions(
    name: &str,
    written: impl Iterator<Item = Region>,
    read: impl Iterator<Item = Region>,
) -> Vec<(Region, bool)> {
    let written = written.map(|region| (region, true));
    let read = read.map(|region| (region, false));
    let mut regions: Vec<(Region, bool)> = written.chain(read).collect();
    regions.retain(|(region, _)| region.start < region.end);
    regions.sort();
    regions.dedup();
    for pair in regions.windows(2) {
        let [(a, _), (b, _)] = pair else { continue };
        let is_disjoint = a.storage != b.storage || a.end <= b.start;
        assert!(is_disjoint, "{name}: operands {a:?} and {b:?} overlap");
    }
    regions
}
