//! Two projections with a nonlinearity between them.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::eager as ops;
use crate::model::blueprint::Blueprint;
use crate::model::config::FfnActivation;
use crate::model::norm::{Norm, NormSite};
use crate::model::scale::Scale;
use crate::placement::Role;

/// `W_down · act(W_up · u)`, with whatever norms the placement puts in between; or a stack of such
/// functions, one for each expert of a mixture. A norm between them serves all experts of the stack,
/// as one within attention serves all heads.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Input projection: gate rows before up rows when gated; (2f, d) or (f, d) for each function of
    /// the stack.
    pub up: Param<Tensor<2>>,
    /// Norm on the gate projection.
    pub gate_norm: Option<Norm>,
    /// Norm on the up projection.
    pub up_norm: Option<Norm>,
    /// Factor on the gate projection.
    pub gate_scale: Scale,
    /// Factor on the up projection.
    pub up_scale: Scale,
    /// Norm on the hidden activation.
    pub mid_norm: Option<Norm>,
    /// Output projection, (d, f) for each function of the stack.
    pub down: Param<Tensor<2>>,
    #[module(skip)]
    activation: FfnActivation,
}

impl Mlp {
    /// Makes one of inner width `f`; `path` is its place within the feed-forward.
    pub(super) fn new(blueprint: &Blueprint<'_>, path: &str, f: usize) -> Self {
        Self::stack(blueprint, &[path.to_owned()], f)
    }

    /// Makes a stack of them, one for each path.
    pub(super) fn stack(blueprint: &Blueprint<'_>, paths: &[String], f: usize) -> Self {
        let Blueprint { config, device, .. } = *blueprint;
        let inner = &blueprint.spec().ffn_inner;
        let d = config.d_model;
        let mut up = Vec::with_capacity(paths.len() * config.ffn_in_width(f) * d);
        let mut down = Vec::with_capacity(paths.len() * d * f);
        for path in paths {
            let draw = |field: &str, role: Role, shape: [usize; 2]| {
                blueprint.draw(&format!("feed_forward.{path}{field}"), role, shape)
            };
            if config.activation.is_gated() {
                up.extend(draw("up.gate", Role::Gate, [f, d]));
            }
            up.extend(draw("up.up", Role::Up, [f, d]));
            down.extend(draw("down", Role::Down, [d, f]));
        }
        let site = NormSite::of_width(f);
        let make = |wanted: bool| wanted.then(|| Norm::new(blueprint.norm(), site, device));
        Self {
            up: blueprint.matrix(up, d),
            gate_norm: make(inner.gate_norm),
            up_norm: make(inner.up_norm),
            gate_scale: Scale::new(inner.gate_scale, f, device),
            up_scale: Scale::new(inner.up_scale, f, device),
            mid_norm: make(inner.mid_norm),
            down: blueprint.matrix(down, f),
            activation: config.activation,
        }
    }

    /// From (b, t, d) to (b, t, d).
    pub fn forward(&self, u_btd: Tensor<3>) -> Tensor<3> {
        let projected = self.prepared(ops::linear(u_btd, self.up.val()));
        let (act, down) = (self.activation.op(), self.down.val());
        match &self.mid_norm {
            None => ops::activation_linear(projected, act, down),
            Some(norm) => ops::linear(norm.forward(ops::activation(projected, act)), down),
        }
    }

    /// The same through those functions of the stack that each token is routed to: their outputs'
    /// sum with `weights_nk`.
    pub fn forward_routed(
        &self,
        u_btd: Tensor<3>,
        weights_nk: Tensor<2>,
        plan: &Arc<ops::Plan>,
    ) -> Tensor<3> {
        let projected = ops::expert_up(u_btd.clone(), self.up.val(), plan);
        let projected = self.prepared(projected);
        let (act, down) = (self.activation.op(), self.down.val());
        let [b, t, d] = u_btd.dims();
        let y_1nd = match &self.mid_norm {
            None => ops::expert_down(projected, Some(act), down, weights_nk, plan),
            Some(norm) => {
                let hidden = norm.forward(ops::activation(projected, act));
                ops::expert_down(hidden, None, down, weights_nk, plan)
            }
        };
        y_1nd.reshape([b, t, d])
    }

    /// Its norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        [&self.gate_norm, &self.up_norm, &self.mid_norm]
            .into_iter()
            .flatten()
    }

    /// The projections with what comes before the nonlinearity.
    fn prepared(&self, projected: Tensor<3>) -> Tensor<3> {
        let is_plain = self.gate_norm.is_none() && self.up_norm.is_none();
        if is_plain && self.gate_scale.is_one() && self.up_scale.is_one() {
            return projected;
        }
        let apply = |norm: &Option<Norm>, scale: &Scale, x: Tensor<3>| match norm {
            Some(norm) => scale.forward(norm.forward(x)),
            None => scale.forward(x),
        };
        if !self.activation.is_gated() {
            return apply(&self.up_norm, &self.up_scale, projected);
        }
        let f = projected.dims()[2] / 2;
        let gate = projected.clone().narrow(2, 0, f);
        let gate = apply(&self.gate_norm, &self.gate_scale, gate);
        let up = apply(&self.up_norm, &self.up_scale, projected.narrow(2, f, f));
        Tensor::cat(vec![gate, up], 2)
    }
}
