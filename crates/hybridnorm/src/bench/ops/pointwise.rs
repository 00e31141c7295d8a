//! Ops that touch each number a few times: norms, rotations, activations, sums, the optimizer.

use hybridnorm_kernels::activation::{self, Activation};
use hybridnorm_kernels::adamw::{self, AdamW, Slot};
use hybridnorm_kernels::norm::{self, Gain, Norm, NormFn};
use hybridnorm_kernels::qkv::{self, Preparation, QkOrder, QkvPrep, rope_table};
use hybridnorm_kernels::{elementwise, embedding};

use super::Bound::{Read, ReadWrite};
use super::naive;
use super::problem::{Case, Draw, Shape, problem};

/// Bytes of a number.
const F32: f64 = size_of::<f32>() as f64;

/// All of them.
pub fn cases(shape: &Shape) -> Vec<Case> {
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
    cases.extend(preparations(shape));
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

/// A residual connection and the norm behind it.
fn add_norm(rows: usize, width: usize) -> Case {
    let n = with_gain(NormFn::Rmsnorm, width);
    Case::new("add and norm", "forward", ReadWrite, rows, move |rows| {
        let mut draw = Draw::new();
        let [x, o] = [(); 2].map(|()| draw.values(rows * width));
        problem(
            [x, draw.values(n.params_len())],
            [o, vec![0.0; rows * width]],
            move |[x, params], [sum, y]| norm::add_forward(&n, x, sum, params, y),
            move |[x, params], [sum, y]| {
                naive::simple::add_to(x, sum);
                naive::norm::forward(&n, sum, params, y);
            },
        )
        .work(4.0 * F32 * (rows * width) as f64)
    })
}

fn with_gain(function: NormFn, width: usize) -> Norm {
    Norm {
        function,
        eps: 1e-5,
        gain: Gain::Plain,
        bias: false,
        width,
        groups: 1,
    }
}

fn norms(op: &'static str, function: NormFn, rows: usize, width: usize) -> [Case; 2] {
    let n = with_gain(function, width);
    let forward = Case::new(op, "forward", ReadWrite, rows, move |rows| {
        let mut draw = Draw::new();
        problem(
            [draw.values(rows * width), draw.values(n.params_len())],
            [vec![0.0; rows * width]],
            move |[x, params], [y]| norm::forward(&n, x, params, y),
            move |[x, params], [y]| naive::norm::forward(&n, x, params, y),
        )
    });
    let backward = Case::new(op, "backward", ReadWrite, rows, move |rows| {
        let mut draw = Draw::new();
        let params = draw.values(n.params_len());
        problem(
            [draw.values(rows * width), params, draw.values(rows * width)],
            [vec![0.0; rows * width], vec![0.0; n.params_len()]],
            move |[x, params, dy], [dx, dparams]| {
                norm::backward(&n, x, params, dy, dx, dparams);
            },
            move |[x, params, dy], [dx, dparams]| {
                naive::norm::backward(&n, x, params, dy, dx, dparams);
            },
        )
    });
    [forward, backward]
}

/// HybridNorm's norms on every head, and the rotation.
pub(super) fn on_heads(heads: usize, kv_heads: usize, head_dim: usize) -> QkvPrep {
    let norm = Some(with_gain(NormFn::Rmsnorm, head_dim));
    QkvPrep {
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

/// Norms on every head and rotation. Pieces are sequences.
fn preparations(shape: &Shape) -> [Case; 2] {
    let p = on_heads(shape.heads, shape.kv_heads, shape.head_dim);
    let (seq, width, head_dim) = (shape.seq, shape.packed(), shape.head_dim);
    let rope = move || rope_table(10_000.0, head_dim, 0, seq);
    let forward = Case::new("qkv prepare", "forward", ReadWrite, shape.batch, move |n| {
        let mut draw = Draw::new();
        let [q, k, v] = [(); 3].map(|()| draw.values(head_dim));
        let len = n * seq * width;
        problem(
            [draw.values(len), rope(), q, k, v],
            [vec![0.0; len]],
            move |[x, rope, q, k, v], [y]| {
                qkv::forward(&Preparation::new(&p, rope, [q, k, v]), x, y);
            },
            move |[x, rope, q, k, v], [y]| naive::qkv::forward(&p, x, rope, [q, k, v], y),
        )
    });
    let backward = Case::new(
        "qkv prepare",
        "backward",
        ReadWrite,
        shape.batch,
        move |n| {
            let mut draw = Draw::new();
            let [q, k, v] = [(); 3].map(|()| draw.values(head_dim));
            let [dq, dk, dv] = [(); 3].map(|()| vec![0.0; head_dim]);
            let len = n * seq * width;
            problem(
                [draw.values(len), rope(), q, k, v, draw.values(len)],
                [vec![0.0; len], dq, dk, dv],
                move |[x, rope, q, k, v, dy], [dx, dq, dk, dv]| {
                    let p = Preparation::new(&p, rope, [q, k, v]);
                    qkv::backward(&p, x, dy, dx, [dq, dk, dv]);
                },
                move |[x, rope, q, k, v, dy], [dx, dq, dk, dv]| {
                    naive::qkv::backward(&p, x, rope, [q, k, v], dy, dx, [dq, dk, dv]);
                },
            )
        },
    );
    [forward, backward]
}

fn activations(op: &'static str, act: Activation, rows: usize, f: usize) -> [Case; 2] {
    let forward = Case::new(op, "forward", ReadWrite, rows, move |rows| {
        problem(
            [Draw::new().values(rows * act.inputs(f))],
            [vec![0.0; rows * f]],
            move |[x], [y]| activation::forward(act, x, y, f),
            move |[x], [y]| naive::activation::forward(act, x, y, f),
        )
    });
    let backward = Case::new(op, "backward", ReadWrite, rows, move |rows| {
        let mut draw = Draw::new();
        let wide = rows * act.inputs(f);
        problem(
            [draw.values(wide)],
            [draw.values(rows * f), vec![0.0; wide]],
            move |[x], [dy, dx]| activation::backward(act, x, dy, dx, f),
            move |[x], [dy, dx]| {
                naive::activation::backward(act, x, dy, dx, f);
                naive::activation::forward(act, x, dy, f);
            },
        )
        .work(2.0 * F32 * (wide + rows * f) as f64)
    });
    [forward, backward]
}

fn sum(shape: &Shape) -> Case {
    let len = shape.rows() * shape.d_model;
    Case::new("sum += x", "in place", ReadWrite, len, |len| {
        let mut draw = Draw::new();
        problem(
            [draw.values(len)],
            [draw.values(len)],
            |[x], [sum]| elementwise::add_to(x, sum),
            |[x], [sum]| naive::simple::add_to(x, sum),
        )
        .in_place()
    })
}

/// A factor for each head on the context.
fn scales(shape: &Shape) -> [Case; 2] {
    let (heads, repeat) = (shape.heads, shape.head_dim);
    let width = heads * repeat;
    let forward = Case::new(
        "scale heads",
        "forward",
        ReadWrite,
        shape.rows(),
        move |n| {
            let mut draw = Draw::new();
            problem(
                [draw.values(n * width), draw.values(heads)],
                [vec![0.0; n * width]],
                move |[x, s], [y]| elementwise::scale_columns(x, s, repeat, y),
                move |[x, s], [y]| naive::simple::scale_columns(x, s, repeat, y),
            )
        },
    );
    let backward = Case::new(
        "scale heads",
        "backward",
        ReadWrite,
        shape.rows(),
        move |n| {
            let mut draw = Draw::new();
            let s = draw.values(heads);
            problem(
                [draw.values(n * width), s, draw.values(n * width)],
                [vec![0.0; n * width], vec![0.0; heads]],
                move |[x, s, dy], [dx, ds]| {
                    elementwise::scale_columns_backward(x, s, repeat, dy, dx, ds);
                },
                move |[x, s, dy], [dx, ds]| {
                    naive::simple::scale_columns_backward(x, s, repeat, dy, dx, ds);
                },
            )
        },
    );
    [forward, backward]
}

fn embeddings(shape: &Shape) -> [Case; 2] {
    let (rows, vocab, width) = (shape.rows(), shape.vocab, shape.d_model);
    let forward = Case::new("embedding", "forward", ReadWrite, rows, move |rows| {
        let mut draw = Draw::new();
        let ids = draw.ids(rows, vocab);
        let same = ids.clone();
        problem(
            [draw.values(vocab * width)],
            [vec![0.0; rows * width]],
            move |[w], [y]| embedding::forward(&ids, w, y),
            move |[w], [y]| naive::simple::embedding(&same, w, y, width),
        )
        // Of the table only the rows that are looked up.
        .work(2.0 * F32 * (rows * width) as f64)
    });
    let backward = Case::new("embedding", "backward", ReadWrite, rows, move |rows| {
        let mut draw = Draw::new();
        let ids = draw.ids(rows, vocab);
        let same = ids.clone();
        problem(
            [draw.values(rows * width)],
            [vec![0.0; vocab * width]],
            move |[dy], [dw]| embedding::backward(&ids, dy, dw),
            move |[dy], [dw]| naive::simple::embedding_backward(&same, dy, dw, width),
        )
    });
    [forward, backward]
}

fn slot<'a>(p: &'a mut [f32], g: &'a [f32], m: &'a mut [f32], v: &'a mut [f32]) -> Slot<'a> {
    Slot {
        p,
        g,
        m,
        v,
        weight_decay: 0.1,
    }
}

fn optimizer(shape: &Shape) -> [Case; 2] {
    let a = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        grad_scale: 1.0,
        bias_correction1: 0.5,
        bias_correction2: 0.5,
    };
    let len = shape.vocab * shape.d_model;
    let step = Case::new("adamw", "step", ReadWrite, len, move |len| {
        let mut draw = Draw::new();
        let [g, p, m] = [(); 3].map(|()| draw.values(len));
        // A mean of squares is not negative.
        let v = draw.values(len).iter().map(|x| x * x).collect();
        problem(
            [g],
            [p, m, v],
            move |[g], [p, m, v]| {
                let grad_scale = adamw::grad_scale(1.0, adamw::sum_squares(g).sqrt());
                adamw::step(&AdamW { grad_scale, ..a }, &mut [slot(p, g, m, v)]);
            },
            move |[g], [p, m, v]| naive::simple::adamw(&a, slot(p, g, m, v)),
        )
        .in_place()
    });
    let squares = Case::new("gradient norm", "forward", Read, len, |len| {
        problem(
            [Draw::new().values(len)],
            [vec![0.0]],
            |[x], [sum]| sum[0] = adamw::sum_squares(x) as f32,
            |[x], [sum]| sum[0] = naive::simple::sum_squares(x) as f32,
        )
    });
    [step, squares]
}
