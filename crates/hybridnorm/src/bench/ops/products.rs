//! Ops made of matrix products: linear maps, attention, the loss.

use hybridnorm_kernels::attention::{self, Attention};
use hybridnorm_kernels::cross_entropy::{self, LossSpec, LossSums};
use hybridnorm_kernels::linear;
use hybridnorm_kernels::qkv::{Preparation, rope_table};

use super::Bound::{Arithmetic, Read};
use super::naive;
use super::pointwise::on_heads;
use super::problem::{Case, Draw, Problem, Shape, problem};

/// All of them.
pub fn cases(shape: &Shape) -> Vec<Case> {
    let Shape {
        d_model,
        d_ff,
        up,
        heads,
        head_dim,
        ..
    } = *shape;
    let rows = shape.rows();
    let mut cases = Vec::new();
    let dense = [("linear up", d_model, up), ("linear down", d_ff, d_model)];
    let dense = dense.into_iter().filter(|_| d_ff > 0);
    let attention = [
        ("linear qkv", d_model, shape.packed()),
        ("linear out", heads * head_dim, d_model),
    ];
    for (op, inputs, outputs) in attention.into_iter().chain(dense) {
        cases.extend(linears(op, rows, inputs, outputs));
    }
    cases.push(one_row(shape));
    cases.extend(attentions(shape));
    cases.extend(normed_attentions(shape));
    cases.extend(losses(shape));
    cases
}

fn linears(op: &'static str, rows: usize, inputs: usize, outputs: usize) -> [Case; 3] {
    let flop = move |rows: usize| 2.0 * (rows * inputs * outputs) as f64;
    let case = |direction, problem: fn(usize, usize, usize) -> Problem| {
        Case::new(op, direction, Arithmetic, rows, move |rows| {
            problem(rows, inputs, outputs).work(flop(rows))
        })
    };
    [
        case("forward", |rows, i, o| {
            let mut draw = Draw::new();
            problem(
                [draw.values(rows * i), draw.values(o * i)],
                [vec![0.0; rows * o]],
                move |[x, w], [y]| linear::forward(x, w, y, i, o),
                move |[x, w], [y]| naive::linear::forward(x, w, y, i, o),
            )
        }),
        case("backward input", |rows, i, o| {
            let mut draw = Draw::new();
            problem(
                [draw.values(rows * o), draw.values(o * i)],
                [vec![0.0; rows * i]],
                move |[dy, w], [dx]| linear::backward_input(dy, w, dx, i, o),
                move |[dy, w], [dx]| naive::linear::backward_input(dy, w, dx, i, o),
            )
        }),
        case("backward weight", |rows, i, o| {
            let mut draw = Draw::new();
            problem(
                [draw.values(rows * o), draw.values(rows * i)],
                [vec![0.0; o * i]],
                move |[dy, x], [dw]| linear::backward_weight(dy, x, dw, i, o),
                move |[dy, x], [dw]| naive::linear::backward_weight(dy, x, dw, i, o),
            )
        }),
    ]
}

/// The head of a single token, which reads a matrix once. Its pieces are the outputs.
fn one_row(shape: &Shape) -> Case {
    let width = shape.d_model;
    Case::new(
        "linear head",
        "one row",
        Read,
        shape.vocab,
        move |outputs| {
            let mut draw = Draw::new();
            problem(
                [draw.values(width), draw.values(outputs * width)],
                [vec![0.0; outputs]],
                move |[x, w], [y]| linear::forward(x, w, y, width, outputs),
                move |[x, w], [y]| naive::linear::forward(x, w, y, width, outputs),
            )
        },
    )
}

/// The attention of a shape, in pieces: sequences of one key and value head with its query heads.
#[derive(Clone, Copy)]
struct Pieces(Attention);

impl Pieces {
    fn new(shape: &Shape) -> Self {
        Self(Attention {
            batch: shape.batch,
            seq: shape.seq,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            value_dim: shape.head_dim,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            softcap: None,
        })
    }

    fn count(self) -> usize {
        self.0.batch * self.0.kv_heads
    }

    /// Arithmetic on a number of them, given the attention that they are.
    fn case(
        self,
        op: &'static str,
        direction: &'static str,
        make: impl Fn(Attention) -> Problem + 'static,
    ) -> Case {
        let make = move |n| make(self.take(n));
        Case::new(op, direction, Arithmetic, self.count(), make)
    }

    /// So many of them.
    fn take(self, n: usize) -> Attention {
        let whole = self.0;
        match n == self.count() {
            true => whole,
            false => Attention {
                batch: n,
                heads: whole.heads / whole.kv_heads,
                kv_heads: 1,
                ..whole
            },
        }
    }
}

fn attentions(shape: &Shape) -> [Case; 3] {
    let pieces = Pieces::new(shape);
    let whole = pieces.0;
    let forward = pieces.case("attention", "forward", |a| {
        let [qkv, ctx, lse] = lengths(&a);
        problem(
            [Draw::new().values(qkv)],
            [vec![0.0; ctx], vec![0.0; lse]],
            move |[qkv], [ctx, lse]| attention::forward(&a, qkv, ctx, lse),
            move |[qkv], [ctx, lse]| naive::attention::forward(&a, qkv, ctx, lse),
        )
        // Scores and context.
        .work(2.0 * product(&a))
    });
    let backward = pieces.case("attention", "backward", |a| {
        let [qkv, ctx, lse] = lengths(&a);
        let mut draw = Draw::new();
        let qkv = draw.values(qkv);
        let (mut context, mut log_sums) = (vec![0.0; ctx], vec![0.0; lse]);
        attention::forward(&a, &qkv, &mut context, &mut log_sums);
        let gradient = vec![0.0; qkv.len()];
        problem(
            [qkv, context, log_sums, draw.values(ctx)],
            [gradient],
            move |[qkv, ctx, lse, dctx], [dqkv]| {
                attention::backward(&a, qkv, ctx, lse, dctx, dqkv);
            },
            move |[qkv, ctx, lse, dctx], [dqkv]| {
                naive::attention::backward(&a, qkv, ctx, lse, dctx, dqkv);
            },
        )
        // The scores once more, and the gradients of weights, values, queries and keys.
        .work(5.0 * product(&a))
    });
    let past = whole.seq - 1;
    let cached = Case::new("attention", "one row", Read, whole.kv_heads, move |n| {
        let a = Attention {
            batch: 1,
            seq: 1,
            heads: n * (whole.heads / whole.kv_heads),
            kv_heads: n,
            ..whole
        };
        let [qkv, ctx, _] = lengths(&a);
        let mut draw = Draw::new();
        let cache = draw.values((past + 1) * 2 * n * a.head_dim);
        problem(
            [draw.values(qkv), cache],
            [vec![0.0; ctx]],
            move |[qkv, cache], [ctx]| {
                let mut lse = vec![0.0; a.batch * a.heads * a.seq];
                attention::cached(&a, qkv, cache, past, ctx, &mut lse);
            },
            move |[qkv, cache], [ctx]| naive::attention::cached(&a, qkv, cache, past, ctx),
        )
    });
    [forward, backward, cached]
}

/// Attention that norms and rotates on the way.
fn normed_attentions(shape: &Shape) -> [Case; 2] {
    let pieces = Pieces::new(shape);
    let prepared = move |a: &Attention| on_heads(a.heads, a.kv_heads, a.head_dim);
    let rope = move || rope_table(10_000.0, pieces.0.head_dim, 0, pieces.0.seq);
    let forward = pieces.case("normed attention", "forward", move |a| {
        let [qkv, ctx, lse] = lengths(&a);
        let mut draw = Draw::new();
        let gains = draw.values(a.head_dim);
        problem(
            [draw.values(qkv), rope(), gains],
            [vec![0.0; ctx], vec![0.0; lse]],
            move |[qkv, rope, gains], [ctx, lse]| {
                let p = Preparation::new(&prepared(&a), rope, [gains; 3]);
                attention::forward_prepared(&a, &p, qkv, ctx, lse);
            },
            move |[qkv, rope, gains], [ctx, lse]| {
                let mut y = vec![0.0; qkv.len()];
                naive::qkv::forward(&prepared(&a), qkv, rope, [gains; 3], &mut y);
                naive::attention::forward(&a, &y, ctx, lse);
            },
        )
        .work(2.0 * product(&a))
    });
    let backward = pieces.case("normed attention", "backward", move |a| {
        let [qkv, ctx, lse] = lengths(&a);
        let mut draw = Draw::new();
        let (qkv, gains, dctx) = (draw.values(qkv), draw.values(a.head_dim), draw.values(ctx));
        let (mut context, mut log_sums) = (vec![0.0; ctx], vec![0.0; lse]);
        let turns = rope();
        let p = Preparation::new(&prepared(&a), &turns, [&gains; 3]);
        attention::forward_prepared(&a, &p, &qkv, &mut context, &mut log_sums);
        let gradient = vec![0.0; qkv.len()];
        let [dq, dk, dv] = [(); 3].map(|()| vec![0.0; a.head_dim]);
        problem(
            [qkv, turns, gains, context, log_sums, dctx],
            [gradient, dq, dk, dv],
            move |[qkv, rope, gains, ctx, lse, dctx], [dqkv, dq, dk, dv]| {
                let p = Preparation::new(&prepared(&a), rope, [gains; 3]);
                let dparams = [dq, dk, dv].map(|d| &mut d[..]);
                attention::backward_prepared(&a, &p, qkv, ctx, lse, dctx, dqkv, dparams);
            },
            move |[qkv, rope, gains, ctx, lse, dctx], [dqkv, dq, dk, dv]| {
                let (mut y, mut dy) = (vec![0.0; qkv.len()], vec![0.0; qkv.len()]);
                naive::qkv::forward(&prepared(&a), qkv, rope, [gains; 3], &mut y);
                naive::attention::backward(&a, &y, ctx, lse, dctx, &mut dy);
                let dparams = [dq, dk, dv].map(|d| &mut d[..]);
                naive::qkv::backward(&prepared(&a), qkv, rope, [gains; 3], &dy, dqkv, dparams);
            },
        )
        .work(5.0 * product(&a))
    });
    [forward, backward]
}

/// Lengths of the packed projection, of the context and of the log-sum-exp.
fn lengths(a: &Attention) -> [usize; 3] {
    let rows = a.batch * a.seq;
    [
        rows * (a.heads + 2 * a.kv_heads) * a.head_dim,
        rows * a.heads * a.head_dim,
        rows * a.heads,
    ]
}

/// Arithmetic of one product over all pairs of positions that the mask leaves.
fn product(a: &Attention) -> f64 {
    let pairs = (a.seq * (a.seq + 1) / 2) as f64;
    2.0 * pairs * (a.batch * a.heads * a.head_dim) as f64
}

fn losses(shape: &Shape) -> [Case; 2] {
    let (rows, width, vocab) = (shape.rows(), shape.d_model, shape.vocab);
    let spec = LossSpec {
        width,
        vocab,
        logit_scale: 1.0,
        softcap: None,
        z_loss: 1e-5,
        divisor: rows as f32,
    };
    let product = move |rows: usize| 2.0 * (rows * width * vocab) as f64;
    let sums = |found: LossSums, sums: &mut Vec<f32>| {
        sums.copy_from_slice(&[found.cross_entropy as f32, found.z as f32]);
    };
    let loss = Case::new("loss", "forward", Arithmetic, rows, move |rows| {
        let mut draw = Draw::new();
        let targets = draw.ids(rows, vocab);
        let same = targets.clone();
        problem(
            [draw.values(rows * width), draw.values(vocab * width)],
            [vec![0.0; 2]],
            move |[x, w], [out]| {
                let mut logits = vec![0.0; spec.scratch(targets.len())];
                sums(
                    cross_entropy::loss(&spec, x, w, &targets, None, &mut logits),
                    out,
                );
            },
            move |[x, w], [out]| naive::loss::loss(&spec, x, w, &same, out),
        )
        .work(product(rows))
    });
    let gradients = Case::new("loss", "with gradients", Arithmetic, rows, move |rows| {
        let mut draw = Draw::new();
        let targets = draw.ids(rows, vocab);
        let same = targets.clone();
        let (x, w) = (draw.values(rows * width), draw.values(vocab * width));
        let outputs = [
            vec![0.0; 2],
            vec![0.0; x.len()],
            vec![0.0; w.len()],
            vec![0.0; spec.scratch(rows)],
        ];
        problem(
            [x, w],
            outputs,
            move |[x, w], [out, dx, dw, logits]| {
                let found =
                    cross_entropy::loss_and_gradients(&spec, x, w, &targets, dx, dw, logits);
                sums(found, out);
            },
            move |[x, w], [out, dx, dw, _]| {
                naive::loss::loss_and_gradients(&spec, x, w, &same, out, dx, dw);
            },
        )
        .with_scratch()
        // The logits and both gradients.
        .work(3.0 * product(rows))
    });
    [loss, gradients]
}
