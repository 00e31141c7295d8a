//! The ops of models: a closed set, one file for an op and its gradients.
//!
//! A file contains the op's fields, the function that records it, its shape rule, its vector-Jacobian
//! product (which records ops), a plain reference in double precision, and the call of the CPU kernel.
//! A new op needs its file, its variant and the name of its builder below, and its kernel (docs/contributing.md).
//!
//! Shape suffixes: b batch, t position, n rows (all sizes but the last), d width, h query heads, g
//! key/value heads, k head width (in the ops of experts: experts per token), f feed-forward width, v vocabulary, p
//! parameters of a norm, e experts, m = n · top_k slots (token-expert pairs).

pub(crate) mod device;
mod experts;
mod io;
mod reference_math;
#[cfg(test)]
mod stateful;
#[cfg(test)]
mod testing;

use std::ops::Range;

use crate::graph::{Builder, Type, Value};
pub use device::DeviceOperands;
pub use io::{Arguments, InputOperand, Operands, OutputOperand};
pub(crate) use reference_math::round_to_bf16;

/// Interface of an op.
pub trait Operation: std::fmt::Debug + Send + Sync {
    /// Returns its name in profiles (a key of `hybridnorm bench step --json`) and errors.
    fn name(&self) -> &'static str;

    /// Returns the types of its outputs.
    ///
    /// # Panics
    /// If the types of the inputs are invalid.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type>;

    /// Records the gradients of its inputs, `None` for those that have none.
    ///
    /// # Panics
    /// If it is not differentiable: a gradient op, or inference-only.
    fn backward<'g>(&self, _at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        panic!("{} is not differentiable", self.name())
    }

    /// Computes the op in double precision, in plain loops.
    fn reference(&self, io: &mut Operands<'_, f64>);

    /// Computes the op with the CPU kernel.
    fn cpu(&self, io: &mut Operands<'_, f32>);

    /// Records the commands that compute the op on a device.
    ///
    /// # Errors
    /// If a device cannot compute it: what is missing, as the rest of a sentence that begins with its name.
    fn device(&self, io: &mut DeviceOperands) -> Result<(), String>;

    /// Returns the number of single-precision scratch elements of the CPU kernel.
    fn scratch(&self, _inputs: &[Type]) -> usize {
        0
    }

    /// Returns the maximum bytes that the CPU kernel allocates while it runs on this many threads: packed blocks of
    /// matrices, and buffers per thread.
    fn workspace(&self, _inputs: &[Type], _threads: usize) -> usize {
        0
    }

    /// Returns pairs (input, output) that share memory: the output buffer is initialized with the input (in place if
    /// the input is not used afterwards, else a copy), and the kernel does not read the input separately.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Returns the inputs that it updates, which are state of the executor.
    fn state_inputs(&self, _inputs: usize) -> Range<usize> {
        0..0
    }

    /// True if it is scheduled as soon as its inputs are available, wherever it was recorded: a reduction for the host,
    /// or an addition to state that no other op of the program reads.
    fn is_scheduled_early(&self) -> bool {
        false
    }

    /// Returns the inputs (b, t, ..) that are processed position by position: position (b, t) of every output depends
    /// only on theirs, and on the other inputs (parameters). Empty if the op mixes positions.
    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..0
    }

    /// Returns the FLOPs of its matmuls.
    fn flops(&self, _inputs: &[Type]) -> u64 {
        0
    }
}

/// Context of a backward call: graph, inputs, outputs and output gradients of an op of the forward pass.
pub struct BackwardContext<'g> {
    graph: &'g Builder,
    inputs: Vec<Value<'g>>,
    outputs: Vec<Value<'g>>,
    gradients: Vec<Option<Value<'g>>>,
    needs_gradient: Vec<bool>,
}

impl<'g> BackwardContext<'g> {
    pub(crate) fn new(
        graph: &'g Builder,
        inputs: Vec<Value<'g>>,
        outputs: Vec<Value<'g>>,
        gradients: Vec<Option<Value<'g>>>,
        needs_gradient: Vec<bool>,
    ) -> Self {
        Self {
            graph,
            inputs,
            outputs,
            gradients,
            needs_gradient,
        }
    }

    /// Returns the graph that gradients are recorded in.
    pub fn graph(&self) -> &'g Builder {
        self.graph
    }

    /// Returns an input.
    pub fn input(&self, index: usize) -> Value<'g> {
        self.inputs[index]
    }

    /// Returns all inputs.
    pub fn inputs(&self) -> &[Value<'g>] {
        &self.inputs
    }

    /// Returns an output.
    pub fn output(&self, index: usize) -> Value<'g> {
        self.outputs[index]
    }

    /// Returns the gradient of the first output, the only one that has one.
    ///
    /// # Panics
    /// If there is none: then the op is not part of the backward pass.
    pub fn gradient(&self) -> Value<'g> {
        self.gradients[0].expect("a gradient of the output")
    }

    /// Returns the gradient of an output, if anything depends on it.
    pub fn gradient_of(&self, index: usize) -> Option<Value<'g>> {
        self.gradients[index]
    }

    /// True if the gradient of this input is needed.
    pub fn needs_gradient(&self, index: usize) -> bool {
        self.needs_gradient[index]
    }
}

/// Declares the closed set of ops.
macro_rules! ops {
    ($($file:ident: $($variant:ident),+;)+) => {
        $(mod $file;)+

        /// A differentiable op, or an op of an optimizer.
        #[derive(Debug, Clone)]
        #[allow(missing_docs)] // each is documented in its file
        pub enum Op {
            $($($variant($file::$variant),)+)+
        }

        impl Op {
            /// Returns the op's interface.
            pub fn operation(&self) -> &dyn Operation {
                match self {
                    $($(Self::$variant(op) => op,)+)+
                }
            }
        }

        $($(
            impl From<$file::$variant> for Op {
                fn from(op: $file::$variant) -> Self {
                    Self::$variant(op)
                }
            }

            pub use $file::$variant;
        )+)+
    };
}

ops! {
    accumulate: Accumulate;
    activation: Activation, ActivationGrad;
    adamw: AdamWUpdate;
    add: Add;
    attention: Attention, AttentionGrad, QkvAttention, QkvAttentionGrad;
    bias: AddBias, BiasGrad;
    cache: CacheAppend, CachedAttention;
    columns: Split, Concat, ScaleColumns, ScaleColumnsGrad;
    cross_entropy: CrossEntropy, CrossEntropyGrad, LinearCrossEntropy, LinearCrossEntropyGrad;
    dispatch: TopKDispatch;
    elementwise: Clamp, ClampGrad, Softcap, SoftcapGrad, Reciprocal, ReciprocalGrad;
    embedding: Embedding, EmbeddingGrad, EmbeddingGradAdd;
    expert_down: ExpertDown, ExpertDownGrad;
    expert_up: ExpertUp, ExpertUpGrad;
    gradient_norm: SquaredNorms;
    last_position: LastPosition, LastPositionGrad;
    latent: LatentHeads, LatentHeadsGrad;
    latent_decode: AbsorbQueries, LatentAttention, ProjectLatentContext;
    linear: Linear, LinearInputGrad, LinearWeightGrad, LinearGrad;
    tensor_stats: TensorStats;
    muon: Muon;
    norm: Norm, NormGrad, AddNorm, NormGradAdd;
    positions: Positions;
    qkv: QkvTransform, QkvTransformGrad;
    rotate: Rotate;
    rope_table: RopeTable;
    router: GateWeights, GateWeightsGrad, RouterLosses, RouterLossesGrad;
    rows: ScaleRows, ScaleRowsGrad;
    scale: Scale, Fill;
    segments: SegmentRopeTable, SegmentPositions, SegmentCacheAppend, SegmentCachedAttention, SegmentLatentAttention;
    attention_stats: AttentionStats, MaxAttentionLogits;
    repeat_interleave: RepeatInterleave, RepeatInterleaveGrad;
    unit: UnitRows, UnitColumns;
}

pub use accumulate::accumulate;
pub use activation::activation;
pub use adamw::{AdamW, adamw};
pub use add::add;
pub use attention::attention;
pub use attention_stats::{attention_stats, max_attention_logits};
pub use bias::add_bias;
pub use cache::{cache_append, cache_append_columns, cached_attention};
pub use columns::{concat, scale_columns, split, split_into};
pub use cross_entropy::cross_entropy;
pub use dispatch::top_k_dispatch;
pub use elementwise::{clamp, reciprocal, softcap};
pub use embedding::embedding;
pub use expert_down::expert_down;
pub use expert_up::expert_up;
pub use gradient_norm::squared_norms;
pub use last_position::last_position;
pub use latent::latent_heads;
pub use latent_decode::{absorbed_queries, latent_attention, project_latent_context};
pub use linear::linear;
pub use muon::{MuonParameter, muon};
pub use norm::norm;
pub use positions::positions;
pub use qkv::qkv_transform;
pub use repeat_interleave::repeat_interleave;
pub use rope_table::rope_table;
pub use rotate::rotate;
pub use router::{gate_weights, router_losses};
pub use rows::scale_rows;
pub use scale::{fill, scale};
pub use segments::{
    Segment, segment_cache_append, segment_cached_attention, segment_latent_attention,
    segment_positions, segment_rope_table,
};
pub use tensor_stats::tensor_stats;
pub use unit::{unit_columns, unit_rows};
