//! What must hold for every named placement.

mod common;

use std::ops::Range;

use common::*;
use hybridnorm::model::Recompute;
use hybridnorm::model::inventory;
use hybridnorm::model::{Decoder, FfnActivation, LossOptions, params};
use hybridnorm::train::GradientSum;

#[test]
fn a_later_token_never_changes_an_earlier_output() {
    for (name, config) in all_models() {
        let model = stirred(&config, &plain());
        let mut ids = Random::new("inputs").ids(BATCH * SEQ);
        let before = logits(&model);
        // Change the last two tokens of the first sequence.
        for id in &mut ids[SEQ - 2..SEQ] {
            *id = (*id + 1) % VOCAB as i32;
        }
        let after = to_vec(model.logits(model.forward(model.ids(&ids, BATCH, SEQ).unwrap())));
        let unchanged = (SEQ - 2) * VOCAB;
        // A product's last bits depend on how many rows it has: for an expert, on all tokens.
        let tolerance = if config.moe.is_some() { 1e-5 } else { 0.0 };
        let same = |range: Range<usize>| {
            largest_difference(&before[range.clone()], &after[range]) <= tolerance
        };
        assert!(same(0..unchanged), "{name}");
        assert_ne!(
            before[unchanged..SEQ * VOCAB],
            after[unchanged..SEQ * VOCAB],
            "{name}"
        );
        assert!(same(SEQ * VOCAB..before.len()), "{name}: other sequence");
    }
}

#[test]
fn decoding_with_a_cache_equals_the_full_forward_pass() {
    for (name, config) in all_models() {
        let model = stirred(&config, &plain());
        let full = logits(&model);
        let ids = Random::new("inputs").ids(BATCH * SEQ);
        let mut cache = model.new_cache(BATCH, SEQ);
        // A prompt of three positions, then one at a time.
        let mut start = 0;
        for new in [3, 1, 1, 1, 1] {
            let piece: Vec<i32> = (0..BATCH)
                .flat_map(|b| ids[b * SEQ + start..b * SEQ + start + new].to_vec())
                .collect();
            let piece = model.ids(&piece, BATCH, new).unwrap();
            let hidden = model.forward_cached(piece, &mut cache);
            let found = to_vec(model.logits(hidden));
            for b in 0..BATCH {
                let expected = &full[(b * SEQ + start) * VOCAB..(b * SEQ + start + new) * VOCAB];
                let found = &found[b * new * VOCAB..(b + 1) * new * VOCAB];
                let difference = largest_difference(found, expected);
                assert!(difference < 1e-4, "{name} at {start}: {difference}");
            }
            start += new;
        }
        assert_eq!(cache.len(), SEQ);
    }
}

#[test]
fn every_parameter_receives_a_finite_gradient() {
    for (name, config) in all_models() {
        let model = stirred(&config, &autodiff());
        let (loss, gradients) = loss_and_gradients(&model);
        assert!(loss.is_finite(), "{name}");
        assert_eq!(gradients.missing(&model), Vec::<String>::new(), "{name}");
        for parameter in trained(&model) {
            let gradient = gradients.get(&parameter).unwrap();
            assert!(
                gradient.iter().all(|g| g.is_finite()),
                "{name}: {parameter}"
            );
        }
    }
}

#[test]
fn loss_and_gradients_have_the_same_bits_on_any_number_of_threads() {
    for (name, config) in all_models() {
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let model = stirred(&config, &autodiff());
                let (loss, gradients) = loss_and_gradients(&model);
                let all: Vec<Vec<u32>> = trained(&model)
                    .iter()
                    .map(|name| {
                        gradients
                            .get(name)
                            .unwrap()
                            .iter()
                            .map(|x| x.to_bits())
                            .collect()
                    })
                    .collect();
                (loss.to_bits(), all)
            })
        };
        assert!(bits(1) == bits(3), "{name}");
    }
}

#[test]
fn recomputing_blocks_changes_no_bit() {
    for (name, config) in all_models() {
        for tie_embeddings in [false, true] {
            let mut config = config.clone();
            config.tie_embeddings = tie_embeddings;
            let model = stirred(&config, &autodiff());
            let options = LossOptions {
                divisor: (2 * BATCH * SEQ) as f32,
            };
            // Two micro-batches, whose gradients add up.
            let run = |recompute: Recompute| {
                let mut gradients = GradientSum::default();
                let losses: Vec<_> = [0, 1]
                    .map(|_| {
                        let (inputs, targets) = (inputs(&model), targets(&model));
                        gradients.accumulate(&model, inputs, targets, options, recompute)
                    })
                    .map(|pass| (to_vec64(pass.losses), pass.routing))
                    .into();
                let all: Vec<_> = params::names(&model)
                    .iter()
                    .map(|name| (name.clone(), gradients.get(name)))
                    .collect();
                (losses, all)
            };
            assert!(
                run(Recompute::None) == run(Recompute::Block),
                "{name}, tied: {tie_embeddings}"
            );
        }
    }
}

#[test]
fn the_inventory_lists_the_parameters_that_the_model_has() {
    let activations = [FfnActivation::Swiglu, FfnActivation::Relu2];
    for (name, config) in all_models() {
        for activation in activations {
            for tie_embeddings in [false, true] {
                let mut config = config.clone();
                config.activation = activation;
                config.tie_embeddings = tie_embeddings;
                // Some placements norm or scale the gate, which an ungated feed-forward does not have.
                let Ok((resolved, _)) = config.resolve() else {
                    assert!(!activation.is_gated(), "{name}");
                    continue;
                };
                let model = Decoder::new(&config, 0, &plain()).unwrap();
                let mut found: Vec<_> = params::values(&model)
                    .into_iter()
                    .map(|(name, values)| (name, values.shape))
                    .collect();
                let mut listed: Vec<_> = inventory::entries(&config, &resolved)
                    .into_iter()
                    .map(|entry| (entry.name, entry.shape))
                    .collect();
                found.sort();
                listed.sort();
                assert_eq!(found, listed, "{name}");
                let total: usize = found
                    .iter()
                    .map(|(_, shape)| shape.iter().product::<usize>())
                    .sum();
                assert_eq!(
                    inventory::inventory(&config, 1, 16, Recompute::None)
                        .unwrap()
                        .total,
                    total as u64
                );
            }
        }
    }
}

#[test]
fn placements_share_the_initial_value_of_every_parameter_they_share() {
    let values = |name: &str| {
        let mut placement = named(name);
        // The same scheme for all; only the placement differs.
        placement.init = named("hybridnorm").init;
        params::values(&Decoder::new(&tiny(placement), 9, &plain()).unwrap())
    };
    let reference = values("hybridnorm");
    // Unit weights are brought to their length afterwards.
    let names = all_names().into_iter();
    for name in names.filter(|name| !named(name).unit_weights) {
        for (parameter, found) in values(name) {
            let is_matrix = found.shape.len() == 2 && parameter != "embedding";
            if let Some(expected) = reference.get(&parameter).filter(|_| is_matrix) {
                assert!(found == *expected, "{name} {parameter}");
            }
        }
    }
}
