//! The rule that wires attention or feed-forward into the stream.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::norm::{Norm, NormSite};
use super::scale::Scale;
use super::stream::Stream;
use crate::placement::{self, Factor, NormSpec, Skip};

/// Norms, scales and the skip around a function of the stream.
///
/// See [`placement::spec`] for the rule: `normed`, `branch` and `merge` are its lines.
#[derive(Module, Debug)]
pub struct SubLayer {
    /// Norm before the function.
    pub in_norm: Option<Norm>,
    /// Factor on what the function reads.
    pub in_scale: Scale,
    /// Factor on the skip.
    pub skip_scale: Scale,
    /// Norm on the function's output.
    pub out_norm: Option<Norm>,
    /// Factor on the output.
    pub out_scale: Scale,
    /// Norm on the sum.
    pub post_norm: Option<Norm>,
    #[module(skip)]
    skip: Skip,
}

impl SubLayer {
    /// Makes the wiring of one sub-layer of a resolved block.
    pub fn new(
        spec: &placement::SubLayer<Factor>,
        norm: &NormSpec,
        d_model: usize,
        device: &Device,
    ) -> Self {
        let site = NormSite::of_width(d_model);
        let make = |wanted: bool| wanted.then(|| Norm::new(norm, site, device));
        let scale = |factor: Factor| Scale::new(factor, d_model, device);
        Self {
            in_norm: make(spec.in_norm),
            in_scale: scale(spec.in_scale),
            skip_scale: scale(spec.skip_scale),
            out_norm: spec.out_norm.as_ref().map(|out| {
                let gain_init = match out.gain_init {
                    Factor::Const(value) | Factor::Learned { init: value, .. } => value,
                };
                Norm::new(norm, NormSite { gain_init, ..site }, device)
            }),
            out_scale: scale(spec.out_scale),
            post_norm: make(spec.post_norm),
            skip: spec.skip,
        }
    }

    /// One step of the stream: `s` the state, `n` what `normed` makes of it, `b` the
    /// state that entered the block, `g` attention or feed-forward. All (b, t, d). `see` is shown
    /// what is added.
    pub(super) fn forward(
        &self,
        s: Tensor<3>,
        n: Tensor<3>,
        b: &Tensor<3>,
        g: impl FnOnce(Tensor<3>) -> Tensor<3>,
        see: impl FnOnce(&Tensor<3>),
    ) -> Stream {
        let skip = match self.skip {
            Skip::Raw => s,
            Skip::Normed => n.clone(),
            Skip::BlockInput => b.clone(),
            Skip::RawPlusBlockInput => s + b.clone(),
        };
        let o = self.branch(n, g);
        see(&o);
        self.merge(skip, o)
    }

    /// `s` and `n = in_norm(s)`
    pub(super) fn normed(&self, s: Stream) -> (Tensor<3>, Tensor<3>) {
        s.normed(&self.in_norm)
    }

    /// `o = out_scale · out_norm(g(in_scale · n))`
    pub(super) fn branch(&self, n: Tensor<3>, g: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let o = Stream::Whole(g(self.in_scale.forward(n)));
        let (_, o) = o.normed(&self.out_norm);
        self.out_scale.forward(o)
    }

    /// Its norms on the stream.
    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        [&self.in_norm, &self.out_norm, &self.post_norm]
            .into_iter()
            .flatten()
    }

    /// `s' = post_norm(skip_scale · skip + o)`
    pub(super) fn merge(&self, skip: Tensor<3>, o: Tensor<3>) -> Stream {
        let sum = Stream::Sum(self.skip_scale.forward(skip), o);
        match self.post_norm {
            Some(_) => Stream::Whole(sum.normed(&self.post_norm).1),
            None => sum,
        }
    }
}
