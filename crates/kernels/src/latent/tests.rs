use super::*;
use crate::attention::{self, AttentionConfig, LatentAttentionConfig};
use crate::linear::Linear;
use crate::matmul::Precision;
use crate::qkv::{rope_frequencies, rope_table};
use crate::testing::{
    Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
    to_f64,
};
use proptest::prelude::*;

const SMALL: MlaHeads = MlaHeads {
    heads: 3,
    nope: 5,
    rope: 4,
    value: 7,
};

fn naive_rotate(x: &[f64], cos_sin: &[f32]) -> Vec<f64> {
    let half = cos_sin.len() / 2;
    let (cos, sin) = (to_f64(&cos_sin[..half]), to_f64(&cos_sin[half..]));
    let first = (0..half).map(|i| x[i] * cos[i] - x[i + half] * sin[i]);
    let second = (0..half).map(|i| x[i + half] * cos[i] + x[i] * sin[i]);
    first.chain(second).collect()
}

fn naive_assemble(l: &MlaHeads, q: &[f64], kv: &[f64], key: &[f64], table: &[f32]) -> Vec<f64> {
    let (d, up) = (l.nope + l.rope, l.nope + l.value);
    let mut packed = Vec::new();
    for (i, key) in key.chunks(l.rope).enumerate() {
        let cos_sin = &table[i * l.rope % table.len()..][..l.rope];
        let kv = &kv[i * l.heads * up..][..l.heads * up];
        for q in q[i * l.heads * d..][..l.heads * d].chunks(d) {
            packed.extend(&q[..l.nope]);
            packed.extend(naive_rotate(&q[l.nope..], cos_sin));
        }
        for kv in kv.chunks(up) {
            packed.extend(&kv[..l.nope]);
            packed.extend(naive_rotate(key, cos_sin));
        }
        packed.extend(kv.chunks(up).flat_map(|kv| &kv[l.nope..]));
    }
    packed
}

/// Random queries, keys' nope part and values, and shared keys.
fn random(l: &MlaHeads, n: usize, seed: u64) -> [Vec<f32>; 3] {
    let mut rng = Rng::new(seed);
    let [q, kv, key, _] = l.widths();
    [q, kv, key].map(|width| rng.normal(n * width))
}

fn assembled(l: &MlaHeads, [q, kv, key]: &[Vec<f32>; 3], table: &[f32]) -> Vec<f32> {
    let n = key.len() / l.rope;
    let mut packed = vec![f32::NAN; n * l.widths()[3]];
    assemble(l, q, kv, key, table, &mut packed);
    packed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn assembled_rows_and_their_gradients_match_the_reference(
        batch in 0usize..3, seq in 1usize..5, heads in 1usize..4, nope in 1usize..20,
        half in 1usize..20, value in 1usize..20, seed in any::<u64>(),
    ) {
        let l = MlaHeads { heads, nope, rope: 2 * half, value };
        let n = batch * seq;
        let table = rope_table(&rope_frequencies(100.0, l.rope), 1.0, 3, seq);
        let inputs = random(&l, n, seed);
        let packed = assembled(&l, &inputs, &table);
        let [q, kv, key] = inputs.each_ref().map(|x| to_f64(x));
        assert_all_close(&packed, &naive_assemble(&l, &q, &kv, &key, &table), 1e-6);

        let dpacked = Rng::new(seed ^ 1).normal(packed.len());
        let mut d = inputs.each_ref().map(|x| vec![f32::NAN; x.len()]);
        let [dq, dkv, dkey] = &mut d;
        assemble_backward(&l, &dpacked, &table, dq, dkv, dkey);
        let loss = |q: &[f64], kv: &[f64], key: &[f64]| {
            dot_f64(&naive_assemble(&l, q, kv, key, &table), &dpacked)
        };
        check_gradient(|q| loss(q, &kv, &key), &inputs[0], &d[0], 1e-5);
        check_gradient(|kv| loss(&q, kv, &key), &inputs[1], &d[1], 1e-5);
        check_gradient(|key| loss(&q, &kv, key), &inputs[2], &d[2], 1e-5);

        // In-place rotation is bit-identical.
        let [mut q, _, mut key] = inputs;
        rotate_queries(&l, &mut q, &table);
        rotate_keys(&mut key, l.rope, &table);
        let [width, _, _, packed_width] = l.widths();
        let rows = packed.chunks(packed_width);
        let queries: Vec<f32> = rows.clone().flat_map(|p| p[..width].to_vec()).collect();
        let keys: Vec<f32> = rows.flat_map(|p| p[width + nope..][..l.rope].to_vec()).collect();
        prop_assert_eq!(q, queries);
        prop_assert_eq!(key, keys);
    }

    #[test]
    fn absorbed_queries_and_projected_values_match_the_reference(
        n in 0usize..5, heads in 1usize..4, nope in 1usize..20, half in 1usize..4,
        value in 1usize..20, latent in 1usize..70, seed in any::<u64>(),
    ) {
        let l = MlaHeads { heads, nope, rope: 2 * half, value };
        let mut rng = Rng::new(seed);
        let kv_up = rng.normal(heads * (nope + value) * latent);
        let (q, ctx) = (rng.normal(n * l.widths()[0]), rng.normal(n * heads * latent));
        let mut absorbed = vec![f32::NAN; n * heads * (latent + l.rope)];
        let mut projected = vec![f32::NAN; n * heads * value];
        absorb(&l, latent, &q, &kv_up, &mut absorbed);
        project_values(&l, latent, &ctx, &kv_up, &mut projected);

        let (q, ctx, w) = (to_f64(&q), to_f64(&ctx), to_f64(&kv_up));
        // Weight row of channel c of a head's key or value.
        let row = |h: usize, c: usize| &w[(h * (nope + value) + c) * latent..][..latent];
        let (mut queries, mut contexts) = (Vec::new(), Vec::new());
        for (i, q) in q.chunks(nope + l.rope).enumerate() {
            let h = i % heads;
            queries.extend((0..latent).map(|r| (0..nope).map(|c| q[c] * row(h, c)[r]).sum::<f64>()));
            queries.extend(&q[nope..]);
        }
        for (i, ctx) in ctx.chunks(latent).enumerate() {
            let h = i % heads;
            let product = |c: usize| ctx.iter().zip(row(h, c)).map(|(x, w)| x * w).sum::<f64>();
            contexts.extend((nope..nope + value).map(product));
        }
        assert_all_close(&absorbed, &queries, 3e-6);
        assert_all_close(&projected, &contexts, 3e-6);
    }
}

/// Inputs of latent attention over whole sequences, and its context from assembled rows.
struct Sequences {
    heads: MlaHeads,
    batch: usize,
    seq: usize,
    softcap: Option<f32>,
    scale: f32,
    table: Vec<f32>,
    q: Vec<f32>,
    /// Rows `[latent | rotated key]`.
    cache: Vec<f32>,
    kv_up: Vec<f32>,
    ctx: Vec<f32>,
}

const LATENT: usize = 24;

impl Sequences {
    fn new(l: MlaHeads, batch: usize, seq: usize, softcap: Option<f32>) -> Self {
        let mut rng = Rng::new(51);
        let d = l.nope + l.rope;
        let scale = (d as f32).powf(-0.5);
        let n = batch * seq;
        let (q, latents) = (rng.normal(n * l.heads * d), rng.normal(n * LATENT));
        let key = rng.normal(n * l.rope);
        let up = l.heads * (l.nope + l.value);
        let kv_up: Vec<f32> = rng.normal(up * LATENT).iter().map(|w| 0.2 * w).collect();
        let table = rope_table(&rope_frequencies(100.0, l.rope), 1.0, 0, seq);

        let mut kv = vec![f32::NAN; n * up];
        let project = Linear {
            inputs: LATENT,
            outputs: up,
            precision: Precision::F32,
        };
        project.forward(&latents, &kv_up, &mut kv);
        let packed = assembled(&l, &[q.clone(), kv, key.clone()], &table);
        let a = AttentionConfig {
            batch,
            seq,
            heads: l.heads,
            kv_heads: l.heads,
            head_dim: d,
            value_dim: l.value,
            scale,
            softcap,
            window: None,
            precision: Precision::F32,
        };
        let mut ctx = vec![f32::NAN; n * l.heads * l.value];
        attention::forward(&a, &packed, &mut ctx, &mut vec![0.0; n * l.heads]);

        let mut rotated = key;
        rotate_keys(&mut rotated, l.rope, &table);
        let rows = latents.chunks(LATENT).zip(rotated.chunks(l.rope));
        Self {
            heads: l,
            batch,
            seq,
            softcap,
            scale,
            table,
            q,
            cache: rows.flat_map(|(c, k)| [c, k].concat()).collect(),
            kv_up,
            ctx,
        }
    }

    /// Returns `new` rows of every sequence from position `past` on.
    fn rows(&self, x: &[f32], width: usize, past: usize, new: usize) -> Vec<f32> {
        x.chunks(self.seq * width)
            .flat_map(|x| x[past * width..][..new * width].to_vec())
            .collect()
    }

    /// Computes the context of `new` positions with absorbed projections.
    fn decode(&self, past: usize, new: usize) -> Vec<f32> {
        let (l, batch) = (&self.heads, self.batch);
        let mut queries = self.rows(&self.q, l.heads * (l.nope + l.rope), past, new);
        let table = &self.table[past * l.rope..][..new * l.rope];
        rotate_queries(l, &mut queries, table);
        let mut absorbed = vec![f32::NAN; batch * new * l.heads * (LATENT + l.rope)];
        absorb(l, LATENT, &queries, &self.kv_up, &mut absorbed);
        let a = LatentAttentionConfig {
            batch,
            seq: new,
            heads: l.heads,
            latent: LATENT,
            rope: l.rope,
            scale: self.scale,
            softcap: self.softcap,
        };
        let mut context = vec![f32::NAN; batch * new * l.heads * LATENT];
        let mut scratch = vec![f32::NAN; a.scratch_len(past + new)];
        attention::cached_latent(&a, &absorbed, &self.cache, past, &mut context, &mut scratch);
        let mut got = vec![f32::NAN; batch * new * l.heads * l.value];
        project_values(l, LATENT, &context, &self.kv_up, &mut got);
        got
    }
}

#[test]
fn decoding_with_absorbed_projections_gives_the_context_of_assembled_rows() {
    let larger = MlaHeads {
        heads: 4,
        nope: 16,
        rope: 8,
        value: 12,
    };
    for (l, softcap) in [(SMALL, None), (SMALL, Some(2.0)), (larger, None)] {
        let sequences = Sequences::new(l, 2, 140, softcap);
        // A prompt, then several positions at once, then one by one.
        let mut past = 0;
        for new in [130, 3, 1, 1, 5] {
            let want = sequences.rows(&sequences.ctx, l.heads * l.value, past, new);
            assert_all_close(&sequences.decode(past, new), &to_f64(&want), 1e-5);
            past += new;
        }
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    let l = SMALL;
    let (n, latent) = (600, 96);
    let table = rope_table(&rope_frequencies(100.0, l.rope), 1.0, 0, 150);
    let inputs = random(&l, n, 52);
    let mut rng = Rng::new(53);
    let kv_up = rng.normal(l.heads * (l.nope + l.value) * latent);
    let ctx = rng.normal(n * l.heads * latent);
    assert_bit_identical_for_any_thread_count(|| {
        let packed = assembled(&l, &inputs, &table);
        let mut d = inputs.clone();
        let [dq, dkv, dkey] = &mut d;
        assemble_backward(&l, &packed, &table, dq, dkv, dkey);
        let mut all = [packed, d.concat()].concat();
        let [mut q, _, mut key] = inputs.clone();
        rotate_queries(&l, &mut q, &table);
        rotate_keys(&mut key, l.rope, &table);
        all.extend(&key);
        for n in [1, n] {
            let mut absorbed = vec![0.0; n * l.heads * (latent + l.rope)];
            let mut projected = vec![0.0; n * l.heads * l.value];
            absorb(&l, latent, &q[..n * l.widths()[0]], &kv_up, &mut absorbed);
            project_values(
                &l,
                latent,
                &ctx[..n * l.heads * latent],
                &kv_up,
                &mut projected,
            );
            all.extend([absorbed, projected].concat());
        }
        all
    });
}

#[test]
#[should_panic(expected = "latent::assemble: kv is not (2, 36)")]
fn wrong_row_width_is_rejected() {
    assemble(
        &SMALL,
        &[0.0; 54],
        &[0.0; 70],
        &[0.0; 8],
        &[0.0; 4],
        &mut [0.0; 150],
    );
}

#[test]
#[should_panic(
    expected = "latent::rotate_keys: 3 rows are not a multiple of the 2 positions of the table"
)]
fn partial_sequences_are_rejected() {
    rotate_keys(&mut [0.0; 12], 4, &[0.0; 8]);
}

#[test]
#[should_panic(expected = "latent::project_values: kv_up is not (36, 6)")]
fn wrong_projection_width_is_rejected() {
    project_values(&SMALL, 6, &[0.0; 18], &[0.0; 210], &mut [0.0; 21]);
}
