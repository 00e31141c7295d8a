//! Types of a placement: the norms, skips and scales of a model. A site is a position at which one of these may be set,
//! such as `in_norm`.
//!
//! A block has two sub-layers, attention and feed-forward, with the same equation. With `s` the residual
//! stream, `b` the block input and `G` the sub-layer's function:
//!
//! ```text
//! n  = in_norm(s)
//! g  = out_norm(G(in_scale · n))
//! s' = post_norm(skip_scale · skip + out_scale · g)      skip ∈ { s, n, b, s + b }
//! ```
//!
//! The structs are generic over the representation of scales. In a [`Placement`] it is a [`Scale`]: a constant, a
//! closed-form expression of block index, depth or width, or a learned parameter. After [`resolve`](super::resolve())
//! it is a [`ResolvedScale`], a plain number for one layer.
//!
//! The structs are exhaustive, so that every crate can build them with `..Default::default()`; do so,
//! since fields may be added. The enums are `#[non_exhaustive]`.
//!
//! Serialized forms are in `serde_forms.rs`: a scale is a number, the name of a formula or a small table;
//! optional values are `false` when off.
//!
//! In a parallel block both sub-layers read the same stream and share one sum:
//!
//! ```text
//! o_A = A.out_scale · A.out_norm(A(A.in_scale · A.in_norm(s)))      o_F likewise
//! s'  = A.post_norm(A.skip_scale · s + o_A + o_F)
//! ```
//!
//! so the skip, its scale and the norm of the sum are set on attention; those of the feed-forward must
//! have their defaults. `parallel_shared` has one input norm, attention's, which the feed-forward also reads.
//!
//! With [`Combine::LerpUnit`] the residual stream stays on the unit sphere and is interpolated towards the
//! output (nGPT, arXiv 2410.01131):
//!
//! ```text
//! s' = unit(skip + out_scale · (out_norm(G(in_scale · n)) − skip))      unit(x) = x / |x|
//! ```
//!
//! With two [`Streams`] the model carries x and y (X and D in explanations), both initialized to the
//! embedding. A sub-layer reads one input computed from them and writes to both:
//!
//! ```text
//! s  = x                             residual_dual (ResiDual, arXiv 2304.14802)
//! s  = read_scale · x + N(y)         siamese (SiameseNorm, arXiv 2602.08064); N: its second_norm
//! n  = in_norm(s)
//! g  = out_norm(G(in_scale · n))
//! x' = post_norm(skip_scale · skip + out_scale · g)      skip ∈ { x, n }
//! y' = y + g
//! ```
//!
//! and the head reads `final_norm(merge_norm(x) + N(y))`, where N is always present.
//!
//! With multi-head latent attention (MLA, arXiv 2405.04434) the first projection computes
//! `[query latent | key/value latent | rotary key]` from the input, as that of grouped-query attention computes
//! `[q | k | v]`, and the inner norms apply to these: `q_norm` to the query latent, `v_norm` to the
//! key/value latent, from which values and the nope part of keys are up-projected, `k_norm` to the rotary key shared
//! by all heads. So the outputs of the first projection are normalized, and decoding
//! can still absorb the up projections and cache only the key/value latent and the rotary key. Each is one vector:
//! `per_head`, `per_head_own` and `full` all mean a norm over the whole vector with a gain;
//! `per_head_plain` and `full_plain` one without. The context has `v_dim` channels per head.

mod inner;
mod model;
mod scale;

use serde::{Deserialize, Serialize};

use super::serde_forms;

pub use inner::{AttnInner, AttnScale, FfnInner, HeadNorm, QkOrder};
pub use model::{
    Embed, Gain, Init, InitScheme, Logits, NormFn, NormScalar, NormSpec, ProjectionGains, StdRule,
};
pub use scale::{Formula, LearnedShape, ResolvedScale, Scale};

/// Complete specification of where a model normalizes, independent of its size.
///
/// ```
/// use hybridnorm::placement::{HeadNorm, InitScheme, Placement, Skip, named};
/// // HybridNorm: norms on q, k and v, and a feed-forward whose skip is the normalized stream.
/// let mut placement = Placement::default();
/// let inner = &mut placement.block.attn_inner;
/// (inner.q_norm, inner.k_norm, inner.v_norm) =
///     (HeadNorm::PerHead, HeadNorm::PerHead, HeadNorm::PerHead);
/// placement.block.ffn.in_norm = true;
/// placement.block.ffn.skip = Skip::Normed;
/// placement.init.scheme = InitScheme::Megatron;
/// assert_eq!(placement, named("hybridnorm")?);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of placement fields"
)]
pub struct Placement {
    /// Configuration of every block, unless overridden.
    pub block: UnresolvedBlock,
    /// Overrides for some blocks, applied in order; later ones take precedence.
    pub overrides: Vec<Override>,
    /// Number of residual streams, and how a sub-layer reads them.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub streams: Streams,
    /// The norm function used at every site.
    pub norm: NormSpec,
    /// Scale and norm of the token embedding before the first block.
    pub embed: Embed,
    /// True if, with two streams, the main one is normalized before the two are summed.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub merge_norm: bool,
    /// True if a norm precedes the output head.
    pub final_norm: bool,
    /// Scale and soft cap of the logits.
    pub logits: Logits,
    /// Distribution of the initial weights.
    pub init: Init,
    /// True if the vectors of every matrix along the width are kept at length 1, at initialization and
    /// after every optimizer step (nGPT): the rows of embedding, head, query, key, value, gate and up
    /// projection, the columns of attention output and feed-forward down projection.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub unit_weights: bool,
}

impl Default for Placement {
    /// Returns a placement with raw skips and no norm except the final one.
    fn default() -> Self {
        Self {
            block: UnresolvedBlock::default(),
            overrides: Vec::new(),
            streams: Streams::Single,
            norm: NormSpec::default(),
            embed: Embed::default(),
            merge_norm: false,
            final_norm: true,
            logits: Logits::default(),
            init: Init::default(),
            unit_weights: false,
        }
    }
}

/// Number of residual streams, and how a sub-layer reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Streams {
    /// One stream.
    #[default]
    Single,
    /// Two; sub-layers read the main one, the second accumulates their outputs for the head (ResiDual).
    ResidualDual,
    /// Two; sub-layers read the sum of the main one and a norm of the second (SiameseNorm).
    Siamese,
}

impl Streams {
    /// True if there is a second stream.
    ///
    /// ```
    /// use hybridnorm::placement::named;
    /// assert!(named("siamese-norm")?.streams.is_dual());
    /// assert!(!named("pre-norm")?.streams.is_dual());
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn is_dual(self) -> bool {
        self != Self::Single
    }
}

/// Block configuration of a placement, with unresolved scales: numbers, formulas or parameters.
pub type UnresolvedBlock = Block<Scale>;

/// A block resolved for one layer, as the model uses it.
pub type ResolvedBlock = Block<ResolvedScale>;

/// Norms, skips and scales of one block.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of block fields")]
pub struct Block<S: Default + PartialEq> {
    /// Connection of the two sub-layers.
    pub topology: Topology,
    /// The attention sub-layer.
    pub attn: SubLayer<S>,
    /// Norms and scales inside attention.
    pub attn_inner: AttnInner<S>,
    /// The feed-forward sub-layer.
    pub ffn: SubLayer<S>,
    /// Norms and scales inside the feed-forward.
    pub ffn_inner: FfnInner<S>,
}

/// Connection of the two sub-layers of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Topology {
    /// Attention, then feed-forward on its result.
    #[default]
    Sequential,
    /// Both read the residual stream through one shared input norm: `s' = s + A(N(s)) + F(N(s))` (GPT-J).
    ParallelShared,
    /// Both read the residual stream through separate norms: `s' = s + A(N₁(s)) + F(N₂(s))` (NeoX).
    ParallelTwo,
}

/// Norms, skip and scales around one sub-layer; see the equation in the module documentation.
///
/// ```
/// use hybridnorm::placement::{Formula, OutNorm, Placement, Scale, Skip, SubLayer, named};
///
/// // Post-norm: nothing before the function, and a norm of the sum.
/// let post = SubLayer { post_norm: true, ..SubLayer::default() };
/// assert_eq!(named("post-norm")?.block.attn, post);
///
/// // A normalized skip, and a norm of the output whose gain starts at 1/√(2L).
/// let gain_init = Scale::Formula(Formula::InvSqrt2Depth);
/// let ffn = SubLayer {
///     in_norm: true,
///     skip: Skip::Normed,
///     out_norm: Some(OutNorm { gain_init }),
///     ..SubLayer::default()
/// };
/// let mut placement = Placement::default();
/// placement.block.ffn = ffn;
/// assert_ne!(placement.hash(), Placement::default().hash());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of sub-layer fields"
)]
pub struct SubLayer<S: Default + PartialEq> {
    /// Scale of the main stream where the norm of the second is added to it; siamese streams only.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub read_scale: S,
    /// True if the residual stream is normalized before the function.
    pub in_norm: bool,
    /// Scale of the function's input; not applied to a normalized skip.
    pub in_scale: S,
    /// Source of the skip connection.
    pub skip: Skip,
    /// Scale of the skip.
    pub skip_scale: S,
    /// Norm of the function's output before it is added. Written `false`, `true` (gain starts at 1) or
    /// `{ gain_init = … }`.
    #[serde(with = "serde_forms::table_or_false")]
    pub out_norm: Option<OutNorm<S>>,
    /// Scale of the (normalized) output before it is added.
    pub out_scale: S,
    /// Combination of skip and output into the next residual stream.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub combine: Combine,
    /// True if the sum is normalized.
    pub post_norm: bool,
}

impl<S: Default + PartialEq> Default for SubLayer<S> {
    fn default() -> Self {
        Self {
            read_scale: S::default(),
            in_norm: false,
            in_scale: S::default(),
            skip: Skip::Raw,
            skip_scale: S::default(),
            out_norm: None,
            out_scale: S::default(),
            combine: Combine::Add,
            post_norm: false,
        }
    }
}

/// A norm on a sub-layer's output.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table with `gain_init`")]
pub struct OutNorm<S: Default> {
    /// Initial value of the gain (7B HybridNorm: `1/√(2L)`; Swin-v2: 0). Must not be learned.
    pub gain_init: S,
}

/// Source of the skip connection around a sub-layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Skip {
    /// The residual stream before `in_norm`.
    #[default]
    Raw,
    /// The residual stream after `in_norm`, as in HybridNorm's "post" feed-forward.
    Normed,
    /// The block input (SpanNorm).
    BlockInput,
    /// The residual stream plus the block input (B2T).
    RawPlusBlockInput,
}

/// Combination of skip and output into the next residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Combine {
    /// `skip_scale · skip + out_scale · g`.
    #[default]
    Add,
    /// `unit(skip + out_scale · (g − skip))` with `unit(x) = x / |x|`: an L2 normalization without parameters, whatever
    /// the norm function (nGPT, arXiv 2410.01131).
    LerpUnit,
}

/// An override of the blocks that a selector matches; [`Placement::with_override`] makes one from a changed block
/// configuration.
///
/// ```
/// use hybridnorm::placement::{Override, Selector, named, resolve};
/// use serde_json::json;
/// // Post-Norm in the first quarter of the blocks, Pre-Norm in the rest.
/// let mut placement = named("pre-norm")?;
/// placement.overrides.push(Override {
///     layers: Selector::FirstFraction(0.25),
///     set: json!({
///         "attn": { "in_norm": false, "post_norm": true },
///         "ffn": { "in_norm": false, "post_norm": true },
///     }),
/// });
/// let resolved = resolve(&placement, 12, 768)?;
/// assert!(resolved.blocks[2].attn.post_norm && !resolved.blocks[3].attn.post_norm);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `layers` and `set`")]
pub struct Override {
    /// The selected blocks.
    pub layers: Selector,
    /// The fields of [`UnresolvedBlock`] to replace; other fields keep their values.
    pub set: serde_json::Value,
}

/// Selection of blocks by 0-based indices.
///
/// In a file: `[0, 3]`, `{ range = { start = 0, end = 4 } }`, `{ first_fraction = 0.25 }`,
/// `{ last = 1 }` or `{ every = 6 }`.
///
/// ```
/// use hybridnorm::placement::Selector;
/// let selector: Selector = serde_json::from_str(r#"{ "every": 6 }"#).unwrap();
/// assert_eq!(selector, Selector::Every(6));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Selector {
    /// Blocks with these indices.
    Indices(Vec<usize>),
    /// Blocks `start..end`.
    Range {
        /// First block.
        start: usize,
        /// One past the last block.
        end: usize,
    },
    /// The first `⌊fraction · L⌋` blocks (Mix-LN).
    FirstFraction(f64),
    /// The last n blocks.
    Last(usize),
    /// Every k-th block: 0-based indices k−1, 2k−1, … (Swin-v2's largest model).
    Every(usize),
}
