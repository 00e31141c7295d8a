//! Tests of programs on an emulated device: gradients of models against the reference, and steps against the CPU.

use std::collections::BTreeMap;

use super::{Optimizer, OptimizerConfig, StepShape, TrainingStep, gradients};
use crate::Device;
use crate::graph::DType;
use crate::model::testing::{VOCAB, small as config};
use crate::model::{AttentionOverride, Model, ModelConfig, MoeConfig, Scoring};
use crate::placement::{Selector, named_placements};
use crate::plan::{Options, Precision, Recompute};

const SHAPE: [usize; 2] = [2, 7];
fn tokens(seed: usize) -> Vec<i32> {
    let ids = (0..SHAPE[0] * SHAPE[1]).map(|i| (i * 7 + seed * 5 + i * i) % VOCAB);
    ids.map(|id| id as i32).collect()
}

/// Gradients by name, flattened.
type ByName = BTreeMap<String, Vec<f64>>;

/// Returns the gradients that a device computes, and the loss.
fn run(config: &ModelConfig, device: Device, precision: Precision) -> crate::Result<(ByName, f64)> {
    let mut model = Model::new(config, 3, device)?;
    let options = Options::default().with_precision(precision);
    let divisor = (SHAPE[0] * SHAPE[1]) as f64;
    let found = gradients(&mut model, &tokens(1), &tokens(2), SHAPE, divisor, options)?;
    let names = found.by_name.keys();
    let by_name = names.map(|name| (name.clone(), found.get_f64(name).unwrap()));
    Ok((by_name.collect(), found.stats.losses.cross_entropy))
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// Returns the largest distance of the gradients of a parameter, relative to their norm, but at least to a hundredth of the
/// norm of all; NaN if one is.
fn distance(found: &ByName, expected: &ByName) -> f64 {
    let least = 0.01 * norm(expected.values().flatten().copied());
    assert!(found.keys().eq(expected.keys()));
    let pairs = found.values().zip(expected.values());
    let distances = pairs.map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        norm(a.iter().zip(b).map(|(a, b)| a - b)) / norm(b.iter().copied()).max(least)
    });
    distances.fold(0.0, |largest, x| {
        if x.is_nan() || x > largest {
            x
        } else {
            largest
        }
    })
}

#[test]
fn gradients_of_named_placements_are_those_of_the_reference() {
    for placement in named_placements() {
        let config = config(placement.name);
        let (found, loss) = run(&config, Device::Emulator, Precision::F32).unwrap();
        let (expected, expected_loss) = run(&config, Device::Reference, Precision::F32).unwrap();
        let distance = distance(&found, &expected);
        assert!(distance < 1e-4, "{}: {distance}", placement.name);
        assert!(
            (loss - expected_loss).abs() < 1e-5,
            "{}: {loss}, {expected_loss}",
            placement.name
        );
    }
}

/// Adds experts in two groups, with a shared one and auxiliary losses.
fn with_experts(scoring: Scoring) -> ModelConfig {
    let moe = MoeConfig::new(8, 2, 8)
        .with_n_shared(1)
        .with_first_dense(1)
        .with_scoring(scoring)
        .with_renormalize(scoring == Scoring::Sigmoid)
        .with_n_groups(2)
        .with_top_groups(1)
        .with_scaling(1.5)
        .with_load_balance(0.05)
        .with_z_loss(0.02)
        .with_bias_rate(0.01);
    config("hybridnorm").with_moe(moe)
}

#[test]
fn gradients_of_experts_are_those_of_the_reference() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let config = with_experts(scoring);
        for (precision, tolerance) in [
            (Precision::F32, 1e-4),
            (
                Precision::Bf16 {
                    residual: DType::F32,
                },
                0.03,
            ),
        ] {
            let [found, expected] = [Device::Emulator, Device::Reference]
                .map(|device| run(&config, device, precision).unwrap().0);
            let distance = distance(&found, &expected);
            assert!(distance < tolerance, "{scoring:?} {precision}: {distance}");
        }
    }
}

#[test]
fn mixed_precision_is_that_of_the_reference() {
    for residual in [DType::F32, DType::Bf16] {
        let precision = Precision::Bf16 { residual };
        let config = config("hybridnorm");
        let [found, expected] = [Device::Emulator, Device::Reference]
            .map(|device| run(&config, device, precision).unwrap().0);
        let distance = distance(&found, &expected);
        assert!(distance > 0.0 && distance < 0.02, "{residual}: {distance}");
    }
}

#[test]
fn attention_on_tensor_cores_is_that_of_the_reference() {
    let precision = Precision::Bf16 {
        residual: DType::F32,
    };
    // More positions than a tile has, which they do not fill.
    const SEQ: usize = 70;
    for head_dim in [64, 128] {
        // One with a soft cap.
        for (placement, window) in [("pre-norm", None), ("gemma2", Some(9))] {
            let attention = AttentionOverride {
                window,
                ..AttentionOverride::of_layers(Selector::Indices(vec![0]))
            };
            let config = ModelConfig {
                n_layers: 1,
                n_heads: 2,
                n_kv_heads: 1,
                head_dim: Some(head_dim),
                max_seq_len: SEQ,
                attention_overrides: window.map_or_else(Vec::new, |_| vec![attention]),
                ..config(placement)
            };
            let ids: Vec<i32> = (0..SEQ).map(|i| ((i * 7 + i * i) % VOCAB) as i32).collect();
            let targets: Vec<i32> = ids.iter().skip(1).chain(&[0]).copied().collect();
            let options = Options::default().with_precision(precision);
            let run = |device| {
                let mut model = Model::new(&config, 3, device).unwrap();
                let divisor = SEQ as f64;
                let found = gradients(&mut model, &ids, &targets, [1, SEQ], divisor, options);
                let found = found.unwrap();
                let names = found.by_name.keys();
                let by_name = names.map(|name| (name.clone(), found.get_f64(name).unwrap()));
                let by_name: ByName = by_name.collect();
                model.set_plan_options(options).unwrap();
                (by_name, model.logits(&ids, 1, SEQ).unwrap().into_f64())
            };
            let [found, expected] = [Device::Emulator, Device::Reference].map(run);
            let difference = norm(found.1.iter().zip(&expected.1).map(|(a, b)| a - b));
            let of_logits = difference / norm(expected.1.iter().copied());
            let of_gradients = distance(&found.0, &expected.0);
            assert!(
                of_logits < 0.01 && of_gradients < 0.03,
                "{head_dim} channels, {placement}: {of_logits}, gradients {of_gradients}"
            );
        }
    }
}

#[test]
fn training_steps_are_those_of_the_cpu() {
    for grad_accum_steps in [1, 2] {
        let losses = |device| {
            let mut model = Model::new(&config("hybridnorm"), 3, device).unwrap();
            let mut optimizer = Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
            let shape = StepShape {
                grad_accum_steps,
                recompute: Recompute::Block,
                ..StepShape::new(SHAPE[0], SHAPE[1])
            };
            let mut step = TrainingStep::new(shape, &mut model, &mut optimizer).unwrap();
            let mut losses = Vec::new();
            for _ in 0..4 {
                for micro_batch in 0..grad_accum_steps {
                    let [ids, targets] = [1, 2].map(|seed| tokens(seed + micro_batch));
                    let found = step
                        .run_micro_batch(&mut model, &mut optimizer, &ids, &targets, 0.01)
                        .unwrap();
                    losses.push(found.cross_entropy);
                }
                step.finish(&mut model, &mut optimizer, 0.01).unwrap();
            }
            losses
        };
        let [found, expected] = [Device::Emulator, Device::Cpu].map(losses);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-4,
                "{found}, on the CPU {expected}"
            );
        }
        assert!(
            expected[0] - expected.last().unwrap() > 0.1,
            "it learns: {expected:?}"
        );
    }
}
