//! The ops that models are made of: a closed set, one file each.
//!
//! A file holds the op's fields, the function that records it, its shape rule, its vector-Jacobian
//! product (which records ops), a plain reference in double precision, and the call of the CPU kernel.
//! To add an op: its file, its variant below, its kernel.
//!
//! Shape suffixes: b batch, t position, n rows (all sizes but the last), d width, h query heads, g
//! key/value heads, k head width, f feed-forward width, v vocabulary, p parameters of a norm, e experts,
//! m = n · top_k slots (a token in one of its experts).

mod exact;
mod experts;
mod io;
#[cfg(test)]
mod stateful;
#[cfg(test)]
mod testing;

use std::ops::Range;

use crate::graph::{Builder, Type, Value};
pub use io::{Arguments, Io, Read, Write};

/// Interface of an op.
pub trait Operation: std::fmt::Debug + Send + Sync {
    /// Its name in profiles and errors.
    fn name(&self) -> &'static str;

    /// Types of its outputs.
    ///
    /// # Panics
    /// If the inputs are not what it reads.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type>;

    /// Records the gradients of its inputs, `None` for those that have none.
    ///
    /// # Panics
    /// If it has no vector-Jacobian product: it is one itself, or serves inference only.
    fn backward<'g>(&self, _at: &Backward<'g>) -> Vec<Option<Value<'g>>> {
        panic!("{} is not differentiable", self.name())
    }

    /// Computes it in double precision, in plain loops.
    fn reference(&self, io: &mut Io<'_, f64>);

    /// Computes it by the CPU kernel.
    fn cpu(&self, io: &mut Io<'_, f32>);

    /// Elements of single precision that the CPU kernel works with.
    fn scratch(&self, _inputs: &[Type]) -> usize {
        0
    }

    /// Bytes that the CPU kernel allocates at most while it runs on so many threads: packed blocks of matrices,
    /// and what each thread works with.
    fn workspace(&self, _inputs: &[Type], _threads: usize) -> usize {
        0
    }

    /// Pairs of an input and the output that begins with its elements: computed in place where nobody
    /// needs the input any more, in a copy elsewhere. The input itself cannot be read.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// The inputs, state of the executor, that it changes.
    fn updates(&self, _inputs: usize) -> Range<usize> {
        0..0
    }

    /// True if it runs as soon as its inputs are there, wherever it was recorded: what reduces a value for
    /// the host, or adds it to state that nothing else of the program reads.
    fn runs_early(&self) -> bool {
        false
    }

    /// The inputs (b, t, ..) of which position (b, t) alone decides, with the other inputs (parameters), that
    /// position of every output: none if it mixes positions.
    fn by_position(&self, _inputs: &[Type]) -> Range<usize> {
        0..0
    }

    /// Floating-point operations of its matrix products.
    fn flops(&self, _inputs: &[Type]) -> u64 {
        0
    }
}

/// An op of the forward pass as its vector-Jacobian product sees it.
pub struct Backward<'g> {
    graph: &'g Builder,
    inputs: Vec<Value<'g>>,
    outputs: Vec<Value<'g>>,
    gradients: Vec<Option<Value<'g>>>,
    wanted: Vec<bool>,
}

impl<'g> Backward<'g> {
    pub(crate) fn new(
        graph: &'g Builder,
        inputs: Vec<Value<'g>>,
        outputs: Vec<Value<'g>>,
        gradients: Vec<Option<Value<'g>>>,
        wanted: Vec<bool>,
    ) -> Self {
        Self {
            graph,
            inputs,
            outputs,
            gradients,
            wanted,
        }
    }

    /// The graph that gradients are recorded in.
    pub fn graph(&self) -> &'g Builder {
        self.graph
    }

    /// An input.
    pub fn input(&self, index: usize) -> Value<'g> {
        self.inputs[index]
    }

    /// All inputs.
    pub fn inputs(&self) -> &[Value<'g>] {
        &self.inputs
    }

    /// An output.
    pub fn output(&self, index: usize) -> Value<'g> {
        self.outputs[index]
    }

    /// Gradient of the only output that has one, the first.
    ///
    /// # Panics
    /// If it has none: then the op is not part of the backward pass.
    pub fn gradient(&self) -> Value<'g> {
        self.gradients[0].expect("a gradient of the output")
    }

    /// Gradient of an output, where something depends on it.
    pub fn gradient_of(&self, index: usize) -> Option<Value<'g>> {
        self.gradients[index]
    }

    /// True if the gradient of this input is needed.
    pub fn wants(&self, index: usize) -> bool {
        self.wanted[index]
    }
}

/// Declares the closed set of ops.
macro_rules! ops {
    ($($file:ident: $($variant:ident),+;)+) => {
        $(mod $file;)+

        /// A differentiable step, or a part of an optimizer's.
        #[derive(Debug, Clone)]
        #[allow(missing_docs)] // each is documented in its file
        pub enum Op {
            $($($variant($file::$variant),)+)+
        }

        impl Op {
            /// The op's interface.
            pub fn rule(&self) -> &dyn Operation {
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
    adamw: AdamW;
    add: Add;
    attention: Attention, AttentionGrad, NormedAttention, NormedAttentionGrad;
    cache: CacheAppend, CachedAttention;
    columns: Split, Concat, ScaleColumns, ScaleColumnsGrad;
    cross_entropy: CrossEntropy, CrossEntropyGrad, HeadLoss, HeadLossGrad;
    dispatch: Choose;
    elementwise: Clamp, ClampGrad, Softcap, SoftcapGrad, Reciprocal, ReciprocalGrad;
    embedding: Embedding, EmbeddingGrad, EmbeddingGradAdd;
    expert_down: ExpertDown, ExpertDownGrad;
    expert_up: ExpertUp, ExpertUpGrad;
    gradient_norm: SquaredNorms;
    last_position: LastPosition, LastPositionGrad;
    latent: LatentHeads, LatentHeadsGrad;
    latent_decode: AbsorbQueries, LatentAttention, ExpandContext;
    linear: Linear, LinearInputGrad, LinearWeightGrad, LinearGrad;
    magnitude: Magnitude;
    muon: Muon;
    norm: Norm, NormGrad, AddNorm, NormGradAdd;
    qkv: QkvPrep, QkvPrepGrad;
    rotate: Rotate;
    rotations: Rotations;
    router: RouterWeights, RouterWeightsGrad, RouterLosses, RouterLossesGrad;
    rows: ScaleRows, ScaleRowsGrad;
    scale: Scale, Fill;
    scores: AttentionScores, HeadMaxima;
    tile: Tile, TileGrad;
    unit: UnitRows, UnitColumns;
}

pub use accumulate::accumulate;
pub use activation::activation;
pub use adamw::adamw;
pub use add::add;
pub use attention::attention;
pub use cache::{cache_append, cache_append_columns, cached_attention};
pub use columns::{concat, scale_columns, split, split_into};
pub use cross_entropy::cross_entropy;
pub use dispatch::choose;
pub use elementwise::{clamp, reciprocal, softcap};
pub use embedding::embedding;
pub use expert_down::expert_down;
pub use expert_up::expert_up;
pub use gradient_norm::squared_norms;
pub use last_position::last_position;
pub use latent::latent_heads;
pub use latent_decode::{absorbed_queries, expanded_context, latent_attention};
pub use linear::linear;
pub use magnitude::magnitude;
pub use muon::{MuonSlot, muon};
pub use norm::norm;
pub use qkv::qkv_prep;
pub use rotate::rotate;
pub use rotations::rotations;
pub use router::{router_losses, router_weights};
pub use rows::scale_rows;
pub use scale::{fill, scale};
pub use scores::{attention_scores, head_maxima};
pub use tile::tile;
pub use unit::{unit_columns, unit_rows};
