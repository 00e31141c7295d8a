//! Gradients of a training step.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use crate::model::{Decoder, LossOptions, Recompute, Stream, params};
use crate::ops::{self, profile};

/// Summed gradients by parameter name, flattened, outside any graph.
#[derive(Debug, Default)]
pub struct GradientSum(BTreeMap<String, Tensor<1>>);

impl GradientSum {
    /// Adds the gradients of one backward pass. A parameter without a gradient adds nothing.
    pub fn add(&mut self, model: &Decoder, mut gradients: Gradients) {
        params::for_each(model, |name, param| {
            if let Some(gradient) = param.take_gradient(&mut gradients) {
                self.add_one(name.to_owned(), gradient);
            }
        });
    }

    /// Adds the gradients of [`Decoder::loss`], and returns what that gives, outside any graph.
    ///
    /// Recomputation changes the memory that this takes, but no bit of the result.
    pub fn accumulate(
        &mut self,
        model: &Decoder,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
        recompute: Recompute,
    ) -> Tensor<1> {
        match recompute {
            Recompute::None => {
                let losses = model.loss(inputs_bt, targets_bt, options);
                let values = losses.clone().inner();
                self.add(model, losses.backward());
                values
            }
            Recompute::Block => self.by_block(model, inputs_bt, targets_bt, options, &mut |_| {}),
        }
    }

    /// The forward pass keeps the state that enters each block; the backward pass runs the blocks
    /// again, the last one first, each in a graph of its own. `see` is shown the gradient at each of
    /// these states, the last block's first.
    pub(super) fn by_block(
        &mut self,
        model: &Decoder,
        inputs_bt: Tensor<2, Int>,
        targets_bt: Tensor<2, Int>,
        options: LossOptions,
        see: &mut dyn FnMut(&Tensor<3>),
    ) -> Tensor<1> {
        let leaf = |x: Tensor<3>| Tensor::from_inner(x).require_grad();
        let positions = model.positions(0, inputs_bt.dims()[1]);
        let mut states = Vec::with_capacity(model.blocks.len());
        let last = profile::timed("first forward pass", || {
            let plain = model.valid();
            let embedded = plain.embed(inputs_bt.clone().inner());
            plain.blocks.iter().fold(embedded, |x, block| {
                states.push(x.clone());
                block.forward(x, &positions, None)
            })
        });
        // Summed apart, so that a tied embedding's two gradients meet before other batches' do.
        let mut sum = Self::default();
        let last = leaf(last);
        let losses = model.loss_of(Stream::Whole(last.clone()), targets_bt, options);
        let values = losses.clone().inner();
        let mut gradients = losses.backward();
        let mut dx = last.grad_remove(&mut gradients).expect(REACHED);
        sum.add(model, gradients);
        for block in model.blocks.iter().rev() {
            let x = leaf(states.pop().expect("a state for every block"));
            let mut gradients = pull(block.forward(x.clone(), &positions, None), dx);
            dx = x.grad_remove(&mut gradients).expect(REACHED);
            see(&dx);
            sum.add(model, gradients);
        }
        sum.add(model, pull(model.embed(inputs_bt), dx));
        self.merge(sum);
        values
    }

    fn merge(&mut self, other: Self) {
        for (name, gradient) in other.0 {
            self.add_one(name, gradient);
        }
    }

    fn add_one(&mut self, name: String, gradient: Tensor<1>) {
        let sum = match self.0.remove(&name) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.0.insert(name, sum);
    }

    /// Removes the gradient of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.0.remove(name)
    }

    /// Euclidean norms by parameter.
    pub fn norms(&self) -> impl Iterator<Item = (&str, f64)> {
        let norm = |gradient: &Tensor<1>| ops::sum_squares(gradient.clone()).sqrt();
        self.0
            .iter()
            .map(move |(name, gradient)| (name.as_str(), norm(gradient)))
    }

    /// Names of parameters that got no gradient.
    pub fn missing(&self, model: &Decoder) -> Vec<String> {
        let mut names = params::names(model);
        names.retain(|name| !self.0.contains_key(name));
        names
    }

    /// The gradient of a parameter on the host.
    pub fn get(&self, name: &str) -> Option<Vec<f32>> {
        let gradient = self.0.get(name)?.clone();
        gradient.into_data_as::<f32>().try_into_vec().ok()
    }
}

const REACHED: &str = "the loss depends on every state";

/// The gradients behind `y`, whose own is `dy`.
fn pull(y: Tensor<3>, dy: Tensor<3>) -> Gradients {
    (y * Tensor::from_inner(dy)).sum().backward()
}
