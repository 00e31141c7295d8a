//! A mixture of experts.

use super::super::parameter_builder::{Matrix, ParameterBuilder, Part};
use super::super::registry::{Param, Role};
use super::mlp::{ExpertRouting, Mlp};
use crate::graph::Value;
use crate::model::MoeConfig;
use crate::ops;
use crate::placement;
use hybridnorm_kernels::router::Router;

/// `Σ_j w_j · expert_j(u) + shared(u)` over the top-k experts j of a token.
///
/// Dropless: every expert processes all tokens dispatched to it.
#[derive(Debug, Clone, PartialEq)]
pub struct MixtureOfExperts {
    /// Router projection, (e, d).
    router: Param,
    /// Balancing bias on the scores for expert selection, (e); adjusted by the load, not by gradients
    /// (in files: `selection_bias`).
    pub(in super::super) balancing_bias: Option<Param>,
    /// Routed experts.
    pub experts: Mlp,
    /// Shared expert, applied to every token.
    pub shared: Option<Mlp>,
    routing: Router,
}

/// Router outputs of one block in a graph: the dispatch, losses and statistics.
#[derive(Debug, Clone, Copy)]
pub struct RouterOutputs<'g> {
    /// Token dispatch, see [`ops::top_k_dispatch`].
    pub dispatch: Value<'g>,
    /// Load-balancing loss, one element, unweighted.
    pub load_balancing_loss: Value<'g>,
    /// Router z-loss, one element, unweighted.
    pub z_loss: Value<'g>,
    /// Load-balancing loss, z-loss and entropy of the scores in double precision.
    pub statistics: Value<'g>,
}

impl MixtureOfExperts {
    /// Declares the mixture of a block.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>, moe: &MoeConfig) -> Self {
        let e = moe.n_experts;
        let router = builder.add_matrix(Matrix {
            path: "feed_forward.router",
            label: "router",
            role: Role::Router,
            columns: builder.config.d_model,
            parts: vec![Part {
                path: "feed_forward.router".into(),
                rows: e,
                projection: placement::Projection::Router,
                count_category: "router",
            }],
            n_interleaved_groups: 1,
            writes_residual: false,
            experts: 1,
        });
        let bias = moe.bias_rate.map(|_| ("", e, 0.0));
        let path = "feed_forward.selection_bias";
        Self {
            router,
            balancing_bias: builder.add_vectors(path, Role::BalancingBias, bias.as_slice()),
            experts: Mlp::experts(builder, e, moe.d_expert),
            shared: (moe.n_shared > 0).then(|| Mlp::dense(builder, "shared.", moe.d_shared())),
            routing: moe.router(),
        }
    }

    /// Computes the output (b, t, d) from (b, t, d), and the router statistics.
    pub(super) fn forward<'g>(&self, u_btd: Value<'g>) -> (Value<'g>, RouterOutputs<'g>) {
        let g = u_btd.builder();
        let logits = ops::linear(u_btd, self.router.value(g));
        let bias = self.balancing_bias.map(|bias| bias.value(g));
        let dispatch = ops::top_k_dispatch(logits, bias, self.routing);
        let routing = ExpertRouting {
            dispatch,
            weights_nk: ops::gate_weights(logits, dispatch, self.routing),
            layout: self.routing.layout(),
        };
        let routed = self.experts.forward_experts(u_btd, routing);
        let y = match &self.shared {
            None => routed,
            Some(shared) => routed + shared.forward(u_btd),
        };
        let [load_balancing_loss, z_loss, _, statistics] =
            ops::router_losses(logits, dispatch, self.routing);
        let routed = RouterOutputs {
            dispatch,
            load_balancing_loss,
            z_loss,
            statistics,
        };
        (y, routed)
    }
}
