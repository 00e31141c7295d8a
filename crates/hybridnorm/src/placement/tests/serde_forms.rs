use proptest::prelude::*;
use serde_json::json;

use super::*;

fn scale(value: Value) -> Scale {
    of(json!({ "block": { "attn": { "in_scale": value } } }))
        .block
        .attn
        .in_scale
}

#[test]
fn a_scale_is_a_number_a_name_or_a_table() {
    assert_eq!(scale(json!(0.5)), Scale::Const(0.5));
    assert_eq!(scale(json!(2)), Scale::Const(2.0));
    assert_eq!(scale(json!(-1)), Scale::Const(-1.0));
    for name in Formula::NAMES {
        let formula = Formula::by_name(name).unwrap();
        assert_eq!(scale(json!(name)), Scale::Formula(formula));
        assert_eq!(serde_json::to_value(formula).unwrap(), json!(name));
    }
    assert_eq!(
        scale(json!({ "depth_power": { "k": 2, "p": 0.25 } })),
        Scale::Formula(Formula::DepthPower { k: 2.0, p: 0.25 })
    );
    assert_eq!(
        scale(json!({ "learned": { "shape": "vector", "init": 0.1 } })),
        Scale::Learned {
            shape: LearnedShape::Vector,
            init: Box::new(Scale::Const(0.1)),
            start: None,
        }
    );
}

#[test]
fn dashes_and_aliases_are_accepted() {
    assert_eq!(
        scale(json!("inv-sqrt-layer")),
        scale(json!("inv_sqrt_layer"))
    );
    assert_eq!(
        scale(json!("inv_sqrt_2l")),
        scale(json!("inv_sqrt_2_layer"))
    );
    assert_eq!(
        scale(json!("inv_sqrt_2L")),
        scale(json!("inv_sqrt_2_depth"))
    );
    assert_eq!(scale(json!("inv_sqrt_l")), scale(json!("inv_sqrt_layer")));
    assert_eq!(scale(json!("two_L")), scale(json!("two_depth")));
    let p = of(json!({
        "base": "pre-norm",
        "norm": { "gain": "one-plus" },
        "init": { "scheme": "depth-scaled" },
    }));
    assert_eq!(p.norm.gain, Gain::OnePlus);
    assert_eq!(p.init.scheme, InitScheme::DepthScaled);
}

#[test]
fn a_misspelled_formula_names_the_nearest() {
    let message = error_message(json!({ "block": { "attn": { "in_scale": "inv_sqrt_layr" } } }));
    assert!(
        message.starts_with("placement.block.attn.in_scale: "),
        "{message}"
    );
    assert!(
        message.contains("did you mean `inv_sqrt_layer`?"),
        "{message}"
    );
    assert!(message.contains("`two_depth`"), "{message}");
    let message = error_message(json!({ "block": { "attn": { "in_scale": "depth_power" } } }));
    assert!(message.contains("k = 2"), "{message}");
}

#[test]
fn attention_scales_read_like_scales() {
    let read = |value: Value| {
        of(json!({ "block": { "attn_inner": { "attn_scale": value } } }))
            .block
            .attn_inner
            .attn_scale
    };
    assert_eq!(read(json!(0.5)), AttnScale::Const(0.5));
    assert_eq!(read(json!("cosine")), AttnScale::Cosine);
    assert_eq!(read(json!("sqrt_head_dim")), AttnScale::SqrtHeadDim);
    let message = error_message(json!({ "block": { "attn_inner": { "attn_scale": "cosin" } } }));
    assert!(message.contains("did you mean `cosine`?"), "{message}");
}

#[test]
fn optional_values_serialize_to_false_when_off() {
    let p = of(json!({
        "base": "gemma2",
        "logits": { "softcap": false },
        "block": { "attn": { "out_norm": false }, "attn_inner": { "attn_softcap": null } },
    }));
    assert_eq!(p.logits.softcap, None);
    assert_eq!(p.block.attn.out_norm, None);
    assert_eq!(p.block.attn_inner.attn_softcap, None);
    assert!(p.block.ffn.out_norm.is_some());
    let p = of(json!({ "block": { "attn": { "out_norm": true } } }));
    assert_eq!(p.block.attn.out_norm, Some(OutNorm::default()));
    let message = error_message(json!({ "logits": { "softcap": true } }));
    assert!(message.contains("placement.logits.softcap"), "{message}");
}

#[test]
fn norm_functions_and_none_round_trip() {
    for (word, kind) in [
        ("rmsnorm", Some(NormFn::Rmsnorm)),
        ("layernorm", Some(NormFn::Layernorm)),
        ("l2", Some(NormFn::L2)),
        ("dyt", Some(NormFn::Dyt)),
        ("derf", Some(NormFn::Derf)),
        ("none", None),
    ] {
        let p = of(json!({ "norm": { "kind": word } }));
        assert_eq!(p.norm.kind, kind);
        let text = toml::to_string(&p.norm).unwrap();
        assert!(text.contains(&format!("kind = \"{word}\"")), "{text}");
        assert_eq!(toml::from_str::<NormSpec>(&text).unwrap(), p.norm);
        let text = serde_json::to_string(&p).unwrap();
        assert_eq!(serde_json::from_str::<Placement>(&text).unwrap(), p);
    }
    let unknown = error_message(json!({ "norm": { "kind": "layer_norm" } }));
    let other = error_message(json!({ "norm": { "kind": false } }));
    for (message, start) in [
        (
            unknown,
            "placement.norm.kind: unknown value \"layer_norm\", did you mean `layernorm`? Known: \
             `rmsnorm`, `layernorm`, ",
        ),
        (
            other,
            "placement.norm.kind: expected one of `rmsnorm`, `layernorm`, ",
        ),
    ] {
        assert!(message.starts_with(start), "{message}");
        assert!(message.contains("`, `none`"), "{message}");
    }
}

#[test]
fn selectors_have_short_forms() {
    let read = |value: Value| {
        of(json!({ "overrides": [{ "layers": value, "set": { "ffn": { "skip": "raw" } } }] }))
            .overrides[0]
            .layers
            .clone()
    };
    assert_eq!(read(json!([2, 0])), Selector::Indices(vec![0, 2]));
    assert_eq!(read(json!({ "indices": [4] })), Selector::Indices(vec![4]));
    assert_eq!(read(json!([1, 2, 3])), Selector::Range { start: 1, end: 4 });
    assert_eq!(
        read(json!({ "first_fraction": 0.25 })),
        Selector::FirstFraction(0.25)
    );
    assert_eq!(read(json!({ "last": 2 })), Selector::Last(2));
    assert_eq!(read(json!({ "every": 6 })), Selector::Every(6));
}

#[test]
fn toml_with_overrides_parses() {
    let table: Value = toml::from_str(
        r#"
        base = "hybridnorm"
        [block.attn]
        in_scale = "inv_sqrt_layer"
        out_scale = { learned = { shape = "vector", init = 0.1 } }
        [[overrides]]
        layers = [0]
        set = { ffn = { skip = "raw" } }
        "#,
    )
    .unwrap();
    let p = from_value(table).unwrap();
    assert_eq!(p.block.attn.in_scale, Scale::Formula(Formula::InvSqrtLayer));
    assert_eq!(p.block.ffn.skip, Skip::Normed);
    assert_eq!(p.overrides.len(), 1);
}

#[test]
fn unknown_keys_are_named_with_their_path() {
    let cases = [
        (
            json!({ "blok": {} }),
            "placement.blok: unknown field, did you mean `block`?",
        ),
        (
            json!({ "bas": "pre-norm" }),
            "placement.bas: unknown field, did you mean `base`?",
        ),
        (
            json!({ "block": { "ffn": { "skipp": "raw" } } }),
            "placement.block.ffn.skipp: unknown field, did you mean `skip`?",
        ),
        (
            json!({ "overrides": [{ "layers": [0], "set": { "ffn": { "skipp": "raw" } } }] }),
            "placement.overrides[0].set.ffn.skipp: unknown field, did you mean `skip`?",
        ),
        (
            json!({ "block": { "attn": { "out_norm": { "gain": 1 } } } }),
            "placement.block.attn.out_norm.gain: unknown field, did you mean `gain_init`?",
        ),
        (
            json!({ "block": { "attn": { "skip_scale": { "learned": { "shap": "x" } } } } }),
            "placement.block.attn.skip_scale.learned.shap: unknown field, did you mean `shape`?",
        ),
        (
            json!({ "block": { "ffn": { "skip": "normd" } } }),
            "placement.block.ffn.skip: unknown value \"normd\", did you mean `normed`?",
        ),
        (
            json!({ "overrides": [{ "layers": [0], "sett": {} }] }),
            "placement.overrides[0].sett: unknown field, did you mean `set`?",
        ),
    ];
    for (value, start) in cases {
        let message = error_message(value);
        assert!(
            message.starts_with(start),
            "{message}\nshould start with {start}"
        );
    }
}

#[test]
fn type_errors_name_the_path() {
    let cases = [
        (json!(3), "placement: expected a name or a table"),
        (
            json!({ "base": 3 }),
            "placement.base: expected a placement's name",
        ),
        (
            json!({ "base": "nope" }),
            "placement.base: unknown placement nope",
        ),
        (
            json!({ "block": 3 }),
            "placement.block: expected a table of block fields, found 3",
        ),
        (
            json!({ "block": { "attn": { "in_norm": "yes" } } }),
            "placement.block.attn.in_norm: expected true or false, found the string \"yes\"",
        ),
        (
            json!({ "norm": { "eps": [] } }),
            "placement.norm.eps: expected a number, found an array",
        ),
        (
            json!({ "overrides": [{ "layers": [-1], "set": {} }] }),
            "placement.overrides[0].layers[0]: expected a non-negative integer, found -1",
        ),
        (
            json!({ "overrides": [{ "layers": [0] }] }),
            "placement.overrides[0]: missing field `set`",
        ),
        (
            json!({ "overrides": [{ "layers": [0], "set": 1 }] }),
            "placement.overrides[0].set: expected a table of block fields",
        ),
        (
            json!({ "block": { "ffn": { "in_scale": { "learned": {}, "x": 1 } } } }),
            "placement.block.ffn.in_scale.learned: missing field `shape`",
        ),
    ];
    for (value, start) in cases {
        let message = error_message(value);
        assert!(
            message.starts_with(start),
            "{message}\nshould start with {start}"
        );
        assert!(!message.contains('\n'));
    }
}

#[test]
fn a_scale_table_has_one_key() {
    let message = error_message(json!({ "block": { "ffn": { "in_scale": {
        "depth_power": { "k": 1, "p": 1 },
        "learned": { "shape": "scalar", "init": 1 },
    } } } }));
    assert!(message.contains("one key"), "{message}");
}

#[test]
fn label_is_the_plain_name_only_if_unmodified() {
    let config = PlacementConfig::from_value(&json!("hybridnorm*")).unwrap();
    assert_eq!(config.label(), "hybridnorm-star");
    assert_eq!(
        serde_json::to_value(&config).unwrap(),
        json!("hybridnorm-star")
    );
    let same = PlacementConfig::from_value(&json!({
        "base": "hybridnorm", "block": { "ffn": { "skip": "normed" } },
    }))
    .unwrap();
    assert!(!same.modified);
    let changed = json!({ "base": "hybridnorm", "norm": { "eps": 1e-6 } });
    let changed = PlacementConfig::from_value(&changed).unwrap();
    assert!(changed.modified && changed.label().starts_with("hybridnorm+"));
    let written = serde_json::to_value(&changed).unwrap();
    assert_eq!(PlacementConfig::from_value(&written).unwrap(), changed);
    let read: PlacementConfig = serde_json::from_value(written).unwrap();
    assert_eq!(read, changed);
    let custom = PlacementConfig::from_value(&json!({})).unwrap();
    assert!(custom.label().starts_with("custom+"));
}

#[test]
fn fields_not_in_the_table_come_from_the_base() {
    let p = of(json!({ "base": "gemma2", "norm": { "eps": 1e-5 } }));
    assert_eq!(p.norm.gain, Gain::OnePlus);
    assert_eq!(p.norm.eps, 1e-5);
    let p = of(json!({ "base": "hybridnorm-star", "overrides": [] }));
    assert_eq!(p, get("hybridnorm"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("block".to_string()),
        Just("attn".to_string()),
        Just("ffn".to_string()),
        Just("base".to_string()),
        Just("overrides".to_string()),
        Just("layers".to_string()),
        Just("set".to_string()),
        Just("in_scale".to_string()),
        Just("out_norm".to_string()),
        Just("skip".to_string()),
        Just("learned".to_string()),
        Just("init".to_string()),
        Just("norm".to_string()),
        Just("eps".to_string()),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!("normed")),
        Just(json!("hybridnorm")),
        Just(json!("two_depth")),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_panics(value in any_json()) {
        if let Ok(placement) = from_value(value) {
            let _ = placement.hash();
            for depth in [0, 1, 4] {
                let _ = validate(&placement, depth, &SMALL);
                if let Ok(e) = Explanation::new(&placement, depth, &SMALL) {
                    let _ = (e.to_text(), e.to_latex());
                }
            }
        }
    }

    #[test]
    fn round_trip(value in any_json()) {
        if let Ok(placement) = from_value(value) {
            let written = serde_json::to_value(&placement).unwrap();
            prop_assert_eq!(from_value(written).unwrap(), placement);
        }
    }
}
