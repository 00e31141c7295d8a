//! Planning of programs: order of a graph's ops, and a memory region for every value.
//!
//! All values of a run are in one arena. A value occupies its region from the op that computes it to the last
//! one that reads it; values with disjoint lifetimes share memory. The memory of a program is thus known exactly
//! before it runs.

mod arena;
mod recompute;
mod state;
mod step;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use derive_setters::Setters;
use hybridnorm_kernels::matmul;

use crate::error::{Error, Result};
use crate::graph::{Buffer, DType, Graph, Node, Source, Type, ValueId};
use crate::ops::{Operation, device};
use crate::passes;
use crate::threads;
pub(crate) use state::RoundedRange;
use state::StateAccess;
pub(crate) use step::{Operand, Region, Step, Storage};

/// Options of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Setters)]
#[setters(prefix = "with_")]
#[non_exhaustive]
pub struct Options {
    /// True if neighbouring ops are fused where a kernel for them exists.
    pub fuse: bool,
    /// Recomputation (activation checkpointing) in the backward pass.
    pub recompute: Recompute,
    /// Precision of activations and matmuls.
    pub precision: Precision,
    /// True if the executor keeps copies of the weights of matmuls that are rounded to their precision: half of the memory
    /// of single-precision parameters again, and half of the bytes to read per use. Without effect in single precision.
    pub keep_rounded_weights: bool,
    /// Where the program runs.
    pub target: Target,
}

/// Kind of executor that a program is planned for: it decides the scratch memory of ops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// [`Cpu`](crate::exec::Cpu).
    #[default]
    Cpu,
    /// [`OnDevice`](crate::exec::OnDevice).
    Device,
}

impl Target {
    /// Returns the bytes of scratch memory of an op; of one that the target cannot compute, 0.
    fn scratch_bytes(self, op: &dyn Operation, inputs: &[Type], outputs: &[Type]) -> usize {
        match self {
            Self::Cpu => op.scratch(inputs).saturating_mul(DType::F32.bytes()),
            Self::Device => device::scratch_bytes(op, inputs, outputs).unwrap_or(0),
        }
    }
}

/// Precision of a program: element types of activations, and of the operands of matmuls. Parameters and their
/// gradients are in single precision in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Mixed precision: matmuls of bfloat16 operands with sums in single precision, and activations in bfloat16 where
    /// the policy of the program allows it.
    Bf16 {
        /// Element type of the residual stream and its gradient, [`DType::F32`] or [`DType::Bf16`].
        residual: DType,
    },
}

impl Precision {
    /// Returns the unit of this machine that computes its matmuls, such as `AVX-512 BF16`.
    pub fn matmul_unit(self) -> &'static str {
        matmul::unit_name(match self {
            Self::F32 => matmul::Precision::F32,
            Self::Bf16 { .. } => matmul::Precision::Bf16,
        })
    }

    /// Returns the unit of this machine on which results depend: that of matmuls in bfloat16.
    pub(crate) fn bf16_unit(self) -> Option<String> {
        match self {
            Self::F32 => None,
            Self::Bf16 { .. } => Some(self.matmul_unit().to_owned()),
        }
    }
}

/// Formats a precision for a reader: `f32`, or `bf16, residual stream in f32`.
impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => write!(f, "f32"),
            Self::Bf16 { residual } => write!(f, "bf16, residual stream in {residual}"),
        }
    }
}

/// Activations that the backward pass recomputes (activation checkpointing, Chen et al. 2016, arXiv
/// 1604.06174). Results are bit-identical in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recompute {
    /// Only cheap ones.
    #[default]
    None,
    /// All within a segment of the forward pass, a block of a model: only its inputs are saved.
    Block,
    /// Those of the first n segments, with the smallest n found for which the arena fits into this many bytes; if none
    /// fits, the n with the smallest arena.
    Budget(u64),
}

/// Maximum number of segment counts that are sampled if bisection finds none within the budget.
const MAX_TRIED_COUNTS: usize = 16;

impl Default for Options {
    fn default() -> Self {
        Self {
            fuse: true,
            recompute: Recompute::None,
            precision: Precision::F32,
            keep_rounded_weights: false,
            target: Target::Cpu,
        }
    }
}

/// Ops in order with the memory regions of their operands, for an [`Executor`](crate::exec::Executor).
///
/// ```
/// use hybridnorm::graph::{Builder, Type};
/// use hybridnorm::ops;
/// use hybridnorm::plan::{Options, Program};
///
/// let g = Builder::new();
/// let x = g.input("x", Type::f32([4, 16]));
/// let w = g.input("w", Type::f32([8, 16]));
/// let y = ops::linear(x, w);
/// let _unused = ops::scale(y, 2.0);
/// let output = y.id();
///
/// let program = Program::new(g.finish(), &[output], Options::default());
/// let names: Vec<&str> = program.inputs().map(|(name, _)| name).collect();
/// assert_eq!(names, ["x", "w"]);
/// assert_eq!(program.graph().nodes().len(), 1, "without the op that nothing reads");
/// // x, w and y in single precision; each is aligned to a cache line.
/// assert!(program.arena_bytes() >= 4 * (4 * 16 + 8 * 16 + 4 * 8));
/// ```
#[derive(Debug)]
pub struct Program {
    id: ProgramId,
    graph: Graph,
    steps: Vec<Step>,
    regions: Vec<Option<Region>>,
    arena_bytes: usize,
    inputs: Vec<(Arc<str>, ValueId)>,
    outputs: Vec<ValueId>,
    has_bf16_residual: bool,
    rounded: Vec<RoundedRange>,
    updated: Vec<Buffer>,
    updated_copies: Vec<RoundedRange>,
}

/// Identity of a program: no other one has the same while it is held.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProgramId(Arc<()>);

impl PartialEq for ProgramId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Program {
    /// Plans a graph whose `outputs` the host reads after a run. Ops that they do not need are removed.
    pub fn new(graph: Graph, outputs: &[ValueId], options: Options) -> Self {
        Self::with_copies(graph, outputs, options, &[])
    }

    /// Plans a graph as [`Program::new`] does, whose updates also write these rounded copies, which other programs read.
    pub(crate) fn with_copies(
        mut graph: Graph,
        outputs: &[ValueId],
        options: Options,
        copies: &[RoundedRange],
    ) -> Self {
        passes::remove_unused(&mut graph, outputs);
        passes::narrow(&mut graph, outputs);
        passes::precision(&mut graph, outputs, options.precision);
        if options.keep_rounded_weights {
            passes::rounded_weights(&mut graph);
            let mut copied = passes::rounded_copies(&graph);
            copied.extend(copies.iter().map(RoundedRange::state));
            passes::update_rounded_weights(&mut graph, &copied);
        }
        let segments = graph.nodes.iter().filter_map(|node| node.segment).max();
        let segments = segments.map_or(0, |last| last + 1);
        let recompute_first = |count: usize| {
            let mut graph = graph.clone();
            passes::recompute(&mut graph, count);
            Self::from_graph(graph, outputs, options)
        };
        match options.recompute {
            Recompute::None => Self::from_graph(graph, outputs, options),
            Recompute::Block => recompute_first(segments),
            Recompute::Budget(bytes) => {
                // Bisects for the fewest that fit, as if more recomputation always needed less memory. If gradients
                // outweigh activations this may not hold: then takes the minimum over a sample of numbers.
                let fits = |program: &Self| program.arena_bytes as u64 <= bytes;
                let counts: Vec<usize> = (0..=segments).collect();
                let count = counts.partition_point(|&count| !fits(&recompute_first(count)));
                let found = recompute_first(count.min(segments));
                if fits(&found) {
                    return found;
                }
                let some = (0..segments).step_by(segments.div_ceil(MAX_TRIED_COUNTS).max(1));
                let all = some.map(recompute_first).chain([found]);
                all.min_by_key(|program| program.arena_bytes)
                    .expect("the program that was found first")
            }
        }
    }

    fn from_graph(mut graph: Graph, outputs: &[ValueId], options: Options) -> Self {
        passes::remove_unused(&mut graph, outputs);
        let has_bf16_residual = passes::has_bf16_residual(&graph);
        if options.fuse {
            passes::fuse(&mut graph, outputs);
        }
        passes::schedule_early(&mut graph);
        let layout = arena::plan_memory(&graph, outputs, options.target);
        let steps = (0..graph.nodes.len()).map(|index| Step::new(&graph, index, &layout));
        let steps: Vec<Step> = steps.collect();
        let state = StateAccess::of(&steps);
        let inputs = graph.values.iter().enumerate();
        let inputs = inputs.filter_map(|(index, value)| match &value.source {
            Source::Input(name) if layout.regions[index].is_some() => {
                Some((name.clone(), ValueId(index)))
            }
            _ => None,
        });
        Self {
            id: ProgramId::default(),
            steps,
            arena_bytes: layout.bytes,
            inputs: inputs.collect(),
            regions: layout.regions,
            outputs: outputs.to_vec(),
            has_bf16_residual,
            rounded: state.rounded.into_iter().collect(),
            updated: state.updated.into_iter().collect(),
            updated_copies: state.updated_copies.into_iter().collect(),
            graph,
        }
    }

    pub(crate) fn id(&self) -> &ProgramId {
        &self.id
    }

    /// Returns the ops in execution order, and the values between them.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the size of the arena in bytes: values and scratch memory of a run, with reuse, without the executor's
    /// buffers.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Returns the maximum number of bytes that the kernel of one op allocates in addition to the arena, for the
    /// current number of threads.
    pub fn workspace_bytes(&self) -> usize {
        let of = |node: &Node| {
            let types: Vec<Type> = node.inputs.iter().map(|id| self.graph.ty(*id)).collect();
            node.op.operation().workspace(&types, threads::count())
        };
        self.graph.nodes.iter().map(of).max().unwrap_or(0)
    }

    /// Returns the values that the host provides before a run, by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, ValueId)> {
        self.inputs.iter().map(|(name, id)| (&**name, *id))
    }

    /// Returns the values that the host may read after a run.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Returns the type of a value.
    pub fn ty(&self, id: ValueId) -> Type {
        self.graph.ty(id)
    }

    /// Checks that a residual stream in bfloat16 is not stored in single precision for the most part, because ops that read
    /// it have no bfloat16 kernels.
    ///
    /// # Errors
    /// If `precision` asks for it without effect.
    pub(crate) fn check_residual(&self, precision: Precision) -> Result<()> {
        match precision {
            Precision::Bf16 {
                residual: DType::Bf16,
            } if !self.has_bf16_residual => Err(Error::conflict(
                ["train.residual_precision", "model.placement"],
                "a residual stream in bf16 has no effect on this model: ops that read all or most of it, such as biases \
                 and learned scales, have f32 kernels only; leave out residual_precision",
            )),
            _ => Ok(()),
        }
    }

    /// Returns the parts of [rounded](Source::RoundedState) copies that the program reads or updates.
    pub(crate) fn rounded_ranges(&self) -> &[RoundedRange] {
        &self.rounded
    }

    /// Returns the copies that are still those of the elements after a run; of buffers that the program writes, no others
    /// are.
    pub(crate) fn updated_copies(&self) -> &[RoundedRange] {
        &self.updated_copies
    }

    /// Returns the buffers that the program writes.
    pub(crate) fn updated_buffers(&self) -> &[Buffer] {
        &self.updated
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Returns the region of a value; `None` if no op of the program computes or reads it.
    pub(crate) fn region(&self, id: ValueId) -> Option<Region> {
        self.regions[id.0]
    }
}
