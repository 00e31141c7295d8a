//! Router of a mixture of experts: gate weights of the selected experts, and auxiliary losses.

use hybridnorm_cuda::{self as cuda, ElementType, Elements};
use hybridnorm_kernels::experts::Dispatch;
use hybridnorm_kernels::router::{self, Router, Scoring};

use super::device::Grid;
use super::dispatch::dispatch_type;
use super::reference_math::log_sum_exp;
use super::{BackwardContext, DeviceOperands, Operands, Operation, fill};
use crate::graph::{Type, Value};

/// Gate weights of the experts in a dispatch; see [`Router`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateWeights(pub(crate) Router);

/// Gradient of the logits from that of [`GateWeights`]' output; the selection is treated as constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateWeightsGrad(pub(crate) Router);

/// Load-balancing loss, z-loss and entropy of the scores; see [`router_losses`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterLosses(pub(crate) Router);

/// Gradient of the logits from those of the two losses; the load is treated as constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterLossesGrad(pub(crate) Router);

/// Computes the gate weights (n, k) of the selected experts: their scores, from logits (.., e), divided by their
/// sum if the router renormalizes, and scaled.
///
/// # Panics
/// If the logits have another number of experts, or the dispatch has another number of tokens or was not made by this
/// router.
pub fn gate_weights<'g>(logits: Value<'g>, dispatch: Value<'g>, router: Router) -> Value<'g> {
    let graph = logits.builder();
    let [weights] = graph.op(GateWeights(router), &[logits, dispatch]);
    weights
}

/// Computes load-balancing loss, z-loss and entropy of n tokens, unweighted means over them, one element each:
///
/// ```text
/// E · Σ_e (slots of e / (n · k)) · mean of p_e
/// mean of logsumexp(logits)²
/// mean of −Σ_e p_e log p_e, in nats
/// ```
///
/// with p the softmax of the logits (.., e), or sigmoids divided by their sum. The fourth value contains the
/// three in double precision, (3). The third and the fourth are statistics without gradients.
///
/// # Panics
/// As [`gate_weights`].
pub fn router_losses<'g>(logits: Value<'g>, dispatch: Value<'g>, router: Router) -> [Value<'g>; 4] {
    let graph = logits.builder();
    graph.op(RouterLosses(router), &[logits, dispatch])
}

/// Checks logits and dispatch; returns the number of tokens.
fn check(name: &str, router: &Router, inputs: &[Type]) -> usize {
    let &[logits, dispatch, ..] = inputs else {
        panic!("{name}: expected logits and a dispatch")
    };
    let tokens = logits.shape.rows();
    assert_eq!(logits.shape.width(), router.experts, "{name}: logits");
    let expected = dispatch_type(router.layout(), tokens);
    assert_eq!(dispatch, expected, "{name}: dispatch of {tokens} tokens");
    tokens
}

/// Appends `Router` of the kernels.
pub(super) fn device_config(arguments: cuda::Arguments, router: &Router) -> cuda::Arguments {
    arguments
        .count(router.experts)
        .count(router.top_k)
        .int((router.scoring == Scoring::Sigmoid).into())
        .int(router.renormalize.into())
        .count(router.groups)
        .count(router.top_groups)
        .float(router.scaling)
}

/// Operands of the gate weights on a device; gradients are absent in the forward pass, weights in the backward pass.
struct DeviceGateWeights {
    logits: Elements,
    dispatch: Elements,
    weights: Option<Elements>,
    gradients: Option<[Elements; 2]>,
}

impl DeviceGateWeights {
    fn arguments(&self, router: &Router) -> cuda::Arguments {
        let address = |elements: Option<Elements>| elements.map(|x| x.span);
        let [dweights, dlogits] = [0, 1].map(|i| self.gradients.map(|all| all[i]));
        let arguments = cuda::Arguments::default()
            .address(self.logits.span)
            .address(self.dispatch.span)
            .optional_address(address(self.weights))
            .optional_address(address(dweights))
            .optional_address(address(dlogits))
            .long((self.logits.len() / router.experts) as i64);
        device_config(arguments, router)
    }
}

/// Operands of the losses on a device, as the kernels read them: of tokens, single-precision means, and all means; gradients
/// of load-balancing loss, z-loss and logits.
fn loss_arguments(
    router: &Router,
    [logits, dispatch]: [Elements; 2],
    outputs: Option<[Elements; 5]>,
    gradients: Option<[Elements; 3]>,
) -> cuda::Arguments {
    let arguments = cuda::Arguments::default().address(logits.span).address(dispatch.span);
    let outputs = (0..5).map(|i| outputs.map(|all| all[i]));
    let gradients = (0..3).map(|i| gradients.map(|all| all[i]));
    let arguments = outputs
        .chain(gradients)
        .fold(arguments, |all, x| all.optional_address(x.map(|x| x.span)));
    device_config(arguments.long((logits.len() / router.experts) as i64), router)
}

impl Operation for GateWeights {
    fn name(&self) -> &'static str {
        "router weights"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let tokens = check(self.name(), &self.0, inputs);
        vec![Type::f32([tokens, self.0.top_k])]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.input(1), at.gradient()];
        let [dlogits] = at.graph().op(GateWeightsGrad(self.0), &inputs);
        vec![Some(dlogits), None]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (r, logits, weights) = (&self.0, io.read(0), io.write());
        let selected = Dispatch::new(r.layout(), io.ints(1)).expert_of_assignment();
        let tokens = logits.chunks(r.experts).zip(selected.chunks(r.top_k));
        for ((logits, selected), weights) in tokens.zip(weights.chunks_mut(r.top_k)) {
            let scores = scores(r.scoring, logits);
            let total = gate_denominator(r, &scores, selected);
            for (weight, &expert) in weights.iter_mut().zip(selected) {
                *weight = f64::from(r.scaling) * scores[expert as usize] / total;
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let dispatch = Dispatch::new(self.0.layout(), io.ints(1));
        router::gate_weights(&self.0, io.read(0), dispatch.expert_of_assignment(), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (logits, dispatch) = (io.read(0), io.read(1));
        let operands = DeviceGateWeights {
            logits,
            dispatch,
            weights: Some(io.write()),
            gradients: None,
        };
        let Router { experts, .. } = self.0;
        let grid = Grid::warps_with_memory(logits.len() / experts, experts)?;
        io.launch("gate_weights", grid, operands.arguments(&self.0));
        Ok(())
    }
}

impl Operation for GateWeightsGrad {
    fn name(&self) -> &'static str {
        "router weights, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (r, logits, dweights, dlogits) = (&self.0, io.read(0), io.read(2), io.write());
        let selected = Dispatch::new(r.layout(), io.ints(1)).expert_of_assignment();
        let tokens = logits.chunks(r.experts).zip(dlogits.chunks_mut(r.experts));
        let assignments = selected.chunks(r.top_k).zip(dweights.chunks(r.top_k));
        for ((logits, dlogits), (selected, dweights)) in tokens.zip(assignments) {
            let scores = scores(r.scoring, logits);
            let total = gate_denominator(r, &scores, selected);
            // The divisor depends on the score of every selected expert.
            let gate_weights = selected.iter().map(|&expert| scores[expert as usize] / total);
            let common: f64 = match r.renormalize {
                true => gate_weights.zip(dweights).map(|(weight, d)| weight * d).sum(),
                false => 0.0,
            };
            let mut dscores = vec![0.0; r.experts];
            for (&expert, dweight) in selected.iter().zip(dweights) {
                dscores[expert as usize] += f64::from(r.scaling) * (dweight - common) / total;
            }
            dlogits.fill(0.0);
            add_scores_backward(r.scoring, &scores, &dscores, dlogits);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (logits, dweights, dlogits) = (io.read(0), io.read(2), io.write());
        let dispatch = Dispatch::new(self.0.layout(), io.ints(1));
        router::gate_weights_backward(&self.0, logits, dispatch.expert_of_assignment(), dweights, dlogits);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (logits, dispatch) = (io.read(0), io.read(1));
        let operands = DeviceGateWeights {
            logits,
            dispatch,
            weights: None,
            gradients: Some([io.read(2), io.write()]),
        };
        let Router { experts, .. } = self.0;
        let grid = Grid::warps_with_memory(logits.len() / experts, 2 * experts)?;
        io.launch("gate_weight_gradients", grid, operands.arguments(&self.0));
        Ok(())
    }
}

impl Operation for RouterLosses {
    fn name(&self) -> &'static str {
        "router losses"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check(self.name(), &self.0, inputs);
        let one = Type::f32([1]);
        vec![one, one, one, Type::f64([3])]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dload_balancing, dz] = [0, 1].map(|loss| at.gradient_of(loss));
        if dload_balancing.is_none() && dz.is_none() {
            return vec![None; 2];
        }
        let [dload_balancing, dz] = [dload_balancing, dz]
            .map(|d| d.unwrap_or_else(|| fill(at.graph(), 0.0, Type::f32([1]))));
        let inputs = [at.input(0), at.input(1), dload_balancing, dz];
        let [dlogits] = at.graph().op(RouterLossesGrad(self.0), &inputs);
        vec![Some(dlogits), None]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (r, logits) = (&self.0, io.read(0));
        let load = Dispatch::new(r.layout(), io.ints(1)).load();
        let n = (logits.len() / r.experts) as f64;
        let (mut balance, mut z, mut entropy) = (0.0, 0.0, 0.0);
        for logits in logits.chunks(r.experts) {
            z += log_sum_exp(logits).powi(2) / n;
            let scores = scores(r.scoring, logits);
            let total: f64 = scores.iter().sum();
            for (score, &load) in scores.iter().zip(load) {
                let p = score / total;
                balance += relative_load(r, load, n) * p / n;
                // p log p tends to 0 with p.
                entropy -= if p == 0.0 { 0.0 } else { p * p.ln() / n };
            }
        }
        for value in [balance, z, entropy] {
            io.write()[0] = value;
        }
        io.write_doubles().copy_from_slice(&[balance, z, entropy]);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let dispatch = Dispatch::new(self.0.layout(), io.ints(1));
        let found = router::losses(&self.0, io.read(0), dispatch.load());
        let values = [found.load_balancing, found.z, found.entropy];
        for value in values {
            io.write()[0] = value as f32;
        }
        io.write_doubles().copy_from_slice(&values);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (logits, dispatch) = (io.read(0), io.read(1));
        let [balance, z, entropy, all] = [(); 4].map(|()| io.write());
        let tokens = logits.len() / self.0.experts;
        let of_tokens = io.scratch(ElementType::F64, 3 * tokens);
        let outputs = [of_tokens, balance, z, entropy, all];
        let arguments = loss_arguments(&self.0, [logits, dispatch], Some(outputs), None);
        let grid = Grid::warps_with_memory(tokens, self.0.experts)?;
        io.launch("router_losses", grid, arguments.clone());
        io.launch("router_loss_means", Grid::blocks(1), arguments);
        Ok(())
    }
}

impl Operation for RouterLossesGrad {
    fn name(&self) -> &'static str {
        "router losses, gradient"
    }

    /// Reads logits, dispatch, and the gradients of the two losses.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (r, logits, dlogits) = (&self.0, io.read(0), io.write());
        let (dload_balancing, dz) = (io.read(2)[0], io.read(3)[0]);
        let load = Dispatch::new(r.layout(), io.ints(1)).load();
        let n = (logits.len() / r.experts) as f64;
        let tokens = logits.chunks(r.experts).zip(dlogits.chunks_mut(r.experts));
        for (logits, dlogits) in tokens {
            // The derivative of logsumexp is the softmax.
            let dlse = dz * 2.0 * log_sum_exp(logits) / n;
            let softmax = scores(Scoring::Softmax, logits);
            for (dlogit, softmax) in dlogits.iter_mut().zip(softmax) {
                *dlogit = dlse * softmax;
            }
            let scores = scores(r.scoring, logits);
            let total: f64 = scores.iter().sum();
            let dp = load
                .iter()
                .map(|&load| dload_balancing * relative_load(r, load, n) / n);
            let dp: Vec<f64> = dp.collect();
            // p = score / total, and the total depends on every score.
            let common: f64 = scores.iter().zip(&dp).map(|(s, dp)| s / total * dp).sum();
            let dscores: Vec<f64> = dp.iter().map(|dp| (dp - common) / total).collect();
            add_scores_backward(r.scoring, &scores, &dscores, dlogits);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (logits, dlogits) = (io.read(0), io.write());
        let (dload_balancing, dz) = (io.read(2)[0], io.read(3)[0]);
        let dispatch = Dispatch::new(self.0.layout(), io.ints(1));
        router::losses_backward(&self.0, logits, dispatch.load(), dload_balancing, dz, dlogits);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (logits, dispatch) = (io.read(0), io.read(1));
        let gradients = [io.read(2), io.read(3), io.write()];
        let arguments = loss_arguments(&self.0, [logits, dispatch], None, Some(gradients));
        let grid = Grid::warps_with_memory(logits.len() / self.0.experts, self.0.experts)?;
        io.launch("router_loss_gradients", grid, arguments);
        Ok(())
    }
}

/// Returns the scores of the experts for one token.
pub(super) fn scores(scoring: Scoring, logits: &[f64]) -> Vec<f64> {
    let lse = log_sum_exp(logits);
    let scores = logits.iter().map(|l| match scoring {
        Scoring::Softmax => (l - lse).exp(),
        Scoring::Sigmoid => 1.0 / (1.0 + (-l).exp()),
    });
    scores.collect()
}

/// Returns the denominator of the gate weights.
fn gate_denominator(r: &Router, scores: &[f64], selected: &[i32]) -> f64 {
    let sum: f64 = selected.iter().map(|&expert| scores[expert as usize]).sum();
    match (r.renormalize, r.scoring) {
        (false, _) => 1.0,
        (true, Scoring::Softmax) => sum,
        (true, Scoring::Sigmoid) => sum + 1e-20,
    }
}

/// Returns the load of an expert relative to a balanced load.
fn relative_load(r: &Router, load: i32, tokens: f64) -> f64 {
    r.experts as f64 * f64::from(load) / (tokens * r.top_k as f64)
}

/// Adds the gradient of a token's logits through its scores.
fn add_scores_backward(scoring: Scoring, scores: &[f64], dscores: &[f64], dlogits: &mut [f64]) {
    let mean: f64 = scores.iter().zip(dscores).map(|(s, ds)| s * ds).sum();
    for ((dlogit, s), ds) in dlogits.iter_mut().zip(scores).zip(dscores) {
        *dlogit += match scoring {
            Scoring::Softmax => s * (ds - mean),
            Scoring::Sigmoid => s * (1.0 - s) * ds,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, check_with, floats, mapped_floats};
    use super::super::{linear, top_k_dispatch};
    use super::*;
    use crate::graph::Builder;
    use crate::passes::gradients;

    /// Returns one router of each configuration, each with a number of tokens to test it on.
    fn routers() -> Vec<(usize, Router)> {
        let mut routers = Vec::new();
        for (n, experts, top_k, groups, top_groups) in [
            (1, 1, 1, 1, 1),
            (7, 5, 2, 1, 1),
            (33, 12, 3, 4, 2),
            (65, 9, 9, 3, 3),
        ] {
            for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
                for renormalize in [false, true] {
                    let router = Router {
                        experts,
                        top_k,
                        scoring,
                        renormalize,
                        groups,
                        top_groups,
                        scaling: 2.5,
                    };
                    routers.push((n, router));
                }
            }
        }
        routers
    }

    #[test]
    fn weights_have_a_gradient_through_the_scores() {
        for (n, router) in routers() {
            let logits = mapped_floats(1, [1, n, router.experts], |x| 3.0 * x);
            check(&[logits, floats(2, [router.experts])], |_, x| {
                let dispatch = top_k_dispatch(x[0], Some(x[1]), router);
                gate_weights(x[0], dispatch, router)
            });
        }
    }

    #[test]
    fn losses_have_gradients_and_statistics_have_none() {
        for (n, router) in routers() {
            let logits = [mapped_floats(1, [n, router.experts], |x| 3.0 * x)];
            check_with(&logits, &[2, 3], |_, x| {
                let dispatch = top_k_dispatch(x[0], None, router);
                router_losses(x[0], dispatch, router).to_vec()
            });
            check(&logits, |_, x| {
                let dispatch = top_k_dispatch(x[0], None, router);
                let [balance, z, ..] = router_losses(x[0], dispatch, router);
                balance * 0.7 + z * 0.3
            });
        }
    }

    #[test]
    fn statistics_alone_have_no_gradient() {
        let (n, router) = routers()[4];
        let g = Builder::new();
        let logits = g.input("logits", Type::f32([n, router.experts]));
        let dispatch = top_k_dispatch(logits, None, router);
        let [.., entropy, _] = router_losses(logits, dispatch, router);
        assert!(gradients(entropy, &[logits])[0].is_none());
    }

    #[test]
    fn gradients_of_weights_and_losses_are_summed() {
        for (n, router) in routers() {
            let given = [floats(1, [1, n, 11]), floats(2, [router.experts, 11])];
            check_with(&given, &[2, 3], |_, x| {
                let logits = linear(x[0], x[1]);
                let dispatch = top_k_dispatch(logits, None, router);
                let [balance, z, entropy, statistics] = router_losses(logits, dispatch, router);
                let weights = gate_weights(logits, dispatch, router);
                vec![balance + z, weights, entropy, statistics]
            });
        }
    }
}
