use serde_json::json;

use super::explain::blocks;
use super::validate::{block, rejects, warnings, warns};
use super::*;

/// Returns a pre-norm placement whose feed-forward combines by `lerp_unit`, with further fields.
fn lerp(fields: Value) -> Value {
    let mut ffn = json!({ "combine": "lerp_unit", "out_scale": 0.1 });
    for (key, value) in fields.as_object().unwrap() {
        ffn[key] = value.clone();
    }
    block("pre-norm", json!({ "ffn": ffn }))
}

fn vector(init: Value) -> Value {
    json!({ "learned": { "shape": "vector", "init": init } })
}

#[test]
fn ngpt_matches_the_released_code() {
    let r = resolve(&get("ngpt"), 4, 64).unwrap();
    let starting = |init: f64, start: f64| ResolvedScale::Learned {
        shape: LearnedShape::Vector,
        init,
        start: Some(start),
    };
    let block = &r.blocks[2];
    for sub in [&block.attn, &block.ffn] {
        assert_eq!(sub.combine, Combine::LerpUnit);
        assert_eq!(sub.out_scale, starting(0.05, 0.125));
        assert!(!sub.in_norm && sub.out_norm.is_some() && !sub.post_norm);
    }
    let inner = &block.attn_inner;
    assert_eq!([inner.q_norm, inner.k_norm], [HeadNorm::PerHeadNoGain; 2]);
    assert_eq!(inner.qk_order, QkOrder::AfterRope);
    assert_eq!(inner.qk_post_scale, starting(1.0, 0.125));
    assert_eq!(inner.attn_scale, AttnScale::SqrtHeadDim);
    let hidden = [block.ffn_inner.gate_scale, block.ffn_inner.up_scale];
    assert_eq!(hidden, [starting(8.0, 1.0); 2]);
    assert_eq!(r.logits.scale, starting(1.0, 0.125));
    assert_eq!((r.norm.kind, r.norm.gain), (Some(NormFn::L2), Gain::None));
    assert!(r.unit_weights && !r.final_norm);
}

#[test]
fn unit_weights_have_std_inv_sqrt_d_model() {
    let r = resolve(&get("ngpt"), 4, 100).unwrap();
    assert_eq!(r.weight_std(3, Projection::Down, 400, 100), 0.1);
    assert_eq!([r.embed_std(), r.head_std()], [0.1; 2]);
}

#[test]
fn lerp_unit_rejects_settings_without_effect() {
    assert_eq!(warnings(lerp(json!({}))).len(), 1);
    rejects(
        lerp(json!({ "skip": "block_input" })),
        "block.ffn.skip",
        "`raw` or `normed`",
    );
    rejects(
        lerp(json!({ "skip_scale": 2 })),
        "block.ffn.skip_scale",
        "out_scale alone",
    );
    rejects(
        lerp(json!({ "post_norm": true })),
        "block.ffn.post_norm",
        "itself",
    );
    rejects(
        lerp(json!({ "out_scale": 1 })),
        "block.ffn.out_scale",
        "removes the skip connection",
    );
    let attn = json!({ "attn": { "combine": "lerp_unit", "out_scale": 0.1 } });
    rejects(
        block("neox-parallel", attn),
        "block.attn.combine",
        "parallel",
    );
}

#[test]
fn a_unit_length_state_counts_as_normalized() {
    let rule = WarningRule::DoubleNorm;
    warns(lerp(json!({})), rule, "final_norm", "twice");
    let mut end = lerp(json!({}));
    end["final_norm"] = json!(false);
    assert_eq!(warnings(end.clone()), []);
    end["block"]["ffn"]["in_norm"] = json!(false);
    end["block"]["attn"] = json!({ "in_norm": false, "combine": "lerp_unit", "out_scale": 0.1 });
    assert_eq!(warnings(end.clone()), []);
    end["block"]["ffn"]["in_norm"] = json!(true);
    end["block"]["ffn"]["skip"] = json!("normed");
    warns(end, rule, "block.ffn.skip", "attn.combine");
}

/// Unit length does not depend on the norm function.
#[test]
fn without_norms_unit_length_bounds_the_state() {
    let sub = json!({ "combine": "lerp_unit", "out_scale": 0.1 });
    let bare = json!({ "norm": { "kind": "none" }, "block": { "attn": sub, "ffn": sub } });
    assert_eq!(warnings(bare), []);
    let r = resolve(&get("ngpt"), 2, 64).unwrap();
    assert_eq!(SymbolicCount::normalized_elements(&r.blocks[0]).d, 4);
}

#[test]
fn init_settings_are_rejected_with_unit_weights() {
    let unit = |mut value: Value| {
        value["base"] = json!("pre-norm");
        value["unit_weights"] = json!(true);
        value
    };
    assert_eq!(warnings(unit(json!({}))), []);
    for (field, value) in [
        ("init.std", json!({ "init": { "std": 0.02 } })),
        ("init.scheme", json!({ "init": { "scheme": "megatron" } })),
        ("init.gains.up", json!({ "init": { "gains": { "up": 2 } } })),
        ("embed.init_std", json!({ "embed": { "init_std": 1 } })),
    ] {
        rejects(unit(value), field, "no effect");
    }
}

#[test]
fn zero_start_of_a_learned_scale_is_rejected() {
    let scale = |init: Value, start: Value| {
        let learned = json!({ "shape": "vector", "init": init, "start": start });
        block(
            "pre-norm",
            json!({ "ffn": { "out_scale": { "learned": learned } } }),
        )
    };
    let field = "block.ffn.out_scale";
    rejects(scale(json!(1), json!(0)), field, "`start` must not be 0");
    rejects(scale(json!(0), json!(1)), field, "stays 0");
    rejects(
        scale(json!(1), vector(json!(1))),
        field,
        "`start` must not be learned",
    );
    assert_eq!(warnings(scale(json!(-0.5), json!("inv_sqrt_width"))), []);
    assert_eq!(warnings(scale(json!(1), Value::Null)), []);
}

#[test]
fn gate_and_up_scales_require_a_gated_activation() {
    let inner = |value: Value| block("pre-norm", json!({ "ffn_inner": value }));
    let facts = ModelFacts {
        has_gated_activation: false,
        ..SMALL
    };
    let gate = of(inner(json!({ "gate_scale": 2 })));
    let error = validate(&gate, 12, &facts).unwrap_err();
    assert_eq!(error.field, "block.ffn_inner.gate_scale");
    assert!(error.problem.contains("no gate"));
    assert_eq!(validate(&gate, 12, &SMALL).unwrap(), []);
    for field in ["gate_scale", "up_scale"] {
        let path = format!("block.ffn_inner.{field}");
        rejects(
            inner(json!({ field: 0 })),
            &path,
            "removes the feed-forward",
        );
    }
}

#[test]
fn scalar_up_scale_before_a_norm_is_rejected() {
    let scaled = |up: Value, rest: Value| {
        let mut value = rest;
        value["ffn_inner"]["up_scale"] = up;
        block("pre-norm", value)
    };
    let field = "block.ffn_inner.up_scale";
    let mid = json!({ "ffn_inner": { "mid_norm": true } });
    let out = json!({ "ffn": { "out_norm": true } });
    let scalar = json!({ "learned": { "shape": "scalar", "init": 2 } });
    for rest in [mid, out.clone()] {
        rejects(scaled(json!(2), rest.clone()), field, "no effect");
        rejects(scaled(scalar.clone(), rest.clone()), field, "no effect");
        assert_eq!(warnings(scaled(vector(json!(2)), rest)), []);
    }
    assert_eq!(warnings(scaled(json!(2), json!({}))), []);
    let facts = ModelFacts {
        has_gated_activation: false,
        ..SMALL
    };
    let through_activation = of(scaled(json!(2), out));
    assert_eq!(validate(&through_activation, 12, &facts).unwrap(), []);
}

#[test]
fn logits_may_have_a_scale_per_entry() {
    let scaled = json!({ "base": "pre-norm", "logits": { "scale": vector(json!(1)) } });
    assert_eq!(warnings(scaled.clone()), []);
    let e = Explanation::of(&of(scaled)).unwrap();
    assert_eq!(e.learned_parameters.to_string(), "v");
    assert!(e.to_text().contains("one number per vocabulary entry"));
}

#[test]
fn learned_scales_of_ngpt() {
    let r = resolve(&get("ngpt"), 12, 64).unwrap();
    let learned = SymbolicCount::learned_scales(&r.blocks[0]);
    assert_eq!(learned.to_string(), "2d + kv·hd + 2f");
    let sizes = ModelSizes {
        d: 1024,
        hd: 64,
        h: 16,
        kv: 16,
        f: 4096,
        vocab: 50_304,
        ..ModelSizes::default()
    };
    assert_eq!(learned.evaluate(sizes), 11_264);
    assert_eq!(
        SymbolicCount::logit_scale(r.logits.scale).evaluate(sizes),
        50_304
    );
}

#[test]
fn ngpt_blocks() {
    let expected = "\
blocks 1–12
  Y  = unit(X + λ₁·(N(A_QK(X)) − X))
  X′ = unit(Y + λ₂·(N(F(Y)) − Y))
where
  A_QK(u) = W_O · softmax(√hd · λ₃·N°(RoPE(q)) λ₃·N°(RoPE(k))ᵀ) v,  q, k, v = W_q u, W_k u, W_v u
  N°      : on q, k: over each head's channels, without parameters
  F(u)    = W_down (φ(λ₄·W_gate u) ⊙ λ₅·W_up u)
  unit(x) = x / |x|
  1/√d    = 0.03608
  λ₁      : learned, one number per channel, initialized to 0.05; its parameter is initialized to 1/√d
  λ₂      : learned, one number per channel, initialized to 0.05; its parameter is initialized to 1/√d
  λ₃      : learned, one number per channel of every key/value head, initialized to 1; \
its parameter is initialized to 1/√d
  √d      = 27.71
  λ₄      : learned, one number per channel, initialized to √d; its parameter is initialized to 1
  λ₅      : learned, one number per channel, initialized to √d; its parameter is initialized to 1
  per block: 0 norm parameters, 4d + h·hd + kv·hd normalized elements per token, \
2d + kv·hd + 2f learned scales
";
    assert_eq!(blocks("ngpt"), expected);
    super::explain::assert_contains_lines(
        "ngpt",
        &[
            "logits = λ₁·W_head X_L",
            "E, W_q, W_k, W_v, W_gate, W_up, W_head : rows of unit length, at \
             initialization and after every optimizer step",
            "W_O, W_down : columns of unit length, at initialization and after every optimizer step",
        ],
    );
}
