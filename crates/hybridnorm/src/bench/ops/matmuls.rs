//! Ops made of matmuls: linear layers, attention, the loss.

use hybridnorm_kernels::attention::AttentionConfig;
use hybridnorm_kernels::matmul::Precision;

use super::Bound::{Compute, Read};
use super::case::{Case, OutputRole, Problem, all_outputs, floats, ids, vjp};
use super::memory_bound::{per_head_norm_and_rope, rope_table};
use super::shape::ModelShape;
use crate::ops;
use crate::passes::gradients;

/// Returns all cases.
pub fn cases(shape: &ModelShape) -> Vec<Case> {
    let ModelShape {
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
        let role = match op {
            "linear out" | "linear down" => OutputRole::Residual,
            _ => OutputRole::Any,
        };
        cases.extend(linears(op, rows, inputs, outputs, role));
    }
    cases.push(one_row(shape));
    cases.extend(attentions(shape));
    cases.extend(normed_attentions(shape));
    cases.extend(losses(shape));
    cases
}

fn linears(op: &'static str, rows: usize, i: usize, o: usize, role: OutputRole) -> [Case; 3] {
    let forward = Case::new(op, "forward", Compute, rows, move |rows| {
        let operands = [floats([rows, i]), floats([o, i])];
        Problem::new(operands, |[x, w]| vec![ops::linear(x, w)]).with_outputs(role)
    });
    let operands = move |rows| {
        let dy = floats([rows, o]);
        let dy = match role {
            OutputRole::Residual => dy.residual(),
            _ => dy,
        };
        [floats([rows, i]), floats([o, i]), dy]
    };
    let of_input = Case::new(op, "backward input", Compute, rows, move |rows| {
        Problem::new(operands(rows), |[x, w, dy]| {
            vjp(ops::linear(x, w), dy, &[x])
        })
    });
    let of_weight = Case::new(op, "backward weight", Compute, rows, move |rows| {
        Problem::new(operands(rows), |[x, w, dy]| {
            vjp(ops::linear(x, w), dy, &[w])
        })
    });
    [forward, of_input, of_weight]
}

/// Returns the case of the LM head on a single token, which reads its weight once. Units are logits.
fn one_row(shape: &ModelShape) -> Case {
    let width = shape.d_model;
    Case::new(
        "linear head",
        "one row",
        Read,
        shape.vocab,
        move |outputs| {
            let operands = [floats([1, width]), floats([outputs, width])];
            Problem::new(operands, |[x, w]| vec![ops::linear(x, w)])
                .with_outputs(OutputRole::Logits)
        },
    )
}

/// The attention of a shape, in units: sequences of one key-value head with its query heads.
#[derive(Clone, Copy)]
struct AttentionUnits(AttentionConfig);

impl AttentionUnits {
    fn new(shape: &ModelShape) -> Self {
        Self(AttentionConfig {
            batch: shape.batch,
            seq: shape.seq,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            value_dim: shape.head_dim,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            softcap: None,
            window: None,
            precision: Precision::F32,
        })
    }

    fn count(self) -> usize {
        self.0.batch * self.0.kv_heads
    }

    /// Returns a compute-bound case; `problem` receives the attention of a number of units.
    fn case(
        self,
        op: &'static str,
        direction: &'static str,
        problem: impl Fn(AttentionConfig) -> Problem + 'static,
    ) -> Case {
        let problem = move |n| problem(self.take(n));
        Case::new(op, direction, Compute, self.count(), problem)
    }

    /// Returns the attention of `n` units.
    fn take(self, n: usize) -> AttentionConfig {
        let whole = self.0;
        match n == self.count() {
            true => whole,
            false => AttentionConfig {
                batch: n,
                heads: whole.heads / whole.kv_heads,
                kv_heads: 1,
                ..whole
            },
        }
    }
}

/// Returns the shape of the packed q, k and v.
fn packed(a: &AttentionConfig) -> [usize; 3] {
    [a.batch, a.seq, (a.heads + 2 * a.kv_heads) * a.head_dim]
}

/// Returns the shape of the attention context.
fn context(a: &AttentionConfig) -> [usize; 3] {
    [a.batch, a.seq, a.heads * a.head_dim]
}

fn attentions(shape: &ModelShape) -> [Case; 3] {
    let units = AttentionUnits::new(shape);
    let whole = units.0;
    let forward = units.case("attention", "forward", |a| {
        Problem::new([floats(packed(&a))], move |[qkv]| {
            all_outputs(ops::attention(qkv, a))
        })
    });
    let backward = units.case("attention", "backward", |a| {
        let operands = [floats(packed(&a)), floats(context(&a))];
        Problem::new(operands, move |[qkv, dctx]| {
            vjp(ops::attention(qkv, a), dctx, &[qkv])
        })
    });
    let cached = Case::new("attention", "one row", Read, whole.kv_heads, move |n| {
        let a = AttentionConfig {
            batch: 1,
            seq: 1,
            heads: n * (whole.heads / whole.kv_heads),
            kv_heads: n,
            ..whole
        };
        let cache = floats([1, whole.seq, 2 * n * a.head_dim]);
        Problem::new([floats(packed(&a)), cache], move |[qkv, cache]| {
            vec![ops::cached_attention(qkv, cache, a)]
        })
        .with_past_positions(whole.seq - 1)
    });
    [forward, backward, cached]
}

/// Returns the cases of attention fused with per-head norms and RoPE.
fn normed_attentions(shape: &ModelShape) -> [Case; 2] {
    let units = AttentionUnits::new(shape);
    let operands = |a: &AttentionConfig| {
        let gain = || floats([a.head_dim]);
        let rope_table = rope_table(a.head_dim, a.seq);
        [floats(packed(a)), rope_table, gain(), gain(), gain()]
    };
    let forward = units.case("normed attention", "forward", move |a| {
        let transform = per_head_norm_and_rope(a.heads, a.kv_heads, a.head_dim);
        Problem::new(operands(&a), move |[qkv, rope_table, q, k, v]| {
            let qkv = ops::qkv_transform(qkv, rope_table, [q, k, v].map(Some), transform);
            all_outputs(ops::attention(qkv, a))
        })
    });
    let backward = units.case("normed attention", "backward", move |a| {
        let transform = per_head_norm_and_rope(a.heads, a.kv_heads, a.head_dim);
        let [qkv, rope_table, q, k, v] = operands(&a);
        let operands = [qkv, rope_table, q, k, v, floats(context(&a))];
        Problem::new(operands, move |[qkv, rope_table, q, k, v, dctx]| {
            let transformed = ops::qkv_transform(qkv, rope_table, [q, k, v].map(Some), transform);
            vjp(ops::attention(transformed, a), dctx, &[qkv, q, k, v])
        })
    });
    [forward, backward]
}

/// Returns the cases of the LM head fused with the cross-entropy loss, without gradients and with them; the fused op
/// computes them in its forward pass.
fn losses(shape: &ModelShape) -> [Case; 2] {
    const Z_LOSS: f64 = 1e-5;
    let (rows, width, vocab) = (shape.rows(), shape.d_model, shape.vocab);
    let operands = move |rows| {
        [
            floats([rows, width]),
            floats([vocab, width]),
            ids([rows], vocab),
        ]
    };
    let loss = Case::new("loss", "forward", Compute, rows, move |rows| {
        Problem::new(operands(rows), move |[x, w, targets]| {
            ops::cross_entropy(ops::linear(x, w), targets, Z_LOSS, rows as f64).to_vec()
        })
    });
    let with_gradients = Case::new("loss", "with gradients", Compute, rows, move |rows| {
        Problem::new(operands(rows), move |[x, w, targets]| {
            let losses = ops::cross_entropy(ops::linear(x, w), targets, Z_LOSS, rows as f64);
            let gradients = gradients(losses[0], &[x, w]);
            losses
                .into_iter()
                .chain(gradients.into_iter().flatten())
                .collect()
        })
    });
    [loss, with_gradients]
}
