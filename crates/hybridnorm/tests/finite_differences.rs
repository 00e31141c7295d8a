//! Gradients of every field of the algebra against central differences in f64, and the kernels'
//! gradients against those.

mod common;

use common::*;
use hybridnorm::model::params::{self, Values};
use hybridnorm::model::{Decoder, FfnActivation, LossOptions, ModelConfig};
use hybridnorm::placement::{self, Placement};
use serde_json::{Value, json};

fn placement_of(value: Value) -> Placement {
    placement::from_value(value).unwrap()
}

/// One configuration for every value of every field in the algebra.
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
    for activation in [
        FfnActivation::Geglu,
        FfnActivation::Gelu,
        FfnActivation::Relu2,
    ] {
        let mut config = tiny(named("hybridnorm"));
        config.activation = activation;
        all.push((format!("{activation:?}"), config));
    }
    let mut tied = tiny(named("hybridnorm"));
    tied.tie_embeddings = true;
    all.push(("tied".into(), tied));
    all
}

fn loss_f64(model: &Decoder) -> f64 {
    let divisor = (BATCH * SEQ) as f32;
    let loss = model.loss(inputs(model), targets(model), LossOptions { divisor });
    to_vec64(loss)[0]
}

/// Where the tokens of every mixture go.
fn routes(model: &Decoder) -> Vec<Vec<u64>> {
    let seen = model.activations(inputs(model));
    let routing = seen.into_iter().filter_map(|seen| seen.routing);
    routing.map(|routing| routing.load).collect()
}

/// The loss with parameter `name` moved by `step` along `direction`.
fn moved(model: &Decoder, name: &str, direction: &[f32], step: f64) -> f64 {
    let before = routes(model);
    let model = params::map(model.clone(), |at, tensor| {
        if at != name {
            return tensor;
        }
        let (place, x) = tensor.take();
        let n = direction.len();
        let direction: Vec<f64> = direction.iter().map(|&x| f64::from(x) * step).collect();
        let data = burn::tensor::TensorData::new(direction, [n]);
        let direction = burn::tensor::Tensor::from_data(data, (&x.device(), x.dtype()));
        place.put(x + direction)
    });
    assert_eq!(routes(&model), before, "{name}: {step} crosses a tie");
    loss_f64(&model)
}

#[test]
fn gradients_agree_with_central_differences_for_every_field() {
    for (label, config) in fields() {
        let model = stirred(&config, &autodiff());
        let (loss32, gradients32) = loss_and_gradients(&model);
        let exact = in_f64(model);
        let (loss64, gradients64) = loss_and_gradients(&exact);
        assert!((loss32 - loss64).abs() < 2e-5, "{label}: {loss32} {loss64}");
        let plain = in_f64(stirred(&config, &plain()));
        let shapes = params::values(&plain);
        let trained = trained(&plain);
        for (name, Values { data, .. }) in shapes.iter().filter(|(name, _)| trained.contains(name))
        {
            let mut random = Random::new(&format!("{label} {name}"));
            let direction: Vec<f32> = data.iter().map(|_| random.uniform()).collect();
            let along = |gradient: Vec<f32>| -> f64 {
                let pairs = gradient.iter().zip(&direction);
                pairs.map(|(g, d)| f64::from(*g) * f64::from(*d)).sum()
            };
            let step = 1e-5;
            let difference = (moved(&plain, name, &direction, step)
                - moved(&plain, name, &direction, -step))
                / (2.0 * step);
            let composed = along(gradients64.get(name).expect(name));
            let fused = along(gradients32.get(name).expect(name));
            let scale = difference.abs().max(1e-2);
            assert!(
                (composed - difference).abs() / scale < 1e-4,
                "{label} {name}: composition {composed}, difference {difference}"
            );
            assert!(
                (fused - difference).abs() / scale < 2e-3,
                "{label} {name}: kernel {fused}, difference {difference}"
            );
        }
    }
}
