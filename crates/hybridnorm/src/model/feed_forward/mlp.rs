//! Two projections with an activation function between them.

use super::super::bias::bias;
use super::super::norm::{Norm, NormSite, norm};
use super::super::parameter_builder::{Matrix, ParameterBuilder, Part};
use super::super::registry::{Param, Role};
use super::super::scale::{Scale, scale};
use crate::graph::Value;
use crate::ops;
use crate::placement;
use hybridnorm_kernels::activation::Activation;
use hybridnorm_kernels::experts::DispatchLayout;

/// `W_down · act(W_up · u)`, with the norms of the placement in between; or a stack of such functions, one per
/// expert of a mixture. A norm is shared by all experts of the stack, as one within attention is shared by all
/// heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Input projection: gate rows before up rows if gated; (2f, d) or (f, d) per expert.
    up: Param,
    up_bias: Option<Param>,
    /// Norm of the gate projection.
    pub gate_norm: Option<Norm>,
    /// Norm of the up projection.
    pub up_norm: Option<Norm>,
    /// Scale of the gate projection.
    pub gate_scale: Scale,
    /// Scale of the up projection.
    pub up_scale: Scale,
    /// Norm of the hidden activation.
    pub mid_norm: Option<Norm>,
    /// Output projection, (d, f) per expert.
    down: Param,
    down_bias: Option<Param>,
    activation: Activation,
}

/// Dispatch of tokens to experts, with the gate weights.
#[derive(Clone, Copy)]
pub(super) struct ExpertRouting<'g> {
    pub(super) dispatch: Value<'g>,
    pub(super) weights_nk: Value<'g>,
    pub(super) layout: DispatchLayout,
}

impl Mlp {
    /// Declares an MLP of inner width `f`; `path` is its path within the feed-forward.
    pub(super) fn dense(builder: &mut ParameterBuilder<'_>, path: &str, f: usize) -> Self {
        Self::declare(
            builder,
            path,
            &[path.to_owned()],
            f,
            ["feed-forward gate", "feed-forward up", "feed-forward down"],
        )
    }

    /// Adds the biases of the model's configuration.
    pub(super) fn with_bias(self, builder: &mut ParameterBuilder<'_>, f: usize) -> Self {
        let is_present = builder.config.bias.feed_forward;
        let up = builder.config.ffn_in_width(f);
        Self {
            up_bias: builder.add_bias("feed_forward.up_bias", up, is_present),
            down_bias: builder.add_bias(
                "feed_forward.down_bias",
                builder.config.d_model,
                is_present,
            ),
            ..self
        }
    }

    /// Declares a stack of experts of inner width `f`.
    pub(super) fn experts(builder: &mut ParameterBuilder<'_>, experts: usize, f: usize) -> Self {
        let paths: Vec<String> = (0..experts).map(|e| format!("experts.{e}.")).collect();
        Self::declare(builder, "experts.", &paths, f, ["experts"; 3])
    }

    fn declare(
        builder: &mut ParameterBuilder<'_>,
        path: &str,
        parts: &[String],
        f: usize,
        [gate, up, down]: [&'static str; 3],
    ) -> Self {
        let inner = *builder.feed_forward();
        let activation = builder.config.activation;
        let d = builder.config.d_model;
        let part = |path: &str, name: &str, rows, projection, count_category| Part {
            path: format!("feed_forward.{path}{name}"),
            rows,
            projection,
            count_category,
        };
        let mut up_parts = Vec::new();
        let mut down_parts = Vec::new();
        for path in parts {
            if activation.is_gated() {
                up_parts.push(part(path, "up.gate", f, placement::Projection::Gate, gate));
            }
            up_parts.push(part(path, "up.up", f, placement::Projection::Up, up));
            down_parts.push(part(path, "down", d, placement::Projection::Down, down));
        }
        let experts = parts.len();
        let matrix = |builder: &mut ParameterBuilder<'_>, name, columns, parts, writes_residual| {
            builder.add_matrix(Matrix {
                path: &format!("feed_forward.{path}{name}"),
                label: name,
                role: Role::FeedForward,
                columns,
                parts,
                n_interleaved_groups: 1,
                writes_residual,
                experts,
            })
        };
        let up = matrix(builder, "up", d, up_parts, false);
        let down = matrix(builder, "down", f, down_parts, true);
        let make = |builder: &mut ParameterBuilder<'_>, name, is_present: bool| {
            let path = format!("feed_forward.{path}{name}");
            is_present.then(|| Norm::new(builder, &path, NormSite::of_width(f)))
        };
        let factor = |builder: &mut ParameterBuilder<'_>, name, factor| {
            Scale::new(builder, &format!("feed_forward.{path}{name}"), factor, f)
        };
        Self {
            up,
            up_bias: None,
            gate_norm: make(builder, "gate_norm", inner.gate_norm),
            up_norm: make(builder, "up_norm", inner.up_norm),
            gate_scale: factor(builder, "gate_scale", inner.gate_scale),
            up_scale: factor(builder, "up_scale", inner.up_scale),
            mid_norm: make(builder, "mid_norm", inner.mid_norm),
            down,
            down_bias: None,
            activation,
        }
    }

    /// Computes (b, t, d) from (b, t, d).
    pub(super) fn forward<'g>(&self, u_btd: Value<'g>) -> Value<'g> {
        let g = u_btd.builder();
        let projected = bias(&self.up_bias, ops::linear(u_btd, self.up.value(g)));
        let hidden = ops::activation(self.normalize_and_scale(projected), self.activation);
        let down = ops::linear(norm(&self.mid_norm, hidden), self.down.value(g));
        bias(&self.down_bias, down)
    }

    /// Computes the MLP through the experts that each token is routed to.
    pub(super) fn forward_experts<'g>(
        &self,
        u_btd: Value<'g>,
        routing: ExpertRouting<'g>,
    ) -> Value<'g> {
        let g = u_btd.builder();
        let ExpertRouting {
            dispatch,
            weights_nk,
            layout,
        } = routing;
        let projected = ops::expert_up(u_btd, self.up.value(g), dispatch, layout);
        let hidden = ops::activation(self.normalize_and_scale(projected), self.activation);
        let hidden = norm(&self.mid_norm, hidden);
        let down = self.down.value(g);
        ops::expert_down(
            hidden,
            None,
            down,
            weights_nk,
            dispatch,
            layout,
            u_btd.shape(),
        )
    }

    /// Applies norms and scales to the projections; returns the input of the activation function.
    fn normalize_and_scale<'g>(&self, projected: Value<'g>) -> Value<'g> {
        let of_gate = |x| scale(&self.gate_scale, norm(&self.gate_norm, x));
        let of_up = |x| scale(&self.up_scale, norm(&self.up_norm, x));
        let is_plain = [&self.gate_scale, &self.up_scale].map(|s| s.constant() == Some(1.0));
        if self.gate_norm.is_none() && self.up_norm.is_none() && is_plain == [true; 2] {
            return projected;
        }
        if self.activation.inputs(1) == 1 {
            return of_up(projected);
        }
        let f = projected.shape().width() / 2;
        let [gate, up] = ops::split(projected, [f, f]);
        ops::concat(&[of_gate(gate), of_up(up)])
    }
}
