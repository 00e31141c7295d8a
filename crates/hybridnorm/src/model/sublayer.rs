//! Connection of attention or feed-forward to the residual stream: norms, skip connection and scales.
//!
//! HybridNorm's feed-forward (arXiv 2503.04598) has an `in_norm` and `skip = Normed`: `x' = N(x) + F(N(x))`.

use super::norm::{Norm, NormSite, norm, normalize_l2};
use super::parameter_builder::ParameterBuilder;
use super::scale::{Scale, scale};
use crate::graph::Value;
use crate::placement::{self, Combine, ResolvedScale, Skip, Streams};

/// Norms, scales and skip connection around attention or feed-forward; see [`placement::spec`] for the equation.
#[derive(Debug, Clone, PartialEq)]
pub struct SubLayer {
    /// Scale of the main stream in the sub-layer input, with two streams.
    pub read_scale: Scale,
    /// Norm of the second stream in the sub-layer input.
    pub second_norm: Option<Norm>,
    /// Norm before the function.
    pub in_norm: Option<Norm>,
    /// Scale of the function's input.
    pub in_scale: Scale,
    /// Scale of the skip connection.
    pub skip_scale: Scale,
    /// Norm of the function's output.
    pub out_norm: Option<Norm>,
    /// Scale of the output.
    pub out_scale: Scale,
    /// Norm of the sum.
    pub post_norm: Option<Norm>,
    skip: Skip,
    combine: Combine,
}

/// Residual streams, (b, t, d): one, or two if the placement has two.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'g> {
    /// The stream; with two, the main one.
    pub x: Value<'g>,
    /// The second stream.
    pub y: Option<Value<'g>>,
}

/// Residual streams after a sub-layer, and the branch output that was added.
pub(super) struct SubLayerOutput<'g> {
    pub(super) residual: Residual<'g>,
    pub(super) branch: Value<'g>,
}

impl SubLayer {
    /// Declares the norms and scales of a sub-layer of a resolved block.
    pub(super) fn new(
        builder: &mut ParameterBuilder<'_>,
        path: &str,
        spec: &placement::SubLayer<ResolvedScale>,
    ) -> Self {
        let d = builder.config.d_model;
        let is_siamese = builder.resolved.streams == Streams::Siamese;
        let mut make = |site: &str, is_present: bool, gain_init: f64| {
            let site_of = NormSite {
                gain_init,
                ..NormSite::of_width(d)
            };
            is_present.then(|| Norm::new(builder, &format!("{path}.{site}"), site_of))
        };
        let out_gain = spec.out_norm.as_ref().map(|out| match out.gain_init {
            ResolvedScale::Const(value) | ResolvedScale::Learned { init: value, .. } => value,
        });
        let second_norm = make("second_norm", is_siamese, 1.0);
        let in_norm = make("in_norm", spec.in_norm, 1.0);
        let out_norm = make("out_norm", out_gain.is_some(), out_gain.unwrap_or(1.0));
        let post_norm = make("post_norm", spec.post_norm, 1.0);
        let mut scale_of =
            |site: &str, factor| Scale::new(builder, &format!("{path}.{site}"), factor, d);
        Self {
            read_scale: scale_of("read_scale", spec.read_scale),
            second_norm,
            in_norm,
            in_scale: scale_of("in_scale", spec.in_scale),
            skip_scale: scale_of("skip_scale", spec.skip_scale),
            out_norm,
            out_scale: scale_of("out_scale", spec.out_scale),
            post_norm,
            skip: spec.skip,
            combine: spec.combine,
        }
    }

    /// Applies the sub-layer to the residual stream; `b` is the stream that entered the block, `function` (G below)
    /// attention or feed-forward.
    ///
    /// ```text
    /// s  = x, or read_scale · x + second_norm(y)
    /// n  = in_norm(s)
    /// g  = out_norm(G(in_scale · n))
    /// x' = post_norm(skip_scale · skip + out_scale · g)      y' = y + g
    /// ```
    pub(super) fn forward<'g>(
        &self,
        residual: Residual<'g>,
        b: Value<'g>,
        function: impl FnOnce(Value<'g>) -> Value<'g>,
    ) -> SubLayerOutput<'g> {
        let Residual { x, y } = residual;
        let n = norm(&self.in_norm, self.input(residual));
        let skip = match self.skip {
            Skip::Raw => x,
            Skip::Normed => n,
            Skip::BlockInput => b,
            Skip::RawPlusBlockInput => x + b,
        };
        let o = norm(&self.out_norm, function(scale(&self.in_scale, n)));
        let y = y.map(|y| y + o);
        let (x, branch) = match self.combine {
            Combine::Add => {
                let o = scale(&self.out_scale, o);
                (norm(&self.post_norm, scale(&self.skip_scale, skip) + o), o)
            }
            Combine::LerpUnit => {
                let o = scale(&self.out_scale, o - skip);
                (normalize_l2(skip + o), o)
            }
        };
        let residual = Residual { x, y };
        SubLayerOutput { residual, branch }
    }

    /// Returns the sub-layer input: `x`, or with two streams `read_scale · x + second_norm(y)`.
    fn input<'g>(&self, Residual { x, y }: Residual<'g>) -> Value<'g> {
        match y.filter(|_| self.second_norm.is_some()) {
            Some(y) => scale(&self.read_scale, x) + norm(&self.second_norm, y),
            None => x,
        }
    }
}
