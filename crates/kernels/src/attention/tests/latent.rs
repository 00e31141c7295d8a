//! Attention to a latent cache.

use super::*;

const LATENT: LatentAttentionConfig = LatentAttentionConfig {
    batch: 2,
    seq: 1,
    heads: 3,
    latent: 21,
    rope: 6,
    scale: 0.3,
    softcap: None,
};

/// Returns queries and a cache with three spare rows of NaN.
fn random_latent(a: &LatentAttentionConfig, past: usize, seed: u64) -> [Vec<f32>; 2] {
    let mut rng = Rng::new(seed);
    let width = a.latent + a.rope;
    let (rows, capacity) = (past + a.seq, past + a.seq + 3);
    let mut cache = vec![f32::NAN; a.batch * capacity * width];
    for cache in cache.chunks_mut(capacity * width) {
        cache[..rows * width].copy_from_slice(&rng.normal(rows * width));
    }
    [rng.normal(a.batch * a.seq * a.heads * width), cache]
}

fn attend_latent(a: &LatentAttentionConfig, q: &[f32], cache: &[f32], past: usize) -> Vec<f32> {
    let mut ctx = vec![f32::NAN; a.batch * a.seq * a.heads * a.latent];
    let mut scratch = vec![f32::NAN; a.scratch_len(past + a.seq)];
    cached_latent(a, q, cache, past, &mut ctx, &mut scratch);
    ctx
}

fn check_latent(a: &LatentAttentionConfig, past: usize, seed: u64) {
    let [q, cache] = random_latent(a, past, seed);
    let ctx = attend_latent(a, &q, &cache, past);
    let (width, capacity) = (a.latent + a.rope, past + a.seq + 3);
    let config = AttentionConfig {
        batch: a.batch,
        seq: a.seq,
        heads: a.heads,
        kv_heads: 1,
        head_dim: width,
        value_dim: a.latent,
        scale: a.scale,
        softcap: a.softcap,
        window: None,
        precision: Precision::F32,
    };
    let (q, cache) = (to_f64(&q), to_f64(&cache));
    let query =
        |b: usize, t: usize, h: usize| &q[((b * a.seq + t) * a.heads + h) * width..][..width];
    let row = |b: usize, s: usize, _: usize| &cache[(b * capacity + s) * width..][..width];
    assert_all_close(&ctx, &naive(&config, past, query, row, row), 3e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_latent_cache_matches_the_reference(
        batch in 1usize..3, seq in 1usize..8, past in 0usize..300, heads in 1usize..10,
        latent in 1usize..70, rope in 0usize..20, scale in 0.1f32..0.5,
        softcap in prop::sample::select(vec![None, Some(2.0f32)]), seed in any::<u64>(),
    ) {
        check_latent(&LatentAttentionConfig { batch, seq, heads, latent, rope, scale, softcap }, past, seed);
    }
}

#[test]
fn latent_caches_around_the_task_size_match_the_reference() {
    for (past, seq) in [
        (0, 1),
        (126, 1),
        (127, 1),
        (128, 1),
        (126, 3),
        (127, 4),
        (0, 4),
    ] {
        check_latent(&LatentAttentionConfig { seq, ..LATENT }, past, 41);
    }
    for (past, seq) in [(0, 150), (200, 70)] {
        for heads in [4, 6, 7] {
            check_latent(
                &LatentAttentionConfig {
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
fn large_logits_of_a_latent_cache_do_not_overflow_and_nan_propagates() {
    let a = LatentAttentionConfig {
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
        let a = LatentAttentionConfig { seq, ..LATENT };
        let [q, cache] = random_latent(&a, 600, 44);
        assert_bit_identical_for_any_thread_count(|| attend_latent(&a, &q, &cache, 600));
    }
}

#[test]
fn latent_attention_without_new_positions_is_empty() {
    for (batch, seq) in [(0, 1), (2, 0)] {
        let a = LatentAttentionConfig {
            batch,
            seq,
            ..LATENT
        };
        assert_eq!(attend_latent(&a, &[], &vec![0.0; batch * 27], 0), []);
    }
}

#[test]
#[should_panic(expected = "exceed the capacity 2")]
fn latent_cache_that_is_too_small_is_rejected() {
    attend_latent(&LATENT, &[0.0; 162], &[0.0; 108], 2);
}
