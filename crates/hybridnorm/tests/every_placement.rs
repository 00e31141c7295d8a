//! Properties of every named placement.

mod common;

use std::collections::BTreeMap;
use std::ops::Range;

use common::*;
use hybridnorm::Device;
use hybridnorm::model::counts;
use hybridnorm::model::{Activation, Model, ModelConfig, ParamSpec};
use hybridnorm::plan::{Options, Recompute};
use hybridnorm::train::{self, Gradients, Optimizer, OptimizerConfig, StepShape, TrainingStep};

#[test]
fn outputs_are_causal() {
    for (name, config) in all_models() {
        let mut model = perturbed_model(&config);
        let mut ids = inputs();
        let before = logits(&mut model);
        // Change the last two tokens of the first sequence.
        for id in &mut ids[SEQ - 2..SEQ] {
            *id = (*id + 1) % VOCAB as i32;
        }
        let after = model.logits(&ids, BATCH, SEQ).unwrap().into_f32();
        let unchanged = (SEQ - 2) * VOCAB;
        // The last bits of a GEMM depend on its number of rows: for an expert, on all tokens.
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
fn cached_decoding_equals_full_forward_pass() {
    for (name, config) in all_models() {
        let mut model = perturbed_model(&config);
        let full = logits(&mut model);
        let ids = inputs();
        let mut cache = model.new_cache(BATCH, SEQ).unwrap();
        // Only the last position of a prompt.
        let last = model.next_logits(&ids, &mut cache, false).unwrap();
        for (b, last) in last.chunks(VOCAB).enumerate() {
            let difference =
                largest_difference(last, &full[(b * SEQ + SEQ - 1) * VOCAB..][..VOCAB]);
            assert!(difference < 1e-4, "{name}, prompt: {difference}");
        }
        cache.clear();
        // A prompt of three positions, then one at a time.
        let mut start = 0;
        for new in [3, 1, 1, 1, 1] {
            let new_ids: Vec<i32> = (0..BATCH)
                .flat_map(|b| ids[b * SEQ + start..b * SEQ + start + new].to_vec())
                .collect();
            let found = model.next_logits(&new_ids, &mut cache, true).unwrap();
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
        let mut model = perturbed_model(&config);
        let (loss, gradients) = loss_and_gradients(&mut model);
        assert!(loss.is_finite(), "{name}");
        let with_gradients: Vec<String> = gradients.by_name.keys().cloned().collect();
        let mut expected = trained_parameters(&model);
        expected.sort();
        assert_eq!(with_gradients, expected, "{name}");
        for parameter in expected {
            let gradient = gradients.get(&parameter).unwrap();
            let spec = model.decoder().registry().get(&parameter).unwrap();
            assert_eq!(gradient.len(), spec.elements(), "{name}: {parameter}");
            assert!(
                gradient.iter().all(|g| g.is_finite()),
                "{name}: {parameter}"
            );
        }
    }
}

#[test]
fn loss_and_gradients_are_bit_identical_for_any_thread_count() {
    for (name, config) in all_models() {
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut model = perturbed_model(&config);
                let (loss, gradients) = loss_and_gradients(&mut model);
                let all: Vec<Vec<u32>> = trained_parameters(&model)
                    .iter()
                    .map(|name| bits_of(&gradients.get(name).unwrap()))
                    .collect();
                (loss.to_bits(), all)
            })
        };
        assert!(bits(1) == bits(3), "{name}");
    }
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Returns the objective and gradients of a batch, whose losses are divided by `divisor`.
fn gradients(
    model: &mut Model,
    [inputs, targets]: [&[i32]; 2],
    divisor: usize,
    options: Options,
) -> Gradients {
    let shape = [BATCH, SEQ];
    train::gradients(model, inputs, targets, shape, divisor as f64, options).unwrap()
}

/// Returns the inputs and targets of two micro-batches.
fn micro_batches() -> [[Vec<i32>; 2]; 2] {
    let others = ["other inputs", "other targets"];
    let others = others.map(|name| Random::new(name).ids(BATCH * SEQ));
    [[inputs(), targets()], others]
}

/// Returns every kind of model with every named placement, with and without tied embeddings.
fn all_models_tied_or_not() -> impl Iterator<Item = (String, ModelConfig)> {
    let both = |(name, config): (String, ModelConfig)| {
        [false, true].map(|tie_embeddings| {
            let config = config.clone().with_tie_embeddings(tie_embeddings);
            (format!("{name}, tied: {tie_embeddings}"), config)
        })
    };
    all_models().into_iter().flat_map(both)
}

#[test]
fn recomputation_is_bit_identical() {
    for (name, config) in all_models_tied_or_not() {
        let mut model = perturbed_model(&config);
        // Two micro-batches, whose gradients are accumulated.
        let mut run = |recompute: Recompute| {
            let options = Options::default().with_recompute(recompute);
            let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            let found = micro_batches().map(|[inputs, targets]| {
                let divisor = 2 * BATCH * SEQ;
                let found = gradients(&mut model, [&inputs, &targets], divisor, options);
                for name in found.by_name.keys() {
                    let gradient = found.get(name).unwrap();
                    match sums.get_mut(name) {
                        Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x),
                        None => drop(sums.insert(name.clone(), gradient)),
                    }
                }
                found.stats
            });
            let sums: Vec<_> = sums.values().map(|sum| bits_of(sum)).collect();
            (found, sums)
        };
        let plain = run(Recompute::None);
        let arena = |recompute| arena_bytes(&config, recompute);
        let budget = (arena(Recompute::None) + arena(Recompute::Block)) / 2;
        assert!(run(Recompute::Block) == plain, "{name}");
        assert!(run(Recompute::Budget(budget)) == plain, "{name}: {budget}");
    }
}

/// Returns the arena size of a micro-batch in bytes.
fn arena_bytes(config: &ModelConfig, recompute: Recompute) -> u64 {
    let shape = StepShape::new(BATCH, SEQ).with_recompute(recompute);
    let inventory = train::inventory::inventory(config, shape, &OptimizerConfig::default());
    inventory.unwrap().memory.activations
}

#[test]
fn training_with_recomputation_is_bit_identical() {
    let [mut less, mut between] = [0, 0];
    for (name, config) in all_models_tied_or_not() {
        // Outcome of a step with the updated parameters, and the arena size in bytes.
        let run = |recompute: Recompute| {
            let mut model = perturbed_model(&config);
            let mut optimizer = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
            let shape = StepShape::new(BATCH, SEQ)
                .with_grad_accum_steps(2)
                .with_recompute(recompute);
            let mut step = TrainingStep::new(shape, &mut model, &mut optimizer).unwrap();
            for [inputs, targets] in micro_batches() {
                step.run_micro_batch(&mut model, &mut optimizer, &inputs, &targets, 0.01)
                    .unwrap();
            }
            let outcome = step.finish(&mut model, &mut optimizer, 0.01).unwrap();
            let values = model.values().into_values();
            let values: Vec<_> = values.map(|values| bits_of(&values.data)).collect();
            ((outcome, values), step.arena_bytes() as u64)
        };
        let (plain, most) = run(Recompute::None);
        assert!(plain.0.norms.update > 0.0, "{name}");
        let (recomputed, least) = run(Recompute::Block);
        assert!(recomputed == plain, "{name}");
        let budget = (most + least) / 2;
        let (within, bytes) = run(Recompute::Budget(budget));
        assert!(within == plain, "{name}: {budget}");
        if least < most {
            assert!(bytes <= budget, "{name}: {bytes} of {budget}");
            less += 1;
            between += u64::from(bytes > least);
        }
    }
    assert!(less > 0 && between > 0, "{less} {between}");
}

/// Returns the largest difference from the expected values, relative to their largest element; infinite if any value
/// is not finite.
fn relative_difference(found: &[f64], expected: &[f64]) -> f64 {
    let is_finite = |values: &[f64]| values.iter().all(|x| x.is_finite());
    if !is_finite(found) || !is_finite(expected) {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    // The gradient of a scalar is a sum over all positions whose terms may cancel: for the factors of rezero, terms
    // of 0.06 in total leave 1e-5, with the error of the terms.
    let least = if expected.len() == 1 {
        1e-4
    } else {
        f64::MIN_POSITIVE
    };
    largest_difference64(found, expected) / largest.max(least)
}

/// Asserts that losses and the gradient of every parameter are within the tolerances.
fn assert_close(found: &Gradients, expected: &Gradients, [loss, gradient]: [f64; 2], name: &str) {
    let losses = |of: &Gradients| [of.stats.losses.objective, of.stats.losses.cross_entropy];
    let difference = relative_difference(&losses(found), &losses(expected));
    assert!(difference <= loss, "{name}: losses differ by {difference}");
    assert!(found.by_name.keys().eq(expected.by_name.keys()), "{name}");
    for parameter in expected.by_name.keys() {
        let of = |of: &Gradients| of.get_f64(parameter).unwrap();
        let difference = relative_difference(&of(found), &of(expected));
        assert!(
            difference <= gradient,
            "{name}: gradients of {parameter} differ by {difference}"
        );
    }
}

#[test]
fn cpu_executor_agrees_with_reference() {
    for (name, config) in all_models() {
        let mut model = perturbed_model(&config);
        let mut exact = on_reference_executor(&model);
        let [found, expected] = [&mut model, &mut exact]
            .map(|model| model.logits(&inputs(), BATCH, SEQ).unwrap().into_f64());
        let difference = relative_difference(&found, &expected);
        assert!(difference <= 1e-5, "{name}: logits differ by {difference}");
        let (_, found) = loss_and_gradients(&mut model);
        let (_, expected) = loss_and_gradients(&mut exact);
        assert_close(&found, &expected, [1e-5, 1e-4], &name);
        let load = |of: &Gradients| -> Vec<Vec<u64>> {
            let routing = of.stats.routing.iter();
            routing.map(|routing| routing.load.clone()).collect()
        };
        assert_eq!(load(&found), load(&expected), "{name}");
    }
}

/// Returns the losses and gradients of one pass over a batch in a fused and in an unfused program.
fn fused_and_unfused(model: &mut Model) -> [Gradients; 2] {
    let [inputs, targets] = &micro_batches()[0];
    [true, false].map(|fuse| {
        let options = Options::default().with_fuse(fuse);
        gradients(model, [inputs, targets], BATCH * SEQ, options)
    })
}

#[test]
fn fused_programs_agree_with_unfused_ones() {
    for (name, config) in all_models_tied_or_not() {
        let [found, expected] =
            fused_and_unfused(&mut on_reference_executor(&perturbed_model(&config)));
        assert_close(&found, &expected, [1e-11; 2], &name);
    }
}

/// True if fusion keeps every loss and gradient bit-identical but those of [`is_summed_by_head`]: with a soft cap, the
/// output projection fused with the loss computes the logits by other operations. (Rows of a batch this small are a
/// single chunk.)
fn fusion_is_bit_identical(config: &ModelConfig) -> bool {
    config.placement.logits.softcap.is_none()
}

/// True for the parameters of norms right before attention, whose gradients a fused program sums head by head.
fn is_summed_by_head(parameter: &str) -> bool {
    let norms = [
        ".attention.q_norm.",
        ".attention.k_norm.",
        ".attention.v_norm.",
    ];
    norms.iter().any(|norm| parameter.contains(norm))
}

#[test]
fn fused_programs_are_bit_identical_to_unfused_ones() {
    let mut compared = 0;
    for (name, config) in all_models_tied_or_not() {
        let [found, expected] = fused_and_unfused(&mut perturbed_model(&config));
        assert_close(&found, &expected, [1e-5; 2], &name);
        if !fusion_is_bit_identical(&config) {
            continue;
        }
        assert!(
            found.stats == expected.stats,
            "{name}: losses and statistics"
        );
        let parameters = expected.by_name.keys();
        for parameter in parameters.filter(|parameter| !is_summed_by_head(parameter)) {
            let bits = |of: &Gradients| bits_of(&of.get(parameter).unwrap());
            assert!(bits(&found) == bits(&expected), "{name}: {parameter}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn registry_lists_all_parameters_of_the_model() {
    let activations = [Activation::Swiglu, Activation::Relu2];
    for (name, config) in all_models_tied_or_not() {
        for activation in activations {
            let config = config.clone().with_activation(activation);
            // Some placements normalize or scale the gate, which an ungated feed-forward does not have.
            if config.resolve().is_err() {
                assert!(!activation.is_gated(), "{name}");
                continue;
            }
            let model = Model::new(&config, 0, Device::Cpu).unwrap();
            let found: Vec<_> = model
                .values()
                .into_iter()
                .map(|(name, values)| (name, values.shape, values.data.len()))
                .collect();
            let registry = model.decoder().registry();
            let listed: Vec<_> = registry
                .sorted_by_name()
                .into_iter()
                .map(|spec| (spec.name.clone(), spec.shape.clone(), spec.elements()))
                .collect();
            assert_eq!(found, listed, "{name}");
            // Parameters are contiguous and counted once.
            let mut total = 0;
            for spec in registry.iter() {
                assert_eq!(spec.range(), total..total + spec.elements(), "{name}");
                let counted: u64 = spec.counts.iter().map(|(_, count)| count).sum();
                assert_eq!(counted, spec.elements() as u64, "{name}: {}", spec.name);
                total += spec.elements();
            }
            let names: Vec<&String> = registry.iter().map(|spec| &spec.name).collect();
            let covered = registry.handles().flat_map(|(_, specs)| specs);
            assert!(covered.map(|spec| &spec.name).eq(names), "{name}");
            assert_eq!(registry.elements(), total, "{name}");
            assert_eq!(counts::parameters(&config).unwrap(), total as u64);
            let counts = counts::counts(&config, 16).unwrap();
            assert_eq!(counts.total, total as u64, "{name}");
            assert_eq!(counts.parameters.values().sum::<u64>(), total as u64);
            let elements = |spec: &ParamSpec| spec.elements() as u64;
            let inner = registry.iter().filter(|spec| spec.role.is_block_matrix());
            assert_eq!(counts.block_matrices, inner.map(elements).sum::<u64>());
        }
    }
}

#[test]
fn shared_parameters_have_equal_initial_values() {
    let values = |name: &str| {
        let mut placement = named(name);
        // One initialization scheme for all; only the placement differs.
        placement.init = named("hybridnorm").init;
        let model = Model::new(&tiny(placement), 9, Device::Cpu).unwrap();
        model.values()
    };
    let reference = values("hybridnorm");
    // Unit weights are normalized after initialization.
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
