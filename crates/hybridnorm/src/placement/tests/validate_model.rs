//! Validation of model-wide fields, selectors and overrides.

use serde_json::json;

use super::validate::{block, rejects, warnings, warns};
use super::*;

#[test]
fn norms_with_a_learned_alpha_require_parameters() {
    rejects(
        block(
            "dyt",
            json!({ "attn_inner": { "v_norm": "per_head_plain" } }),
        ),
        "block.attn_inner.v_norm",
        "α",
    );
}

#[test]
fn alpha_belongs_to_dyt_and_derf() {
    let alpha = |kind: &str, value: f64| json!({ "base": "pre-norm", "norm": { "kind": kind, "alpha_init": value } });
    rejects(alpha("rmsnorm", 0.5), "norm.alpha_init", "no effect");
    rejects(alpha("dyt", 0.0), "norm.alpha_init", "above 0");
    assert_eq!(warnings(alpha("dyt", 0.8)), []);
}

#[test]
fn disabled_norms_reject_gain_and_bias() {
    let none = |key: &str, value: Value| json!({ "norm": { "kind": "none", key: value } });
    rejects(none("gain", json!("one_plus")), "norm.gain", "no effect");
    rejects(none("bias", json!(true)), "norm.bias", "no effect");
}

#[test]
fn limits_are_in_the_range_of_single_precision() {
    for bad in [1e300, 1e-300, 1e-40] {
        let softcap = json!({ "logits": { "softcap": bad } });
        rejects(softcap, "logits.softcap", "single precision");
        let inner = json!({ "attn_inner": { "attn_softcap": bad } });
        rejects(
            block("pre-norm", inner),
            "block.attn_inner.attn_softcap",
            "single precision",
        );
    }
}

#[test]
fn limits_are_positive_and_finite() {
    for bad in [0.0, -1.0] {
        rejects(json!({ "norm": { "eps": bad } }), "norm.eps", "above 0");
        rejects(
            json!({ "logits": { "softcap": bad } }),
            "logits.softcap",
            "above 0",
        );
        rejects(
            json!({ "embed": { "init_std": bad } }),
            "embed.init_std",
            "above 0",
        );
        rejects(
            json!({ "base": "pre-norm", "init": { "std": bad } }),
            "init.std",
            "above 0",
        );
        for field in ["attn_softcap", "clip_qkv", "attn_scale"] {
            rejects(
                block("pre-norm", json!({ "attn_inner": { field: bad } })),
                &format!("block.attn_inner.{field}"),
                "above 0",
            );
        }
    }
    rejects(
        json!({ "logits": { "z_loss": -1e-4 } }),
        "logits.z_loss",
        "0 or above",
    );
    for bad in [f64::NAN, f64::INFINITY] {
        let mut p = get("pre-norm");
        p.norm.eps = bad;
        assert_eq!(validate(&p, 12, &SMALL).unwrap_err().field, "norm.eps");
        let mut p = get("pre-norm");
        p.block.attn.skip_scale = Scale::Const(bad);
        assert_eq!(
            validate(&p, 12, &SMALL).unwrap_err().field,
            "block.attn.skip_scale"
        );
        let mut p = get("pre-norm");
        p.logits.z_loss = bad;
        assert_eq!(validate(&p, 12, &SMALL).unwrap_err().field, "logits.z_loss");
    }
}

#[test]
fn a_standard_deviation_belongs_to_schemes_that_have_one() {
    for scheme in ["xavier", "depth_scaled"] {
        rejects(
            json!({ "base": "pre-norm", "init": { "scheme": scheme, "std": 0.02 } }),
            "init.std",
            "no effect",
        );
    }
}

#[test]
fn a_scale_before_the_embedding_norm_has_no_effect() {
    rejects(
        json!({ "base": "nanochat", "embed": { "scale": "sqrt_width" } }),
        "embed.scale",
        "no effect",
    );
    assert_eq!(
        warnings(json!({ "base": "dyt", "embed": { "norm": true } })),
        []
    );
}

#[test]
fn selectors_name_blocks_that_exist() {
    let over = |layers: Value| {
        json!({ "base": "hybridnorm",
            "overrides": [{ "layers": layers, "set": { "ffn": { "skip": "raw" } } }] })
    };
    let field = "overrides[0].layers";
    rejects(over(json!([12])), field, "indices 0 to 11");
    rejects(over(json!([])), field, "empty");
    rejects(
        over(json!({ "range": { "start": 3, "end": 3 } })),
        field,
        "empty",
    );
    rejects(
        over(json!({ "range": { "start": 3, "end": 13 } })),
        field,
        "only 12",
    );
    rejects(over(json!({ "last": 0 })), field, "no block");
    rejects(over(json!({ "last": 13 })), field, "only 12");
    rejects(over(json!({ "every": 0 })), field, "no block");
    rejects(over(json!({ "first_fraction": 0 })), field, "(0, 1]");
    rejects(over(json!({ "first_fraction": 1.5 })), field, "(0, 1]");
    let rule = WarningRule::NoLayers;
    warns(
        over(json!({ "first_fraction": 0.01 })),
        rule,
        field,
        "no effect",
    );
    warns(over(json!({ "every": 13 })), rule, field, "no effect");
}

#[test]
fn an_empty_override_is_rejected() {
    rejects(
        json!({ "overrides": [{ "layers": [0], "set": {} }] }),
        "overrides[0].set",
        "no effect",
    );
}

#[test]
fn an_invalid_override_built_in_code_is_rejected() {
    let mut p = get("hybridnorm");
    p.overrides.push(Override {
        layers: Selector::Indices(vec![0]),
        set: json!({ "ffn": { "skipp": "raw" } }),
    });
    let error = validate(&p, 12, &SMALL).unwrap_err();
    assert_eq!(error.field, "overrides[0].set.ffn.skipp");
}

#[test]
fn zero_head_dim_is_rejected() {
    let facts = ModelFacts {
        head_dim: 0,
        ..SMALL
    };
    assert!(validate(&get("pre-norm"), 12, &facts).is_err());
}

#[test]
fn repeated_warnings_are_deduplicated() {
    let p = of(json!({ "base": "qk-post",
        "overrides": [{ "layers": [0], "set": { "ffn": { "skip": "raw" } } }] }));
    assert_eq!(validate(&p, 29, &SMALL).unwrap().len(), 1);
}
