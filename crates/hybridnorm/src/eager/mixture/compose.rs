//! The same from Burn's ops, see [`compose`](super::super::compose).

use std::ops::Range;

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use hybridnorm_kernels::activation::Activation;
use hybridnorm_kernels::experts::Plan;
use hybridnorm_kernels::router::Scoring;

use super::super::compose::activation;
use super::Chosen;

/// See [`router_weights`](super::router_weights).
pub fn router_weights(logits_ne: Tensor<2>, chosen: &Chosen) -> Tensor<2> {
    let router = &chosen.router;
    let [n, _] = logits_ne.dims();
    let device = logits_ne.device();
    let scores_ne = match router.scoring {
        Scoring::Softmax => softmax(logits_ne, 1),
        Scoring::Sigmoid => sigmoid(logits_ne),
    };
    let indices_nk = indices(&chosen.experts_nk, &device).reshape([n, router.top_k]);
    let weights_nk = scores_ne.gather(1, indices_nk);
    let weights_nk = match router.renormalize {
        true => weights_nk.clone() / (weights_nk.sum_dim(1) + smallest_sum(router.scoring)),
        false => weights_nk,
    };
    weights_nk * f64::from(router.scaling)
}

/// What keeps a sum of weights from being 0; a softmax needs none.
fn smallest_sum(scoring: Scoring) -> f64 {
    match scoring {
        Scoring::Softmax => 0.0,
        Scoring::Sigmoid => 1e-20,
    }
}

/// See [`router_losses`](super::router_losses).
pub fn router_losses(logits_ne: Tensor<2>, chosen: &Chosen) -> Tensor<1> {
    let [n, e] = logits_ne.dims();
    let options = (&logits_ne.device(), logits_ne.dtype());
    let p_ne = match chosen.router.scoring {
        Scoring::Softmax => softmax(logits_ne.clone(), 1),
        Scoring::Sigmoid => {
            let scores = sigmoid(logits_ne.clone());
            scores.clone() / scores.sum_dim(1)
        }
    };
    let slots = chosen.plan.slots() as f64;
    let shares = chosen.plan.load().iter().map(|&load| load as f64 / slots);
    let shares: Vec<f64> = shares.collect();
    let shares_1e = Tensor::<2>::from_data(TensorData::new(shares, [1, e]), options);
    let balance = (p_ne.mean_dim(0) * shares_1e).sum() * e as f64;
    // logsumexp = z_0 − log p_0
    let first = |x: Tensor<2>| x.narrow(1, 0, 1);
    let lse_n1 = first(logits_ne.clone()) - first(log_softmax(logits_ne, 1));
    let z = lse_n1.square().sum() / n as f64;
    Tensor::cat(vec![balance, z], 0)
}

/// See [`expert_up`](super::expert_up).
pub fn expert_up(x_btd: Tensor<3>, w_eo_d: Tensor<2>, plan: &Plan) -> Tensor<3> {
    let [b, t, d] = x_btd.dims();
    let tokens = plan
        .choices()
        .iter()
        .map(|choice| choice / plan.top_k() as u32);
    let tokens = indices(&tokens.collect::<Vec<_>>(), &x_btd.device());
    let slots_md = x_btd.reshape([b * t, d]).select(0, tokens);
    by_expert(slots_md, w_eo_d, plan)
}

/// See [`expert_down`](super::expert_down).
pub fn expert_down(
    hidden_1mf: Tensor<3>,
    act: Option<Activation>,
    w_ed_f: Tensor<2>,
    weights_nk: Tensor<2>,
    plan: &Plan,
) -> Tensor<3> {
    let hidden_1mf = match act {
        Some(act) => activation(hidden_1mf, act),
        None => hidden_1mf,
    };
    let [_, m, f] = hidden_1mf.dims();
    let [n, k] = weights_nk.dims();
    let slots_1md = by_expert(hidden_1mf.reshape([m, f]), w_ed_f, plan);
    let d = slots_1md.dims()[2];
    let places = indices(plan.slot_of_choice(), &slots_1md.device());
    let choices_nkd = slots_1md
        .reshape([m, d])
        .select(0, places)
        .reshape([n, k, d]);
    let weighted_nkd = choices_nkd * weights_nk.reshape([n, k, 1]);
    weighted_nkd.sum_dim(1).reshape([1, n, d])
}

/// Every expert's rows times its own matrix.
fn by_expert(x_mi: Tensor<2>, w_eo_i: Tensor<2>, plan: &Plan) -> Tensor<3> {
    let [m, _] = x_mi.dims();
    let o = w_eo_i.dims()[0] / plan.experts();
    let rows = |x: &Tensor<2>, rows: Range<usize>| x.clone().narrow(0, rows.start, rows.len());
    let parts = (0..plan.experts()).filter_map(|expert| {
        let slots = plan.rows(expert);
        (!slots.is_empty()).then(|| {
            let w = rows(&w_eo_i, expert * o..(expert + 1) * o);
            rows(&x_mi, slots).matmul(w.transpose())
        })
    });
    Tensor::cat(parts.collect(), 0).reshape([1, m, o])
}

fn indices(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), (device, DType::I32))
}
