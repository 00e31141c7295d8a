//! The differentiable steps a decoder is made of.
//!
//! Each op has two implementations. On the CPU in `f32` it is a hand-written kernel with a
//! hand-written backward pass ([`fused`]); everywhere else (another device, another precision) it
//! is a composition of Burn's own ops, whose gradients Burn derives ([`compose`]). The
//! compositions are also what the kernels are tested against, in `f64`.
//!
//! Shape suffixes: b batch, t position, n = b·t rows, d width, h query heads, g key/value heads,
//! k head width, f feed-forward width, v vocabulary, p parameters of a norm.

pub mod compose;
mod flex;
pub mod fused;
pub mod latent;
pub mod mixture;
mod node;
pub mod pool;
mod prepared;
pub mod profile;

use std::sync::Arc;

use burn::backend::{Dispatch, Flex};
use burn::tensor::{DType, Device, Int, Tensor};
pub use hybridnorm_kernels::{
    activation::Activation,
    adamw::{AdamW, Norms, SlotNorms},
    attention::{Attention, Scores},
    cross_entropy::LossSpec,
    magnitude::Magnitude,
    muon::Muon,
    norm::{Gain, Norm, NormFn},
    qkv::{QkOrder, QkvPrep, rope_table},
};
use hybridnorm_kernels::{adamw, attention, magnitude, muon, unit};

use fused::FusedOps;
pub use latent::{
    LatentAttention, LatentHeads, absorbed_queries, expanded_context, latent_attention,
    latent_heads, latent_row,
};
pub use mixture::{
    Chosen, Plan, Router, RouterStatistics, Scoring, choose, expert_down, expert_up, router_losses,
    router_statistics, router_weights,
};

/// Normalizes rows of `spec.width` elements; see [`Norm`] for the layout of `params_p`.
pub fn norm(x_btd: Tensor<3>, params_p: Tensor<1>, spec: Norm) -> Tensor<3> {
    if is_fused(&x_btd) {
        let y = Dispatch::fused_norm(x_btd.into_dispatch(), params_p.into_dispatch(), spec);
        Tensor::from_dispatch(y)
    } else {
        compose::norm(x_btd, params_p, spec)
    }
}

/// `[x + o, norm(x + o)]`: a residual connection and the norm behind it, in one pass on the CPU.
pub fn add_norm(
    x_btd: Tensor<3>,
    o_btd: Tensor<3>,
    params_p: Tensor<1>,
    spec: Norm,
) -> [Tensor<3>; 2] {
    if is_fused(&x_btd) {
        let (sum, y) = Dispatch::fused_add_norm(
            x_btd.into_dispatch(),
            o_btd.into_dispatch(),
            params_p.into_dispatch(),
            spec,
        );
        [sum, y].map(Tensor::from_dispatch)
    } else {
        let sum = x_btd + o_btd;
        [sum.clone(), compose::norm(sum, params_p, spec)]
    }
}

/// `y = x Wᵀ`, the weight as (out, in).
pub fn linear(x_bti: Tensor<3>, w_oi: Tensor<2>) -> Tensor<3> {
    if is_fused(&x_bti) {
        let y = Dispatch::fused_linear(x_bti.into_dispatch(), w_oi.into_dispatch());
        Tensor::from_dispatch(y)
    } else {
        compose::linear(x_bti, w_oi)
    }
}

/// From the packed projection `[q heads | k heads | v heads]` to the same packing with every
/// norm, rotation and scale applied that comes before the attention scores; see [`QkvPrep`].
///
/// `rope` holds a row of `k` numbers for each of the `t` positions, made by [`rope_table`].
pub fn qkv_norm_rope(
    qkv_btc: Tensor<3>,
    [q_p, k_p, v_p]: [Tensor<1>; 3],
    spec: QkvPrep,
    rope: Arc<[f32]>,
) -> Tensor<3> {
    if is_fused(&qkv_btc) {
        let y = Dispatch::fused_qkv(
            qkv_btc.into_dispatch(),
            q_p.into_dispatch(),
            k_p.into_dispatch(),
            v_p.into_dispatch(),
            spec,
            rope,
        );
        Tensor::from_dispatch(y)
    } else {
        compose::qkv_norm_rope(qkv_btc, [q_p, k_p, v_p], spec, &rope)
    }
}

/// Causal self-attention from packed q, k, v to the context (b, t, h·k).
pub fn causal_attention(qkv_btc: Tensor<3>, spec: Attention) -> Tensor<3> {
    if is_fused(&qkv_btc) {
        let y = Dispatch::fused_attention(qkv_btc.into_dispatch(), spec);
        Tensor::from_dispatch(y)
    } else {
        compose::causal_attention(qkv_btc, spec)
    }
}

/// [`qkv_norm_rope`] and [`causal_attention`] in one: what lies between them is not kept for the
/// backward pass on the CPU but made again.
pub fn normed_attention(
    qkv_btc: Tensor<3>,
    [q_p, k_p, v_p]: [Tensor<1>; 3],
    prepare: QkvPrep,
    rope: Arc<[f32]>,
    spec: Attention,
) -> Tensor<3> {
    if is_fused(&qkv_btc) {
        let y = Dispatch::fused_normed_attention(
            qkv_btc.into_dispatch(),
            q_p.into_dispatch(),
            k_p.into_dispatch(),
            v_p.into_dispatch(),
            prepare,
            rope,
            spec,
        );
        Tensor::from_dispatch(y)
    } else {
        let qkv_btc = compose::qkv_norm_rope(qkv_btc, [q_p, k_p, v_p], prepare, &rope);
        compose::causal_attention(qkv_btc, spec)
    }
}

/// Attention of new positions over a cache that already holds them: query `i` of the new ones
/// sees cache rows `0..=past + i`. `spec.seq` is the number of new positions; the cache is
/// (b, capacity, 2·g·k) with keys before values. Not differentiable on the CPU.
pub fn cached_attention(
    qkv_btc: Tensor<3>,
    cache_bsc: &Tensor<3>,
    past: usize,
    spec: Attention,
) -> Tensor<3> {
    if is_plain(&qkv_btc) {
        let qkv = primitive(qkv_btc);
        let cache = primitive(cache_bsc.clone());
        let shape = [spec.batch, spec.seq, spec.heads * spec.value_dim];
        let mut ctx = vec![0.0; shape.iter().product()];
        hybridnorm_kernels::attention::cached(
            &spec,
            &flex::floats(&qkv),
            &flex::floats(&cache),
            past,
            &mut ctx,
        );
        Tensor::from_primitive::<Flex>(flex::tensor(ctx, shape))
    } else {
        compose::cached_attention(qkv_btc, cache_bsc, past, spec)
    }
}

/// The feed-forward's nonlinearity. Gated ones read `[gate | up]` and halve the last dimension.
pub fn activation(x_btf: Tensor<3>, act: Activation) -> Tensor<3> {
    if is_fused(&x_btf) {
        let y = Dispatch::fused_activation(x_btf.into_dispatch(), act);
        Tensor::from_dispatch(y)
    } else {
        compose::activation(x_btf, act)
    }
}

/// [`activation()`] and [`linear`] in one: the activation is not kept for the backward pass on the CPU
/// but made again.
pub fn activation_linear(x_btf: Tensor<3>, act: Activation, w_oi: Tensor<2>) -> Tensor<3> {
    if is_fused(&x_btf) {
        let y = Dispatch::fused_activation_linear(x_btf.into_dispatch(), w_oi.into_dispatch(), act);
        Tensor::from_dispatch(y)
    } else {
        compose::linear(compose::activation(x_btf, act), w_oi)
    }
}

/// The same tensor twice. Gradients of a tensor that three or more ops read are added in the order in
/// which a backward pass happens to meet these; with a fork for every further reader there are never more
/// than two to add, whose order does not matter.
pub fn fork(x_btd: Tensor<3>) -> [Tensor<3>; 2] {
    if !is_fused(&x_btd) {
        return [x_btd.clone(), x_btd];
    }
    // One reader of what is forked, and two of what lies between.
    let x = Dispatch::fused_same(x_btd.into_dispatch());
    [x.clone(), x].map(|x| Tensor::from_dispatch(Dispatch::fused_same(x)))
}

/// `x + y` of one shape.
pub fn add(x_btd: Tensor<3>, y_btd: Tensor<3>) -> Tensor<3> {
    if is_fused(&x_btd) {
        let sum = Dispatch::fused_add(x_btd.into_dispatch(), y_btd.into_dispatch());
        Tensor::from_dispatch(sum)
    } else {
        x_btd + y_btd
    }
}

/// Multiplies channels: `s` has one entry for each run of `repeat` consecutive channels.
pub fn scale_columns(x_btd: Tensor<3>, s: Tensor<1>, repeat: usize) -> Tensor<3> {
    if is_fused(&x_btd) {
        let y = Dispatch::fused_scale_columns(x_btd.into_dispatch(), s.into_dispatch(), repeat);
        Tensor::from_dispatch(y)
    } else {
        compose::scale_columns(x_btd, s, repeat)
    }
}

/// Rows of `w_vd` by token id.
pub fn embedding(w_vd: Tensor<2>, ids_bt: Tensor<2, Int>) -> Tensor<3> {
    if is_fused(&w_vd) {
        let y = Dispatch::fused_embedding(w_vd.into_dispatch(), ids_bt.into_dispatch());
        Tensor::from_dispatch(y)
    } else {
        compose::embedding(w_vd, ids_bt)
    }
}

/// Output projection and cross-entropy in one, in nats: `[training loss, cross-entropy]`.
///
/// Both are sums over rows divided by `spec.divisor`; the training loss adds
/// `z_loss · logsumexp²`. Only the first entry may be differentiated. On the CPU the logits exist
/// a chunk of rows at a time, and their gradient is taken in the forward pass. A target of −1 is
/// not counted.
pub fn linear_cross_entropy(
    x_nd: Tensor<2>,
    w_vd: Tensor<2>,
    targets_n: Tensor<1, Int>,
    spec: LossSpec,
) -> Tensor<1> {
    if is_fused(&x_nd) {
        let y = Dispatch::fused_loss(
            x_nd.into_dispatch(),
            w_vd.into_dispatch(),
            targets_n.into_dispatch(),
            spec,
        );
        Tensor::from_dispatch(y)
    } else {
        compose::linear_cross_entropy(x_nd, w_vd, targets_n, spec)
    }
}

/// What an optimizer step changes and needs of a parameter, flattened, outside any graph.
#[derive(Debug)]
pub struct Update {
    /// Its values.
    pub value: Tensor<1>,
    /// Their gradient.
    pub gradient: Tensor<1>,
    /// Means of the gradient and of its square.
    pub moments: [Tensor<1>; 2],
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// One AdamW step on all parameters (decoupled decay, arXiv 1711.05101), their gradients clipped
/// as `step` says.
///
/// Gives the norms of gradients, updates and values, and of each slot the new values and moments; the
/// old ones if the gradients' global norm is not finite.
pub fn adamw(slots: Vec<Update>, step: &AdamW) -> (Norms, Vec<[Tensor<1>; 3]>) {
    if !slots.iter().all(|slot| is_fused(&slot.value)) {
        return compose::adamw(slots, step);
    }
    profile::timed("gradient norm and adamw", || {
        let decays: Vec<f64> = slots.iter().map(|slot| slot.weight_decay).collect();
        let (mut states, gradients): (Vec<_>, Vec<_>) = slots
            .into_iter()
            .map(|slot| {
                let [m, v] = slot.moments;
                ([slot.value, m, v].map(primitive), primitive(slot.gradient))
            })
            .unzip();
        let values: Vec<_> = gradients.iter().map(flex::floats).collect();
        let mut slots: Vec<_> = states
            .iter_mut()
            .zip(values.iter().zip(decays))
            .map(|([p, m, v], (g, weight_decay))| adamw::Slot {
                p: p.storage_mut(),
                g,
                m: m.storage_mut(),
                v: v.storage_mut(),
                weight_decay,
            })
            .collect();
        let norms = adamw::step(step, &mut slots);
        drop(slots);
        drop(values);
        gradients.into_iter().for_each(pool::give);
        let states = states.into_iter();
        let tensors = states.map(|state| state.map(Tensor::from_primitive::<Flex>));
        (norms, tensors.collect())
    })
}

/// What a step of Muon changes and needs of a stack of matrices, flattened, outside any graph.
#[derive(Debug)]
pub struct MuonUpdate {
    /// Its values.
    pub value: Tensor<1>,
    /// Their gradient.
    pub gradient: Tensor<1>,
    /// Decaying sum of the gradient.
    pub moment: Tensor<1>,
    /// Columns of the matrices.
    pub columns: usize,
    /// Rows of each.
    pub rows: Vec<usize>,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// One step of Muon on all matrices, see [`Muon`]; gives each slot's norms, new values and moment.
pub fn muon(slots: Vec<MuonUpdate>, step: &Muon) -> (Vec<SlotNorms>, Vec<[Tensor<1>; 2]>) {
    if !slots.iter().all(|slot| is_fused(&slot.value)) {
        return slots
            .into_iter()
            .map(|slot| compose::muon(slot, step))
            .unzip();
    }
    profile::timed("muon", || {
        let mut states = Vec::with_capacity(slots.len());
        let mut gradients = Vec::with_capacity(slots.len());
        let mut shapes = Vec::with_capacity(slots.len());
        for slot in slots {
            states.push([slot.value, slot.moment].map(primitive));
            gradients.push(primitive(slot.gradient));
            shapes.push((slot.columns, slot.rows, slot.weight_decay));
        }
        let values: Vec<_> = gradients.iter().map(flex::floats).collect();
        let mut slots: Vec<_> = states
            .iter_mut()
            .zip(values.iter().zip(&shapes))
            .map(|([p, m], (g, (columns, rows, weight_decay)))| muon::Slot {
                p: p.storage_mut(),
                g,
                m: m.storage_mut(),
                columns: *columns,
                blocks: rows,
                weight_decay: *weight_decay,
            })
            .collect();
        let norms = muon::step(step, &mut slots);
        drop(slots);
        drop(values);
        gradients.into_iter().for_each(pool::give);
        let states = states.into_iter();
        let tensors = states.map(|state| state.map(Tensor::from_primitive::<Flex>));
        (norms, tensors.collect())
    })
}

/// The scores of causal self-attention from packed and prepared q, k, v, which attention itself never
/// keeps; for looking inside, computed on the CPU in f32.
pub fn attention_scores(qkv_btc: Tensor<3>, spec: Attention) -> Scores {
    attention::scores(&spec, &on_host(qkv_btc))
}

/// The largest score of every query head, before any soft cap; computed on the CPU in f32.
pub fn head_maxima(qkv_btc: Tensor<3>, spec: Attention) -> Vec<f32> {
    attention::head_maxima(&spec, &on_host(qkv_btc))
}

/// How large the elements of a tensor are; for looking inside, computed on the CPU in f32.
pub fn magnitude(x_btd: Tensor<3>) -> Magnitude {
    magnitude::magnitude(&on_host(x_btd))
}

/// The rows of a flattened matrix at length 1 (arXiv 2410.01131).
pub fn unit_rows(matrix: Tensor<1>, columns: usize) -> Tensor<1> {
    if !is_fused(&matrix) {
        return compose::unit(matrix, columns, 1);
    }
    let mut matrix = primitive(matrix);
    unit::rows(matrix.storage_mut(), columns);
    Tensor::from_primitive::<Flex>(matrix)
}

/// The columns of flattened matrices on top of each other at length 1; `rows` are those of each.
pub fn unit_columns(matrices: Tensor<1>, columns: usize, rows: &[usize]) -> Tensor<1> {
    if !is_fused(&matrices) {
        let parts = matrices.split_with_sizes(rows.iter().map(|rows| rows * columns).collect(), 0);
        let parts = parts
            .into_iter()
            .map(|part| compose::unit(part, columns, 0));
        return Tensor::cat(parts.collect(), 0);
    }
    let mut matrices = primitive(matrices);
    let mut rest: &mut [f32] = matrices.storage_mut();
    for rows in rows {
        let (matrix, others) = rest.split_at_mut(rows * columns);
        unit::columns(matrix, columns);
        rest = others;
    }
    Tensor::from_primitive::<Flex>(matrices)
}

/// `Σ x²` in a fixed order.
pub fn sum_squares(x: Tensor<1>) -> f64 {
    if is_fused(&x) {
        adamw::sum_squares(&flex::floats(&primitive(x)))
    } else {
        compose::sum_squares(x)
    }
}

fn on_host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    let x = x.without_autodiff().into_data_as::<f32>();
    x.try_into_vec().expect("converted to f32")
}

fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && x.device().without_autodiff() == Device::flex()
}

/// Whether a kernel without a backward pass may compute it.
fn is_plain(x: &Tensor<3>) -> bool {
    is_fused(x) && !x.is_autodiff()
}

fn primitive<const D: usize>(x: Tensor<D>) -> burn_flex::FlexTensor {
    x.without_autodiff()
        .try_into_primitive::<Flex>()
        .expect("checked to be on the CPU")
}
