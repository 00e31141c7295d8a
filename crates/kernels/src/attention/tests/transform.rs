//! Attention with the transform of queries, keys and values fused into it.

use super::*;
use crate::norm::{Gain, NormConfig, NormFn};
use crate::qkv::{self, QkOrder, rope_frequencies, rope_table};

/// Returns a transform with RoPE and `qk_scale`, and with norms on every head if `normed`.
fn transform(
    a: &AttentionConfig,
    normed: bool,
    order: QkOrder,
    seed: u64,
) -> (QkvTransform, [Vec<f32>; 3]) {
    let norm = |groups: usize| {
        normed.then_some(NormConfig {
            function: NormFn::Rmsnorm,
            eps: 1e-5,
            gain: Gain::Plain,
            bias: true,
            width: a.head_dim,
            groups,
        })
    };
    let config = QkvTransform {
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
    let params =
        [config.q, config.k, config.v].map(|n| rng.normal(n.map_or(0, |n| n.params_len())));
    (config, params)
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
            let a = AttentionConfig {
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
            let rope = rope_table(&rope_frequencies(100.0, a.head_dim), 1.0, 0, seq);
            let (mut config, params) = transform(&a, normed, order, 97);
            config.clip = clip;
            let p = BoundQkvTransform::new(&config, &rope, params.each_ref().map(|x| &x[..]));

            let mut rows = vec![f32::NAN; qkv.len()];
            qkv::forward(&p, &qkv, &mut rows);
            let [ctx, lse, drows] = run(&a, &rows, &dctx);
            let (mut dqkv, mut dparams) = (vec![f32::NAN; qkv.len()], params.clone());
            let slots = dparams.each_mut().map(|d| &mut d[..]);
            qkv::backward(&p, &qkv, &drows, &mut dqkv, slots);

            let (mut ctx2, mut lse2) = (vec![f32::NAN; ctx.len()], vec![f32::NAN; lse.len()]);
            forward_transformed(&a, &p, &qkv, &mut ctx2, &mut lse2);
            assert_all_close(&ctx2, &to_f64(&ctx), 2e-6);
            assert_all_close(&lse2, &to_f64(&lse), 2e-6);
            let (mut dqkv2, mut dparams2) = (vec![f32::NAN; qkv.len()], params.clone());
            let slots = dparams2.each_mut().map(|d| &mut d[..]);
            backward_transformed(&a, &p, &qkv, &ctx, &lse, &dctx, &mut dqkv2, slots);
            assert_all_close(&dqkv2, &to_f64(&dqkv), 1e-5);
            for (one, other) in dparams.iter().zip(&dparams2) {
                assert_all_close(one, &to_f64(other), 1e-5);
            }
        }
    }
}

#[test]
#[should_panic(expected = "a norm spans several heads")]
fn norm_over_all_heads_cannot_be_fused() {
    let a = SMALL;
    let (mut config, _) = transform(&a, true, QkOrder::BeforeRope, 98);
    config.q = config.q.map(|n| NormConfig { width: 8, ..n });
    let (wide, narrow) = ([1.0; 16], [1.0; 8]);
    let rope = rope_table(&rope_frequencies(100.0, 4), 1.0, 0, a.seq);
    let p = BoundQkvTransform::new(&config, &rope, [&wide, &narrow, &narrow]);
    forward_transformed(&a, &p, &[0.0; 128], &mut [0.0; 64], &mut [0.0; 16]);
}

#[test]
#[should_panic(expected = "a fused transform requires value_dim = head_dim")]
fn values_of_another_width_cannot_be_fused() {
    let a = AttentionConfig {
        value_dim: 3,
        ..SMALL
    };
    let (config, _) = transform(&a, false, QkOrder::BeforeRope, 98);
    let rope = rope_table(&rope_frequencies(100.0, 4), 1.0, 0, a.seq);
    let p = BoundQkvTransform::new(&config, &rope, [&[]; 3]);
    forward_transformed(&a, &p, &[0.0; 120], &mut [0.0; 48], &mut [0.0; 16]);
}
