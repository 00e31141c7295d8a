//! The vocabulary of the algebra: where norms, skips and scales can sit.
//!
//! A block has two sub-layers, attention and feed-forward. Each follows one rule. With `s` the
//! current state, `b` the state that entered the block and `G` the sub-layer's function:
//!
//! ```text
//! n  = in_norm(s)
//! o  = out_scale · out_norm(G(in_scale · n))
//! s' = post_norm(skip_scale · skip + o)      skip ∈ { s, n, b, s + b }
//! ```
//!
//! The structs are generic over how a scale is written. In a [`Placement`] it is a [`Scale`]: a
//! constant, a closed formula of the depth, or a learned parameter. After
//! [`resolve`](super::resolve()) it is a [`Factor`], a plain number for one layer.
//!
//! How the values are written in a file is in `forms.rs`: a scale is a number, the name of a
//! formula or a small table; whatever can be switched off is `false` when it is.
//!
//! In a parallel block both functions read the same state and share one sum:
//!
//! ```text
//! o_A = A.out_scale · A.out_norm(A(A.in_scale · A.in_norm(s)))      o_F likewise
//! s'  = A.post_norm(A.skip_scale · s + o_A + o_F)
//! ```
//!
//! so the skip, its scale and the norm of the sum are attention's; the feed-forward's stay off.
//! With `parallel_shared` there is one input norm: attention's, which the feed-forward reads too.

use serde::{Deserialize, Serialize};

use super::forms;

/// A complete answer to "where do we normalize", independent of model size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of placement fields"
)]
pub struct Placement {
    /// The rule that every block follows unless an override says otherwise.
    pub block: BlockRule,
    /// Patches for some layers; applied in order, later ones win.
    pub overrides: Vec<Override>,
    /// The norm function used at every site.
    pub norm: NormSpec,
    /// What happens to the token embedding before the first block.
    pub embed: Embed,
    /// Whether a norm stands between the last block and the output head.
    pub final_norm: bool,
    /// What happens to the logits.
    pub logits: Logits,
    /// How weights are drawn.
    pub init: Init,
}

impl Default for Placement {
    /// All fields "off": raw skips, no norm but the final one.
    fn default() -> Self {
        Self {
            block: BlockRule::default(),
            overrides: Vec::new(),
            norm: NormSpec::default(),
            embed: Embed::default(),
            final_norm: true,
            logits: Logits::default(),
            init: Init::default(),
        }
    }
}

/// A block as written in a placement: scales may still depend on the depth.
pub type BlockRule = Block<Scale>;

/// A block resolved for one layer: the only thing the model sees.
pub type BlockSpec = Block<Factor>;

/// Where norms, skips and scales sit in one block.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of block fields")]
pub struct Block<S: Default> {
    /// How the two sub-layers are connected.
    pub topology: Topology,
    /// The attention sub-layer.
    pub attn: SubLayer<S>,
    /// Norms and scales inside attention.
    pub attn_inner: AttnInner<S>,
    /// The feed-forward sub-layer.
    pub ffn: SubLayer<S>,
    /// Norms inside the feed-forward.
    pub ffn_inner: FfnInner,
}

/// How the two sub-layers of a block are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// Attention, then feed-forward on its result.
    #[default]
    Sequential,
    /// Both read the state through one shared input norm: `s' = s + A(N(s)) + F(N(s))` (GPT-J).
    ParallelShared,
    /// Both read the state through norms of their own: `s' = s + A(N₁(s)) + F(N₂(s))` (NeoX).
    ParallelTwo,
}

/// One application of the sub-layer rule (see the module documentation).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of sub-layer fields"
)]
pub struct SubLayer<S: Default> {
    /// Normalize the state before the function.
    pub in_norm: bool,
    /// Multiplies what the function reads. It does not touch a normed skip.
    pub in_scale: S,
    /// What is carried around the function.
    pub skip: Skip,
    /// Multiplies the skip.
    pub skip_scale: S,
    /// Normalize the function's output before it is added. Written `false`, `true` (gain starts at
    /// 1) or `{ gain_init = … }`.
    #[serde(with = "forms::off_or_table")]
    pub out_norm: Option<OutNorm<S>>,
    /// Multiplies the (normed) output before it is added.
    pub out_scale: S,
    /// Normalize the sum.
    pub post_norm: bool,
}

impl<S: Default> Default for SubLayer<S> {
    fn default() -> Self {
        Self {
            in_norm: false,
            in_scale: S::default(),
            skip: Skip::Raw,
            skip_scale: S::default(),
            out_norm: None,
            out_scale: S::default(),
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

/// What is carried around a sub-layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The state as it came in.
    #[default]
    Raw,
    /// The state after `in_norm`; this is what makes HybridNorm's feed-forward "post".
    Normed,
    /// The state that entered the block (SpanNorm).
    BlockInput,
    /// The state plus the state that entered the block (B2T).
    RawPlusBlockInput,
}

/// Norms and scales inside attention, in the order in which they apply.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of norms and scales inside attention"
)]
pub struct AttnInner<S: Default> {
    /// Clamp q, k and v to `±clip_qkv` before anything else (OLMo). `false` is off.
    #[serde(with = "forms::off_or_number")]
    pub clip_qkv: Option<f64>,
    /// Norm on queries.
    pub q_norm: HeadNorm,
    /// Norm on keys.
    pub k_norm: HeadNorm,
    /// Norm on values.
    pub v_norm: HeadNorm,
    /// Whether the q and k norms come before or after the rotary embedding.
    pub qk_order: QkOrder,
    /// Multiplies queries and keys, whichever of them is normed, after norm and rotation
    /// (nanochat: 1.2). Must not be learned: the norms' own gains are.
    pub qk_post_scale: S,
    /// Multiplies `q·k` before the softmax.
    pub attn_scale: AttnScale,
    /// `c · tanh(score / c)` on the scaled scores (Gemma 2: 50). `false` is off.
    #[serde(with = "forms::off_or_number")]
    pub attn_softcap: Option<f64>,
    /// Norm on the context (the weighted sum of values) before the output projection.
    pub ctx_norm: HeadNorm,
    /// One learned factor per head on the (normed) context, initially 1 (NormFormer).
    pub head_gain: bool,
}

/// A norm inside attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadNorm {
    /// No norm.
    #[default]
    None,
    /// Over each head's width, one gain vector shared by all heads (HybridNorm, Qwen 3, Gemma 3).
    PerHead,
    /// Over each head's width, a gain vector for every head.
    PerHeadOwn,
    /// Over each head's width, without parameters (nanochat; Gemma 4's values).
    PerHeadPlain,
    /// Over all heads together (OLMo 2, Sub-LN's context).
    Full,
    /// Over all heads together, without parameters.
    FullPlain,
}

/// Order of the q/k norms and the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkOrder {
    /// Norm, then rotate.
    #[default]
    BeforeRope,
    /// Rotate, then norm.
    AfterRope,
}

/// What multiplies `q·k` before the softmax.
///
/// Written as a number or one of `inv_sqrt_head_dim`, `sqrt_head_dim`, `cosine`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum AttnScale {
    /// `1/√(head width)`.
    #[default]
    InvSqrtHeadDim,
    /// `√(head width)`, for unit-length q and k.
    SqrtHeadDim,
    /// A constant.
    Const(f64),
    /// Cosine attention: q and k scaled to unit length, times `1/τ` with one learned
    /// `τ ≥ 0.01` per head, initially 0.1 (Swin-v2).
    Cosine,
}

/// Norms inside the feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of norms inside the feed-forward"
)]
pub struct FfnInner {
    /// Norm on the gate projection (SimpleNorm). Needs a gated activation.
    pub gate_norm: bool,
    /// Norm on the up projection (SimpleNorm).
    pub up_norm: bool,
    /// Norm on the hidden activation before the down projection (Sub-LN, NormFormer).
    pub mid_norm: bool,
}

/// A factor as written in a placement.
///
/// In a file: a number (`0.5`), a formula (`"inv_sqrt_layer"`, `{ depth_power = { k = 2, p = 0.25 } }`)
/// or a parameter (`{ learned = { shape = "vector", init = 0.1 } }`, where `init` is again a number
/// or a formula).
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// A number.
    Const(f64),
    /// A closed formula of the depth.
    Formula(Formula),
    /// A parameter.
    Learned {
        /// One number or one per channel.
        shape: LearnedShape,
        /// Where it starts. Must not be learned itself.
        init: Box<Scale>,
    },
}

impl Default for Scale {
    fn default() -> Self {
        Self::Const(1.0)
    }
}

/// A closed formula. `l` is the 1-based block index, `L` the number of blocks, `d` the width.
///
/// Deliberately not an expression language: every member has a source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Formula {
    /// `1/√l` (LayerNorm Scaling, arXiv 2502.05795; HybridNorm-DS).
    InvSqrtLayer,
    /// `1/√(2l)` (SiameseNorm's released code, arXiv 2602.08064).
    InvSqrt2Layer,
    /// `1/√(2L)` (GPT-2; the 7B HybridNorm's output gains).
    InvSqrt2Depth,
    /// `2L`, the number of sub-layers (Keel, arXiv 2601.19895).
    TwoDepth,
    /// `(k·L)^p` (DeepNorm: k = 2, p = 1/4; its gains k = 8, p = −1/4; arXiv 2203.00555).
    DepthPower {
        /// Multiplies the depth.
        k: f64,
        /// The exponent.
        p: f64,
    },
    /// `√d` (embedding scale of the original Transformer and Gemma).
    SqrtWidth,
    /// `√(ln 2L)` (Sub-LN's weight gains, arXiv 2210.06423).
    SqrtLn2Depth,
    /// 0.1 for L ≤ 18, 1e-5 for L ≤ 24, else 1e-6 (LayerScale, arXiv 2103.17239).
    LayerScale,
}

/// Shape of a learned scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedShape {
    /// One number.
    Scalar,
    /// One number per channel of the width.
    Vector,
}

/// A [`Scale`] resolved for one layer. Written like a scale, without formulas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factor {
    /// A number.
    Const(f64),
    /// A parameter that starts at `init`.
    Learned {
        /// One number or one per channel.
        shape: LearnedShape,
        /// Where it starts.
        init: f64,
    },
}

impl Default for Factor {
    fn default() -> Self {
        Self::Const(1.0)
    }
}

/// A patch for the blocks that a selector names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `layers` and `set`")]
pub struct Override {
    /// Which blocks.
    pub layers: Selector,
    /// The fields of [`BlockRule`] to replace; whatever is not named stays.
    pub set: serde_json::Value,
}

/// Names some blocks. Indices are 0-based.
///
/// In a file: `[0, 3]`, `{ range = { start = 0, end = 4 } }`, `{ first_fraction = 0.25 }`,
/// `{ last = 1 }` or `{ every = 6 }`.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// These blocks.
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

/// The norm function and what goes with it, at every site of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of norm fields")]
pub struct NormSpec {
    /// The function.
    pub kind: NormKind,
    /// Added to the mean square (or variance) under the root; no effect on `dyt` and `derf`.
    pub eps: f64,
    /// How the gain multiplies.
    pub gain: Gain,
    /// Whether a bias is added. Off unless given, for LayerNorm too; named placements whose source
    /// has one set it.
    pub bias: bool,
    /// DyT's α or Derf's a where the norm starts; `None`, in a file `false`, means 0.5.
    #[serde(with = "forms::off_or_number")]
    pub alpha_init: Option<f64>,
}

impl Default for NormSpec {
    fn default() -> Self {
        Self {
            kind: NormKind::Rmsnorm,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: false,
            alpha_init: None,
        }
    }
}

/// A norm function of one row `x` of width w.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / √(mean(x²) + eps)` (arXiv 1910.07467).
    #[default]
    Rmsnorm,
    /// `(x − mean(x)) / √(var(x) + eps)` (arXiv 1607.06450).
    Layernorm,
    /// `x / √(Σx² + eps)`.
    L2,
    /// `tanh(α·x)`, α learned (arXiv 2503.10622).
    Dyt,
    /// `erf(α·x + s)`, α and s learned (arXiv 2512.10938).
    Derf,
    /// `x`: every norm of the placement is left out.
    None,
}

/// How a norm's gain multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gain {
    /// `g · x̂`, g starts at 1.
    #[default]
    Plain,
    /// `(1 + w) · x̂`, w starts at 0 (Gemma); where a gain shall start at g, w starts at g − 1.
    OnePlus,
    /// `x̂`.
    None,
}

/// What happens to the token embedding before the first block.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of embedding fields"
)]
pub struct Embed {
    /// Multiplies the embedding.
    pub scale: Scale,
    /// A norm after the scale.
    pub norm: bool,
    /// Standard deviation of the embedding at the start; `None`, in a file `false`, follows the
    /// init scheme.
    #[serde(with = "forms::off_or_number")]
    pub init_std: Option<f64>,
}

/// What happens to the logits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of logits fields")]
pub struct Logits {
    /// `c · tanh(z / c)` (Gemma 2: 30). `false` is off.
    #[serde(with = "forms::off_or_number")]
    pub softcap: Option<f64>,
    /// Multiplies the logits before the cap.
    pub scale: Scale,
    /// Coefficient of `logsumexp(z)²` added to the training loss (PaLM 1e-4, OLMo 2 1e-5).
    pub z_loss: f64,
}

/// How weights are drawn.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of init fields")]
pub struct Init {
    /// The scheme.
    pub scheme: InitScheme,
    /// The base standard deviation; without effect on `depth_scaled` and `xavier`.
    pub std: StdRule,
    /// Factors by role on top of the scheme.
    pub gains: RoleGains,
}

/// An initialization scheme; σ is the base standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitScheme {
    /// Every matrix N(0, σ²) (the HybridNorm paper's choice for Pre-Norm).
    #[default]
    Normal,
    /// Truncated at three times the standard deviation; `1/√fan_in`, and `1/√(2 · fan_in · l)` for
    /// attention output and feed-forward down (OLMo's `mitchell`).
    DepthScaled,
    /// Truncated at 3σ; attention output and feed-forward down at `σ/√(2L)`; an untied head at
    /// `1/√d` (official `full_megatron`).
    Megatron,
    /// Xavier normal, `√(2 / (fan_in + fan_out))`.
    Xavier,
}

/// The base standard deviation. Written as a number or `small_init`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum StdRule {
    /// `1/√(2.5 · d)` ("small init", arXiv 1910.05895).
    #[default]
    SmallInit,
    /// A number.
    Const(f64),
}

/// Factors on the initial weights, by role. None of them can be learned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table of gains by role")]
pub struct RoleGains {
    /// Query projection.
    pub q: Scale,
    /// Key projection.
    pub k: Scale,
    /// Value projection.
    pub v: Scale,
    /// Attention output projection.
    pub o: Scale,
    /// Feed-forward gate projection.
    pub gate: Scale,
    /// Feed-forward up projection.
    pub up: Scale,
    /// Feed-forward down projection.
    pub down: Scale,
}
