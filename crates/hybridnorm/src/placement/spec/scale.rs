//! Scales: numbers, closed-form expressions of block index, depth and width, or learned parameters.

use serde::{Deserialize, Serialize};

/// A scale as written in a placement.
///
/// In a file: a number (`0.5`), a formula (`"inv_sqrt_layer"`, `{ depth_power = { k = 2, p = 0.25 } }`)
/// or a parameter (`{ learned = { shape = "vector", init = 0.1 } }`, where `init` and the optional
/// `start` are each a number or a formula).
///
/// ```
/// use hybridnorm::placement::{Formula, Scale};
/// let scale: Scale = serde_json::from_str("\"inv_sqrt_layer\"").unwrap();
/// assert_eq!(scale, Scale::Formula(Formula::InvSqrtLayer));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Scale {
    /// A number.
    Const(f64),
    /// A closed-form expression of block index, depth or width.
    Formula(Formula),
    /// A parameter.
    Learned {
        /// One number or one per channel.
        shape: LearnedShape,
        /// Initial value of the factor. Must not be learned itself.
        init: Box<Scale>,
        /// Initial value of the underlying parameter (nGPT's s_scale; `init` is its s_init): the factor is the
        /// parameter times `init / start`, which changes the effective learning rate of the scale under Adam (nGPT,
        /// arXiv 2410.01131). If absent, the parameter is the factor. Must be neither learned nor 0.
        start: Option<Box<Scale>>,
    },
}

impl Default for Scale {
    fn default() -> Self {
        Self::Const(1.0)
    }
}

/// A closed-form expression. `l` is the 1-based block index, `L` the number of blocks, `d` the width.
///
/// Deliberately not an expression language: every formula has a published source.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
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
        /// Factor on the depth.
        k: f64,
        /// The exponent.
        p: f64,
    },
    /// `√d` (embedding scale of the original Transformer and Gemma).
    SqrtWidth,
    /// `1/√d` (initial value of nGPT's parameters, arXiv 2410.01131).
    InvSqrtWidth,
    /// `√(ln 2L)` (Sub-LN's weight gains, arXiv 2210.06423).
    SqrtLn2Depth,
    /// 0.1 for L ≤ 18, 1e-5 for L ≤ 24, else 1e-6 (LayerScale, arXiv 2103.17239).
    LayerScale,
}

/// Shape of a learned scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LearnedShape {
    /// One number.
    Scalar,
    /// One number per channel of the multiplied tensor.
    Vector,
}

/// A [`Scale`] resolved for one layer. Serialized like a scale, without formulas.
///
/// ```
/// use hybridnorm::placement::{Formula, ResolvedScale, Scale, named, resolve};
///
/// let mut placement = named("pre-norm")?;
/// placement.block.attn.out_scale = Scale::Formula(Formula::InvSqrtLayer);
/// let resolved = resolve(&placement, 4, 64)?;
/// let scales: Vec<ResolvedScale> = resolved.blocks.iter().map(|block| block.attn.out_scale).collect();
/// assert_eq!(scales[0], ResolvedScale::Const(1.0));
/// assert_eq!(scales[3], ResolvedScale::Const(0.5), "1/√4");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ResolvedScale {
    /// A number.
    Const(f64),
    /// A parameter.
    Learned {
        /// One number or one per channel.
        shape: LearnedShape,
        /// Initial value of the factor.
        init: f64,
        /// Initial value of the parameter, if different; the factor is the parameter times `init / start`.
        start: Option<f64>,
    },
}

impl Default for ResolvedScale {
    fn default() -> Self {
        Self::Const(1.0)
    }
}
