//! Norms and scales inside attention and inside the feed-forward.

pub use hybridnorm_kernels::qkv::QkOrder;
use serde::{Deserialize, Serialize};

use super::super::serde_forms;

/// Norms and scales inside attention, in the order in which they apply.
///
/// ```
/// use hybridnorm::placement::{AttnInner, HeadNorm, named};
///
/// // Norms on the queries and the keys of each head, in addition to those of pre-norm.
/// let mut placement = named("pre-norm")?;
/// placement.block.attn_inner = AttnInner {
///     q_norm: HeadNorm::PerHead,
///     k_norm: HeadNorm::PerHead,
///     ..AttnInner::default()
/// };
/// assert_eq!(placement, named("pre-norm-qk")?);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of norms and scales inside attention"
)]
pub struct AttnInner<S: Default + PartialEq> {
    /// Limit to which q, k and v, the output of the first projection, are clamped before anything else
    /// (OLMo). `false` is off.
    #[serde(with = "serde_forms::number_or_false")]
    pub clip_qkv: Option<f64>,
    /// Norm on queries.
    pub q_norm: HeadNorm,
    /// Norm on keys.
    pub k_norm: HeadNorm,
    /// Norm on values.
    pub v_norm: HeadNorm,
    /// Order of the q and k norms and the rotary embedding.
    pub qk_order: QkOrder,
    /// Scale of queries and keys after norm and rotation (nanochat: 1.2). May be learned only if the norms
    /// on q and k have no gain (nGPT); a vector has one number per channel of every key/value head, and
    /// the queries of a group use that of their key head. With latent attention, a number that multiplies
    /// queries and keys as a whole.
    pub qk_post_scale: S,
    /// Scale of `q·k` before the softmax.
    pub attn_scale: AttnScale,
    /// `c · tanh(s / c)` on the scaled attention logits s (Gemma 2: 50). `false` is off.
    #[serde(with = "serde_forms::number_or_false")]
    pub attn_softcap: Option<f64>,
    /// Norm on the context (the weighted sum of values) before the output projection.
    pub ctx_norm: HeadNorm,
    /// One learned factor per head on the (normalized) context, initially 1 (NormFormer).
    pub head_gain: bool,
    /// eps of the norms inside attention, if different from `norm.eps` (DeepSeek-V3: 1e-6 on the latents,
    /// whatever `norm.eps` is). `false` means `norm.eps`.
    #[serde(
        with = "serde_forms::number_or_false",
        skip_serializing_if = "serde_forms::is_default"
    )]
    pub norm_eps: Option<f64>,
}

/// A norm inside attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HeadNorm {
    /// No norm.
    #[default]
    None,
    /// Over each head's channels, with one gain vector shared by all heads (HybridNorm, Qwen 3, Gemma 3).
    PerHead,
    /// Over each head's channels, with a separate gain vector for every head.
    PerHeadOwn,
    /// Over each head's channels, without parameters (nanochat; Gemma 4's values).
    #[serde(rename = "per_head_plain")]
    PerHeadNoGain,
    /// Over all heads together (OLMo 2, Sub-LN's context).
    Full,
    /// Over all heads together, without parameters.
    #[serde(rename = "full_plain")]
    FullNoGain,
}

/// Scale of `q·k` before the softmax.
///
/// Written as a number or one of `inv_sqrt_head_dim`, `sqrt_head_dim`, `cosine`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum AttnScale {
    /// `1/√head_dim`; in latent attention the head dimension of a query, nope and rotary part together.
    #[default]
    InvSqrtHeadDim,
    /// `√head_dim`, for unit-length q and k.
    SqrtHeadDim,
    /// A constant.
    Const(f64),
    /// Cosine attention: q and k normalized to unit length, times `1/τ` with one learned
    /// `τ ≥ 0.01` per head, initially 0.1 (Swin-v2).
    Cosine,
}

/// Norms and scales inside the feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a table of norms and scales inside the feed-forward"
)]
pub struct FfnInner<S: Default + PartialEq> {
    /// Norm on the gate projection (SimpleNorm). Needs a gated activation.
    pub gate_norm: bool,
    /// Norm on the up projection (SimpleNorm).
    pub up_norm: bool,
    /// Scale of the (normalized) gate projection before the activation (nGPT). Needs a gated activation.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub gate_scale: S,
    /// Scale of the (normalized) up projection, which is the input of an activation without gate (nGPT).
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub up_scale: S,
    /// Norm on the hidden activation before the down projection (Sub-LN, NormFormer).
    pub mid_norm: bool,
}
