//! Mixed precision: deviations from single precision and from the reference, and what does not depend on recomputation
//! or threads.

mod common;

use std::collections::BTreeMap;

use common::*;
use hybridnorm::Device;
use hybridnorm::graph::DType;
use hybridnorm::model::{Model, ModelConfig, Scoring};
use hybridnorm::placement;
use hybridnorm::plan::{Options, Precision, Recompute};
use hybridnorm::tensors::HostTensor;
use hybridnorm::train::{
    Gradients, Optimizer, OptimizerConfig, OptimizerKind, StepShape, TrainingStep, gradients,
};

const SHAPE: [usize; 2] = [2, 48];

fn config(placement: &str) -> ModelConfig {
    ModelConfig::default()
        .with_d_model(64)
        .with_n_layers(3)
        .with_n_heads(4)
        .with_n_kv_heads(2)
        .with_d_ff(96)
        .with_vocab_size(101)
        .with_max_seq_len(SHAPE[1])
        .with_placement(placement::named(placement).unwrap())
}

fn tokens(n: usize, seed: u64) -> Vec<i32> {
    (0..n as u64)
        .map(|i| (i * 7919 + seed * 104_729) % 1009 % 101)
        .map(|id| id as i32)
        .collect()
}

fn run_shape(
    config: &ModelConfig,
    device: Device,
    precision: Precision,
    recompute: Recompute,
    shape: [usize; 2],
) -> Gradients {
    let mut model = Model::new(config, 3, device).unwrap();
    let n = shape[0] * shape[1];
    let mut data = Random::new("precision");
    let (inputs, targets) = (data.ids(n), data.ids(n));
    let options = Options::default()
        .with_precision(precision)
        .with_recompute(recompute);
    gradients(&mut model, &inputs, &targets, shape, n as f64, options).unwrap()
}

fn run(
    config: &ModelConfig,
    device: Device,
    precision: Precision,
    recompute: Recompute,
) -> Gradients {
    let mut model = Model::new(config, 3, device).unwrap();
    let n = SHAPE[0] * SHAPE[1];
    let options = Options::default()
        .with_precision(precision)
        .with_recompute(recompute);
    gradients(
        &mut model,
        &tokens(n, 1),
        &tokens(n, 2),
        SHAPE,
        n as f64,
        options,
    )
    .unwrap()
}

/// Returns the distance of all gradients together, relative to their norm.
fn distance(a: &Gradients, b: &Gradients) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for name in a.by_name.keys() {
        let (a, b) = (a.get_f64(name).unwrap(), b.get_f64(name).unwrap());
        difference += a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        size += b.iter().map(|b| b * b).sum::<f64>();
    }
    (difference / size).sqrt()
}

/// Returns the largest distance of the gradients of a parameter, relative to their norm, but at least to a hundredth of
/// the norm of all.
fn largest_distance(a: &Gradients, b: &Gradients) -> (f64, String) {
    let gradient = |of: &Gradients, name: &str| of.get_f64(name).unwrap();
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let norms = b.by_name.keys().map(|name| norm(&gradient(b, name)));
    let least = 0.01 * norm(&norms.collect::<Vec<f64>>());
    let distances = b.by_name.keys().map(|name| {
        let (a, b) = (gradient(a, name), gradient(b, name));
        let difference: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        (norm(&difference) / norm(&b).max(least), name.clone())
    });
    distances.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

fn mixed() -> [Precision; 2] {
    [DType::F32, DType::Bf16].map(|residual| Precision::Bf16 { residual })
}

#[test]
fn deviations_from_single_precision_are_those_of_rounding() {
    for name in ["hybridnorm", "hybridnorm-star", "pre-norm", "post-norm"] {
        let config = config(name);
        let single = run(&config, Device::Cpu, Precision::F32, Recompute::None);
        for precision in mixed() {
            let found = run(&config, Device::Cpu, precision, Recompute::None);
            let reference = run(&config, Device::Reference, precision, Recompute::None);
            let (of_single, of_reference) =
                (distance(&found, &single), distance(&found, &reference));
            let loss = found.stats.losses.cross_entropy - single.stats.losses.cross_entropy;
            println!(
                "{name} {precision:?}: gradients {of_single:.4}, reference {of_reference:.4}, loss {loss:.1e}"
            );
            // A bfloat16 number is off by up to 2^-8 of its size; errors of a few dozen ops add up.
            assert!(of_single > 1e-4, "{name}: mixed precision has no effect");
            assert!(of_single < 0.03, "{name}: {of_single}");
            assert!(of_reference < 0.03, "{name}: {of_reference}");
        }
    }
}

#[test]
fn every_model_is_near_the_reference_with_and_without_recomputation() {
    // Of dense models, and of those with experts.
    let mut found = [Vec::new(), Vec::new()];
    let mut of_single: [f64; 2] = [0.0; 2];
    for (name, config) in all_models() {
        let run = |device, precision, recompute| {
            run_shape(&config, device, precision, recompute, [BATCH, SEQ])
        };
        let single = run(Device::Cpu, Precision::F32, Recompute::None);
        for precision in mixed() {
            let plain = run(Device::Cpu, precision, Recompute::None);
            let recomputed = run(Device::Cpu, precision, Recompute::Block);
            assert!(
                recomputed.by_name == plain.by_name,
                "{name} {precision:?}: recomputed"
            );
            // In double precision, and rounded as the policy says.
            let reference = run(Device::Reference, precision, Recompute::None);
            let (furthest, parameter) = largest_distance(&plain, &reference);
            let of = format!("{name} {precision:?}, {parameter}");
            let kind = usize::from(config.moe.is_some());
            found[kind].push((furthest, of));
            of_single[kind] = of_single[kind].max(distance(&plain, &single));
        }
    }
    let [dense, experts] = of_single;
    println!("largest deviation from single precision: {dense:.4}, with experts {experts:.4}");
    assert!(dense < 0.5, "{dense}");
    assert!(experts < 0.6, "{experts}");
    for found in &mut found {
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let [dense, experts] = &found;
    let quantile =
        |of: &[(f64, String)], share: f64| of[(share * (of.len() - 1) as f64) as usize].clone();
    // A number next to the middle of two bfloat16 ones is rounded to either, which norms of an untrained model with few
    // heads amplify; a token next to the boundary between two experts goes to either.
    for (of, share, bound) in [
        (dense, 0.5, 0.03),
        (dense, 0.9, 0.06),
        (dense, 1.0, 0.3),
        (experts, 0.5, 0.06),
        (experts, 0.9, 0.3),
    ] {
        let (distance, of) = quantile(of, share);
        println!("quantile {share}: {distance:.4} ({of})");
        assert!(
            distance < bound,
            "quantile {share}: {distance} ({of}), expected below {bound}"
        );
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for (name, config) in model_variants("hybridnorm") {
        for precision in mixed() {
            let run =
                || run_shape(&config, Device::Cpu, precision, Recompute::None, [8, 16]).by_name;
            let expected = run();
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                assert!(
                    pool.install(run) == expected,
                    "{name} {precision:?}: {threads} threads"
                );
            }
        }
    }
}

#[test]
fn fusion_changes_only_the_order_of_sums() {
    for (name, config) in all_models() {
        for precision in mixed() {
            let run = |fuse| {
                let mut model = Model::new(&config, 3, Device::Cpu).unwrap();
                let options = Options::default().with_precision(precision).with_fuse(fuse);
                let (inputs, targets) = (inputs(), targets());
                let n = inputs.len() as f64;
                gradients(&mut model, &inputs, &targets, [BATCH, SEQ], n, options).unwrap()
            };
            let distance = distance(&run(true), &run(false));
            assert!(distance < 1e-6, "{name} {precision:?}: {distance}");
        }
    }
}

/// Sets the precision of evaluation and generation.
fn evaluate_in(model: &mut Model, precision: Precision, keep_rounded_weights: bool) {
    let options = Options::default().with_precision(precision);
    model
        .set_plan_options(options.with_keep_rounded_weights(keep_rounded_weights))
        .unwrap();
}

/// Returns logits and loss of a batch, and logits of cached decoding: of several new positions, then one by one.
fn evaluate(model: &mut Model, [batch, seq]: [usize; 2]) -> Vec<Vec<f32>> {
    let ids = Random::new("evaluated").ids(batch * seq);
    let targets = Random::new("targets").ids(batch * seq);
    let n = ids.len() as f64;
    let losses = model.losses(&ids, &targets, [batch, seq], n).unwrap();
    let mut found = vec![
        model.logits(&ids, batch, seq).unwrap().into_f32(),
        vec![losses.cross_entropy as f32],
    ];
    let mut cache = model.new_cache(1, seq).unwrap();
    for new in [&ids[..5], &ids[5..6], &ids[6..7]] {
        found.push(model.next_logits(new, &mut cache, false).unwrap());
    }
    found
}

#[test]
fn kept_weights_change_no_bit_of_evaluation_and_generation() {
    for (name, config) in all_models() {
        for device in [Device::Cpu, Device::Reference] {
            // Those of single rows, of few and of many are different kernels.
            let shape = match device {
                Device::Cpu => [20, SEQ],
                _ => [1, SEQ],
            };
            let run = |keep| {
                let mut model = Model::new(&config, 3, device).unwrap();
                evaluate_in(&mut model, mixed()[0], keep);
                evaluate(&mut model, shape)
            };
            assert!(run(false) == run(true), "{name}, {device:?}");
        }
    }
}

/// Returns the parameters after three steps in bfloat16, each of this many micro-batches.
fn train(
    config: &ModelConfig,
    optimizer: &OptimizerConfig,
    micro_batches: usize,
    keep_rounded_weights: bool,
) -> BTreeMap<String, HostTensor> {
    let mut model = Model::new(config, 3, Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(optimizer.clone(), &mut model).unwrap();
    let shape = StepShape::new(BATCH, SEQ)
        .with_grad_accum_steps(micro_batches)
        .with_keep_rounded_weights(keep_rounded_weights)
        .with_precision(mixed()[0]);
    let mut step = TrainingStep::new(shape, &mut model, &mut optimizer).unwrap();
    for _ in 0..3 {
        for _ in 0..micro_batches {
            step.run_micro_batch(&mut model, &mut optimizer, &inputs(), &targets(), 0.01)
                .unwrap();
        }
        step.finish(&mut model, &mut optimizer, 0.01).unwrap();
    }
    model.values()
}

#[test]
fn kept_weights_change_no_bit_of_training() {
    let check = |name: &str, config: &ModelConfig, optimizer: &OptimizerConfig| {
        for micro_batches in [1, 2] {
            let run = |keep| train(config, optimizer, micro_batches, keep);
            assert!(
                run(true) == run(false),
                "{name}, {micro_batches} micro-batches"
            );
        }
    };
    let adamw = OptimizerConfig::default();
    for (name, config) in all_models() {
        check(&name, &config, &adamw);
    }
    let muon = OptimizerConfig::default().with_kind(OptimizerKind::Muon);
    // Queries and keys are scaled on the host.
    let clipped = adamw.with_qk_clip(1e-3);
    for optimizer in [muon, clipped] {
        check("pre-norm", &tiny(named("pre-norm")), &optimizer);
    }
}

#[test]
fn kept_weights_follow_the_parameters() {
    for (name, config) in model_variants("hybridnorm") {
        let run = |keep| {
            let mut model = Model::new(&config, 3, Device::Cpu).unwrap();
            evaluate_in(&mut model, mixed()[0], keep);
            let mut found = vec![evaluate(&mut model, [BATCH, SEQ])];
            // Written by a program.
            let mut optimizer = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
            let shape = StepShape::new(BATCH, SEQ);
            let mut step = TrainingStep::new(shape, &mut model, &mut optimizer).unwrap();
            step.run_micro_batch(&mut model, &mut optimizer, &inputs(), &targets(), 0.01)
                .unwrap();
            step.finish(&mut model, &mut optimizer, 0.01).unwrap();
            found.push(evaluate(&mut model, [BATCH, SEQ]));
            // Written by the host.
            let other = Model::new(&config, 4, Device::Cpu).unwrap();
            let specs: Vec<_> = model.parameters().cloned().collect();
            for spec in specs {
                model.write(&spec, &other.read(&spec));
            }
            found.push(evaluate(&mut model, [BATCH, SEQ]));
            found
        };
        let kept = run(true);
        assert!(run(false) == kept, "{name}");
        assert!(kept[0] != kept[1] && kept[1] != kept[2], "{name}");
    }
}

#[test]
fn cached_decoding_is_closer_to_the_full_pass_than_that_to_single_precision() {
    let rms = |a: &[f32], b: &[f32]| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / a.len() as f64).sqrt()
    };
    let mut largest = (0.0, String::new());
    // A token near the boundary between two experts may change sides, which is no matter of rounding alone.
    let models = all_models().into_iter();
    for (name, config) in models.filter(|(_, config)| config.moe.is_none()) {
        let ids = Random::new("decoded").ids(SEQ);
        let mut model = Model::new(&config, 3, Device::Cpu).unwrap();
        let single = model.logits(&ids, 1, SEQ).unwrap().into_f32();
        evaluate_in(&mut model, mixed()[0], true);
        let full = model.logits(&ids, 1, SEQ).unwrap().into_f32();
        let mut cache = model.new_cache(1, SEQ).unwrap();
        let mut decoded = model.next_logits(&ids[..3], &mut cache, true).unwrap();
        for id in &ids[3..] {
            decoded.extend(model.next_logits(&[*id], &mut cache, true).unwrap());
        }
        let ratio = rms(&decoded, &full) / rms(&full, &single);
        if ratio > largest.0 {
            largest = (ratio, name);
        }
    }
    println!("largest ratio of deviations: {largest:?}");
    assert!(largest.0 < 1.0, "{largest:?}");
}

#[test]
fn a_residual_stream_in_bfloat16_without_effect_is_an_error() {
    let [_, bf16] = mixed();
    let options = Options::default().with_precision(bf16);
    let shape = StepShape::new(BATCH, SEQ).with_precision(bf16);
    let dense = |name| tiny(named(name));
    let experts = |name| with_experts(tiny(named(name)), Scoring::Softmax);
    for (name, config, has_effect) in [
        ("hybridnorm", dense("hybridnorm"), true),
        ("post-norm", dense("post-norm"), true),
        ("siamese-norm", dense("siamese-norm"), true),
        (
            "siamese-hybrid",
            dense("siamese-hybrid").with_n_layers(20),
            false,
        ),
        ("ngpt", dense("ngpt"), false),
        ("hybridnorm with experts", experts("hybridnorm"), true),
        ("ngpt with shared experts", experts("ngpt"), false),
    ] {
        let mut model = Model::new(&config, 3, Device::Cpu).unwrap();
        let mut optimizer = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
        let trained = TrainingStep::new(shape, &mut model, &mut optimizer).map(drop);
        for result in [model.set_plan_options(options), trained] {
            match result {
                Ok(()) => assert!(has_effect, "{name}"),
                Err(error) => {
                    assert!(!has_effect, "{name}: {error}");
                    assert!(error.to_string().contains("has no effect"), "{error}");
                }
            }
        }
    }
}
