//! The rule that wires attention or feed-forward into the residual stream.

use super::declare::Declare;
use super::norm::{Norm, Site, norm, unit};
use super::scale::{Scale, scale};
use crate::graph::Value;
use crate::placement::{self, Combine, Factor, Skip, Streams};

/// Norms, scales and the skip around a function of the residual stream; see [`placement::spec`] for the
/// rule.
#[derive(Debug, Clone, PartialEq)]
pub struct SubLayer {
    /// Factor on the main stream where it is read beside the second.
    pub read_scale: Scale,
    /// Norm on the second stream where it is read.
    pub second_norm: Option<Norm>,
    /// Norm before the function.
    pub in_norm: Option<Norm>,
    /// Factor on the function's input.
    pub in_scale: Scale,
    /// Factor on the skip.
    pub skip_scale: Scale,
    /// Norm on the function's output.
    pub out_norm: Option<Norm>,
    /// Factor on the output.
    pub out_scale: Scale,
    /// Norm on the sum.
    pub post_norm: Option<Norm>,
    skip: Skip,
    combine: Combine,
}

/// The residual streams, (b, t, d): one, or two where the placement says so.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'g> {
    /// The stream; the main one of two.
    pub x: Value<'g>,
    /// The second stream.
    pub y: Option<Value<'g>>,
}

/// The residual streams after a sub-layer, and the branch output that was added.
pub(super) struct Sum<'g> {
    pub(super) residual: Residual<'g>,
    pub(super) branch: Value<'g>,
}

impl SubLayer {
    /// Declares the wiring of a sub-layer of a resolved block.
    pub(super) fn new(
        declare: &mut Declare<'_>,
        path: &str,
        spec: &placement::SubLayer<Factor>,
    ) -> Self {
        let d = declare.config.d_model;
        let is_siamese = declare.resolved.streams == Streams::Siamese;
        let mut make = |site: &str, wanted: bool, gain_init: f64| {
            let site_of = Site {
                gain_init,
                ..Site::of_width(d)
            };
            wanted.then(|| Norm::new(declare, &format!("{path}.{site}"), site_of))
        };
        let out_gain = spec.out_norm.as_ref().map(|out| match out.gain_init {
            Factor::Const(value) | Factor::Learned { init: value, .. } => value,
        });
        let second_norm = make("second_norm", is_siamese, 1.0);
        let in_norm = make("in_norm", spec.in_norm, 1.0);
        let out_norm = make("out_norm", out_gain.is_some(), out_gain.unwrap_or(1.0));
        let post_norm = make("post_norm", spec.post_norm, 1.0);
        let mut scale_of =
            |site: &str, factor| Scale::new(declare, &format!("{path}.{site}"), factor, d);
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

    /// One step of the residual stream; `b` is the stream that entered the block, `g` attention or
    /// feed-forward.
    ///
    /// ```text
    /// s  = x, or read_scale · x + second_norm(y)
    /// n  = in_norm(s)
    /// o  = out_norm(g(in_scale · n))
    /// x' = post_norm(skip_scale · skip + out_scale · o)      y' = y + o
    /// ```
    pub(super) fn forward<'g>(
        &self,
        residual: Residual<'g>,
        b: Value<'g>,
        g: impl FnOnce(Value<'g>) -> Value<'g>,
    ) -> Sum<'g> {
        let Residual { x, y } = residual;
        let n = norm(&self.in_norm, self.read(residual));
        let skip = match self.skip {
            Skip::Raw => x,
            Skip::Normed => n,
            Skip::BlockInput => b,
            Skip::RawPlusBlockInput => x + b,
        };
        let o = norm(&self.out_norm, g(scale(&self.in_scale, n)));
        let y = y.map(|y| y + o);
        let (x, branch) = match self.combine {
            Combine::Add => {
                let o = scale(&self.out_scale, o);
                (norm(&self.post_norm, scale(&self.skip_scale, skip) + o), o)
            }
            Combine::LerpUnit => {
                let o = scale(&self.out_scale, o - skip);
                (unit(skip + o), o)
            }
        };
        let residual = Residual { x, y };
        Sum { residual, branch }
    }

    /// Input of the sub-layer: `x`, or `read_scale · x + second_norm(y)` of both streams.
    fn read<'g>(&self, Residual { x, y }: Residual<'g>) -> Value<'g> {
        match y.filter(|_| self.second_norm.is_some()) {
            Some(y) => scale(&self.read_scale, x) + norm(&self.second_norm, y),
            None => x,
        }
    }
}
