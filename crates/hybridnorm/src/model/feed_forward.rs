//! The feed-forward function.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::config::{FfnActivation, ModelConfig};
use super::init::Initializer;
use super::norm::{Norm, NormSite};
use crate::ops;
use crate::placement::{FfnInner, NormSpec, Role};

/// `W_down · act(W_in · u)`, with whatever norms the placement puts in between.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// Input projection: gate rows before up rows when gated; (2f, d) or (f, d).
    pub up: Param<Tensor<2>>,
    /// Norm on the gate projection.
    pub gate_norm: Option<Norm>,
    /// Norm on the up projection.
    pub up_norm: Option<Norm>,
    /// Norm on the hidden activation.
    pub mid_norm: Option<Norm>,
    /// Output projection, (d, f).
    pub down: Param<Tensor<2>>,
    #[module(skip)]
    activation: FfnActivation,
}

impl FeedForward {
    /// Makes the feed-forward of block `layer`.
    pub fn new(
        config: &ModelConfig,
        inner: &FfnInner,
        norm: &NormSpec,
        layer: usize,
        initializer: &Initializer<'_>,
        device: &Device,
    ) -> Self {
        let (d, f) = (config.d_model, config.d_ff);
        let name = |field: &str| format!("blocks.{layer}.feed_forward.{field}");
        let draw = |field: &str, role: Role, shape: [usize; 2]| {
            initializer.block(&name(field), layer, role, shape)
        };
        let up = match config.activation.is_gated() {
            true => [
                draw("up.gate", Role::Gate, [f, d]),
                draw("up.up", Role::Up, [f, d]),
            ]
            .concat(),
            false => draw("up.up", Role::Up, [f, d]),
        };
        let down = draw("down", Role::Down, [d, f]);
        let site = NormSite::of_width(f);
        let make = |wanted: bool| wanted.then(|| Norm::new(norm, site, device));
        Self {
            up: Param::from_data(TensorData::new(up, [config.ffn_in_width(), d]), device),
            gate_norm: make(inner.gate_norm),
            up_norm: make(inner.up_norm),
            mid_norm: make(inner.mid_norm),
            down: Param::from_data(TensorData::new(down, [d, f]), device),
            activation: config.activation,
        }
    }

    /// From what the sub-layer reads (b, t, d) to what it adds (b, t, d).
    pub fn forward(&self, u_btd: Tensor<3>) -> Tensor<3> {
        let projected = ops::linear(u_btd, self.up.val());
        let projected = self.normed_projections(projected);
        let (act, down) = (self.activation.op(), self.down.val());
        match &self.mid_norm {
            None => ops::activation_linear(projected, act, down),
            Some(norm) => ops::linear(norm.forward(ops::activation(projected, act)), down),
        }
    }

    fn normed_projections(&self, projected: Tensor<3>) -> Tensor<3> {
        if self.gate_norm.is_none() && self.up_norm.is_none() {
            return projected;
        }
        let apply = |norm: &Option<Norm>, x: Tensor<3>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        if !self.activation.is_gated() {
            return apply(&self.up_norm, projected);
        }
        let f = projected.dims()[2] / 2;
        let gate = apply(&self.gate_norm, projected.clone().narrow(2, 0, f));
        let up = apply(&self.up_norm, projected.narrow(2, f, f));
        Tensor::cat(vec![gate, up], 2)
    }
}
