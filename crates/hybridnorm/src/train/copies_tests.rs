//! Tests of the rounded copies of weights in training steps.

use std::collections::BTreeSet;

use super::optimizer::Layout;
use super::step::{StepBuffers, StepShape, plan};
use super::{OptimizerConfig, OptimizerKind, TrainingStep};
use crate::Device;
use crate::graph::{Buffer, DType};
use crate::model::testing::tiny;
use crate::model::{Decoder, MlaConfig, Model, ModelConfig, MoeConfig, PARAMETERS};
use crate::placement;
use crate::plan::{Options, Precision, Program, RoundedRange};

const BF16: Precision = Precision::Bf16 {
    residual: DType::F32,
};

fn config(placement: &str) -> ModelConfig {
    ModelConfig {
        placement: placement::named(placement).unwrap(),
        ..tiny()
    }
}

/// Returns the copies that the programs of a step read or update, and those that are current after it.
fn copies(
    config: &ModelConfig,
    kind: OptimizerKind,
    precision: Precision,
    micro_batches: usize,
) -> [BTreeSet<RoundedRange>; 2] {
    let decoder = Decoder::new(config).unwrap();
    let optimizer = OptimizerConfig::default().with_kind(kind);
    let layout = Layout::new(optimizer, decoder.registry());
    let buffers = StepBuffers {
        moments: [1, 2].map(Buffer),
        sums: (micro_batches > 1).then_some(Buffer(3)),
    };
    let shape = StepShape::new(2, 4)
        .with_precision(precision)
        .with_keep_rounded_weights(true)
        .with_grad_accum_steps(micro_batches);
    let step = plan(shape, &decoder, &layout, buffers).unwrap();
    let programs = step.all();
    let all = |ranges: fn(&Program) -> &[RoundedRange]| {
        let ranges = programs.iter().flat_map(|program| ranges(program));
        ranges.copied().collect()
    };
    [all(Program::rounded_ranges), all(Program::updated_copies)]
}

#[test]
fn adamw_updates_all_copies_that_matmuls_read() {
    let tied = ModelConfig {
        tie_embeddings: true,
        ..config("hybridnorm")
    };
    let models = [
        ("dense", config("hybridnorm")),
        ("tied", tied),
        (
            "experts",
            config("hybridnorm")
                .with_d_ff(0)
                .with_moe(MoeConfig::new(4, 2, 8)),
        ),
        (
            "latents",
            config("pre-norm").with_mla(MlaConfig::new(8, 4, 4, 4)),
        ),
    ];
    for (name, config) in models {
        for micro_batches in [1, 2] {
            let copies =
                |precision| copies(&config, OptimizerKind::AdamW, precision, micro_batches);
            let [read, updated] = copies(BF16);
            assert!(!read.is_empty(), "{name}");
            assert_eq!(read, updated, "{name}, {micro_batches} micro-batches");
            assert_eq!(
                copies(Precision::F32),
                [BTreeSet::new(), BTreeSet::new()],
                "{name}"
            );
        }
    }
}

#[test]
fn copies_of_weights_that_other_ops_update_are_renewed_by_the_executor() {
    for micro_batches in [1, 2] {
        let unit = copies(&config("ngpt"), OptimizerKind::AdamW, BF16, micro_batches);
        assert!(!unit[0].is_empty());
        assert_eq!(unit[1], BTreeSet::new());
        // AdamW updates the head, Muon the matrices of blocks.
        let [read, updated] = copies(
            &config("pre-norm"),
            OptimizerKind::Muon,
            BF16,
            micro_batches,
        );
        let decoder = Decoder::new(&config("pre-norm")).unwrap();
        let head = decoder
            .registry()
            .iter()
            .find(|spec| spec.name == "head")
            .unwrap();
        let head = [head.offset, head.offset + head.elements()].map(|at| 4 * at);
        let head = RoundedRange::of_single(PARAMETERS, head[0], head[1]);
        assert_eq!(updated, BTreeSet::from([head]));
        assert!(read.len() > updated.len());
    }
}

/// Returns the parameters after steps of which the second has a gradient that is not finite.
fn train(device: Device, keep_rounded_weights: bool) -> Vec<Vec<f32>> {
    let mut model = Model::new(&config("hybridnorm"), 3, device).unwrap();
    let options = Options::default().with_precision(BF16);
    let options = options.with_keep_rounded_weights(keep_rounded_weights);
    model.set_plan_options(options).unwrap();
    let mut optimizer = super::Optimizer::new(OptimizerConfig::default(), &mut model).unwrap();
    let shape = StepShape::new(2, 4)
        .with_precision(BF16)
        .with_keep_rounded_weights(keep_rounded_weights);
    let mut step = TrainingStep::new(shape, &mut model, &mut optimizer).unwrap();
    let spec = model.parameters().find(|spec| spec.name == "head").cloned();
    let spec = spec.unwrap();
    let mut found = Vec::new();
    for index in 0..4 {
        let head = model.read(&spec);
        if index == 1 {
            model.write(&spec, &vec![f32::INFINITY; head.len()]);
        }
        let ids = [0, 1, 2, 3, 4, 5, 6, 7];
        let targets = [1, 2, 3, 4, 5, 6, 7, 0];
        step.run_micro_batch(&mut model, &mut optimizer, &ids, &targets, 0.01)
            .unwrap();
        step.finish(&mut model, &mut optimizer, 0.01).unwrap();
        if index == 1 {
            model.write(&spec, &head);
        }
        found.extend(model.values().into_values().map(|value| value.data));
        // Reads the copies that the step has left.
        found.push(model.logits(&ids, 2, 4).unwrap().into_f32());
    }
    found
}

#[test]
fn steps_that_are_skipped_leave_the_copies_of_what_is_there() {
    for device in [Device::Cpu, Device::Emulator] {
        let kept = train(device, true);
        assert!(kept.iter().flatten().all(|x| x.is_finite()));
        assert!(kept == train(device, false), "{device:?}");
    }
}
