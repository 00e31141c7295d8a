//! Evaluation of scales at a block, depth and width.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{InvalidValue, NoEffect, OutOfRange};
use super::super::spec::{Formula, ResolvedScale, Scale};

/// Block, depth and width at which a formula is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleContext {
    /// The 1-based block index `l`; `None` outside the blocks.
    pub layer_number: Option<usize>,
    /// The number of blocks `L`.
    pub n_layers: usize,
    /// The width `d`.
    pub d_model: usize,
}

impl ScaleContext {
    /// Returns this context in the block with this 0-based index.
    pub(super) fn in_block(self, layer: usize) -> Self {
        Self {
            layer_number: Some(layer + 1),
            ..self
        }
    }
}

impl Formula {
    /// True if the value depends on the block index.
    ///
    /// ```
    /// use hybridnorm::placement::Formula;
    /// assert!(Formula::InvSqrtLayer.depends_on_layer());
    /// assert!(!Formula::TwoDepth.depends_on_layer());
    /// ```
    pub fn depends_on_layer(self) -> bool {
        matches!(self, Self::InvSqrtLayer | Self::InvSqrt2Layer)
    }

    /// Returns the value; `None` if it depends on the block index and `at` has none.
    ///
    /// ```
    /// use hybridnorm::placement::{ScaleContext, Formula};
    /// let at = ScaleContext { layer_number: Some(4), n_layers: 12, d_model: 768 };
    /// assert_eq!(Formula::InvSqrtLayer.value(at), Some(0.5));
    /// assert_eq!(Formula::InvSqrtLayer.value(ScaleContext { layer_number: None, ..at }), None);
    /// ```
    pub fn value(self, at: ScaleContext) -> Option<f64> {
        let depth = at.n_layers as f64;
        let layer = at.layer_number.map(|l| l as f64);
        Some(match self {
            Self::InvSqrtLayer => 1.0 / layer?.sqrt(),
            Self::InvSqrt2Layer => 1.0 / (2.0 * layer?).sqrt(),
            Self::InvSqrt2Depth => 1.0 / (2.0 * depth).sqrt(),
            Self::TwoDepth => 2.0 * depth,
            Self::DepthPower { k, p } => (k * depth).powf(p),
            Self::SqrtWidth => (at.d_model as f64).sqrt(),
            Self::InvSqrtWidth => 1.0 / (at.d_model as f64).sqrt(),
            Self::SqrtLn2Depth => (2.0 * depth).ln().sqrt(),
            Self::LayerScale if at.n_layers <= 18 => 0.1,
            Self::LayerScale if at.n_layers <= 24 => 1e-5,
            Self::LayerScale => 1e-6,
        })
    }
}

impl Scale {
    /// Evaluates the scale at this block, depth and width; `field` is the path named in errors.
    ///
    /// # Errors
    /// A learned initial value of a learned scale, a `start` of 0, an `init` of 0 with a `start`, a formula
    /// of the block index outside the blocks, or a value that is not finite.
    ///
    /// ```
    /// use hybridnorm::placement::{Formula, ResolvedScale, Scale, ScaleContext};
    /// let at = ScaleContext { layer_number: Some(4), n_layers: 12, d_model: 768 };
    /// let scale = Scale::Formula(Formula::InvSqrtLayer);
    /// assert_eq!(scale.resolve(at, "block.attn.out_scale")?, ResolvedScale::Const(0.5));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn resolve(&self, at: ScaleContext, field: &str) -> Result<ResolvedScale, PlacementError> {
        match self {
            Self::Const(value) => finite(*value, field).map(ResolvedScale::Const),
            Self::Formula(formula) => {
                let value = formula.value(at).ok_or_else(|| {
                    PlacementError::new(
                        InvalidValue,
                        field,
                        "this formula depends on the block index, which is not defined here; \
                         use a number or a formula of the depth or width",
                    )
                })?;
                finite(value, field).map(ResolvedScale::Const)
            }
            Self::Learned { shape, init, start } => {
                let number = |scale: &Scale, part| scale.number(at, field, part);
                let init = number(init, "init")?;
                let start = start.as_ref().map(|s| number(s, "start")).transpose()?;
                check_start(init, start, field)?;
                Ok(ResolvedScale::Learned {
                    shape: *shape,
                    init,
                    start,
                })
            }
        }
    }

    /// Evaluates the field `part` (`init` or `start`) of a learned scale, which must not be learned itself.
    fn number(&self, at: ScaleContext, field: &str, part: &str) -> Result<f64, PlacementError> {
        match self.resolve(at, field)? {
            ResolvedScale::Const(value) => Ok(value),
            ResolvedScale::Learned { .. } => Err(PlacementError::new(
                InvalidValue,
                field,
                format!(
                    "the initial value of a learned scale is a number or a formula; `{part}` must \
                     not be learned itself"
                ),
            )),
        }
    }
}

/// Checks a learned scale with a `start`: the factor is the parameter times `init / start`, so neither
/// may be 0.
fn check_start(init: f64, start: Option<f64>, field: &str) -> Result<(), PlacementError> {
    let (kind, problem) = match start {
        Some(0.0) => (
            OutOfRange,
            "the factor is the parameter times init / start, so `start` must not be 0",
        ),
        Some(_) if init == 0.0 => (
            NoEffect,
            "the factor is the parameter times init / start, which stays 0 where `init` is 0; \
             remove `start`",
        ),
        _ => return Ok(()),
    };
    Err(PlacementError::new(kind, field, problem))
}

fn finite(value: f64, field: &str) -> Result<f64, PlacementError> {
    if value.is_finite() {
        return Ok(value);
    }
    let problem = format!("the scale evaluates to {value}; it must be a finite number");
    Err(PlacementError::new(OutOfRange, field, problem))
}
