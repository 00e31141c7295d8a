//! The CPU implementation: each op forwards to a hand-written kernel, forward and backward.
//!
//! Burn routes a call on [`Dispatch`](burn::backend::Dispatch) to [`Flex`] for plain tensors and
//! to `Autodiff<Flex>` for tensors that record gradients; the latter registers a graph node
//! per output of an op. Everything here is `f32`, contiguous, on the host.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn_flex::FlexTensor;
use hybridnorm_kernels::{
    activation::{self, Activation},
    attention::{self, Attention},
    cross_entropy::{self, LossSpec, LossSums},
    elementwise, embedding, linear,
    norm::{self, Norm},
    qkv::QkvPrep,
};

use super::flex::{buffer, floats, ids, last_dim, like, tensor};
use super::node::node;
use super::pool::{give, give_all, give_buffer, into_elements, take};
use super::prepared::{Prepared, context};

/// The fused ops as Burn sees them. Use the functions of [`super`](super) instead.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// See [`norm`](super::norm).
    fn fused_norm(x: FloatTensor<Self>, params: FloatTensor<Self>, spec: Norm)
    -> FloatTensor<Self>;
    /// See [`add_norm`](super::add_norm).
    fn fused_add_norm(
        x: FloatTensor<Self>,
        o: FloatTensor<Self>,
        params: FloatTensor<Self>,
        spec: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`linear`](super::linear).
    fn fused_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`qkv_norm_rope`](super::qkv_norm_rope).
    fn fused_qkv(
        qkv: FloatTensor<Self>,
        q_params: FloatTensor<Self>,
        k_params: FloatTensor<Self>,
        v_params: FloatTensor<Self>,
        spec: QkvPrep,
        rope: Arc<[f32]>,
    ) -> FloatTensor<Self>;
    /// See [`causal_attention`](super::causal_attention).
    fn fused_attention(qkv: FloatTensor<Self>, spec: Attention) -> FloatTensor<Self>;
    /// See [`normed_attention`](super::normed_attention).
    fn fused_normed_attention(
        qkv: FloatTensor<Self>,
        q_params: FloatTensor<Self>,
        k_params: FloatTensor<Self>,
        v_params: FloatTensor<Self>,
        prepare: QkvPrep,
        rope: Arc<[f32]>,
        spec: Attention,
    ) -> FloatTensor<Self>;
    /// See [`activation_linear`](super::activation_linear).
    fn fused_activation_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        act: Activation,
    ) -> FloatTensor<Self>;
    /// See [`fork`](super::fork).
    fn fused_same(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`add`](super::add).
    fn fused_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`activation`](super::activation()).
    fn fused_activation(x: FloatTensor<Self>, act: Activation) -> FloatTensor<Self>;
    /// See [`scale_columns`](super::scale_columns).
    fn fused_scale_columns(
        x: FloatTensor<Self>,
        s: FloatTensor<Self>,
        repeat: usize,
    ) -> FloatTensor<Self>;
    /// See [`embedding`](super::embedding()).
    fn fused_embedding(w: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;
    /// See [`linear_cross_entropy`](super::linear_cross_entropy).
    fn fused_loss(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        targets: IntTensor<Self>,
        spec: LossSpec,
    ) -> FloatTensor<Self>;
}

impl FusedOps for Flex {
    fn fused_norm(x: FlexTensor, params: FlexTensor, spec: Norm) -> FlexTensor {
        let mut y = buffer(&x);
        norm::forward(&spec, &floats(&x), &floats(&params), &mut y);
        like(y, &x)
    }

    fn fused_add_norm(
        x: FlexTensor,
        o: FlexTensor,
        params: FlexTensor,
        spec: Norm,
    ) -> (FlexTensor, FlexTensor) {
        let (mut sum, mut y) = (into_elements(o), buffer(&x));
        norm::add_forward(&spec, &floats(&x), &mut sum, &floats(&params), &mut y);
        (like(sum, &x), like(y, &x))
    }

    fn fused_linear(x: FlexTensor, w: FlexTensor) -> FlexTensor {
        let [o, i] = w.layout().shape().dims();
        let mut shape = x.layout().shape().clone();
        let last = shape.num_dims() - 1;
        shape[last] = o;
        let mut y = take(shape.num_elements());
        linear::forward(&floats(&x), &floats(&w), &mut y, i, o);
        tensor(y, shape)
    }

    fn fused_qkv(
        qkv: FlexTensor,
        q_params: FlexTensor,
        k_params: FlexTensor,
        v_params: FlexTensor,
        spec: QkvPrep,
        rope: Arc<[f32]>,
    ) -> FlexTensor {
        let prepared = Prepared {
            form: spec,
            rope,
            inputs: [qkv, q_params, k_params, v_params],
        };
        like(prepared.rows(), &prepared.inputs[0])
    }

    fn fused_attention(qkv: FlexTensor, spec: Attention) -> FlexTensor {
        attention_forward(&qkv, &spec).0
    }

    fn fused_normed_attention(
        qkv: FlexTensor,
        q_params: FlexTensor,
        k_params: FlexTensor,
        v_params: FlexTensor,
        prepare: QkvPrep,
        rope: Arc<[f32]>,
        spec: Attention,
    ) -> FlexTensor {
        let prepared = Prepared {
            form: prepare,
            rope,
            inputs: [qkv, q_params, k_params, v_params],
        };
        prepared.attention(&spec).0
    }

    fn fused_activation_linear(x: FlexTensor, w: FlexTensor, act: Activation) -> FlexTensor {
        let hidden = Flex::fused_activation(x, act);
        let y = Flex::fused_linear(hidden.clone(), w);
        give(hidden);
        y
    }

    fn fused_same(x: FlexTensor) -> FlexTensor {
        x
    }

    fn fused_add(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        let mut sum = into_elements(y);
        elementwise::add_to(&floats(&x), &mut sum);
        like(sum, &x)
    }

    fn fused_activation(x: FlexTensor, act: Activation) -> FlexTensor {
        let mut shape = x.layout().shape().clone();
        let last = shape.num_dims() - 1;
        shape[last] /= inputs_per_output(act);
        let f = shape[last];
        let mut y = take(shape.num_elements());
        activation::forward(act, &floats(&x), &mut y, f);
        tensor(y, shape)
    }

    fn fused_scale_columns(x: FlexTensor, s: FlexTensor, repeat: usize) -> FlexTensor {
        let mut y = buffer(&x);
        elementwise::scale_columns(&floats(&x), &floats(&s), repeat, &mut y);
        like(y, &x)
    }

    fn fused_embedding(w: FlexTensor, token_ids: FlexTensor) -> FlexTensor {
        let [_, d] = w.layout().shape().dims();
        let [b, t] = token_ids.layout().shape().dims();
        let mut y = take(b * t * d);
        embedding::forward(&ids(&token_ids), &floats(&w), &mut y);
        tensor(y, [b, t, d])
    }

    fn fused_loss(x: FlexTensor, w: FlexTensor, targets: FlexTensor, spec: LossSpec) -> FlexTensor {
        let targets = ids(&targets);
        let mut logits = take(spec.scratch(targets.len()));
        let sums =
            cross_entropy::loss(&spec, &floats(&x), &floats(&w), &targets, None, &mut logits);
        give_buffer(logits);
        loss_tensor(&spec, &sums)
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused_norm(
        x: FloatTensor<Self>,
        params: FloatTensor<Self>,
        spec: Norm,
    ) -> FloatTensor<Self> {
        node::<C, _, 2>(
            "norm",
            [x, params],
            |[x, params]| {
                let y = Flex::fused_norm(x.clone(), params.clone(), spec);
                (y, (x, params))
            },
            move |kept, dy| norm_backward(&spec, kept, dy),
        )
    }

    fn fused_add_norm(
        x: FloatTensor<Self>,
        o: FloatTensor<Self>,
        params: FloatTensor<Self>,
        spec: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // Two nodes for the backward pass, whose forward passes are one.
        let plain_params = params.primitive().clone();
        let mut normed = None;
        let sum = node::<C, _, 2>(
            "add and norm",
            [x, o],
            |[x, o]| {
                let (sum, y) = Flex::fused_add_norm(x, o, plain_params, spec);
                normed = Some(y);
                (sum, ())
            },
            |(), dsum| [dsum.clone(), dsum],
        );
        let y = normed.expect("made together with the sum");
        let y = node::<C, _, 2>(
            "add and norm",
            [sum.clone(), params],
            |kept| (y, kept.into()),
            move |kept, dy| norm_backward(&spec, kept, dy),
        );
        (sum, y)
    }

    fn fused_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        node::<C, _, 2>(
            "linear",
            [x, w],
            |[x, w]| (Flex::fused_linear(x.clone(), w.clone()), (x, w)),
            |(x, w), dy| {
                let [o, i] = w.layout().shape().dims();
                let (mut dx, mut dw) = (buffer(&x), buffer(&w));
                linear::backward_input(&floats(&dy), &floats(&w), &mut dx, i, o);
                linear::backward_weight(&floats(&dy), &floats(&x), &mut dw, i, o);
                let gradients = [like(dx, &x), like(dw, &w)];
                give_all([x, w, dy]);
                gradients
            },
        )
    }

    fn fused_qkv(
        qkv: FloatTensor<Self>,
        q_params: FloatTensor<Self>,
        k_params: FloatTensor<Self>,
        v_params: FloatTensor<Self>,
        spec: QkvPrep,
        rope: Arc<[f32]>,
    ) -> FloatTensor<Self> {
        node::<C, _, 4>(
            "qkv norm and rope",
            [qkv, q_params, k_params, v_params],
            |inputs| {
                let prepared = Prepared {
                    form: spec,
                    rope,
                    inputs,
                };
                let rows = like(prepared.rows(), &prepared.inputs[0]);
                (rows, prepared)
            },
            |prepared, dy| {
                let gradients = prepared.rows_backward(&floats(&dy));
                prepared.give();
                give(dy);
                gradients
            },
        )
    }

    fn fused_attention(qkv: FloatTensor<Self>, spec: Attention) -> FloatTensor<Self> {
        node::<C, _, 1>(
            "attention",
            [qkv],
            |[qkv]| {
                let (ctx, lse) = attention_forward(&qkv, &spec);
                (ctx.clone(), (qkv, ctx, Arc::<[f32]>::from(lse)))
            },
            move |(qkv, ctx, lse), dctx| {
                let mut dqkv = buffer(&qkv);
                attention::backward(
                    &spec,
                    &floats(&qkv),
                    &floats(&ctx),
                    &lse,
                    &floats(&dctx),
                    &mut dqkv,
                );
                let gradients = [like(dqkv, &qkv)];
                give_all([qkv, ctx, dctx]);
                gradients
            },
        )
    }

    fn fused_normed_attention(
        qkv: FloatTensor<Self>,
        q_params: FloatTensor<Self>,
        k_params: FloatTensor<Self>,
        v_params: FloatTensor<Self>,
        prepare: QkvPrep,
        rope: Arc<[f32]>,
        spec: Attention,
    ) -> FloatTensor<Self> {
        node::<C, _, 4>(
            "attention",
            [qkv, q_params, k_params, v_params],
            |inputs| {
                let prepared = Prepared {
                    form: prepare,
                    rope,
                    inputs,
                };
                let (ctx, lse) = prepared.attention(&spec);
                (ctx.clone(), (prepared, ctx, Arc::<[f32]>::from(lse)))
            },
            move |(prepared, ctx, lse), dctx| {
                let gradients =
                    prepared.attention_backward(&spec, &floats(&ctx), &lse, &floats(&dctx));
                prepared.give();
                give_all([ctx, dctx]);
                gradients
            },
        )
    }

    fn fused_activation_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        act: Activation,
    ) -> FloatTensor<Self> {
        node::<C, _, 2>(
            "activation and linear",
            [x, w],
            |[x, w]| {
                let y = Flex::fused_activation_linear(x.clone(), w.clone(), act);
                (y, (x, w))
            },
            move |(x, w), dy| {
                let [o, f] = w.layout().shape().dims();
                let rows = dy.layout().num_elements() / o;
                // Its gradient first, then what is hidden.
                let mut hidden = take(rows * f);
                linear::backward_input(&floats(&dy), &floats(&w), &mut hidden, f, o);
                let (mut dx, mut dw) = (buffer(&x), buffer(&w));
                activation::backward(act, &floats(&x), &mut hidden, &mut dx, f);
                linear::backward_weight(&floats(&dy), &hidden, &mut dw, f, o);
                give_buffer(hidden);
                let gradients = [like(dx, &x), like(dw, &w)];
                give_all([x, w, dy]);
                gradients
            },
        )
    }

    fn fused_same(x: FloatTensor<Self>) -> FloatTensor<Self> {
        node::<C, _, 1>("fork", [x], |[x]| (x, ()), |(), dy| [dy])
    }

    fn fused_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        node::<C, _, 2>(
            "add",
            [x, y],
            |[x, y]| (Flex::fused_add(x, y), ()),
            |(), dy| [dy.clone(), dy],
        )
    }

    fn fused_activation(x: FloatTensor<Self>, act: Activation) -> FloatTensor<Self> {
        node::<C, _, 1>(
            "activation",
            [x],
            |[x]| (Flex::fused_activation(x.clone(), act), x),
            move |x, dy| {
                let (f, mut dx) = (last_dim(&dy), buffer(&x));
                let mut dy = into_elements(dy);
                activation::backward(act, &floats(&x), &mut dy, &mut dx, f);
                give_buffer(dy);
                let gradients = [like(dx, &x)];
                give(x);
                gradients
            },
        )
    }

    fn fused_scale_columns(
        x: FloatTensor<Self>,
        s: FloatTensor<Self>,
        repeat: usize,
    ) -> FloatTensor<Self> {
        node::<C, _, 2>(
            "scale columns",
            [x, s],
            |[x, s]| {
                let y = Flex::fused_scale_columns(x.clone(), s.clone(), repeat);
                (y, (x, s))
            },
            move |(x, s), dy| {
                let (mut dx, mut ds) = (buffer(&x), buffer(&s));
                elementwise::scale_columns_backward(
                    &floats(&x),
                    &floats(&s),
                    repeat,
                    &floats(&dy),
                    &mut dx,
                    &mut ds,
                );
                let gradients = [like(dx, &x), like(ds, &s)];
                give_all([x, s, dy]);
                gradients
            },
        )
    }

    fn fused_embedding(w: FloatTensor<Self>, token_ids: IntTensor<Self>) -> FloatTensor<Self> {
        node::<C, _, 1>(
            "embedding",
            [w],
            |[w]| {
                let y = Flex::fused_embedding(w.clone(), token_ids.clone());
                (y, (w.layout().shape().clone(), token_ids))
            },
            move |(shape, token_ids), dy| {
                let mut dw = take(shape.num_elements());
                embedding::backward(&ids(&token_ids), &floats(&dy), &mut dw);
                give(dy);
                [tensor(dw, shape)]
            },
        )
    }

    fn fused_loss(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        targets: IntTensor<Self>,
        spec: LossSpec,
    ) -> FloatTensor<Self> {
        // The logits never exist as a whole, so their gradient is at hand only while the loss is
        // computed: it is taken there, and the backward pass only scales it.
        let tracked = x.is_tracked() || w.is_tracked();
        node::<C, _, 2>(
            "head and loss",
            [x, w],
            |[x, w]| {
                if !tracked {
                    return (Flex::fused_loss(x, w, targets, spec), None);
                }
                let (mut dx, mut dw) = (buffer(&x), buffer(&w));
                let targets = ids(&targets);
                let mut logits = take(spec.scratch(targets.len()));
                let sums = cross_entropy::loss_and_gradients(
                    &spec,
                    &floats(&x),
                    &floats(&w),
                    &targets,
                    &mut dx,
                    &mut dw,
                    &mut logits,
                );
                give_buffer(logits);
                (
                    loss_tensor(&spec, &sums),
                    Some((like(dx, &x), like(dw, &w))),
                )
            },
            |gradients, dy| {
                let (dx, dw) = gradients.expect("a tracked loss keeps its gradients");
                let factor = floats(&dy)[0];
                [dx, dw].map(|gradient| match factor {
                    1.0 => gradient,
                    _ => Flex::float_mul_scalar(gradient, factor.into()),
                })
            },
        )
    }
}

fn attention_forward(qkv: &FlexTensor, spec: &Attention) -> (FlexTensor, Vec<f32>) {
    let qkv = floats(qkv);
    context(spec, |ctx, lse| attention::forward(spec, &qkv, ctx, lse))
}

/// Gradients of a norm from what it read and the gradient of what it gave.
fn norm_backward(
    spec: &Norm,
    (x, params): (FlexTensor, FlexTensor),
    dy: FlexTensor,
) -> [FlexTensor; 2] {
    let (mut dx, mut dp) = (buffer(&x), buffer(&params));
    let (values, p) = (floats(&x), floats(&params));
    norm::backward(spec, &values, &p, &floats(&dy), &mut dx, &mut dp);
    let gradients = [like(dx, &x), like(dp, &params)];
    drop((values, p));
    give_all([x, params, dy]);
    gradients
}

/// `[training loss, cross-entropy]`, both divided as the spec says.
fn loss_tensor(spec: &LossSpec, sums: &LossSums) -> FlexTensor {
    let divisor = f64::from(spec.divisor);
    let cross_entropy = sums.cross_entropy / divisor;
    let total = cross_entropy + f64::from(spec.z_loss) * sums.z / divisor;
    tensor(vec![total as f32, cross_entropy as f32], [2])
}

fn inputs_per_output(act: Activation) -> usize {
    match act {
        Activation::Swiglu | Activation::Geglu => 2,
        Activation::Gelu | Activation::Relu2 => 1,
    }
}
