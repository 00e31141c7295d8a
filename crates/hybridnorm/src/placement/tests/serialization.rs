//! Fields that are omitted from the serialized form if default.

use serde::de::DeserializeOwned;
use serde_json::json;

use super::placement_config::{block_template, template};
use super::*;

/// Returns the field names that the deserializer of a struct accepts.
fn fields<T: DeserializeOwned>() -> Vec<String> {
    let error = serde_json::from_value::<T>(json!({ "?": 0 }))
        .err()
        .unwrap();
    let message = error.to_string();
    let names = message.split('`').skip(3).step_by(2);
    names.map(String::from).collect()
}

fn keys(table: &Value) -> Vec<String> {
    let mut keys: Vec<_> = table.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    keys
}

fn sorted<T: DeserializeOwned>() -> Vec<String> {
    let mut fields = fields::<T>();
    fields.sort();
    fields
}

#[test]
fn template_has_every_field() {
    let all = template().unwrap();
    assert_eq!(all["block"], block_template().unwrap());
    assert_eq!(keys(&all), sorted::<Placement>());
    let block = &all["block"];
    assert_eq!(keys(block), sorted::<UnresolvedBlock>());
    assert_eq!(keys(&block["attn"]), sorted::<SubLayer<Scale>>());
    assert_eq!(keys(&block["ffn"]), sorted::<SubLayer<Scale>>());
    assert_eq!(keys(&block["attn_inner"]), sorted::<AttnInner<Scale>>());
    assert_eq!(keys(&block["ffn_inner"]), sorted::<FfnInner<Scale>>());
    assert_eq!(from_value(all).unwrap(), Placement::default());
}

#[test]
fn default_fields_are_omitted() {
    let all = serde_json::to_value(get("pre-norm")).unwrap();
    for field in ["streams", "merge_norm", "unit_weights"] {
        assert!(all.get(field).is_none(), "{field}");
    }
    for field in ["read_scale", "combine"] {
        assert!(all["block"]["attn"].get(field).is_none(), "{field}");
    }
    for field in ["gate_scale", "up_scale"] {
        assert!(all["block"]["ffn_inner"].get(field).is_none(), "{field}");
    }
    let learned = json!({ "learned": { "shape": "scalar", "init": 0.5 } });
    let p = of(json!({ "block": { "attn": { "out_scale": learned } } }));
    assert_eq!(
        serde_json::to_value(p.block.attn.out_scale).unwrap(),
        learned
    );
}

/// An override that resets a field to its default keeps that field.
#[test]
fn an_override_can_reset_a_field_to_its_default() {
    let back = |combine: &str, rate: Value| {
        of(json!({ "base": "ngpt", "overrides": [{ "layers": [1],
            "set": { "ffn": { "combine": combine, "out_scale": rate, "post_norm": true },
                     "ffn_inner": { "up_scale": rate } } }] }))
    };
    let p = back("add", json!(1));
    let set = &p.overrides[0].set;
    assert_eq!(set["ffn"]["combine"], json!("add"));
    assert_eq!(set["ffn_inner"]["up_scale"], json!(1.0));
    let r = resolve(&p, 3, 64).unwrap();
    let seen = r.blocks.iter().map(|b| b.ffn.combine);
    let unit = Combine::LerpUnit;
    assert_eq!(seen.collect::<Vec<_>>(), [unit, Combine::Add, unit]);
    assert_eq!(r.blocks[1].ffn_inner.up_scale, ResolvedScale::Const(1.0));
    assert_eq!(p.hash(), back("add", json!(1.0)).hash());
    assert_ne!(p.hash(), get("ngpt").hash());
}

#[test]
fn a_misspelled_new_field_is_named() {
    for (value, start) in [
        (
            json!({ "stream": "siamese" }),
            "placement.stream: unknown field, did you mean `streams`?",
        ),
        (
            json!({ "streams": "siames" }),
            "placement.streams: unknown value \"siames\", did you mean `siamese`?",
        ),
        (
            json!({ "block": { "attn": { "combin": "add" } } }),
            "placement.block.attn.combin: unknown field, did you mean `combine`?",
        ),
        (
            json!({ "block": { "ffn_inner": { "upscale": 1 } } }),
            "placement.block.ffn_inner.upscale: unknown field, did you mean `up_scale`?",
        ),
    ] {
        let message = error_message(value);
        assert!(
            message.starts_with(start),
            "{message}\nshould start with {start}"
        );
    }
    assert_eq!(
        of(json!({ "streams": "residual-dual" })).streams,
        Streams::ResidualDual
    );
}

#[test]
fn resolved_scale_round_trips_with_start() {
    let factor = ResolvedScale::Learned {
        shape: LearnedShape::Vector,
        init: 0.05,
        start: Some(0.125),
    };
    let json = serde_json::to_value(factor).unwrap();
    assert_eq!(json["learned"]["start"], json!(0.125));
    assert_eq!(
        serde_json::from_value::<ResolvedScale>(json).unwrap(),
        factor
    );
    let formula = json!({ "learned": { "shape": "scalar", "init": 1, "start": "sqrt_width" } });
    assert!(serde_json::from_value::<ResolvedScale>(formula).is_err());
}
