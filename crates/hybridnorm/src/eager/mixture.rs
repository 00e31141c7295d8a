//! The steps of a mixture of experts: choose, weigh, go there, come back.
//!
//! Shape suffixes: n tokens, e experts, k experts a token, m = n·k slots sorted by expert, d width,
//! o outputs, f inner width.

pub mod compose;
mod fused;

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use hybridnorm_kernels::{activation::Activation, router};
pub use hybridnorm_kernels::{
    experts::Plan,
    router::{Losses as RouterStatistics, Router, Scoring},
};

use super::{is_fused, on_host};
use fused::FusedMixtureOps;

/// The experts that a router chose for each of n tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// How scores and weights follow from the logits.
    pub router: Router,
    experts_nk: Arc<[u32]>,
    plan: Arc<Plan>,
}

impl Chosen {
    /// Who goes where.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }
}

/// Chooses experts by their scores plus the bias; see [`Router`]. Nothing here is differentiated.
pub fn choose(logits_ne: &Tensor<2>, bias_e: Option<&Tensor<1>>, router: Router) -> Chosen {
    let logits = on_host(logits_ne.clone());
    let bias = bias_e.map(|bias| on_host(bias.clone()));
    let mut chosen = vec![0; logits_ne.dims()[0] * router.top_k];
    router::choose(&router, &logits, bias.as_deref(), &mut chosen);
    Chosen {
        router,
        plan: Plan::new(&chosen, router.experts, router.top_k).into(),
        experts_nk: chosen.into(),
    }
}

/// Weights (n, k) of the chosen experts.
pub fn router_weights(logits_ne: Tensor<2>, chosen: &Chosen) -> Tensor<2> {
    if is_fused(&logits_ne) {
        let y = Dispatch::fused_router_weights(logits_ne.into_dispatch(), chosen.clone());
        Tensor::from_dispatch(y)
    } else {
        compose::router_weights(logits_ne, chosen)
    }
}

/// `[load-balancing loss, z-loss]` of the router; see [`RouterStatistics`].
pub fn router_losses(logits_ne: Tensor<2>, chosen: &Chosen) -> Tensor<1> {
    if is_fused(&logits_ne) {
        let y = Dispatch::fused_router_losses(logits_ne.into_dispatch(), chosen.clone());
        Tensor::from_dispatch(y)
    } else {
        compose::router_losses(logits_ne, chosen)
    }
}

/// The same in numbers, with the entropy of the scores; for looking inside, computed on the CPU in f32.
pub fn router_statistics(logits_ne: &Tensor<2>, chosen: &Chosen) -> RouterStatistics {
    let logits = on_host(logits_ne.clone());
    router::losses(&chosen.router, &logits, chosen.plan.load())
}

/// `x W_eᵀ` in every slot: what its token is for its expert. `x_btd` holds n rows, `w` a matrix
/// (o, d) for each expert; gives (1, m, o).
pub fn expert_up(x_btd: Tensor<3>, w_eo_d: Tensor<2>, plan: &Arc<Plan>) -> Tensor<3> {
    if is_fused(&x_btd) {
        let (x, w) = (x_btd.into_dispatch(), w_eo_d.into_dispatch());
        Tensor::from_dispatch(Dispatch::fused_expert_up(x, w, plan.clone()))
    } else {
        compose::expert_up(x_btd, w_eo_d, plan)
    }
}

/// `Σ_j weight_j · act(hidden_j) W_eᵀ` over the k slots of every token. `hidden` is (1, m, f), or
/// what [`activation`](super::activation()) reads if that is asked for; `w` holds a matrix (d, f) for each
/// expert; gives (1, n, d).
pub fn expert_down(
    hidden_1mf: Tensor<3>,
    act: Option<Activation>,
    w_ed_f: Tensor<2>,
    weights_nk: Tensor<2>,
    plan: &Arc<Plan>,
) -> Tensor<3> {
    if is_fused(&hidden_1mf) {
        let y = Dispatch::fused_expert_down(
            hidden_1mf.into_dispatch(),
            w_ed_f.into_dispatch(),
            weights_nk.into_dispatch(),
            act,
            plan.clone(),
        );
        Tensor::from_dispatch(y)
    } else {
        compose::expert_down(hidden_1mf, act, w_ed_f, weights_nk, plan)
    }
}
