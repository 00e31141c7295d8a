//! Sequences of different lengths in one run: each gets the results that it gets alone.

mod common;

use common::*;
use hybridnorm::graph::DType;
use hybridnorm::model::{
    AttentionOverride, Bias, Model, ModelConfig, PositionEmbedding, SlotCache, SlotTokens,
};
use hybridnorm::placement::Selector;
use hybridnorm::plan::{Options, Precision};

const SLOTS: usize = 4;
const CAPACITY: usize = 16;
/// Largest difference of logits in a run of several sequences: the rounding of a matmul depends on its number of rows.
const MATMUL_ROUNDING: f32 = 2e-5;

/// Largest difference of logits in bfloat16, where rounding up instead of down changes a sum by 2^-8 of its size.
const BF16_ROUNDING: f32 = 0.1;

/// Prompts of the sequences in slots 0 to 2, and the number of tokens that follow each.
const PROMPTS: [usize; 3] = [9, 1, 4];
const NEW: usize = 5;

/// Returns the options of generation in bfloat16.
fn bf16(residual: DType) -> Options {
    let options = Options::default().with_precision(Precision::Bf16 { residual });
    options.with_keep_rounded_weights(true)
}

fn sequences() -> Vec<Vec<i32>> {
    let mut random = Random::new("sequences");
    PROMPTS.iter().map(|len| random.ids(len + NEW)).collect()
}

/// Returns the logits of the last position of the prompt and of each following token of a sequence alone.
fn alone(model: &mut Model, ids: &[i32], prompt: usize) -> Vec<Vec<f32>> {
    let mut cache = model.new_cache(1, CAPACITY).unwrap();
    let mut all = vec![
        model
            .next_logits(&ids[..prompt], &mut cache, false)
            .unwrap(),
    ];
    for id in &ids[prompt..] {
        all.push(model.next_logits(&[*id], &mut cache, false).unwrap());
    }
    model.free_cache(cache);
    all
}

/// Runs tokens of one slot.
fn run(
    model: &mut Model,
    cache: &mut SlotCache,
    slot: usize,
    ids: &[i32],
    all_positions: bool,
) -> Vec<f32> {
    let tokens = [SlotTokens { slot, ids }];
    model.slot_logits(cache, &tokens, all_positions).unwrap()
}

/// Checks prompts, then common steps, against each sequence alone.
fn check(name: &str, model: &mut Model, tolerance: f32) {
    let sequences = sequences();
    let expected: Vec<_> = sequences
        .iter()
        .zip(PROMPTS)
        .map(|(ids, prompt)| alone(model, ids, prompt))
        .collect();
    let mut cache = model.new_slot_cache(SLOTS, CAPACITY).unwrap();
    // Contents of a previous sequence must not be visible.
    run(model, &mut cache, 0, &[1; CAPACITY], false);
    cache.clear(0);
    for (slot, ids) in sequences.iter().enumerate() {
        let found = run(model, &mut cache, slot, &ids[..PROMPTS[slot]], false);
        assert_eq!(found, expected[slot][0], "{name}: prompt {slot}");
    }
    for step in 0..NEW {
        // In another order than that of the slots.
        let order = [2, 0, 1];
        let tokens = order.map(|slot| SlotTokens {
            slot,
            ids: &sequences[slot][PROMPTS[slot] + step..][..1],
        });
        let found = model.slot_logits(&mut cache, &tokens, false).unwrap();
        for (slot, found) in order.into_iter().zip(found.chunks(VOCAB)) {
            let difference = largest_difference(found, &expected[slot][step + 1]);
            assert!(
                difference <= tolerance,
                "{name}: slot {slot}, step {step}: {difference}"
            );
        }
    }
    assert_eq!([0, 1, 2, 3].map(|slot| cache.len(slot)), [14, 6, 9, 0]);
    model.free_slot_cache(cache);
}

#[test]
fn every_sequence_gets_the_logits_that_it_gets_alone() {
    for (name, config) in all_models() {
        check(&name, &mut perturbed_model(&config), MATMUL_ROUNDING);
    }
}

#[test]
fn in_bfloat16_every_sequence_gets_the_logits_that_it_gets_alone() {
    for residual in [DType::F32, DType::Bf16] {
        for (name, config) in model_variants("hybridnorm") {
            let mut model = perturbed_model(&config);
            model.set_plan_options(bf16(residual)).unwrap();
            check(&name, &mut model, BF16_ROUNDING);
        }
    }
}

#[test]
fn in_double_precision_results_are_identical() {
    for name in ["hybridnorm", "ngpt", "deepseek-v3", "siamese-norm"] {
        for (name, config) in model_variants(name) {
            let mut model = on_reference_executor(&perturbed_model(&config));
            check(&name, &mut model, 0.0);
        }
    }
}

#[test]
fn windows_rotary_embeddings_per_block_and_learned_positions_are_those_of_each_sequence() {
    let window = AttentionOverride {
        window: Some(3),
        ..AttentionOverride::of_layers(Selector::Every(2))
    };
    let base = AttentionOverride {
        rope_theta: Some(7.0),
        ..AttentionOverride::of_layers(Selector::Indices(vec![0]))
    };
    let dense = || tiny(named("hybridnorm"));
    let bias = Bias {
        qkv: true,
        out: true,
        feed_forward: false,
    };
    for (name, config) in [
        (
            "windows",
            dense().with_attention_overrides(vec![window, base]),
        ),
        (
            "learned",
            dense()
                .with_rope_theta(ModelConfig::default().rope_theta)
                .with_position_embedding(PositionEmbedding::Learned),
        ),
        ("partial", dense().with_rope_dim(2).with_bias(bias)),
    ] {
        let mut model = perturbed_model(&config);
        check(name, &mut on_reference_executor(&model), 0.0);
        check(name, &mut model, MATMUL_ROUNDING);
    }
}

#[test]
fn a_sequence_alone_in_its_slot_gets_identical_logits_at_every_step() {
    for (name, config) in model_variants("hybridnorm") {
        let mut model = perturbed_model(&config);
        for options in [Options::default(), bf16(DType::F32), bf16(DType::Bf16)] {
            model.set_plan_options(options).unwrap();
            let ids = &sequences()[0];
            let expected = alone(&mut model, ids, PROMPTS[0]);
            let mut cache = model.new_slot_cache(SLOTS, CAPACITY).unwrap();
            let mut found = vec![run(&mut model, &mut cache, 3, &ids[..PROMPTS[0]], false)];
            for id in &ids[PROMPTS[0]..] {
                found.push(run(&mut model, &mut cache, 3, &[*id], false));
            }
            assert_eq!(found, expected, "{name}, {options:?}");
            model.free_slot_cache(cache);
        }
    }
}

#[test]
fn segments_of_several_positions_share_a_run() {
    for (name, config) in model_variants("hybridnorm") {
        let mut model = perturbed_model(&config);
        let sequences = sequences();
        let mut cache = model.new_slot_cache(SLOTS, CAPACITY).unwrap();
        let mut apart = model.new_slot_cache(SLOTS, CAPACITY).unwrap();
        // Chunks of prompts, of lengths 3, 1 and 6, after 2, 0 and 1 cached positions.
        let parts = [(0, 2, 3), (1, 0, 1), (2, 1, 6)];
        for (slot, past, _) in parts.into_iter().filter(|part| part.1 > 0) {
            for cache in [&mut cache, &mut apart] {
                run(&mut model, cache, slot, &sequences[slot][..past], false);
            }
        }
        let tokens = parts.map(|(slot, past, len)| SlotTokens {
            slot,
            ids: &sequences[slot][past..past + len],
        });
        let all = model.slot_logits(&mut cache, &tokens, true).unwrap();
        let expected: Vec<Vec<f32>> = tokens
            .iter()
            .map(|new| run(&mut model, &mut apart, new.slot, new.ids, true))
            .collect();
        assert!(
            largest_difference(&all, &expected.concat()) <= MATMUL_ROUNDING,
            "{name}"
        );
        // Of a run without all positions, only the last of each segment.
        for (slot, past, _) in parts {
            cache.clear(slot);
            if past > 0 {
                run(
                    &mut model,
                    &mut cache,
                    slot,
                    &sequences[slot][..past],
                    false,
                );
            }
        }
        let last = model.slot_logits(&mut cache, &tokens, false).unwrap();
        let expected = expected
            .iter()
            .flat_map(|rows| rows[rows.len() - VOCAB..].to_vec());
        let expected: Vec<f32> = expected.collect();
        assert!(
            largest_difference(&last, &expected) <= MATMUL_ROUNDING,
            "{name}"
        );
    }
}

#[test]
fn runs_that_a_cache_cannot_hold_are_errors() {
    let mut model = perturbed_model(&tiny(named("hybridnorm")));
    for (slots, capacity, expected) in [
        (0, 4, "slots = 0, expected at least 1"),
        (1, 0, "capacity = 0, expected 1 to max_seq_len = 16"),
        (1, 17, "capacity = 17, expected 1 to max_seq_len = 16"),
    ] {
        let error = model
            .new_slot_cache(slots, capacity)
            .unwrap_err()
            .to_string();
        assert_eq!(error, expected);
    }
    let error = model
        .new_slot_cache(usize::MAX / 4, 16)
        .unwrap_err()
        .to_string();
    assert!(error.contains("keys and values of"), "{error}");
    let mut cache = model.new_slot_cache(2, 4).unwrap();
    let new = |slot, ids| SlotTokens { slot, ids };
    for (tokens, expected) in [
        (
            vec![new(2, &[1][..])],
            "slot = 2, expected below 2, the number of slots",
        ),
        (vec![new(1, &[1]), new(1, &[2])], "slot 1 occurs twice"),
        (
            vec![new(0, &[1; 5])],
            "positions = 5, expected at most 4, the capacity of a slot",
        ),
        (vec![new(0, &[])], "there are no token ids"),
        (vec![], "there are no token ids"),
        (
            vec![new(0, &[37])],
            "token id 37 at position 0 is outside the vocabulary of 37",
        ),
    ] {
        let error = model
            .slot_logits(&mut cache, &tokens, false)
            .unwrap_err()
            .to_string();
        assert_eq!(error, expected);
        assert!(cache.is_empty(0) && cache.is_empty(1));
    }
}

#[test]
fn a_copied_prefix_continues_like_the_original() {
    for (name, config) in model_variants("hybridnorm") {
        let mut model = perturbed_model(&config);
        let ids = &sequences()[0];
        let mut cache = model.new_slot_cache(SLOTS, CAPACITY).unwrap();
        let expected = run(&mut model, &mut cache, 1, ids, true);
        run(&mut model, &mut cache, 2, &[1; 3], false);
        model.copy_slot(&mut cache, 1, 2, 6).unwrap();
        assert_eq!((cache.len(1), cache.len(2)), (ids.len(), 6), "{name}");
        let found = run(&mut model, &mut cache, 2, &ids[6..], true);
        let difference = largest_difference(&found, &expected[6 * VOCAB..]);
        assert!(difference <= MATMUL_ROUNDING, "{name}: {difference}");

        cache.clear(1);
        let tokens = [SlotTokens { slot: 1, ids }];
        let hidden = model.slot_hidden(&mut cache, &tokens).unwrap();
        let found = model.logits_of_hidden(&hidden).unwrap();
        let difference = largest_difference(&found, &expected);
        assert!(difference <= MATMUL_ROUNDING, "{name}: {difference}");

        for (from, to, len, expected) in [
            (1, SLOTS, 1, "slot = 4, expected below 4"),
            (SLOTS, 1, 1, "slot = 4, expected below 4"),
            (3, 1, 1, "positions = 1, expected at most 0"),
        ] {
            let error = model.copy_slot(&mut cache, from, to, len).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
