use serde_json::json;

use super::*;

/// Returns the validation error at 12 blocks.
fn error(value: Value) -> PlacementError {
    validate(&of(value), 12, &SMALL).unwrap_err()
}

/// Asserts the field of the error and a phrase of its message.
pub(super) fn rejects(value: Value, field: &str, phrase: &str) {
    let error = error(value);
    assert_eq!(error.field, field, "{error}");
    let message = error.to_string();
    assert!(message.contains(phrase), "{message}");
    let says_no_effect = message.contains("no effect");
    assert!(!says_no_effect || error.kind == PlacementErrorKind::NoEffect);
    assert!(
        message.starts_with(&format!("placement.{field}: ")),
        "{message}"
    );
}

pub(super) fn warnings(value: Value) -> Vec<Warning> {
    validate(&of(value), 12, &SMALL).unwrap()
}

/// Asserts that there is exactly one warning, with this rule, field and phrase.
pub(super) fn warns(value: Value, rule: WarningRule, field: &str, phrase: &str) {
    let all = warnings(value);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].rule, all[0].field.as_str()), (rule, field));
    assert!(all[0].message.contains(phrase), "{}", all[0]);
}

/// Returns a table with a base placement and block fields to merge into it.
pub(super) fn block(base: &str, block: Value) -> Value {
    json!({ "base": base, "block": block })
}

#[test]
fn a_normed_skip_needs_its_norm() {
    rejects(
        block("hybridnorm", json!({ "ffn": { "in_norm": false } })),
        "block.ffn.skip",
        "ffn.in_norm = true",
    );
    rejects(
        block(
            "pre-norm",
            json!({ "attn": { "in_norm": false, "skip": "normed" } }),
        ),
        "block.attn.skip",
        "which is off",
    );
}

#[test]
fn a_scale_before_normed_projections_has_no_effect() {
    let half = json!({ "attn": { "in_scale": 0.5 } });
    for base in ["hybridnorm", "qkv-pre"] {
        rejects(
            block(base, half.clone()),
            "block.attn.in_scale",
            "no effect",
        );
    }
    for base in ["pre-norm", "pre-norm-qk"] {
        assert!(validate(&of(block(base, half.clone())), 12, &SMALL).is_ok());
    }
    let mut dyt = block("hybridnorm", half);
    dyt["norm"] = json!({ "kind": "dyt" });
    assert!(validate(&of(dyt), 12, &SMALL).is_ok());
}

#[test]
fn errors_name_the_offending_override() {
    rejects(
        json!({ "base": "hybridnorm",
            "overrides": [{ "layers": [3], "set": { "attn": { "skip": "normed" } } }] }),
        "overrides[0].set.attn.skip",
        "normalized skip (\"normed\")",
    );
}

#[test]
fn without_a_final_norm_the_last_block_ends_in_one() {
    rejects(
        json!({ "base": "pre-norm", "final_norm": false }),
        "final_norm",
        "raw sum",
    );
    rejects(
        json!({ "base": "layerscale", "final_norm": false }),
        "final_norm",
        "post_norm",
    );
    rejects(
        json!({ "base": "keel",
            "overrides": [{ "layers": { "last": 1 }, "set": { "ffn": { "post_norm": false } } }] }),
        "final_norm",
        "final_norm = true",
    );
    assert_eq!(warnings(json!("rezero")), []);
    let parallel = json!({ "base": "gpt-j-parallel", "final_norm": false,
        "block": { "attn": { "post_norm": true } } });
    assert_eq!(warnings(parallel), []);
}

#[test]
fn a_norm_after_a_norm_warns() {
    let rule = WarningRule::DoubleNorm;
    warns(
        json!({ "base": "post-norm", "final_norm": true }),
        rule,
        "final_norm",
        "twice",
    );
    warns(
        json!({ "base": "post-norm-entry", "embed": { "norm": true } }),
        rule,
        "block.attn.skip",
        "twice",
    );
    warns(
        block("hybridnorm", json!({ "attn": { "post_norm": true } })),
        rule,
        "block.ffn.skip",
        "attn.post_norm",
    );
}

#[test]
fn skips_from_the_block_input_belong_to_a_sequential_ffn() {
    for skip in ["block_input", "raw_plus_block_input"] {
        rejects(
            block("pre-norm", json!({ "attn": { "skip": skip } })),
            "block.attn.skip",
            "sequential block",
        );
        rejects(
            block("neox-parallel", json!({ "ffn": { "skip": skip } })),
            "block.ffn.skip",
            "one skip",
        );
    }
}

#[test]
fn norm_over_all_heads_after_rope_is_rejected() {
    for norm in ["full", "full_plain"] {
        rejects(
            block(
                "pre-norm",
                json!({ "attn_inner": { "k_norm": norm, "qk_order": "after_rope" } }),
            ),
            "block.attn_inner.k_norm",
            "before_rope",
        );
    }
}

#[test]
fn an_order_without_norms_is_rejected() {
    rejects(
        block(
            "pre-norm",
            json!({ "attn_inner": { "qk_order": "after_rope" } }),
        ),
        "block.attn_inner.qk_order",
        "no effect",
    );
}

#[test]
fn unbounded_attention_warns() {
    let rule = WarningRule::UnboundedAttention;
    warns(json!("qk-post"), rule, "block.attn.in_norm", "diverged");
    for safe in [
        "qkc-post",
        "kv-post",
        "olmo2",
        "post-norm",
        "b2t",
        "spannorm",
        "swin-v2-res-post",
    ] {
        assert_eq!(warnings(json!(safe)), [], "{safe}");
    }
}

#[test]
fn an_unbounded_feed_forward_warns() {
    warns(
        block("pre-norm", json!({ "ffn": { "in_norm": false } })),
        WarningRule::UnboundedFfn,
        "block.ffn.in_norm",
        "without bound",
    );
}

#[test]
fn a_model_without_norms_needs_small_outputs() {
    let all = warnings(json!({ "base": "pre-norm", "norm": { "kind": "none" } }));
    let fields: Vec<_> = all.iter().map(|w| w.field.as_str()).collect();
    assert_eq!(fields, ["block.attn.out_scale", "block.ffn.out_scale"]);
    assert!(all[0].message.contains("ReZero"));
}

#[test]
fn lns_with_shrinking_weights_warns() {
    for scheme in ["megatron", "depth_scaled"] {
        let all = warnings(json!({ "base": "lns", "init": { "scheme": scheme } }));
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|w| w.rule == WarningRule::DepthScaledTwice));
        assert_eq!(all[0].field, "block.attn.in_scale");
    }
}

#[test]
fn hybridnorm_without_its_init_warns() {
    for scheme in ["normal", "depth_scaled"] {
        warns(
            json!({ "base": "hybridnorm", "init": { "scheme": scheme } }),
            WarningRule::HybridInit,
            "init.scheme",
            "megatron",
        );
    }
    let raw = json!({ "base": "qkv-pre", "init": { "scheme": "normal" } });
    assert_eq!(warnings(raw), []);
}

#[test]
fn eps_large_relative_to_the_first_queries_warns() {
    let rule = WarningRule::EpsTooLarge;
    let fixed = json!({ "base": "hybridnorm", "init": { "std": 0.02 } });
    warns(fixed, rule, "norm.eps", "12 %");
    let at = |name: &str, d_model| {
        let facts = ModelFacts { d_model, ..SMALL };
        validate(&get(name), 12, &facts).unwrap()
    };
    let all = at("hybridnorm", 2048);
    assert_eq!(all.len(), 1);
    assert!(all[0].message.contains("13 %"), "{}", all[0]);
    assert_eq!(at("hybridnorm", 768), []);
    assert_eq!(at("hybridnorm-star", 2048), []);
    assert_eq!(at("first-embed-norm", 2048), []);
    assert_eq!(at("pre-norm-qk", 2048), []);
    let scaled = json!({ "base": "hybridnorm", "embed": { "scale": "sqrt_width" },
        "init": { "std": 0.02 } });
    assert_eq!(warnings(scaled), []);
}

#[test]
fn parallel_blocks_have_one_skip_and_one_sum() {
    let parallel = |value| block("neox-parallel", value);
    rejects(
        parallel(json!({ "ffn": { "skip": "normed" } })),
        "block.ffn.skip",
        "no effect",
    );
    rejects(
        parallel(json!({ "ffn": { "skip_scale": 2 } })),
        "block.ffn.skip_scale",
        "attn",
    );
    rejects(
        parallel(json!({ "ffn": { "post_norm": true } })),
        "block.ffn.post_norm",
        "attn",
    );
    rejects(
        parallel(json!({ "attn": { "skip": "normed" } })),
        "block.attn.skip",
        "raw",
    );
    let fine = parallel(json!({ "attn": { "skip_scale": 2, "out_scale": 0.5 },
        "ffn": { "in_scale": 0.5, "out_norm": true } }));
    assert_eq!(warnings(fine), []);
}

#[test]
fn a_shared_norm_is_on_for_both_or_for_none() {
    rejects(
        block("gpt-j-parallel", json!({ "ffn": { "in_norm": false } })),
        "block.ffn.in_norm",
        "parallel_two",
    );
}

#[test]
fn a_gate_norm_needs_a_gate() {
    let facts = ModelFacts {
        has_gated_activation: false,
        ..SMALL
    };
    let error = validate(&get("simple-norm"), 12, &facts).unwrap_err();
    assert_eq!(error.field, "block.ffn_inner.gate_norm");
    assert!(error.problem.contains("gated"));
}

#[test]
fn gain_init_must_not_be_learned_and_requires_a_gain() {
    let gain = |value: Value| json!({ "attn": { "out_norm": { "gain_init": value } } });
    let field = "block.attn.out_norm.gain_init";
    let learned = json!({ "learned": { "shape": "scalar", "init": 1 } });
    rejects(block("sandwich", gain(learned)), field, "not learned");
    let half = |norm| json!({ "base": "sandwich", "block": gain(json!(0.5)), "norm": norm });
    rejects(half(json!({ "gain": "none" })), field, "no effect");
    rejects(half(json!({ "kind": "none" })), field, "no effect");
}

#[test]
fn two_zero_initialized_scales_are_rejected() {
    let zero = json!({ "learned": { "shape": "scalar", "init": 0 } });
    rejects(
        block("swin-v2-res-post", json!({ "ffn": { "out_scale": zero } })),
        "block.ffn.out_scale",
        "gradient",
    );
}

#[test]
fn constant_zero_scales_are_rejected() {
    for field in ["in_scale", "out_scale"] {
        rejects(
            block("pre-norm", json!({ "attn": { field: 0 } })),
            &format!("block.attn.{field}"),
            "gradient",
        );
    }
    rejects(json!({ "embed": { "scale": 0 } }), "embed.scale", "0");
    rejects(json!({ "logits": { "scale": 0 } }), "logits.scale", "0");
    rejects(
        json!({ "init": { "gains": { "v": 0 } } }),
        "init.gains.v",
        "0",
    );
}

#[test]
fn nested_learned_scales_are_rejected() {
    let learned = json!({ "learned": { "shape": "scalar", "init": 1 } });
    let twice = json!({ "learned": { "shape": "scalar", "init": learned } });
    rejects(
        block("pre-norm", json!({ "attn": { "out_scale": twice } })),
        "block.attn.out_scale",
        "must not be",
    );
    rejects(
        json!({ "base": "pre-norm", "init": { "gains": { "down": learned } } }),
        "init.gains.down",
        "cannot be learned",
    );
}

#[test]
fn the_scale_after_qk_norm_needs_the_norm() {
    let inner = |value| json!({ "attn_inner": value });
    let field = "block.attn_inner.qk_post_scale";
    rejects(
        block("pre-norm", inner(json!({ "qk_post_scale": 1.2 }))),
        field,
        "at least one of them has none",
    );
    rejects(
        json!({ "base": "nanochat", "norm": { "kind": "none", "gain": "plain" } }),
        field,
        "at least one of them has none",
    );
    let learned = json!({ "learned": { "shape": "scalar", "init": 1 } });
    rejects(
        block("pre-norm-qk", inner(json!({ "qk_post_scale": learned }))),
        field,
        "gain",
    );
    let without_gain = inner(json!({
        "q_norm": "per_head_plain", "k_norm": "per_head_plain", "qk_post_scale": learned
    }));
    assert_eq!(warnings(block("pre-norm-qk", without_gain)), []);
    rejects(
        block("pre-norm-qk", inner(json!({ "qk_post_scale": 0 }))),
        field,
        "removes",
    );
    rejects(
        block(
            "pre-norm-qk",
            inner(json!({ "qk_post_scale": 2, "attn_scale": "cosine" })),
        ),
        field,
        "unit length",
    );
}

#[test]
fn qk_norms_are_rejected_with_cosine_attention() {
    for base in ["pre-norm-qk", "pre-norm-qk-full"] {
        rejects(
            block(base, json!({ "attn_inner": { "attn_scale": "cosine" } })),
            "block.attn_inner.q_norm",
            "unit length",
        );
    }
}

#[test]
fn errors_have_the_expected_kind() {
    use PlacementErrorKind::{
        Conflict, InvalidValue, NoEffect, OutOfRange, UnknownField, UnknownPlacement,
    };
    for (value, kind) in [
        (json!("pre-nrom"), UnknownPlacement),
        (json!({ "base": "pre-nrom" }), UnknownPlacement),
        (json!({ "blok": {} }), UnknownField),
        (json!({ "block": { "fnn": {} } }), UnknownField),
        (json!(3), InvalidValue),
        (json!({ "streams": "tripel" }), InvalidValue),
        (json!({ "norm": { "eps": "small" } }), InvalidValue),
        (json!({ "norm": { "eps": 0 } }), OutOfRange),
        (json!({ "embed": { "scale": 0 } }), OutOfRange),
        (json!({ "merge_norm": true }), NoEffect),
        (json!({ "base": "pre-norm", "final_norm": false }), Conflict),
    ] {
        let error = match from_value(value.clone()) {
            Ok(placement) => validate(&placement, 12, &SMALL).unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind, kind, "{value}: {error}");
    }
}
