//! Attention of a packed projection that is normalized and rotated on the way.
//!
//! Norms within a head are applied where attention reads its rows. A norm over several heads needs
//! the whole row first: there the prepared projection is written down, and made again in the
//! backward pass.

use std::sync::Arc;

use burn_flex::FlexTensor;
use hybridnorm_kernels::attention::{self, Attention};
use hybridnorm_kernels::qkv::{self, Preparation, QkvPrep};

use super::flex::{buffer, floats, like, tensor};
use super::pool::{give, give_buffer, take};

/// A packed projection with the parameters of its norms, and what is done with them.
#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) form: QkvPrep,
    pub(super) rope: Arc<[f32]>,
    /// The projection (b, t, (h + 2g)·k) and the parameters of the norms of q, k and v.
    pub(super) inputs: [FlexTensor; 4],
}

impl Prepared {
    /// The projection with its norms and rotations.
    pub(super) fn rows(&self) -> Vec<f32> {
        let [qkv, q, k, v] = self.inputs.each_ref().map(|x| floats(x));
        let mut rows = buffer(&self.inputs[0]);
        qkv::forward(&self.preparation([&q, &k, &v]), &qkv, &mut rows);
        rows
    }

    /// Gradients of the inputs from those of [`Prepared::rows`].
    pub(super) fn rows_backward(&self, dy: &[f32]) -> [FlexTensor; 4] {
        self.gradients(|p, qkv, dqkv, dparams| qkv::backward(p, qkv, dy, dqkv, dparams))
    }

    /// Context and log-sum-exp.
    pub(super) fn attention(&self, spec: &Attention) -> (FlexTensor, Vec<f32>) {
        let [qkv, q, k, v] = self.inputs.each_ref().map(|x| floats(x));
        let p = self.preparation([&q, &k, &v]);
        if self.form.is_by_head() {
            return context(spec, |ctx, lse| {
                attention::forward_prepared(spec, &p, &qkv, ctx, lse)
            });
        }
        let rows = self.rows();
        let outputs = context(spec, |ctx, lse| attention::forward(spec, &rows, ctx, lse));
        give_buffer(rows);
        outputs
    }

    /// Gradients of the inputs from what [`Prepared::attention`] gave and the context's gradient.
    pub(super) fn attention_backward(
        &self,
        spec: &Attention,
        ctx: &[f32],
        lse: &[f32],
        dctx: &[f32],
    ) -> [FlexTensor; 4] {
        if self.form.is_by_head() {
            return self.gradients(|p, qkv, dqkv, dparams| {
                attention::backward_prepared(spec, p, qkv, ctx, lse, dctx, dqkv, dparams);
            });
        }
        let rows = self.rows();
        let mut drows = buffer(&self.inputs[0]);
        attention::backward(spec, &rows, ctx, lse, dctx, &mut drows);
        give_buffer(rows);
        let gradients = self.rows_backward(&drows);
        give_buffer(drows);
        gradients
    }

    /// Lets go of the inputs.
    pub(super) fn give(self) {
        self.inputs.into_iter().for_each(give);
    }

    fn preparation<'a>(&'a self, params: [&'a [f32]; 3]) -> Preparation<'a> {
        Preparation::new(&self.form, &self.rope, params)
    }

    /// Gradients of all inputs, written by `backward`.
    fn gradients(
        &self,
        backward: impl FnOnce(&Preparation, &[f32], &mut [f32], [&mut [f32]; 3]),
    ) -> [FlexTensor; 4] {
        let [qkv, q, k, v] = self.inputs.each_ref().map(|x| floats(x));
        let mut all = self.inputs.each_ref().map(buffer);
        let [dqkv, dparams @ ..] = &mut all;
        let p = self.preparation([&q, &k, &v]);
        backward(&p, &qkv, dqkv, dparams.each_mut().map(|d| &mut d[..]));
        let mut gradients = all.into_iter().zip(&self.inputs).map(|(d, x)| like(d, x));
        std::array::from_fn(|_| gradients.next().expect("a gradient for every input"))
    }
}

/// Context (b, t, h·k) and log-sum-exp, written by `forward`.
pub(super) fn context(
    spec: &Attention,
    forward: impl FnOnce(&mut [f32], &mut [f32]),
) -> (FlexTensor, Vec<f32>) {
    let (b, t, h) = (spec.batch, spec.seq, spec.heads);
    let mut ctx = take(b * t * h * spec.value_dim);
    let mut lse = take(b * h * t);
    forward(&mut ctx, &mut lse);
    (tensor(ctx, [b, t, h * spec.value_dim]), lse)
}
