use super::*;
use crate::testing::{
    Rng, assert_all_close, assert_bit_identical_for_any_thread_count, assert_within,
    check_gradient, dot_f64, to_f64,
};
use proptest::prelude::*;

mod bf16;
mod latent;
mod stats;
mod transform;

/// Computes the context of queries at positions `past..past + new` of each sequence, by definition.
/// `q`, `k` and `v` return the channels of a head at (sequence, position, head).
fn naive<'a>(
    a: &AttentionConfig,
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
                let logit = |s: usize| {
                    let product: f64 = q(b, t, h).iter().zip(k(b, s, g)).map(|(q, k)| q * k).sum();
                    let u = f64::from(a.scale) * product;
                    a.softcap
                        .map_or(u, |c| f64::from(c) * (u / f64::from(c)).tanh())
                };
                let is_visible = |s: &usize| a.window.is_none_or(|window| past + t - s < window);
                let keys = (0..=past + t).filter(is_visible);
                let e: Vec<(usize, f64)> = keys.map(|s| (s, logit(s).exp())).collect();
                let total: f64 = e.iter().map(|(_, e)| e).sum();
                for c in 0..a.value_dim {
                    let sum: f64 = e.iter().map(|(s, e)| e * v(b, *s, g)[c]).sum();
                    ctx.push(sum / total);
                }
            }
        }
    }
    ctx
}

fn naive_packed(a: &AttentionConfig, qkv: &[f64]) -> Vec<f64> {
    let (d, e) = (a.head_dim, a.value_dim);
    let part = |first: usize, width: usize| {
        move |b: usize, t: usize, h: usize| {
            &qkv[(b * a.seq + t) * a.packed_width() + first + h * width..][..width]
        }
    };
    let [q, k] = [0, a.heads * d].map(|first| part(first, d));
    naive(a, 0, q, k, part((a.heads + a.kv_heads) * d, e))
}

fn run(a: &AttentionConfig, qkv: &[f32], dctx: &[f32]) -> [Vec<f32>; 3] {
    let mut ctx = vec![f32::NAN; a.batch * a.seq * a.heads * a.value_dim];
    let mut lse = vec![f32::NAN; a.batch * a.seq * a.heads];
    let mut dqkv = vec![f32::NAN; qkv.len()];
    forward(a, qkv, &mut ctx, &mut lse);
    backward(a, qkv, &ctx, &lse, dctx, &mut dqkv);
    [ctx, lse, dqkv]
}

fn random(a: &AttentionConfig, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut rng = Rng::new(seed);
    let rows = a.batch * a.seq;
    (
        rng.normal(rows * a.packed_width()),
        rng.normal(rows * a.heads * a.value_dim),
    )
}

/// Checks contexts and gradients in both precisions.
fn check(a: &AttentionConfig, seed: u64) {
    let (qkv, dctx) = random(a, seed);
    let [ctx, _, dqkv] = run(a, &qkv, &dctx);
    assert_all_close(&ctx, &naive_packed(a, &to_f64(&qkv)), 3e-6);
    check_gradient(|x| dot_f64(&naive_packed(a, x), &dctx), &qkv, &dqkv, 2e-5);
    bf16::check(a, seed);
}

const SMALL: AttentionConfig = AttentionConfig {
    batch: 1,
    seq: 8,
    heads: 2,
    kv_heads: 1,
    head_dim: 4,
    value_dim: 4,
    scale: 0.5,
    softcap: None,
    window: None,
    precision: Precision::F32,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn matches_the_reference(
        batch in 1usize..3, seq in 1usize..12, kv_heads in 1usize..3, shared in 1usize..4,
        head_dim in 1usize..12, value_dim in 1usize..20, scale in 0.2f32..1.0,
        softcap in prop::sample::select(vec![None, Some(2.0f32)]), window in prop::option::of(1usize..13),
        seed in any::<u64>(),
    ) {
        let heads = kv_heads * shared;
        check(&AttentionConfig { batch, seq, heads, kv_heads, head_dim, value_dim, scale, softcap, window, precision: Precision::F32 }, seed);
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
                &AttentionConfig {
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

/// Windows that begin within a tile of keys, at its edge, and whole tiles later.
#[test]
fn windows_around_the_tile_sizes_match_the_reference() {
    for seq in [KEY_TILE + 1, 2 * KEY_TILE + QUERY_TILE + 3] {
        for (window, softcap) in [
            (1, None),
            (QUERY_TILE, None),
            (100, Some(1.5)),
            (KEY_TILE, None),
            (KEY_TILE + 1, None),
        ] {
            let a = AttentionConfig {
                seq,
                window: Some(window),
                softcap,
                head_dim: 3,
                value_dim: 2,
                ..SMALL
            };
            check(&a, (seq + window) as u64);
        }
    }
}

#[test]
fn a_window_of_all_positions_is_none() {
    let a = AttentionConfig { seq: 300, ..SMALL };
    let (qkv, dctx) = random(&a, 96);
    let all = AttentionConfig {
        window: Some(300),
        ..a
    };
    assert_eq!(run(&a, &qkv, &dctx), run(&all, &qkv, &dctx));
}

#[test]
fn sequences_longer_than_a_task_match_the_reference() {
    let a = AttentionConfig {
        seq: 600,
        heads: 4,
        kv_heads: 2,
        head_dim: 20,
        value_dim: 12,
        ..SMALL
    };
    let (qkv, dctx) = random(&a, 95);
    let [ctx, ..] = run(&a, &qkv, &dctx);
    assert_all_close(&ctx, &naive_packed(&a, &to_f64(&qkv)), 3e-6);
    bf16::check(&a, 95);
}

#[test]
fn queries_do_not_attend_to_later_positions() {
    let a = AttentionConfig { seq: 150, ..SMALL };
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
fn large_logits_do_not_overflow() {
    let a = AttentionConfig {
        seq: 300,
        scale: 1e4,
        ..SMALL
    };
    let (qkv, dctx) = random(&a, 92);
    assert!(run(&a, &qkv, &dctx).iter().flatten().all(|v| v.is_finite()));
}

/// Returns a cache with the keys and values of packed rows, and spare capacity.
fn cache_of(a: &AttentionConfig, qkv: &[f32], capacity: usize) -> Vec<f32> {
    let width = a.packed_width();
    let kv = a.kv_heads * (a.head_dim + a.value_dim);
    let mut cache = vec![f32::NAN; a.batch * capacity * kv];
    for (row, x) in qkv.chunks(width).enumerate() {
        let at = (row / a.seq * capacity + row % a.seq) * kv;
        cache[at..at + kv].copy_from_slice(&x[width - kv..]);
    }
    cache
}

/// Returns the last `new` rows of each sequence.
fn newest<T: Copy>(x: &[T], a: &AttentionConfig, new: usize, width: usize) -> Vec<T> {
    let sequences = x.chunks(a.seq * width);
    let last = sequences.flat_map(|rows| &rows[rows.len() - new * width..]);
    last.copied().collect()
}

/// In bfloat16 a single query is not rounded, but within the same bounds.
#[test]
fn cached_attention_matches_full_attention() {
    let spans = [(0, 1), (7, 1), (250, 70), (255, 1), (256, 3), (0, 130)];
    let cases = spans
        .into_iter()
        .flat_map(|s| [(3, None), (4, Some(5)), (17, Some(256))].map(|e| (s, e)));
    for ((past, new), (value_dim, window)) in cases {
        let whole = AttentionConfig {
            window,
            batch: 2,
            seq: past + new,
            heads: 4,
            kv_heads: 2,
            value_dim,
            ..SMALL
        };
        let width = whole.heads * whole.value_dim;
        for precision in [Precision::F32, Precision::Bf16] {
            let whole = AttentionConfig { precision, ..whole };
            let (qkv, dctx) = match precision {
                Precision::F32 => random(&whole, 93),
                Precision::Bf16 => bf16::random_operands(&whole, 93),
            };
            let cache = cache_of(&whole, &qkv, past + new + 5);
            let part = AttentionConfig { seq: new, ..whole };
            let mut got = vec![f32::NAN; 2 * new * width];
            cached(
                &part,
                &newest(&qkv, &whole, new, whole.packed_width()),
                &cache,
                past,
                &mut got,
                &mut vec![f32::NAN; 2 * whole.heads * new],
            );
            if precision == Precision::F32 {
                let [ctx, ..] = run(&whole, &qkv, &dctx);
                assert_all_close(&got, &to_f64(&newest(&ctx, &whole, new, width)), 2e-6);
            } else {
                let (ctx, _) = bf16::reference(&whole, &qkv, &dctx);
                assert_within(&got, &newest(&ctx, &whole, new, width));
            }
        }
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    let a = AttentionConfig {
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
    let last = AttentionConfig { seq: 1, ..a };
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
fn cache_that_is_too_small_is_rejected() {
    let a = AttentionConfig { seq: 2, ..SMALL };
    cached(&a, &[0.0; 32], &[0.0; 32], 3, &mut [0.0; 16], &mut [0.0; 4]);
}
