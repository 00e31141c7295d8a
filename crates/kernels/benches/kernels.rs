//! One benchmark per op and pass, at the shapes of a small decoder: 2048 rows of 384, six heads of 64,
//! a vocabulary of 8192.
//!
//! `cargo bench -p hybridnorm-kernels`, or with a name as filter: `... -- attention`.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use hybridnorm_kernels::activation::{self, Activation};
use hybridnorm_kernels::adamw::{self, AdamW, Slot};
use hybridnorm_kernels::attention::{self, Attention};
use hybridnorm_kernels::cross_entropy::{self, LossSpec};
use hybridnorm_kernels::norm::{self, Gain, Norm, NormFn};
use hybridnorm_kernels::qkv::{self, Preparation, QkOrder, QkvPrep};
use hybridnorm_kernels::{elementwise, embedding, linear};
use std::time::Duration;

const ROWS: usize = 2048;
const WIDTH: usize = 384;
const HIDDEN: usize = 1024;
const HEADS: usize = 6;
const HEAD_DIM: usize = 64;
const SEQ: usize = 256;
const VOCAB: usize = 8192;

/// Pseudo-random values between -1 and 1.
fn values(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group
}

fn norms(c: &mut Criterion) {
    let (x, dy) = (values(ROWS * WIDTH), values(ROWS * WIDTH));
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for (name, function) in [
        ("norm/rms", NormFn::Rmsnorm),
        ("norm/layer", NormFn::Layernorm),
        ("norm/l2", NormFn::L2),
        ("norm/dyt", NormFn::Dyt),
        ("norm/derf", NormFn::Derf),
    ] {
        let n = Norm {
            function,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: false,
            width: WIDTH,
            groups: 1,
        };
        let params = values(n.params_len());
        let mut dparams = params.clone();
        let mut group = group(c, name);
        group.bench_function("forward", |b| {
            b.iter(|| norm::forward(&n, &x, &params, &mut y))
        });
        group.bench_function("backward", |b| {
            b.iter(|| norm::backward(&n, &x, &params, &dy, &mut dx, &mut dparams));
        });
    }
}

fn qkv_preparation(c: &mut Criterion) {
    let per_head = Norm {
        function: NormFn::Rmsnorm,
        eps: 1e-5,
        gain: Gain::Plain,
        bias: false,
        width: HEAD_DIM,
        groups: 1,
    };
    let norm = Some(per_head);
    let p = QkvPrep {
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
        q: norm,
        k: norm,
        v: norm,
        order: QkOrder::BeforeRope,
        qk_scale: 1.0,
        clip: None,
    };
    let x = values(ROWS * 3 * HEADS * HEAD_DIM);
    let rope = qkv::rope_table(10_000.0, HEAD_DIM, 0, SEQ);
    let g = values(HEAD_DIM);
    let mut y = vec![0.0; x.len()];
    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| g.clone());
    let mut group = group(c, "qkv");
    let p = Preparation::new(&p, &rope, [&g, &g, &g]);
    group.bench_function("forward", |b| {
        b.iter(|| qkv::forward(&p, &x, &mut y));
    });
    group.bench_function("backward", |b| {
        b.iter(|| qkv::backward(&p, &x, &x, &mut y, [&mut dq, &mut dk, &mut dv]));
    });
}

fn attentions(c: &mut Criterion) {
    let a = Attention {
        batch: ROWS / SEQ,
        seq: SEQ,
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        scale: 0.125,
        softcap: None,
    };
    let qkv = values(ROWS * 3 * HEADS * HEAD_DIM);
    let mut ctx = vec![0.0; ROWS * HEADS * HEAD_DIM];
    let mut lse = vec![0.0; ROWS * HEADS];
    let mut dqkv = vec![0.0; qkv.len()];
    let dctx = values(ctx.len());
    let mut group = group(c, "attention");
    group.bench_function("forward", |b| {
        b.iter(|| attention::forward(&a, &qkv, &mut ctx, &mut lse));
    });
    group.bench_function("backward", |b| {
        b.iter(|| attention::backward(&a, &qkv, &ctx, &lse, &dctx, &mut dqkv));
    });
    let one = Attention {
        batch: 1,
        seq: 1,
        ..a
    };
    let (row, cache) = (
        values(3 * HEADS * HEAD_DIM),
        values(1024 * 2 * HEADS * HEAD_DIM),
    );
    let mut newest = vec![0.0; HEADS * HEAD_DIM];
    group.bench_function("cached", |b| {
        b.iter(|| attention::cached(&one, &row, &cache, 1023, &mut newest, &mut lse[..HEADS]));
    });
}

fn activations(c: &mut Criterion) {
    for (name, act) in [
        ("activation/swiglu", Activation::Swiglu),
        ("activation/geglu", Activation::Geglu),
        ("activation/gelu", Activation::Gelu),
        ("activation/relu2", Activation::Relu2),
    ] {
        let (x, mut y) = (values(ROWS * act.inputs(HIDDEN)), values(ROWS * HIDDEN));
        let mut dx = vec![0.0; x.len()];
        let mut group = group(c, name);
        group.bench_function("forward", |b| {
            b.iter(|| activation::forward(act, &x, &mut y, HIDDEN))
        });
        group.bench_function("backward", |b| {
            b.iter(|| activation::backward(act, &x, &mut y, &mut dx, HIDDEN));
        });
    }
}

fn linears(c: &mut Criterion) {
    let outputs = 3 * WIDTH;
    let (x, w, dy) = (
        values(ROWS * WIDTH),
        values(outputs * WIDTH),
        values(ROWS * outputs),
    );
    let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
    let mut group = group(c, "linear");
    group.bench_function("forward", |b| {
        b.iter(|| linear::forward(&x, &w, &mut y, WIDTH, outputs));
    });
    group.bench_function("backward_input", |b| {
        b.iter(|| linear::backward_input(&dy, &w, &mut dx, WIDTH, outputs));
    });
    group.bench_function("backward_weight", |b| {
        b.iter(|| linear::backward_weight(&dy, &x, &mut dw, WIDTH, outputs));
    });
    group.bench_function("forward_one_row", |b| {
        b.iter(|| linear::forward(&x[..WIDTH], &w, &mut y[..outputs], WIDTH, outputs));
    });
}

fn losses(c: &mut Criterion) {
    let spec = LossSpec {
        width: WIDTH,
        vocab: VOCAB,
        logit_scale: 1.0,
        softcap: None,
        z_loss: 1e-5,
        divisor: ROWS as f32,
    };
    let (x, w) = (values(ROWS * WIDTH), values(VOCAB * WIDTH));
    let targets: Vec<i32> = (0..ROWS).map(|i| (i * 31 % VOCAB) as i32).collect();
    let (mut dx, mut dw) = (x.clone(), w.clone());
    let mut group = group(c, "cross_entropy");
    group.bench_function("loss", |b| {
        let mut logits = vec![0.0; spec.scratch(targets.len())];
        b.iter(|| cross_entropy::loss(&spec, &x, &w, &targets, None, &mut logits));
    });
    group.bench_function("loss_and_gradients", |b| {
        let mut logits = vec![0.0; spec.scratch(targets.len())];
        b.iter(|| {
            cross_entropy::loss_and_gradients(
                &spec,
                &x,
                &w,
                &targets,
                &mut dx,
                &mut dw,
                &mut logits,
            )
        });
    });
}

fn embeddings(c: &mut Criterion) {
    let ids: Vec<i32> = (0..ROWS).map(|i| (i * 31 % VOCAB) as i32).collect();
    let (mut w, mut y) = (values(VOCAB * WIDTH), values(ROWS * WIDTH));
    let mut group = group(c, "embedding");
    group.bench_function("forward", |b| {
        b.iter(|| embedding::forward(&ids, &w, &mut y))
    });
    group.bench_function("backward", |b| {
        b.iter(|| embedding::backward(&ids, &y, &mut w))
    });
}

fn optimizer(c: &mut Criterion) {
    let a = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        grad_scale: 1.0,
        bias_correction1: 0.5,
        bias_correction2: 0.5,
    };
    let g = values(VOCAB * WIDTH);
    let (mut p, mut m, mut v) = (g.clone(), vec![0.0; g.len()], vec![0.0; g.len()]);
    let mut group = group(c, "adamw");
    group.bench_function("step", |b| {
        b.iter(|| {
            let (p, m, v) = (&mut p, &mut m, &mut v);
            let slot = Slot {
                p,
                g: &g,
                m,
                v,
                weight_decay: 0.1,
            };
            adamw::step(&a, &mut [slot])
        });
    });
    group.bench_function("sum_squares", |b| b.iter(|| adamw::sum_squares(&g)));
}

fn elementwises(c: &mut Criterion) {
    let (x, y) = (values(ROWS * WIDTH), values(ROWS * WIDTH));
    let s = values(HEADS);
    let (mut out, mut ds) = (x.clone(), s.clone());
    let mut group = group(c, "elementwise");
    group.bench_function("add_to", |b| b.iter(|| elementwise::add_to(&x, &mut out)));
    group.bench_function("scale_columns", |b| {
        b.iter(|| elementwise::scale_columns(&x, &s, HEAD_DIM, &mut out));
    });
    group.bench_function("scale_columns_backward", |b| {
        b.iter(|| {
            elementwise::scale_columns_backward(&x, &s, HEAD_DIM, &y, &mut out, &mut ds);
        });
    });
}

criterion_group!(
    all,
    norms,
    qkv_preparation,
    attentions,
    activations,
    linears,
    losses,
    embeddings,
    optimizer,
    elementwises
);
criterion_main!(all);
