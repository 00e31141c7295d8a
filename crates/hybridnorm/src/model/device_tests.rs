//! Tests of decoding on an emulated device against the CPU.

use super::testing::{VOCAB, small as config};
use super::{
    AttentionOverride, Device, MlaConfig, Model, ModelConfig, PositionEmbedding, SlotTokens,
};
use crate::graph::DType;
use crate::placement::Selector;
use crate::plan::{Options, Precision};

const CAPACITY: usize = 12;
/// New tokens of two sequences, run after run: with more keys than a block has warps in the end.
const RUNS: [usize; 4] = [3, 1, 6, 1];

/// Returns models with different caches: keys and values, latents, learned positions, and a window.
fn models() -> [(&'static str, ModelConfig); 5] {
    let latents = |q_rank| {
        let mut mla = MlaConfig::new(10, 6, 4, 5);
        mla.q_rank = q_rank;
        config("pre-norm").with_n_kv_heads(4).with_mla(mla)
    };
    let window = AttentionOverride {
        window: Some(3),
        ..AttentionOverride::of_layers(Selector::Indices(vec![1]))
    };
    [
        ("rotations", config("hybridnorm")),
        ("latents", latents(None)),
        ("latents of queries", latents(Some(12))),
        (
            "learned positions",
            config("hybridnorm-star").with_position_embedding(PositionEmbedding::Learned),
        ),
        (
            "window",
            config("pre-norm").with_attention_overrides(vec![window]),
        ),
    ]
}

fn ids(n: usize, seed: usize) -> Vec<i32> {
    (0..n)
        .map(|i| ((i * 7 + seed * 5 + i * i) % VOCAB) as i32)
        .collect()
}

/// Returns the logits of all runs of two sequences with a common cache, then those of segments of three slots.
fn logits(config: &ModelConfig, device: Device, precision: Precision) -> Vec<Vec<f32>> {
    let mut model = Model::new(config, 3, device).unwrap();
    let options = Options::default().with_precision(precision);
    model
        .set_plan_options(options.with_keep_rounded_weights(true))
        .unwrap();
    let mut cache = model.new_cache(2, CAPACITY).unwrap();
    let mut found: Vec<Vec<f32>> = RUNS
        .iter()
        .map(|new| {
            model
                .next_logits(&ids(2 * new, *new), &mut cache, true)
                .unwrap()
        })
        .collect();
    model.free_cache(cache);
    let mut slots = model.new_slot_cache(3, CAPACITY).unwrap();
    for runs in [[(2, 5), (0, 1)], [(1, 4), (2, 1)], [(0, 3), (1, 6)]] {
        let tokens = runs.map(|(slot, new)| (slot, ids(new, slot)));
        let tokens = tokens
            .each_ref()
            .map(|(slot, ids)| SlotTokens { slot: *slot, ids });
        found.push(model.slot_logits(&mut slots, &tokens, true).unwrap());
    }
    found
}

#[test]
fn decoding_is_that_of_the_cpu() {
    let bf16 = Precision::Bf16 {
        residual: DType::F32,
    };
    for (name, config) in models() {
        for (precision, tolerance) in [(Precision::F32, 1e-4), (bf16, 0.03)] {
            let [found, expected] =
                [Device::Emulator, Device::Cpu].map(|device| logits(&config, device, precision));
            for (run, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.len(), expected.len());
                let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
                let difference =
                    difference.fold(0.0f32, |all, x| if x > all || x.is_nan() { x } else { all });
                assert!(
                    difference < tolerance,
                    "{name}, {precision}, run {run}: {difference}"
                );
            }
        }
    }
}
