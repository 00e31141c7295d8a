//! The rule that wires attention or feed-forward into the stream.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::norm::{Norm, NormSite, unit};
use super::scale::Scale;
use super::stream::{State, Stream};
use crate::placement::{self, Combine, Factor, NormSpec, Skip, Streams};

/// Norms, scales and the skip around a function of the stream.
///
/// See [`placement::spec`] for the rule: `read`, `branch` and `merge` are its lines.
#[derive(Module, Debug)]
pub struct SubLayer {
    /// Factor on the main stream where it is read beside the second.
    pub read_scale: Scale,
    /// Norm on the second stream where it is read.
    pub second_norm: Option<Norm>,
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
    #[module(skip)]
    combine: Combine,
}

/// What a sub-layer has of the state: the main stream, what the function makes of it all, the second
/// stream; all (b, t, d).
pub(super) struct Reading {
    /// The main stream.
    pub(super) x: Tensor<3>,
    /// `in_norm` of what is read.
    pub(super) n: Tensor<3>,
    y: Option<Tensor<3>>,
}

impl SubLayer {
    /// Makes the wiring of one sub-layer of a resolved block.
    pub fn new(
        spec: &placement::SubLayer<Factor>,
        streams: Streams,
        norm: &NormSpec,
        d_model: usize,
        device: &Device,
    ) -> Self {
        let site = NormSite::of_width(d_model);
        let make = |wanted: bool| wanted.then(|| Norm::new(norm, site, device));
        let scale = |factor: Factor| Scale::new(factor, d_model, device);
        Self {
            read_scale: scale(spec.read_scale),
            second_norm: make(streams == Streams::Siamese),
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
            combine: spec.combine,
        }
    }

    /// `s = x`, or `s = read_scale · x + second_norm(y)` where both streams are read; `n = in_norm(s)`
    pub(super) fn read(&self, state: State) -> Reading {
        let State { x, y } = state;
        let (x, n) = match (&self.second_norm, &y) {
            (Some(second_norm), Some(y)) => {
                let x = x.whole();
                let scaled = self.read_scale.forward(x.clone());
                let s = Stream::Sum(scaled, second_norm.forward(y.clone()));
                (x, s.normed(&self.in_norm).1)
            }
            _ => x.normed(&self.in_norm),
        };
        Reading { x, n, y }
    }

    /// One step of the state: what was read of it, `b` the stream that entered the block, `g`
    /// attention or feed-forward. `see` is shown what is added.
    pub(super) fn forward(
        &self,
        reading: Reading,
        b: &Tensor<3>,
        g: impl FnOnce(Tensor<3>) -> Tensor<3>,
        see: impl FnOnce(&Tensor<3>),
    ) -> State {
        let Reading { x, n, y } = reading;
        let skip = match self.skip {
            Skip::Raw => x,
            Skip::Normed => n.clone(),
            Skip::BlockInput => b.clone(),
            Skip::RawPlusBlockInput => x + b.clone(),
        };
        let g = self.branch(n, g);
        let y = y.map(|y| y + g.clone());
        let x = match self.combine {
            Combine::Add => {
                let o = self.out_scale.forward(g);
                see(&o);
                self.merge(skip, o)
            }
            Combine::LerpUnit => {
                let o = self.out_scale.forward(g - skip.clone());
                see(&o);
                Stream::Whole(unit(skip + o))
            }
        };
        State { x, y }
    }

    /// `out_norm(g(in_scale · n))`
    pub(super) fn branch(&self, n: Tensor<3>, g: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let o = Stream::Whole(g(self.in_scale.forward(n)));
        o.normed(&self.out_norm).1
    }

    /// `x' = post_norm(skip_scale · skip + o)`
    pub(super) fn merge(&self, skip: Tensor<3>, o: Tensor<3>) -> Stream {
        let sum = Stream::Sum(self.skip_scale.forward(skip), o);
        match self.post_norm {
            Some(_) => Stream::Whole(sum.normed(&self.post_norm).1),
            None => sum,
        }
    }

    /// Its norms on the streams.
    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        [
            &self.second_norm,
            &self.in_norm,
            &self.out_norm,
            &self.post_norm,
        ]
        .into_iter()
        .flatten()
    }
}
