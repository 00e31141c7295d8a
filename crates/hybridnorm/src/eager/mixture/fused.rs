//! The CPU implementation, see [`fused`](super::super::fused).

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn_flex::FlexTensor;
use hybridnorm_kernels::activation::{self, Activation};
use hybridnorm_kernels::experts::{self, Plan};
use hybridnorm_kernels::router;

use super::super::flex::{buffer, floats, last_dim, like, tensor};
use super::super::node::node;
use super::super::pool::{give, give_all, give_buffer, into_elements, take};
use super::Chosen;

/// The fused ops as Burn sees them. Use the functions of [`ops`](super::super) instead.
#[backend_extension(Flex, Autodiff)]
pub trait FusedMixtureOps: Backend {
    /// See [`router_weights`](super::router_weights).
    fn fused_router_weights(logits: FloatTensor<Self>, chosen: Chosen) -> FloatTensor<Self>;
    /// See [`router_losses`](super::router_losses).
    fn fused_router_losses(logits: FloatTensor<Self>, chosen: Chosen) -> FloatTensor<Self>;
    /// See [`expert_up`](super::expert_up).
    fn fused_expert_up(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        plan: Arc<Plan>,
    ) -> FloatTensor<Self>;
    /// See [`expert_down`](super::expert_down).
    fn fused_expert_down(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        act: Option<Activation>,
        plan: Arc<Plan>,
    ) -> FloatTensor<Self>;
}

impl FusedMixtureOps for Flex {
    fn fused_router_weights(logits: FlexTensor, chosen: Chosen) -> FlexTensor {
        let shape = [chosen.plan.tokens(), chosen.router.top_k];
        let mut weights = take(shape.iter().product());
        let experts = &chosen.experts_nk;
        router::weights(&chosen.router, &floats(&logits), experts, &mut weights);
        tensor(weights, shape)
    }

    fn fused_router_losses(logits: FlexTensor, chosen: Chosen) -> FlexTensor {
        let found = router::losses(&chosen.router, &floats(&logits), chosen.plan.load());
        tensor(vec![found.balance as f32, found.z as f32], [2])
    }

    fn fused_expert_up(x: FlexTensor, w: FlexTensor, plan: Arc<Plan>) -> FlexTensor {
        let (d, o) = (last_dim(&x), outputs(&w, &plan));
        let slots = gathered(&plan, &x);
        let mut y = take(plan.slots() * o);
        experts::forward(&plan, &slots, &floats(&w), &mut y, d, o);
        give_buffer(slots);
        tensor(y, [1, plan.slots(), o])
    }

    fn fused_expert_down(
        x: FlexTensor,
        w: FlexTensor,
        weights: FlexTensor,
        act: Option<Activation>,
        plan: Arc<Plan>,
    ) -> FlexTensor {
        let (f, d) = (last_dim(&w), outputs(&w, &plan));
        let hidden = activated(x, act, f);
        let mut slots = take(plan.slots() * d);
        experts::forward(&plan, &hidden, &floats(&w), &mut slots, f, d);
        give_buffer(hidden);
        let mut y = take(plan.tokens() * d);
        experts::combine(&plan, &slots, Some(&floats(&weights)), &mut y, d);
        give_buffer(slots);
        tensor(y, [1, plan.tokens(), d])
    }
}

impl<C: CheckpointStrategy> FusedMixtureOps for Autodiff<Flex, C> {
    fn fused_router_weights(logits: FloatTensor<Self>, chosen: Chosen) -> FloatTensor<Self> {
        node::<C, _, 1>(
            "router",
            [logits],
            |[logits]| {
                let weights = Flex::fused_router_weights(logits.clone(), chosen.clone());
                (weights, (logits, chosen))
            },
            |(logits, chosen), dweights| {
                let mut dlogits = buffer(&logits);
                router::weights_backward(
                    &chosen.router,
                    &floats(&logits),
                    &chosen.experts_nk,
                    &floats(&dweights),
                    &mut dlogits,
                );
                [like(dlogits, &logits)]
            },
        )
    }

    fn fused_router_losses(logits: FloatTensor<Self>, chosen: Chosen) -> FloatTensor<Self> {
        node::<C, _, 1>(
            "router",
            [logits],
            |[logits]| {
                let losses = Flex::fused_router_losses(logits.clone(), chosen.clone());
                (losses, (logits, chosen))
            },
            |(logits, chosen), dlosses| {
                let mut dlogits = buffer(&logits);
                let dlosses = floats(&dlosses);
                router::losses_backward(
                    &chosen.router,
                    &floats(&logits),
                    chosen.plan.load(),
                    dlosses[0],
                    dlosses[1],
                    &mut dlogits,
                );
                [like(dlogits, &logits)]
            },
        )
    }

    fn fused_expert_up(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        plan: Arc<Plan>,
    ) -> FloatTensor<Self> {
        node::<C, _, 2>(
            "experts up",
            [x, w],
            |[x, w]| {
                let y = Flex::fused_expert_up(x.clone(), w.clone(), plan.clone());
                (y, (x, w, plan))
            },
            |(x, w, plan), dy| {
                let (d, o) = (last_dim(&x), outputs(&w, &plan));
                let mut slots = take(plan.slots() * d);
                experts::backward_input(&plan, &floats(&dy), &floats(&w), &mut slots, d, o);
                let mut dx = buffer(&x);
                experts::combine(&plan, &slots, None, &mut dx, d);
                // The rows are gathered once more: to keep them would take k times the room of x.
                experts::gather(&plan, &floats(&x), &mut slots, d);
                let mut dw = buffer(&w);
                experts::backward_weight(&plan, &floats(&dy), &slots, &mut dw, d, o);
                give_buffer(slots);
                let gradients = [like(dx, &x), like(dw, &w)];
                give_all([x, w, dy]);
                gradients
            },
        )
    }

    fn fused_expert_down(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        act: Option<Activation>,
        plan: Arc<Plan>,
    ) -> FloatTensor<Self> {
        node::<C, _, 3>(
            "experts down",
            [x, w, weights],
            |[x, w, weights]| {
                let inputs = (x.clone(), w.clone(), weights.clone());
                let y = Flex::fused_expert_down(inputs.0, inputs.1, inputs.2, act, plan.clone());
                (y, (x, w, weights, plan))
            },
            move |(x, w, weights, plan), dy| {
                let (f, d) = (last_dim(&w), outputs(&w, &plan));
                // Weights are applied to what is narrower, and to one side of each product only:
                // with dy unweighted, <hidden, dhidden> is the gradient of a slot's weight.
                let dslots = gathered(&plan, &dy);
                let mut dhidden = take(plan.slots() * f);
                experts::backward_input(&plan, &dslots, &floats(&w), &mut dhidden, f, d);
                let mut hidden = activated(x.clone(), act, f);
                let mut dweights = buffer(&weights);
                experts::weigh_backward(
                    &plan,
                    &floats(&weights),
                    &mut hidden,
                    &mut dhidden,
                    &mut dweights,
                    f,
                );
                let mut dw = buffer(&w);
                experts::backward_weight(&plan, &dslots, &hidden, &mut dw, f, d);
                give_buffer(hidden);
                give_buffer(dslots);
                let dx = match act {
                    Some(act) => {
                        let mut dx = buffer(&x);
                        activation::backward(act, &floats(&x), &mut dhidden, &mut dx, f);
                        give_buffer(dhidden);
                        dx
                    }
                    None => dhidden,
                };
                let gradients = [like(dx, &x), like(dw, &w), like(dweights, &weights)];
                give_all([x, w, dy]);
                give(weights);
                gradients
            },
        )
    }
}

/// Rows of each expert's matrix.
fn outputs(w: &FlexTensor, plan: &Plan) -> usize {
    w.layout().shape()[0] / plan.experts()
}

/// The rows of x (.., n, d) in the order of the slots.
fn gathered(plan: &Plan, x: &FlexTensor) -> Vec<f32> {
    let d = last_dim(x);
    let mut slots = take(plan.slots() * d);
    experts::gather(plan, &floats(x), &mut slots, d);
    slots
}

/// The hidden activation of width `f`.
fn activated(x: FlexTensor, act: Option<Activation>, f: usize) -> Vec<f32> {
    let Some(act) = act else {
        return into_elements(x);
    };
    let rows = x.layout().num_elements() / last_dim(&x);
    let mut hidden = take(rows * f);
    activation::forward(act, &floats(&x), &mut hidden, f);
    hidden
}
