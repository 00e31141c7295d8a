//! Gradients of a training step.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use crate::eager::{self as ops, profile};
use crate::model::{
    Decoder, LossOptions, Recompute, Routed, Routing, State, Trace,
    params::{self, Kind},
};

/// What one forward and backward pass gave besides gradients, outside any graph.
#[derive(Debug)]
pub struct Pass {
    /// What [`Decoder::loss`] gives.
    pub losses: Tensor<1>,
    /// Where the tokens went, one entry for each mixture of experts.
    pub routing: Vec<Routing>,
    /// The largest score of every head in every block, if asked for.
    pub head_maxima: Vec<Vec<f32>>,
}

impl Pass {
    fn new(losses: Tensor<1>, trace: Trace) -> Self {
        Self {
            losses,
            routing: trace.routed.iter().map(Routed::routing).collect(),
            head_maxima: trace.head_maxima,
        }
    }
}

/// Summed gradients by parameter name, flattened, outside any graph.
#[derive(Debug, Default)]
pub struct GradientSum {
    sums: BTreeMap<String, Tensor<1>>,
    look_at_scores: bool,
    routing: Vec<Routing>,
    head_maxima: Vec<Vec<f32>>,
}

impl GradientSum {
    /// No gradients yet; passes will say the largest scores of every head.
    pub fn looking_at_scores() -> Self {
        Self {
            look_at_scores: true,
            ..Self::default()
        }
    }

    /// Where the tokens of all passes went, one entry for each mixture of experts.
    pub fn routing(&self) -> &[Routing] {
        &self.routing
    }

    /// The largest score of every head in every block over all passes, if looked at.
    pub fn head_maxima(&self) -> &[Vec<f32>] {
        &self.head_maxima
    }

    /// Adds what a pass found besides gradients.
    fn note(&mut self, pass: &Pass) {
        self.routing
            .resize_with(pass.routing.len(), Routing::default);
        for (all, new) in self.routing.iter_mut().zip(&pass.routing) {
            all.merge(new);
        }
        if self.head_maxima.is_empty() {
            self.head_maxima.clone_from(&pass.head_maxima);
        }
        let new = pass.head_maxima.iter().flatten();
        for (all, new) in self.head_maxima.iter_mut().flatten().zip(new) {
            *all = larger_or_nan(*all, *new);
        }
    }

    fn trace(&self) -> Trace {
        Trace {
            look_at_scores: self.look_at_scores,
            ..Trace::default()
        }
    }

    /// Adds the gradients of one backward pass. A parameter without a gradient adds nothing.
    pub fn add(&mut self, model: &Decoder, mut gradients: Gradients) {
        params::for_each(model, |name, param| {
            if let Some(gradient) = param.take_gradient(&mut gradients) {
                self.add_one(name.to_owned(), gradient);
            }
        });
    }

    /// Adds the gradients of [`Decoder::loss`].
    ///
    /// Recomputation changes the memory that this takes, but no bit of the result.
    pub fn accumulate(
        &mut self,
        model: &Decoder,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
        recompute: Recompute,
    ) -> Pass {
        let pass = match recompute {
            Recompute::None => {
                let mut trace = self.trace();
                let losses = model.traced_loss(inputs_bt, targets_bt, options, &mut trace);
                let pass = Pass::new(losses.clone().inner(), trace);
                self.add(model, losses.backward());
                pass
            }
            Recompute::Block => self.by_block(model, inputs_bt, targets_bt, options, &mut |_| {}),
        };
        self.note(&pass);
        pass
    }

    /// The forward pass keeps the state that enters each block; the backward pass runs the blocks
    /// again, the last one first, each in a graph of its own. `see` is shown the gradient at each of
    /// these states, stream by stream, the last block's first.
    pub(super) fn by_block(
        &mut self,
        model: &Decoder,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
        see: &mut dyn FnMut(&[Tensor<3>]),
    ) -> Pass {
        let leaves = |streams: Vec<Tensor<3>>| -> Vec<Tensor<3>> {
            let leaf = |x| Tensor::from_inner(x).require_grad();
            streams.into_iter().map(leaf).collect()
        };
        let take = |streams: &[Tensor<3>], gradients: &mut Gradients| -> Vec<Tensor<3>> {
            let reached = |x: &Tensor<3>| x.grad_remove(gradients).expect(REACHED);
            streams.iter().map(reached).collect()
        };
        let positions = model.positions(0, inputs_bt.dims()[1]);
        let share = options.share(&inputs_bt);
        let router_loss = |routed: &Routed| model.router_loss(routed, share);
        let mut states = Vec::with_capacity(model.blocks.len());
        let mut trace = self.trace();
        let last = profile::timed("first forward pass", || {
            let plain = model.valid();
            let begin = plain.begin(inputs_bt.clone().inner()).whole();
            plain.blocks.iter().fold(begin, |streams, block| {
                states.push(streams.clone());
                trace.step(block, State::of(streams), &positions).whole()
            })
        });
        // Summed apart, so that a tied embedding's two gradients meet before other batches' do.
        let mut sum = Self::default();
        let last = leaves(last);
        let losses = model.loss_of(State::of(last.clone()), targets_bt, options);
        let mut values = losses.clone().inner();
        for routed in &trace.routed {
            values = values + router_loss(routed);
        }
        let mut gradients = losses.backward();
        let mut dstate = take(&last, &mut gradients);
        sum.add(model, gradients);
        for block in model.blocks.iter().rev() {
            let state = leaves(states.pop().expect("a state for every block"));
            let (next, found) = block.step(State::of(state.clone()), &positions, None);
            let loss = found.as_ref().map(router_loss);
            let mut gradients = pull(next.whole(), dstate, loss);
            dstate = take(&state, &mut gradients);
            see(&dstate);
            sum.add(model, gradients);
        }
        sum.add(model, pull(model.begin(inputs_bt).whole(), dstate, None));
        self.merge(sum);
        Pass::new(values, trace)
    }

    fn merge(&mut self, other: Self) {
        for (name, gradient) in other.sums {
            self.add_one(name, gradient);
        }
    }

    fn add_one(&mut self, name: String, gradient: Tensor<1>) {
        let sum = match self.sums.remove(&name) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.sums.insert(name, sum);
    }

    /// Removes the gradient of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.sums.remove(name)
    }

    /// Euclidean norms by parameter.
    pub fn norms(&self) -> impl Iterator<Item = (&str, f64)> {
        let norm = |gradient: &Tensor<1>| ops::sum_squares(gradient.clone()).sqrt();
        self.sums
            .iter()
            .map(move |(name, gradient)| (name.as_str(), norm(gradient)))
    }

    /// Names of parameters that got no gradient.
    pub fn missing(&self, model: &Decoder) -> Vec<String> {
        let mut names = params::names(model);
        names.retain(|name| Kind::of(name).is_trained() && !self.sums.contains_key(name));
        names
    }

    /// The gradient of a parameter on the host.
    pub fn get(&self, name: &str) -> Option<Vec<f32>> {
        let gradient = self.sums.get(name)?.clone();
        gradient.into_data_as::<f32>().try_into_vec().ok()
    }
}

/// The larger of two numbers; what is no number stays to be seen.
pub(super) fn larger_or_nan(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

const REACHED: &str = "the loss depends on every state";

/// The gradients behind `streams`, whose own are `gradients`, and behind the first number of `loss`.
fn pull(streams: Vec<Tensor<3>>, gradients: Vec<Tensor<3>>, loss: Option<Tensor<1>>) -> Gradients {
    let pairs = streams.into_iter().zip(gradients);
    let products = pairs.map(|(x, dx)| (x * Tensor::from_inner(dx)).sum());
    let loss = loss.map(|loss| loss.narrow(0, 0, 1));
    let sum = products.chain(loss).reduce(|sum, part| sum + part);
    sum.expect("a stream at least").backward()
}
