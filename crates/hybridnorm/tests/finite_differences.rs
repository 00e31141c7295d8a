//! Gradients of the reference and the CPU executor, for every field of the placement algebra, against central
//! differences of the reference executor.

mod common;

use common::*;
use hybridnorm::model::{Activation, Model, ModelConfig};
use hybridnorm::placement::{self, Placement};
use serde_json::{Value, json};

fn placement_of(value: Value) -> Placement {
    placement::from_value(value).unwrap()
}

/// Returns one configuration for every value of every field of the placement algebra.
fn fields() -> Vec<(String, ModelConfig)> {
    let mut all = all_models();
    let mut add = |label: &str, patch: Value| {
        let mut value = json!({ "base": "pre-norm" });
        value
            .as_object_mut()
            .unwrap()
            .extend(patch.as_object().unwrap().clone());
        all.push((label.to_owned(), tiny(placement_of(value))));
    };
    for sub in ["attn", "ffn"] {
        for (label, patch) in [
            ("in_scale const", json!({ "in_scale": 0.7 })),
            ("in_scale formula", json!({ "in_scale": "inv_sqrt_layer" })),
            (
                "in_scale learned",
                json!({ "in_scale": { "learned": { "shape": "vector", "init": 0.8 } } }),
            ),
            ("skip normed", json!({ "skip": "normed" })),
            ("skip_scale const", json!({ "skip_scale": 1.3 })),
            (
                "skip_scale learned scalar",
                json!({ "skip_scale": { "learned": { "shape": "scalar", "init": 1.1 } } }),
            ),
            ("out_norm", json!({ "out_norm": { "gain_init": 0.5 } })),
            (
                "out_scale learned vector",
                json!({ "out_scale": { "learned": { "shape": "vector", "init": 0.9 } } }),
            ),
            ("post_norm", json!({ "post_norm": true })),
        ] {
            add(
                &format!("{sub}.{label}"),
                json!({ "block": { sub: patch } }),
            );
        }
    }
    for skip in ["block_input", "raw_plus_block_input"] {
        add(skip, json!({ "block": { "ffn": { "skip": skip } } }));
    }
    for topology in ["parallel_shared", "parallel_two"] {
        add(topology, json!({ "block": { "topology": topology } }));
    }
    for kind in [
        "per_head",
        "per_head_own",
        "per_head_plain",
        "full",
        "full_plain",
    ] {
        for site in ["q_norm", "k_norm", "v_norm", "ctx_norm"] {
            add(
                &format!("{site} {kind}"),
                json!({ "block": { "attn_inner": { site: kind } } }),
            );
        }
    }
    add(
        "after rope, post scale",
        json!({ "block": { "attn_inner": {
            "q_norm": "per_head", "k_norm": "per_head", "qk_order": "after_rope", "qk_post_scale": 1.2
        } } }),
    );
    for shape in ["scalar", "vector"] {
        add(
            &format!("qk_post_scale learned {shape}"),
            json!({ "block": { "attn_inner": {
                "q_norm": "per_head_plain", "k_norm": "per_head_plain",
                "qk_post_scale": { "learned": { "shape": shape, "init": 1.1 } }
            } } }),
        );
    }
    for (label, patch) in [
        ("cosine", json!({ "attn_scale": "cosine" })),
        ("sqrt_head_dim", json!({ "attn_scale": "sqrt_head_dim" })),
        ("attn_scale const", json!({ "attn_scale": 0.3 })),
        ("attn_softcap", json!({ "attn_softcap": 2.0 })),
        ("clip_qkv", json!({ "clip_qkv": 0.8 })),
        ("head_gain", json!({ "head_gain": true })),
    ] {
        add(label, json!({ "block": { "attn_inner": patch } }));
    }
    for site in ["gate_norm", "up_norm", "mid_norm"] {
        add(site, json!({ "block": { "ffn_inner": { site: true } } }));
    }
    for (label, norm) in [
        ("layernorm", json!({ "kind": "layernorm", "bias": true })),
        ("rmsnorm bias", json!({ "bias": true })),
        ("one_plus", json!({ "gain": "one_plus" })),
        ("no gain", json!({ "gain": "none" })),
        ("l2", json!({ "kind": "l2" })),
        ("dyt", json!({ "kind": "dyt", "bias": true })),
        ("derf", json!({ "kind": "derf", "bias": true })),
    ] {
        add(label, json!({ "norm": norm }));
    }
    add("embed norm", json!({ "embed": { "norm": true } }));
    add("embed scale", json!({ "embed": { "scale": "sqrt_width" } }));
    add(
        "embed scale learned",
        json!({ "embed": { "scale": { "learned": { "shape": "vector", "init": 1.2 } } } }),
    );
    add("logit softcap", json!({ "logits": { "softcap": 3.0 } }));
    add("logit scale", json!({ "logits": { "scale": 0.6 } }));
    add(
        "logit scale learned",
        json!({ "logits": { "scale": { "learned": { "shape": "scalar", "init": 0.7 } } } }),
    );
    add("z-loss", json!({ "logits": { "z_loss": 0.05 } }));
    for activation in [Activation::Geglu, Activation::Gelu, Activation::Relu2] {
        let mut config = tiny(named("hybridnorm"));
        config.activation = activation;
        all.push((format!("{activation:?}"), config));
    }
    let mut tied = tiny(named("hybridnorm"));
    tied.tie_embeddings = true;
    all.push(("tied".into(), tied));
    all
}

/// Returns the objective of the inputs.
fn objective(model: &mut Model) -> f64 {
    let divisor = (BATCH * SEQ) as f64;
    let losses = model.losses(&inputs(), &targets(), [BATCH, SEQ], divisor);
    losses.unwrap().objective
}

/// Returns the number of tokens per expert of every MoE block.
fn tokens_per_expert(model: &mut Model) -> Vec<Vec<u64>> {
    if model.config().moe.is_none() {
        return Vec::new();
    }
    let activations = model.activation_stats(&inputs(), BATCH, SEQ).unwrap();
    let routing = activations
        .into_iter()
        .filter_map(|activations| activations.routing);
    routing.map(|routing| routing.load).collect()
}

/// Returns the central difference of the objective along `direction` in the parameter `name`.
fn central_difference(
    model: &mut Model,
    name: &str,
    value: &[f32],
    direction: &[f32],
    routed: &[Vec<u64>],
) -> f64 {
    const STEP: f64 = 1e-5;
    let mut moved = |step: f64| {
        let pairs = value.iter().zip(direction);
        let moved: Vec<f64> = pairs
            .map(|(x, d)| f64::from(*x) + f64::from(*d) * step)
            .collect();
        write_f64(model, name, &moved);
        assert_eq!(
            tokens_per_expert(model),
            routed,
            "{name}: a step of {step} changes the selected experts"
        );
        objective(model)
    };
    let difference = moved(STEP) - moved(-STEP);
    moved(0.0);
    difference / (2.0 * STEP)
}

/// Checks the gradient of every parameter of a model.
fn check(label: &str, config: &ModelConfig) {
    let mut model = perturbed_model(config);
    let mut exact = on_reference_executor(&model);
    let (loss32, gradients32) = loss_and_gradients(&mut model);
    let (loss64, gradients64) = loss_and_gradients(&mut exact);
    assert!((loss32 - loss64).abs() < 2e-5, "{label}: {loss32} {loss64}");
    let expected_load = tokens_per_expert(&mut exact);
    let values = model.values();
    for name in trained_parameters(&model) {
        let value = &values[&name].data;
        let mut random = Random::new(&format!("{label} {name}"));
        let direction: Vec<f32> = value.iter().map(|_| random.uniform()).collect();
        let directional_derivative = |gradient: Vec<f64>| -> f64 {
            let pairs = gradient.iter().zip(&direction);
            pairs.map(|(g, d)| g * f64::from(*d)).sum()
        };
        let difference = central_difference(&mut exact, &name, value, &direction, &expected_load);
        let reference = directional_derivative(gradients64.get_f64(&name).expect(&name));
        let cpu = directional_derivative(gradients32.get_f64(&name).expect(&name));
        let scale = difference.abs().max(1e-2);
        assert!(
            (reference - difference).abs() / scale < 1e-4,
            "{label} {name}: reference {reference}, difference {difference}"
        );
        assert!(
            (cpu - difference).abs() / scale < 2e-3,
            "{label} {name}: CPU {cpu}, difference {difference}"
        );
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for (label, config) in fields() {
        check(&label, &config);
    }
}
