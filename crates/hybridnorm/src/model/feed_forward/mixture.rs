//! A mixture of experts.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use super::mlp::Mlp;
use super::routed::Routed;
use crate::eager::{self as ops, Router};
use crate::model::blueprint::Blueprint;
use crate::model::config::MoeConfig;
use crate::model::norm::Norm;
use crate::placement::Role;

/// `Σ_j w_j · expert_j(u) + shared(u)` over the experts j that the router chooses for a token.
///
/// No token is dropped, and no expert computes what nobody asked it for.
#[derive(Module, Debug)]
pub struct Mixture {
    /// Logits of the experts, (e, d).
    pub router: Param<Tensor<2>>,
    /// What is added to the scores where experts are chosen, (e); moved by
    /// [`Mixture::rebalance`], not by gradients.
    pub selection_bias: Option<Param<Tensor<1>>>,
    /// All experts.
    pub experts: Mlp,
    /// What every token passes through.
    pub shared: Option<Mlp>,
    #[module(skip)]
    settings: Settings,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    router: Router,
    bias_rate: f32,
}

impl Mixture {
    /// Makes the mixture of a block.
    pub(super) fn new(blueprint: &Blueprint<'_>, moe: &MoeConfig) -> Self {
        let Blueprint { config, device, .. } = *blueprint;
        let (d, e) = (config.d_model, moe.n_experts);
        let router = blueprint.draw("feed_forward.router", Role::Router, [e, d]);
        let paths: Vec<String> = (0..e).map(|expert| format!("experts.{expert}.")).collect();
        let zeros = || {
            let bias = Param::from_data(vec![0.0f32; e].as_slice(), device);
            bias.set_require_grad(false)
        };
        Self {
            router: blueprint.matrix(router, d),
            selection_bias: moe.bias_rate.map(|_| zeros()),
            experts: Mlp::stack(blueprint, &paths, moe.d_expert),
            shared: (moe.n_shared > 0).then(|| Mlp::new(blueprint, "shared.", moe.d_shared())),
            settings: Settings {
                router: moe.router(),
                bias_rate: moe.bias_rate.unwrap_or(0.0) as f32,
            },
        }
    }

    /// From (b, t, d) to (b, t, d), and where the tokens went.
    pub fn forward(&self, u_btd: Tensor<3>) -> (Tensor<3>, Routed) {
        let [b, t, _] = u_btd.dims();
        let router = self.settings.router;
        let [u, u_btd] = ops::fork(u_btd);
        let logits_bte = ops::linear(u, self.router.val());
        let logits_ne = logits_bte.reshape([b * t, router.experts]);
        let bias = self.selection_bias.as_ref().map(Param::val);
        let chosen = ops::choose(&logits_ne, bias.as_ref(), router);
        let weights_nk = ops::router_weights(logits_ne.clone(), &chosen);
        let through = |u| self.experts.forward_routed(u, weights_nk, chosen.plan());
        let y = match &self.shared {
            None => through(u_btd),
            Some(shared) => {
                let [u, u_btd] = ops::fork(u_btd);
                ops::add(through(u_btd), shared.forward(u))
            }
        };
        (y, Routed::new(logits_ne, chosen))
    }

    /// Moves the bias by one step against the load of a batch, in tokens an expert: up where there were
    /// fewer than the mean, down where there were more.
    pub fn rebalance(&mut self, load: &[u64]) {
        let Some(bias) = self.selection_bias.take() else {
            return;
        };
        let (experts, total) = (load.len() as u64, load.iter().sum::<u64>());
        let rate = self.settings.bias_rate;
        let steps: Vec<f32> = load
            .iter()
            .map(|&tokens| match (tokens * experts).cmp(&total) {
                std::cmp::Ordering::Less => rate,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Greater => -rate,
            })
            .collect();
        self.selection_bias = Some(bias.map(|bias| {
            let plain = bias.clone().without_autodiff();
            let options = (&plain.device(), plain.dtype());
            let steps = Tensor::from_data(TensorData::new(steps, [load.len()]), options);
            match bias.is_autodiff() {
                true => Tensor::from_inner(plain + steps),
                false => plain + steps,
            }
        }));
    }

    /// Its norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let shared = self.shared.iter().flat_map(Mlp::norms);
        self.experts.norms().chain(shared)
    }
}
