use super::*;
use crate::norm::{Gain, Norm, NormFn};
use crate::qkv::{self, QkOrder, rope_table};
use crate::testing::{
    Rng, all_close, assert_bit_identical_for_any_thread_count, check_gradient, close, dot_f64,
    to_f64,
};
use proptest::prelude::*;

/// Computes the context of queries at positions `past..past + new` of each sequence, by definition.
/// `q`, `k` and `v` return the channels of a head at (sequence, position, head).
fn naive<'a>(
    a: &Attention,
    past: usize,
    q: impl Fn(usize, usize, usize) -> &'a [f64],
    k: impl Fn(usize, usize, usize) -> &'a [f64],
    v: impl Fn(usize, usize, usize) -> &'a [f64],
) -> Vec<f64> {
    let mut ctx = Vec::new();
    for b in 0..a.batch {
        for t in 0..a.seq {
            for h in 0..a.heads {
                let g = h * a.kv_heads / a.heads;
                let score = |s: usize| {
                    let product: f64 = q(b, t, h).iter().zip(k(b, s, g)).map(|(q, k)| q * k).sum();
                    let u = f64::from(a.scale) * product;
                    a.softcap
                        .map_or(u, |c| f64::from(c) * (u / f64::from(c)).tanh())
                };
                let e: Vec<f64> = (0..=past + t).map(|s| score(s).exp()).collect();
                let total: f64 = e.iter().sum();
                for c in 0..a.value_dim {
                    let sum: f64 = e.iter().enumerate().map(|(s, e)| e * v(b, s, g)[c]).sum();
                    ctx.push(sum / total);
                }
            }
        }
    }
    ctx
}

fn naive_packed(a: &Attention, qkv: &[f64]) -> Vec<f64> {
    let (d, e) = (a.head_dim, a.value_dim);
    let part = |first: usize, width: usize| {
        move |b: usize, t: usize, h: usize| {
            &qkv[(b * a.seq + t) * a.packed_width() + first + h * width..][..width]
        }
    };
    let [q, k] = [0, a.heads * d].map(|first| part(first, d));
    naive(a, 0, q, k, part((a.heads + a.kv_heads) * d, e))
}

fn run(a: &Attention, qkv: &[f32], dctx: &[f32]) -> [Vec<f32>; 3] {
    let mut ctx = vec![f32::NAN; a.batch * a.seq * a.heads * a.value_dim];
    let mut lse = vec![f32::NAN; a.batch * a.seq * a.heads];
    let mut dqkv = vec![f32::NAN; qkv.len()];
    forward(a, qkv, &mut ctx, &mut lse);
    backward(a, qkv, &ctx, &lse, dctx, &mut dqkv);
    [ctx, lse, dqkv]
}

fn random(a: &Attention, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut rng = Rng::new(seed);
    let rows = a.batch * a.seq;
    (
        rng.normal(rows * a.packed_width()),
        rng.normal(rows * a.heads * a.value_dim),
    )
}

fn check(a: &Attention, seed: u64) {
    let (qkv, dctx) = random(a, seed);
    let [ctx, _, dqkv] = run(a, &qkv, &dctx);
    all_close(&ctx, &naive_packed(a, &to_f64(&qkv)), 3e-6);
    check_gradient(|x| dot_f64(&naive_packed(a, x), &dctx), &qkv, &dqkv, 2e-5);
}

const SMALL: Attention = Attention {
    batch: 1,
    seq: 8,
    heads: 2,
    kv_heads: 1,
    head_dim: 4,
    value_dim: 4,
    scale: 0.5,
    softcap: None,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn matches_the_reference(
        batch in 1usize..3, seq in 1usize..12, kv_heads in 1usize..3, shared in 1usize..4,
        head_dim in 1usize..12, value_dim in 1usize..20, scale in 0.2f32..1.0,
        softcap in prop::sample::select(vec![None, Some(2.0f32)]), seed in any::<u64>(),
    ) {
        check(&Attention { batch, seq, heads: kv_heads * shared, kv_heads, head_dim, value_dim, scale, softcap }, seed);
    }
}

#[test]
fn sequences_around_the_tile_sizes_match_the_reference() {
    for seq in [
        QUERY_TILE - 1,
        QUERY_TILE,
        QUERY_TILE + 1,
        KEY_TILE,
        KEY_TILE + 1,
        KEY_TILE + QUERY_TILE + 3,
    ] {
        for (softcap, head_dim, value_dim) in [
            (None, 4, 4),
            (Some(1.5), 4, 4),
            (None, 36, 36),
            (None, 37, 9),
            (Some(1.5), 5, 19),
        ] {
            check(
                &Attention {
                    seq,
                    softcap,
                    head_dim,
                    value_dim,
                    ..SMALL
                },
                seq as u64,
            );
        }
    }
}

#[test]
fn sequences_longer_than_a_task_match_the_reference() {
    let a = Attention {
        seq: 600,
        heads: 4,
        kv_heads: 2,
        head_dim: 20,
        value_dim: 12,
        ..SMALL
    };
    let (qkv, dctx) = random(&a, 95);
    let [ctx, ..] = run(&a, &qkv, &dctx);
    all_close(&ctx, &naive_packed(&a, &to_f64(&qkv)), 3e-6);
}

#[test]
fn a_query_never_sees_a_later_position() {
    let a = Attention { seq: 150, ..SMALL };
    let (qkv, dctx) = random(&a, 91);
    let [ctx, ..] = run(&a, &qkv, &dctx);
    let mut changed = qkv.clone();
    let later = 100 * a.packed_width();
    changed[later..].iter_mut().for_each(|v| *v *= -3.0);
    let [other, ..] = run(&a, &changed, &dctx);
    let width = a.heads * a.value_dim;
    assert_eq!(ctx[..100 * width], other[..100 * width]);
    assert_ne!(ctx[100 * width..], other[100 * width..]);
}

#[test]
fn large_scores_do_not_overflow() {
    let a = Attention {
        seq: 300,
        scale: 1e4,
        ..SMALL
    };
    let (qkv, dctx) = random(&a, 92);
    assert!(run(&a, &qkv, &dctx).iter().flatten().all(|v| v.is_finite()));
}

/// Returns a cache with the keys and values of packed rows, and spare capacity.
fn cache_of(a: &Attention, qkv: &[f32], capacity: usize) -> Vec<f32> {
    let width = a.packed_width();
    let kv = a.kv_heads * (a.head_dim + a.value_dim);
    let mut cache = vec![f32::NAN; a.batch * capacity * kv];
    for (row, x) in qkv.chunks(width).enumerate() {
        let at = (row / a.seq * capacity + row % a.seq) * kv;
        cache[at..at + kv].copy_from_slice(&x[width - kv..]);
    }
    cache
}

#[test]
fn decoding_with_a_cache_gives_the_whole_context() {
    let spans = [(0, 1), (7, 1), (250, 70), (255, 1), (256, 3), (0, 130)];
    for ((past, new), value_dim) in spans.into_iter().flat_map(|s| [3, 4, 17].map(|e| (s, e))) {
        let whole = Attention {
            batch: 2,
            seq: past + new,
            heads: 4,
            kv_heads: 2,
            value_dim,
            ..SMALL
        };
        let (qkv, dctx) = random(&whole, 93);
        let [ctx, ..] = run(&whole, &qkv, &dctx);
        let cache = cache_of(&whole, &qkv, past + new + 5);
        let part = Attention { seq: new, ..whole };
        let newest = |x: &[f32], width: usize| -> Vec<f32> {
            x.chunks(whole.seq * width)
                .flat_map(|s| s[past * width..].to_vec())
                .collect()
        };
        let width = whole.heads * whole.value_dim;
        let mut got = vec![f32::NAN; 2 * new * width];
        cached(
            &part,
            &newest(&qkv, whole.packed_width()),
            &cache,
            past,
            &mut got,
            &mut vec![f32::NAN; 2 * whole.heads * new],
        );
        all_close(&got, &to_f64(&newest(&ctx, width)), 2e-6);
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    let a = Attention {
        batch: 2,
        seq: 333,
        heads: 4,
        kv_heads: 2,
        value_dim: 6,
        softcap: Some(4.0),
        ..SMALL
    };
    let (qkv, dctx) = random(&a, 94);
    let cache = cache_of(&a, &qkv, a.seq);
    let last = Attention { seq: 1, ..a };
    let queries: Vec<f32> = qkv
        .chunks(a.seq * a.packed_width())
        .flat_map(|s| s[s.len() - a.packed_width()..].to_vec())
        .collect();
    assert_bit_identical_for_any_thread_count(|| {
        let mut newest = vec![0.0; 2 * a.heads * a.value_dim];
        let mut lse = vec![0.0; 2 * a.heads];
        cached(&last, &queries, &cache, a.seq - 1, &mut newest, &mut lse);
        [run(&a, &qkv, &dctx).concat(), newest].concat()
    });
}

#[test]
#[should_panic(expected = "exceed the capacity 4")]
fn a_cache_that_is_too_small_is_refused() {
    let a = Attention { seq: 2, ..SMALL };
    cached(&a, &[0.0; 32], &[0.0; 32], 3, &mut [0.0; 16], &mut [0.0; 4]);
}

/// Returns a preparation with norms on every head and a factor, or with rotation only.
fn preparation(a: &Attention, normed: bool, order: QkOrder, seed: u64) -> (QkvPrep, [Vec<f32>; 3]) {
    let norm = |groups: usize| {
        normed.then_some(Norm {
            function: NormFn::Rmsnorm,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: true,
            width: a.head_dim,
            groups,
        })
    };
    let form = QkvPrep {
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
        // One gain shared by all heads, and one per head.
        q: norm(1),
        k: norm(a.kv_heads),
        v: norm(1),
        order,
        qk_scale: 1.2,
        clip: None,
    };
    let mut rng = Rng::new(seed);
    let params = [form.q, form.k, form.v].map(|n| rng.normal(n.map_or(0, |n| n.params_len())));
    (form, params)
}

#[test]
fn fused_transform_matches_separate_transform() {
    for (normed, order) in [
        (true, QkOrder::BeforeRope),
        (true, QkOrder::AfterRope),
        (false, QkOrder::BeforeRope),
    ] {
        for (seq, kv_heads, head_dim, softcap, clip) in [
            (9, 2, 32, None, None),
            (KEY_TILE + 70, 2, 20, Some(3.0), Some(1.5)),
            (600, 1, 64, None, None),
        ] {
            let a = Attention {
                batch: 2,
                seq,
                heads: 4,
                kv_heads,
                head_dim,
                value_dim: head_dim,
                softcap,
                ..SMALL
            };
            let (qkv, dctx) = random(&a, 96);
            let rope = rope_table(100.0, a.head_dim, 0, seq);
            let (mut form, params) = preparation(&a, normed, order, 97);
            form.clip = clip;
            let p = Preparation::new(&form, &rope, params.each_ref().map(|x| &x[..]));

            let mut rows = vec![f32::NAN; qkv.len()];
            qkv::forward(&p, &qkv, &mut rows);
            let [ctx, lse, drows] = run(&a, &rows, &dctx);
            let (mut dqkv, mut dparams) = (vec![f32::NAN; qkv.len()], params.clone());
            let slots = dparams.each_mut().map(|d| &mut d[..]);
            qkv::backward(&p, &qkv, &drows, &mut dqkv, slots);

            let (mut ctx2, mut lse2) = (vec![f32::NAN; ctx.len()], vec![f32::NAN; lse.len()]);
            forward_transformed(&a, &p, &qkv, &mut ctx2, &mut lse2);
            all_close(&ctx2, &to_f64(&ctx), 2e-6);
            all_close(&lse2, &to_f64(&lse), 2e-6);
            let (mut dqkv2, mut dparams2) = (vec![f32::NAN; qkv.len()], params.clone());
            let slots = dparams2.each_mut().map(|d| &mut d[..]);
            backward_transformed(&a, &p, &qkv, &ctx, &lse, &dctx, &mut dqkv2, slots);
            all_close(&dqkv2, &to_f64(&dqkv), 1e-5);
            for (one, other) in dparams.iter().zip(&dparams2) {
                all_close(one, &to_f64(other), 1e-5);
            }
        }
    }
}

#[test]
#[should_panic(expected = "a norm spans several heads")]
fn norm_over_all_heads_cannot_be_fused() {
    let a = SMALL;
    let (mut form, _) = preparation(&a, true, QkOrder::BeforeRope, 98);
    form.q = form.q.map(|n| Norm { width: 8, ..n });
    let (wide, narrow) = ([1.0; 16], [1.0; 8]);
    let rope = rope_table(100.0, 4, 0, a.seq);
    let p = Preparation::new(&form, &rope, [&wide, &narrow, &narrow]);
    forward_transformed(&a, &p, &[0.0; 128], &mut [0.0; 64], &mut [0.0; 16]);
}

#[test]
#[should_panic(expected = "prepared values are as wide as keys")]
fn values_of_another_width_cannot_be_fused() {
    let a = Attention {
        value_dim: 3,
        ..SMALL
    };
    let (form, _) = preparation(&a, false, QkOrder::BeforeRope, 98);
    let rope = rope_table(100.0, 4, 0, a.seq);
    let p = Preparation::new(&form, &rope, [&[]; 3]);
    forward_transformed(&a, &p, &[0.0; 120], &mut [0.0; 48], &mut [0.0; 16]);
}

#[test]
fn scores_match_the_reference() {
    for (kv_heads, softcap) in [(4, None), (2, Some(3.0)), (1, None)] {
        let a = Attention {
            batch: 2,
            seq: 37,
            heads: 4,
            kv_heads,
            head_dim: 8,
            value_dim: 5,
            scale: 0.9,
            softcap,
        };
        let (qkv, _) = random(&a, 31);
        let x = to_f64(&qkv);
        let row = |b: usize, t: usize, part: usize| {
            &x[(b * a.seq + t) * a.packed_width() + part * a.head_dim..][..a.head_dim]
        };
        let (mut top, mut entropy) = (f64::MIN, 0.0);
        for (b, h, t) in
            (0..2).flat_map(|b| (0..4).flat_map(move |h| (0..37).map(move |t| (b, h, t))))
        {
            let score = |s: usize| {
                let (q, k) = (row(b, t, h), row(b, s, 4 + h * kv_heads / 4));
                let u = 0.9 * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                softcap.map_or(u, |c| f64::from(c) * (u / f64::from(c)).tanh())
            };
            let e: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
            let total: f64 = e.iter().sum();
            top = (0..=t).map(score).fold(top, f64::max);
            entropy -= e.iter().map(|e| e / total * (e / total).ln()).sum::<f64>();
        }
        let found = scores(&a, &qkv);
        close(found.max, top, 1e-5);
        close(found.entropy as f32, entropy / (2.0 * 4.0 * 37.0), 1e-5);
        assert_bit_identical_for_any_thread_count(|| {
            let Scores { max, entropy } = scores(&a, &qkv);
            vec![max, entropy as f32]
        });
        let mut broken = qkv.clone();
        broken[5] = f32::NAN;
        let found = scores(&a, &broken);
        assert!(found.max.is_nan() && found.entropy.is_nan());
    }
}

const LATENT: LatentAttention = LatentAttention {
    batch: 2,
    seq: 1,
    heads: 3,
    latent: 21,
    rope: 6,
    scale: 0.3,
    softcap: None,
};

/// Returns queries and a cache with three spare rows of NaN.
fn random_latent(a: &LatentAttention, past: usize, seed: u64) -> [Vec<f32>; 2] {
    let mut rng = Rng::new(seed);
    let width = a.latent + a.rope;
    let (rows, capacity) = (past + a.seq, past + a.seq + 3);
    let mut cache = vec![f32::NAN; a.batch * capacity * width];
    for cache in cache.chunks_mut(capacity * width) {
        cache[..rows * width].copy_from_slice(&rng.normal(rows * width));
    }
    [rng.normal(a.batch * a.seq * a.heads * width), cache]
}

fn attend_latent(a: &LatentAttention, q: &[f32], cache: &[f32], past: usize) -> Vec<f32> {
    let mut ctx = vec![f32::NAN; a.batch * a.seq * a.heads * a.latent];
    let mut scratch = vec![f32::NAN; a.scratch_len(past + a.seq)];
    cached_latent(a, q, cache, past, &mut ctx, &mut scratch);
    ctx
}

fn check_latent(a: &LatentAttention, past: usize, seed: u64) {
    let [q, cache] = random_latent(a, past, seed);
    let ctx = attend_latent(a, &q, &cache, past);
    let (width, capacity) = (a.latent + a.rope, past + a.seq + 3);
    let form = Attention {
        batch: a.batch,
        seq: a.seq,
        heads: a.heads,
        kv_heads: 1,
        head_dim: width,
        value_dim: a.latent,
        scale: a.scale,
        softcap: a.softcap,
    };
    let (q, cache) = (to_f64(&q), to_f64(&cache));
    let query =
        |b: usize, t: usize, h: usize| &q[((b * a.seq + t) * a.heads + h) * width..][..width];
    let row = |b: usize, s: usize, _: usize| &cache[(b * capacity + s) * width..][..width];
    all_close(&ctx, &naive(&form, past, query, row, row), 3e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_latent_cache_matches_the_reference(
        batch in 1usize..3, seq in 1usize..8, past in 0usize..300, heads in 1usize..10,
        latent in 1usize..70, rope in 0usize..20, scale in 0.1f32..0.5,
        softcap in prop::sample::select(vec![None, Some(2.0f32)]), seed in any::<u64>(),
    ) {
        check_latent(&LatentAttention { batch, seq, heads, latent, rope, scale, softcap }, past, seed);
    }
}

#[test]
fn latent_caches_around_the_sizes_of_tasks_match_the_reference() {
    for (past, seq) in [
        (0, 1),
        (126, 1),
        (127, 1),
        (128, 1),
        (126, 3),
        (127, 4),
        (0, 4),
    ] {
        check_latent(&LatentAttention { seq, ..LATENT }, past, 41);
    }
    for (past, seq) in [(0, 150), (200, 70)] {
        for heads in [4, 6, 7] {
            check_latent(
                &LatentAttention {
                    seq,
                    heads,
                    ..LATENT
                },
                past,
                42,
            );
        }
    }
}

#[test]
fn large_scores_of_a_latent_cache_do_not_overflow_and_a_nan_shows() {
    let a = LatentAttention {
        scale: 1e4,
        ..LATENT
    };
    let past = 500;
    let [q, mut cache] = random_latent(&a, past, 43);
    let ctx = attend_latent(&a, &q, &cache, past);
    assert!(ctx.iter().all(|c| c.is_finite()));
    cache[300 * (a.latent + a.rope)] = f32::NAN;
    let ctx = attend_latent(&a, &q, &cache, past);
    let (first, second) = ctx.split_at(a.heads * a.latent);
    assert!(first.iter().all(|c| c.is_nan()));
    assert!(second.iter().all(|c| c.is_finite()));
}

#[test]
fn latent_cache_is_bit_identical_for_any_thread_count() {
    for seq in [1, 3, 9] {
        let a = LatentAttention { seq, ..LATENT };
        let [q, cache] = random_latent(&a, 600, 44);
        assert_bit_identical_for_any_thread_count(|| attend_latent(&a, &q, &cache, 600));
    }
}

#[test]
fn no_new_positions_of_a_latent_cache_give_nothing() {
    for (batch, seq) in [(0, 1), (2, 0)] {
        let a = LatentAttention {
            batch,
            seq,
            ..LATENT
        };
        assert_eq!(attend_latent(&a, &[], &vec![0.0; batch * 27], 0), []);
    }
}

#[test]
#[should_panic(expected = "exceed the capacity 2")]
fn a_latent_cache_that_is_too_small_is_refused() {
    attend_latent(&LATENT, &[0.0; 162], &[0.0; 108], 2);
}

#[test]
fn head_maxima_match_the_reference() {
    let cases = [
        (2, 37, 4, 4, 8, 0.9),
        (1, 600, 4, 2, 5, 0.5),
        (3, 64, 6, 2, 16, -0.7),
        (2, 1, 3, 1, 1, 1.0),
        (1, 1100, 2, 1, 20, 0.3),
    ];
    for (batch, seq, heads, kv_heads, head_dim, scale) in cases {
        let a = Attention {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            scale,
            softcap: Some(3.0),
        };
        let (qkv, _) = random(&a, 32);
        let x = to_f64(&qkv);
        let row = |b: usize, t: usize, part: usize| {
            &x[(b * seq + t) * a.packed_width() + part * head_dim..][..head_dim]
        };
        let want: Vec<f64> = (0..heads)
            .map(|h| {
                let pairs = (0..batch)
                    .flat_map(|b| (0..seq).flat_map(move |t| (0..=t).map(move |s| (b, t, s))));
                let score = |(b, t, s)| {
                    let (q, k) = (row(b, t, h), row(b, s, heads + h * kv_heads / heads));
                    f64::from(scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
                };
                pairs.map(score).fold(f64::MIN, f64::max)
            })
            .collect();
        all_close(&head_maxima(&a, &qkv), &want, 1e-6);
        assert_bit_identical_for_any_thread_count(|| head_maxima(&a, &qkv));
        let uncapped = Attention { softcap: None, ..a };
        assert_eq!(head_maxima(&uncapped, &qkv), head_maxima(&a, &qkv));
        // The first query of the last head sees only the first key, and only the last query the last key.
        let shared = heads / kv_heads;
        let parts = [
            (0, heads - 1, heads - 1..heads),
            (seq - 1, heads, 0..shared),
        ];
        for (t, part, broken) in parts {
            let mut qkv = qkv.clone();
            qkv[t * a.packed_width() + part * head_dim] = f32::NAN;
            for (h, top) in head_maxima(&a, &qkv).into_iter().enumerate() {
                assert_eq!(top.is_nan(), broken.contains(&h), "head {h}");
            }
        }
    }
}

#[test]
fn head_maxima_without_logits_are_negative_infinity() {
    let a = Attention { seq: 0, ..SMALL };
    assert_eq!(head_maxima(&a, &[]), vec![f32::NEG_INFINITY; a.heads]);
}
