//! The model is the one of the official HybridNorm code: logits, loss, every gradient and eight
//! AdamW steps against vectors computed with that code (`fixtures/official`).

mod common;

use std::collections::BTreeMap;

use burn::tensor::Device;
use common::largest_difference;
use common::reference::*;
use hybridnorm::interop::official;
use hybridnorm::model::{Decoder, LossOptions, params::Values};
use hybridnorm::train::{GradientSum, Optimizer, OptimizerConfig, OptimizerKind};
use serde_json::Value;

const NAMES: [&str; 7] = [
    "hybridnorm",
    "hybridnorm-star",
    "hybridnorm-layernorm",
    "post-norm",
    "pre-norm",
    "pre-norm-qk",
    "qkvc-post",
];

struct Reference {
    json: Value,
    bytes: Vec<u8>,
}

/// Largest deviations of one reference file.
#[derive(Debug, Default)]
struct Deviations {
    logits: f64,
    loss: f64,
    gradient: f64,
    step_loss: f64,
    grad_norm: f64,
}

impl Reference {
    fn read(name: &str) -> Self {
        let path = |extension: &str| fixture(&format!("official/{name}.{extension}"));
        Self {
            json: json(&path("json")),
            bytes: std::fs::read(path("safetensors")).unwrap(),
        }
    }

    fn tensors(&self, prefix: &str) -> BTreeMap<String, Values> {
        tensors(&self.bytes, prefix)
    }

    fn optimizer(&self) -> OptimizerConfig {
        let settings = &self.json["optimizer"];
        let number = |value: &Value| value.as_f64().unwrap();
        assert_eq!(settings["kind"], "AdamW");
        assert_eq!(
            settings["decayed"],
            "every parameter but transformer.wte.weight"
        );
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            lr: number(&settings["lr"]),
            betas: (number(&settings["betas"][0]), number(&settings["betas"][1])),
            eps: number(&settings["eps"]),
            weight_decay: number(&settings["weight_decay"]),
            clip_grad_norm: number(&settings["clip_grad_norm"]),
            decay_norms: true,
            decay_embeddings: false,
            ..OptimizerConfig::default()
        }
    }

    /// Tokens of batch `step`: (batch, seq + 1) ids.
    fn batch(&self, step: usize) -> (Vec<i32>, Vec<i32>, [usize; 2]) {
        let (ids, shape) = tokens(&self.bytes);
        let [_, batch, row] = shape[..] else {
            panic!("batches of rows");
        };
        let ids = &ids[step * batch * row..(step + 1) * batch * row];
        let (inputs, targets) = shifted(ids, row);
        (inputs, targets, [batch, row - 1])
    }
}

fn step(model: &Decoder, reference: &Reference, index: usize) -> (f64, GradientSum) {
    let (inputs, targets, [b, t]) = reference.batch(index);
    let loss = model.loss(
        model.ids(&inputs, b, t).unwrap(),
        model.ids(&targets, b, t).unwrap(),
        LossOptions {
            divisor: (b * t) as f32,
        },
    );
    let value = loss.clone().into_data_as::<f32>();
    let mut gradients = GradientSum::default();
    gradients.add(model, loss.backward());
    (f64::from(value.as_slice::<f32>().unwrap()[0]), gradients)
}

fn measure(name: &str) -> Deviations {
    let reference = Reference::read(name);
    let folder = tempfile::tempdir().unwrap();
    let weights = reference.tensors("weight.");
    write_official(folder.path(), &reference.json["model"], &weights);
    let device = Device::flex().autodiff();
    let mut model = official::import(folder.path(), &device).unwrap();
    let mut found = Deviations::default();

    let (inputs, _, [b, t]) = reference.batch(0);
    let logits = model.logits(model.forward(model.ids(&inputs, b, t).unwrap()));
    let logits = logits.into_data_as::<f32>();
    let expected = &reference.tensors("logits")[""];
    found.logits = largest_difference(logits.as_slice().unwrap(), &expected.data).into();

    let (loss, gradients) = step(&model, &reference, 0);
    found.loss = (loss - reference.json["loss_first_batch"].as_f64().unwrap()).abs();
    let expected = official::translate_all(reference.tensors("grad."), model.config()).unwrap();
    assert_eq!(
        expected.keys().cloned().collect::<Vec<_>>(),
        {
            let mut names = hybridnorm::model::params::names(&model);
            names.sort();
            names
        },
        "{name}: parameter names"
    );
    found.gradient = gradient_deviation(&gradients, &expected);

    let optimizer = reference.optimizer();
    let lr = optimizer.lr;
    let mut optimizer = Optimizer::new(optimizer, &model);
    let losses = reference.json["loss_per_step"].as_array().unwrap();
    let norms = reference.json["grad_norm_before_clip_per_step"]
        .as_array()
        .unwrap();
    assert_eq!(losses.len(), 8);
    for (index, (expected_loss, expected_norm)) in losses.iter().zip(norms).enumerate() {
        let (loss, gradients) = step(&model, &reference, index);
        let norm;
        (model, norm) = optimizer.step(model, gradients, lr);
        let expected_norm = expected_norm.as_f64().unwrap();
        found.step_loss = found
            .step_loss
            .max((loss - expected_loss.as_f64().unwrap()).abs());
        found.grad_norm = found
            .grad_norm
            .max((norm.gradient - expected_norm).abs() / expected_norm);
    }
    found
}

#[test]
fn logits_loss_gradients_and_eight_steps_are_the_official_ones() {
    for name in NAMES {
        let found = measure(name);
        println!(
            "{name:22} logits {:.1e}  loss {:.1e}  gradient {:.1e}  step loss {:.1e}  gradient norm {:.1e}",
            found.logits, found.loss, found.gradient, found.step_loss, found.grad_norm
        );
        assert!(found.logits < 1e-4, "{name}: {found:?}");
        assert!(found.loss < 1e-5, "{name}: {found:?}");
        assert!(found.gradient < 1e-4, "{name}: {found:?}");
        assert!(found.step_loss < 1e-3, "{name}: {found:?}");
        assert!(found.grad_norm < 0.005, "{name}: {found:?}");
    }
}
