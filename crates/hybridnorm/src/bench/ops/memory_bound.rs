//! Memory-bound ops: norms, RoPE, activations, sums, the optimizer.

use hybridnorm_kernels::activation::Activation;
use hybridnorm_kernels::norm::{Gain, NormConfig, NormFn};
use hybridnorm_kernels::qkv::{self, QkOrder, QkvTransform};

use super::Bound::{Read, ReadWrite};
use super::case::{Case, Operand, Problem, all_outputs, floats, given, ids, squares, vjp};
use super::shape::ModelShape;
use crate::exec::Tensor;
use crate::graph::Type;
use crate::ops;

/// Returns all cases.
pub fn cases(shape: &ModelShape) -> Vec<Case> {
    let mut cases = Vec::new();
    for (op, function) in [
        ("norm rms", NormFn::Rmsnorm),
        ("norm layer", NormFn::Layernorm),
        ("norm l2", NormFn::L2),
        ("norm dyt", NormFn::Dyt),
        ("norm derf", NormFn::Derf),
    ] {
        cases.extend(norms(op, function, shape.rows(), shape.d_model));
    }
    cases.push(add_norm(shape.rows(), shape.d_model));
    cases.extend(qkv_transforms(shape));
    for (op, act) in [
        ("activation swiglu", Activation::Swiglu),
        ("activation geglu", Activation::Geglu),
        ("activation gelu", Activation::Gelu),
        ("activation relu2", Activation::Relu2),
    ] {
        cases.extend(activations(op, act, shape.rows(), shape.hidden()));
    }
    cases.push(sum(shape));
    cases.extend(scales(shape));
    cases.extend(embeddings(shape));
    cases.extend(optimizer(shape));
    cases
}

fn norm_with_gain(function: NormFn, width: usize) -> NormConfig {
    NormConfig {
        function,
        eps: 1e-5,
        gain: Gain::Plain,
        bias: false,
        width,
        groups: 1,
    }
}

fn norms(op: &'static str, function: NormFn, rows: usize, width: usize) -> [Case; 2] {
    let config = norm_with_gain(function, width);
    let params = move || floats([config.params_len()]);
    let forward = Case::new(op, "forward", ReadWrite, rows, move |rows| {
        let operands = [floats([rows, width]).residual(), params()];
        Problem::new(operands, move |[x, params]| {
            vec![ops::norm(x, params, config)]
        })
    });
    let backward = Case::new(op, "backward", ReadWrite, rows, move |rows| {
        let dy = floats([rows, width]).overwritten();
        let operands = [floats([rows, width]).residual(), params(), dy];
        Problem::new(operands, move |[x, params, dy]| {
            vjp(ops::norm(x, params, config), dy, &[x, params])
        })
    });
    [forward, backward]
}

/// Returns the case of a residual addition and the norm after it.
fn add_norm(rows: usize, width: usize) -> Case {
    let config = norm_with_gain(NormFn::Rmsnorm, width);
    Case::new("add and norm", "forward", ReadWrite, rows, move |rows| {
        let output = floats([rows, width]).overwritten();
        let operands = [floats([rows, width]), output, floats([config.params_len()])];
        Problem::new(operands, move |[x, output, params]| {
            let sum = x + output;
            vec![sum, ops::norm(sum, params, config)]
        })
    })
}

/// Returns the QKV transform of HybridNorm: per-head norms of q, k and v, then RoPE.
pub(super) fn per_head_norm_and_rope(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> QkvTransform {
    let norm = Some(norm_with_gain(NormFn::Rmsnorm, head_dim));
    QkvTransform {
        heads,
        kv_heads,
        head_dim,
        q: norm,
        k: norm,
        v: norm,
        order: QkOrder::BeforeRope,
        qk_scale: 1.0,
        clip: None,
    }
}

/// Returns the RoPE table: cosines and sines of every position of a sequence.
pub(super) fn rope_table(head_dim: usize, seq: usize) -> Operand {
    let table = qkv::rope_table(&qkv::rope_frequencies(10_000.0, head_dim), 1.0, 0, seq);
    given(Type::f32([seq, head_dim]), Tensor::F32(table))
}

/// Returns the cases of per-head norms and RoPE. Units are sequences.
fn qkv_transforms(shape: &ModelShape) -> [Case; 2] {
    let transform = per_head_norm_and_rope(shape.heads, shape.kv_heads, shape.head_dim);
    let (seq, width, head_dim) = (shape.seq, shape.packed(), shape.head_dim);
    let operands = move |n| {
        let gain = || floats([head_dim]);
        let rope_table = rope_table(head_dim, seq);
        [floats([n, seq, width]), rope_table, gain(), gain(), gain()]
    };
    let (op, batch) = ("qkv prepare", shape.batch);
    let forward = Case::new(op, "forward", ReadWrite, batch, move |n| {
        Problem::new(operands(n), move |[x, rope_table, q, k, v]| {
            vec![ops::qkv_transform(
                x,
                rope_table,
                [q, k, v].map(Some),
                transform,
            )]
        })
    });
    let backward = Case::new(op, "backward", ReadWrite, batch, move |n| {
        let [x, rope_table, q, k, v] = operands(n);
        let operands = [x, rope_table, q, k, v, floats([n, seq, width])];
        Problem::new(operands, move |[x, rope_table, q, k, v, dy]| {
            let y = ops::qkv_transform(x, rope_table, [q, k, v].map(Some), transform);
            vjp(y, dy, &[x, q, k, v])
        })
    });
    [forward, backward]
}

fn activations(op: &'static str, act: Activation, rows: usize, f: usize) -> [Case; 2] {
    let wide = act.inputs(f);
    let forward = Case::new(op, "forward", ReadWrite, rows, move |rows| {
        Problem::new([floats([rows, wide])], move |[x]| {
            vec![ops::activation(x, act)]
        })
    });
    let backward = Case::new(op, "backward", ReadWrite, rows, move |rows| {
        let operands = [floats([rows, wide]), floats([rows, f]).overwritten()];
        Problem::new(operands, move |[x, dy]| {
            let gradients = vjp(ops::activation(x, act), dy, &[x]);
            // Also the activation itself, which is recomputed.
            all_outputs(gradients[0])
        })
    });
    [forward, backward]
}

fn sum(shape: &ModelShape) -> Case {
    let len = shape.rows() * shape.d_model;
    Case::new("sum += x", "in place", ReadWrite, len, |len| {
        let operands = [floats([len]), floats([len]).overwritten()];
        Problem::new(operands, |[x, sum]| vec![x + sum])
    })
}

/// Returns the cases of a per-head scale on the attention context.
fn scales(shape: &ModelShape) -> [Case; 2] {
    let (op, rows) = ("scale heads", shape.rows());
    let (heads, repeat) = (shape.heads, shape.head_dim);
    let operands = move |n| [floats([n, heads * repeat]), floats([heads])];
    let forward = Case::new(op, "forward", ReadWrite, rows, move |n| {
        Problem::new(operands(n), move |[x, s]| {
            vec![ops::scale_columns(x, s, repeat)]
        })
    });
    let backward = Case::new(op, "backward", ReadWrite, rows, move |n| {
        let [x, s] = operands(n);
        let dy = floats([n, heads * repeat]);
        Problem::new([x, s, dy], move |[x, s, dy]| {
            vjp(ops::scale_columns(x, s, repeat), dy, &[x, s])
        })
    });
    [forward, backward]
}

fn embeddings(shape: &ModelShape) -> [Case; 2] {
    let (op, rows) = ("embedding", shape.rows());
    let (vocab, width) = (shape.vocab, shape.d_model);
    let operands = move |rows| [ids([1, rows], vocab), floats([vocab, width])];
    let forward = Case::new(op, "forward", ReadWrite, rows, move |rows| {
        Problem::new(operands(rows), |[ids, w]| vec![ops::embedding(ids, w)])
    });
    let backward = Case::new(op, "backward", ReadWrite, rows, move |rows| {
        let [ids, w] = operands(rows);
        let dy = floats([1, rows, width]).residual();
        Problem::new([ids, w, dy], |[ids, w, dy]| {
            vjp(ops::embedding(ids, w), dy, &[w])
        })
    });
    [forward, backward]
}

fn optimizer(shape: &ModelShape) -> [Case; 2] {
    let len = shape.vocab * shape.d_model;
    let step = Case::new("adamw", "step", ReadWrite, len, |len| {
        let guard = given(Type::f32([1]), Tensor::F32(vec![0.0]));
        let [p, g, m] = [(); 3].map(|()| floats([len]));
        let operands = [guard, g, p, m, squares([len])];
        Problem::new(operands, |[guard, g, p, m, v]| {
            let op = ops::AdamW {
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                max_grad_norm: 1.0,
                weight_decay: vec![0.1],
            };
            let squares = ops::squared_norms(g.builder(), &[g]);
            let norms = ops::adamw(op, guard, squares, &[[g, p, m, v]]);
            vec![norms, p, m, v]
        })
    });
    let squares = Case::new("gradient norm", "forward", Read, len, |len| {
        Problem::new([floats([len])], |[x]| {
            vec![ops::squared_norms(x.builder(), &[x])]
        })
    });
    [step, squares]
}
