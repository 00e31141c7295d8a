//! Statistics of attention logits.

use super::*;
use crate::testing::assert_close;

#[test]
fn attention_stats_match_the_reference() {
    for (kv_heads, softcap) in [(4, None), (2, Some(3.0)), (1, None)] {
        let a = AttentionConfig {
            batch: 2,
            seq: 37,
            heads: 4,
            kv_heads,
            head_dim: 8,
            value_dim: 5,
            scale: 0.9,
            softcap,
            window: None,
            precision: Precision::F32,
        };
        let (qkv, _) = random(&a, 31);
        let x = to_f64(&qkv);
        let row = |b: usize, t: usize, part: usize| {
            &x[(b * a.seq + t) * a.packed_width() + part * a.head_dim..][..a.head_dim]
        };
        let (mut max_logit, mut entropy) = (f64::MIN, 0.0);
        for (b, h, t) in
            (0..2).flat_map(|b| (0..4).flat_map(move |h| (0..37).map(move |t| (b, h, t))))
        {
            let logit = |s: usize| {
                let (q, k) = (row(b, t, h), row(b, s, 4 + h * kv_heads / 4));
                let u = 0.9 * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                softcap.map_or(u, |c| f64::from(c) * (u / f64::from(c)).tanh())
            };
            let e: Vec<f64> = (0..=t).map(|s| logit(s).exp()).collect();
            let total: f64 = e.iter().sum();
            max_logit = (0..=t).map(logit).fold(max_logit, f64::max);
            entropy -= e.iter().map(|e| e / total * (e / total).ln()).sum::<f64>();
        }
        let found = attention_stats(&a, &qkv);
        assert_close(found.max, max_logit, 1e-5);
        assert_close(found.entropy as f32, entropy / (2.0 * 4.0 * 37.0), 1e-5);
        assert_bit_identical_for_any_thread_count(|| {
            let AttentionStats { max, entropy } = attention_stats(&a, &qkv);
            vec![max, entropy as f32]
        });
        let mut broken = qkv.clone();
        broken[5] = f32::NAN;
        let found = attention_stats(&a, &broken);
        assert!(found.max.is_nan() && found.entropy.is_nan());
    }
}

#[test]
fn max_attention_logits_match_the_reference() {
    let cases = [
        (2, 37, 4, 4, 8, 0.9),
        (1, 600, 4, 2, 5, 0.5),
        (3, 64, 6, 2, 16, -0.7),
        (2, 1, 3, 1, 1, 1.0),
        (1, 1100, 2, 1, 20, 0.3),
    ];
    for (batch, seq, heads, kv_heads, head_dim, scale) in cases {
        let a = AttentionConfig {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            scale,
            softcap: Some(3.0),
            window: None,
            precision: Precision::F32,
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
                let logit = |(b, t, s)| {
                    let (q, k) = (row(b, t, h), row(b, s, heads + h * kv_heads / heads));
                    f64::from(scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
                };
                pairs.map(logit).fold(f64::MIN, f64::max)
            })
            .collect();
        assert_all_close(&max_attention_logits(&a, &qkv), &want, 1e-6);
        assert_bit_identical_for_any_thread_count(|| max_attention_logits(&a, &qkv));
        let uncapped = AttentionConfig { softcap: None, ..a };
        assert_eq!(
            max_attention_logits(&uncapped, &qkv),
            max_attention_logits(&a, &qkv)
        );
        // The first query of the last head attends only to the first key, and only the last query attends to the last
        // key.
        let shared = heads / kv_heads;
        let parts = [
            (0, heads - 1, heads - 1..heads),
            (seq - 1, heads, 0..shared),
        ];
        for (t, part, broken) in parts {
            let mut qkv = qkv.clone();
            qkv[t * a.packed_width() + part * head_dim] = f32::NAN;
            for (h, max_logit) in max_attention_logits(&a, &qkv).into_iter().enumerate() {
                assert_eq!(max_logit.is_nan(), broken.contains(&h), "head {h}");
            }
        }
    }
}

#[test]
fn max_attention_logits_without_positions_are_negative_infinity() {
    let a = AttentionConfig { seq: 0, ..SMALL };
    assert_eq!(
        max_attention_logits(&a, &[0.0f32; 0]),
        vec![f32::NEG_INFINITY; a.heads]
    );
}
