//! Resolution of the distribution of initial weights.

use serde::{Deserialize, Serialize};

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::InvalidValue;
use super::super::spec::{InitScheme, Placement, ProjectionGains, ResolvedScale, Scale, StdRule};
use super::ScaleContext;

/// Resolved distribution of the initial weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResolvedInit {
    /// The scheme.
    pub scheme: InitScheme,
    /// The base standard deviation σ.
    pub std: f64,
    /// Factors on the initial weights of each block.
    pub gains: Vec<ResolvedProjectionGains>,
}

/// Factors on the initial weights of one block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ResolvedProjectionGains {
    pub q: f64,
    pub k: f64,
    pub v: f64,
    pub o: f64,
    pub gate: f64,
    pub up: f64,
    pub down: f64,
}

/// Weight matrix of a block, for the gains of its initialization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Projection {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention output projection.
    O,
    /// Feed-forward gate projection.
    Gate,
    /// Feed-forward up projection.
    Up,
    /// Feed-forward down projection.
    Down,
    /// Router of a mixture of experts.
    Router,
}

impl ResolvedProjectionGains {
    /// Returns the factor of a projection.
    ///
    /// ```
    /// use hybridnorm::placement::{Projection, named, resolve};
    /// // DeepNorm scales the value projection, but not the query projection.
    /// let deepnorm = resolve(&named("deepnorm")?, 12, 768)?;
    /// let gains = deepnorm.init.gains[0];
    /// assert_eq!(gains.get(Projection::Q), 1.0);
    /// assert!((gains.get(Projection::V) - 96f64.powf(-0.25)).abs() < 1e-12);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn get(&self, projection: Projection) -> f64 {
        match projection {
            Projection::Q => self.q,
            Projection::K => self.k,
            Projection::V => self.v,
            Projection::O => self.o,
            Projection::Gate => self.gate,
            Projection::Up => self.up,
            Projection::Down => self.down,
            Projection::Router => 1.0,
        }
    }
}

pub(super) fn resolve_init(
    placement: &Placement,
    model_context: ScaleContext,
) -> Result<ResolvedInit, PlacementError> {
    let std = match placement.init.std {
        StdRule::SmallInit => 1.0 / (2.5 * model_context.d_model as f64).sqrt(),
        StdRule::Const(value) => value,
    };
    let gains = (0..model_context.n_layers)
        .map(|layer| resolve_gains(&placement.init.gains, model_context.in_block(layer)))
        .collect::<Result<_, _>>()?;
    Ok(ResolvedInit {
        scheme: placement.init.scheme,
        std,
        gains,
    })
}

fn resolve_gains(
    gains: &ProjectionGains,
    at: ScaleContext,
) -> Result<ResolvedProjectionGains, PlacementError> {
    let number = |projection: &str, scale: &Scale| {
        let field = format!("init.gains.{projection}");
        match scale.resolve(at, &field)? {
            ResolvedScale::Const(value) => Ok(value),
            ResolvedScale::Learned { .. } => Err(PlacementError::new(
                InvalidValue,
                field,
                "a gain on initial weights cannot be learned; give a number or a formula",
            )),
        }
    };
    Ok(ResolvedProjectionGains {
        q: number("q", &gains.q)?,
        k: number("k", &gains.k)?,
        v: number("v", &gains.v)?,
        o: number("o", &gains.o)?,
        gate: number("gate", &gains.gate)?,
        up: number("up", &gains.up)?,
        down: number("down", &gains.down)?,
    })
}
