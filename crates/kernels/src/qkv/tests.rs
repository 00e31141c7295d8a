use super::*;
use crate::norm::tests::{GAINS, naive as naive_norm};
use crate::norm::{Gain, NormFn};
use crate::testing::{
    Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
    to_f64,
};
use proptest::prelude::*;

/// Reference that applies the steps one after another, as listed in the module documentation.
fn naive(p: &QkvTransform, qkv: &[f64], rope: &[f32], params: [&[f64]; 3]) -> Vec<f64> {
    let (d, half) = (p.head_dim, p.head_dim / 2);
    let rotate = |x: &[f64], row: &[f32]| -> Vec<f64> {
        let mut y = x.to_vec();
        for head in y.chunks_mut(d) {
            for i in 0..half {
                let (c, s) = (f64::from(row[i]), f64::from(row[half + i]));
                let (x1, x2) = (head[i], head[i + half]);
                head[i] = x1 * c - x2 * s;
                head[i + half] = x2 * c + x1 * s;
            }
        }
        y
    };
    let norm = |n: Option<NormConfig>, x: Vec<f64>, params: &[f64]| match n {
        Some(n) => naive_norm(&n, &x, params),
        None => x,
    };
    let mut out = Vec::new();
    for (r, x) in qkv.chunks(p.width()).enumerate() {
        let row = &rope[r % (rope.len() / d) * d..][..d];
        let clip = f64::from(p.clip.unwrap_or(f32::MAX));
        let x: Vec<f64> = x.iter().map(|v| v.clamp(-clip, clip)).collect();
        let (q, kv) = x.split_at(p.heads * d);
        let (k, v) = kv.split_at(p.kv_heads * d);
        for (n, x, params) in [(p.q, q, params[0]), (p.k, k, params[1])] {
            let y = match p.order {
                QkOrder::BeforeRope => rotate(&norm(n, x.to_vec(), params), row),
                QkOrder::AfterRope => norm(n, rotate(x, row), params),
            };
            out.extend(y.iter().map(|v| v * f64::from(p.qk_scale)));
        }
        out.extend(norm(p.v, v.to_vec(), params[2]));
    }
    out
}

struct Inputs {
    qkv: Vec<f32>,
    rope: Vec<f32>,
    params: [Vec<f32>; 3],
    dout: Vec<f32>,
}

fn inputs(p: &QkvTransform, batch: usize, t: usize, seed: u64) -> Inputs {
    let mut rng = Rng::new(seed);
    let len = batch * t * p.width();
    let params = [p.q, p.k, p.v].map(|n| rng.normal(n.map_or(0, |n| n.params_len())));
    let rope = rope_table(&rope_frequencies(100.0, p.head_dim), 1.0, 3, t);
    let mut qkv = rng.normal(len);
    // No value is within a finite-difference step of the kink of the clamp.
    for x in &mut qkv {
        if p.clip.is_some_and(|clip| (x.abs() - clip).abs() < 1e-3) {
            *x *= 1.01;
        }
    }
    Inputs {
        qkv,
        rope,
        params,
        dout: rng.normal(len),
    }
}

fn transform<'a>(p: &QkvTransform, i: &'a Inputs) -> BoundQkvTransform<'a> {
    BoundQkvTransform::new(p, &i.rope, i.params.each_ref().map(|x| &x[..]))
}

fn run_forward(p: &QkvTransform, i: &Inputs) -> Vec<f32> {
    let mut out = vec![f32::NAN; i.qkv.len()];
    forward(&transform(p, i), &i.qkv, &mut out);
    out
}

fn run_backward(p: &QkvTransform, i: &Inputs) -> (Vec<f32>, [Vec<f32>; 3]) {
    let mut dqkv = vec![f32::NAN; i.qkv.len()];
    let mut grads = i.params.clone();
    let slots = grads.each_mut().map(|g| &mut g[..]);
    backward(&transform(p, i), &i.qkv, &i.dout, &mut dqkv, slots);
    (dqkv, grads)
}

fn check(p: &QkvTransform, batch: usize, t: usize, seed: u64) {
    let i = inputs(p, batch, t, seed);
    let params = i.params.each_ref().map(|x| to_f64(x));
    let views = || params.each_ref().map(|x| &x[..]);
    assert_all_close(
        &run_forward(p, &i),
        &naive(p, &to_f64(&i.qkv), &i.rope, views()),
        3e-6,
    );
    let (dqkv, grads) = run_backward(p, &i);
    let loss = |x: &[f64]| dot_f64(&naive(p, x, &i.rope, views()), &i.dout);
    check_gradient(loss, &i.qkv, &dqkv, 2e-5);
    for which in 0..3 {
        let loss = |x: &[f64]| {
            let mut all = views();
            all[which] = x;
            dot_f64(&naive(p, &to_f64(&i.qkv), &i.rope, all), &i.dout)
        };
        check_gradient(loss, &i.params[which], &grads[which], 2e-5);
    }
}

fn hybridnorm(heads: usize, kv_heads: usize, head_dim: usize) -> QkvTransform {
    let n = NormConfig {
        function: NormFn::Rmsnorm,
        eps: 1e-5,
        gain: Gain::Plain,
        bias: false,
        width: head_dim,
        groups: 1,
    };
    let (norm, order) = (Some(n), QkOrder::BeforeRope);
    let (q, k, v) = (norm, norm, norm);
    QkvTransform {
        heads,
        kv_heads,
        head_dim,
        q,
        k,
        v,
        order,
        qk_scale: 1.0,
        clip: None,
    }
}

/// 0: no norm, 1: shared by the heads, 2: one gain per head, 3: whole segment.
fn norm_kind(kind: usize, mut n: NormConfig, heads: usize, head_dim: usize) -> Option<NormConfig> {
    (n.width, n.groups) = match kind {
        0 => return None,
        1 => (head_dim, 1),
        2 => (head_dim, heads),
        _ => (heads * head_dim, 1),
    };
    Some(n)
}

#[test]
fn simd_heads_match_the_reference() {
    for head_dim in [32, 64] {
        for function in [NormFn::Rmsnorm, NormFn::L2] {
            for (gain, bias) in [
                (Gain::None, false),
                (Gain::Plain, true),
                (Gain::OnePlus, false),
            ] {
                for kind in 1..3 {
                    let mut p = hybridnorm(2, 1, head_dim);
                    let n = p.q.map(|n| NormConfig {
                        function,
                        gain,
                        bias,
                        eps: 1e-3,
                        ..n
                    });
                    let of = |heads| norm_kind(kind, n.expect("it has norms"), heads, head_dim);
                    (p.q, p.k, p.v) = (of(2), of(1), of(1));
                    p.qk_scale = 1.2;
                    check(&p, 1, 2, 44);
                }
            }
        }
        // Without a norm on rotated segments, and without one on unrotated segments.
        for norms in [[false, true], [true, false]] {
            let mut p = hybridnorm(1, 1, head_dim);
            let keep = |n: Option<NormConfig>, kept: bool| n.filter(|_| kept);
            (p.q, p.v) = (keep(p.q, norms[0]), keep(p.v, norms[1]));
            check(&p, 1, 2, 45);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_setting_matches_the_reference(
        function in prop::sample::select(NormFn::ALL.to_vec()),
        gain in prop::sample::select(GAINS.to_vec()), bias in any::<bool>(),
        kinds in [0usize..4, 0usize..4, 0usize..4], shared in 1usize..3, kv_heads in 1usize..3,
        half in 1usize..20, after in any::<bool>(), clip in any::<bool>(),
        qk_scale in prop::sample::select(vec![1.0f32, 1.2]),
        batch in 1usize..3, t in 1usize..4, seed in any::<u64>(),
    ) {
        let (heads, head_dim) = (kv_heads * shared, 2 * half);
        let n = NormConfig { function, eps: 1e-1, gain, bias, width: 0, groups: 0 };
        check(&QkvTransform {
            heads, kv_heads, head_dim,
            q: norm_kind(kinds[0], n, heads, head_dim),
            k: norm_kind(kinds[1], n, kv_heads, head_dim),
            v: norm_kind(kinds[2], n, kv_heads, head_dim),
            order: if after { QkOrder::AfterRope } else { QkOrder::BeforeRope },
            qk_scale,
            clip: clip.then_some(0.9),
        }, batch, t, seed);
    }
}

#[test]
fn many_rows_span_several_chunks() {
    check(&hybridnorm(4, 2, 16), 3, 70, 71);
}

#[test]
fn a_norm_without_gain_commutes_with_the_rotation_and_one_with_gain_does_not() {
    for (gain, commutes) in [(Gain::None, true), (Gain::Plain, false)] {
        let mut p = hybridnorm(2, 1, 8);
        for n in [&mut p.q, &mut p.k, &mut p.v].into_iter().flatten() {
            n.gain = gain;
        }
        let i = inputs(&p, 1, 5, 72);
        let before = run_forward(&p, &i);
        let after = run_forward(
            &QkvTransform {
                order: QkOrder::AfterRope,
                ..p
            },
            &i,
        );
        let largest = before
            .iter()
            .zip(&after)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert_eq!(largest < 1e-5, commutes, "{gain:?}: {largest}");
    }
}

#[test]
fn rope_tables_of_consecutive_positions_concatenate() {
    let whole = rope_table(&rope_frequencies(10_000.0, 6), 1.0, 0, 9);
    assert_eq!(
        whole[4 * 6..],
        rope_table(&rope_frequencies(10_000.0, 6), 1.0, 4, 5)
    );
    assert_eq!(whole[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn bit_identical_for_any_thread_count() {
    for order in [QkOrder::BeforeRope, QkOrder::AfterRope] {
        let p = QkvTransform {
            order,
            clip: Some(2.0),
            ..hybridnorm(4, 2, 16)
        };
        let i = inputs(&p, 2, 150, 73);
        assert_bit_identical_for_any_thread_count(|| {
            let (dqkv, [dq, dk, dv]) = run_backward(&p, &i);
            [run_forward(&p, &i), dqkv, dq, dk, dv].concat()
        });
    }
}

#[test]
#[should_panic(expected = "norm of k has width 12")]
fn norm_of_wrong_width_is_rejected() {
    let mut p = hybridnorm(2, 2, 8);
    p.k = p.k.map(|n| NormConfig {
        width: 12,
        gain: Gain::None,
        ..n
    });
    run_forward(
        &p,
        &Inputs {
            params: [vec![1.0; 8], vec![], vec![1.0; 8]],
            ..inputs(&hybridnorm(2, 2, 8), 1, 1, 1)
        },
    );
}
