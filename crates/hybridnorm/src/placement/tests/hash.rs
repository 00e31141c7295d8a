use std::collections::BTreeMap;

use serde_json::json;

use super::*;

fn hash(value: Value) -> String {
    of(value).hash()
}

#[test]
fn a_hash_is_sixteen_hex_digits() {
    let hash = get("hybridnorm").hash();
    assert_eq!(hash.len(), 16);
    assert!(hash.chars().all(|c| c.is_ascii_hexdigit()));
}

#[test]
fn different_values_hash_differently() {
    let mut seen = BTreeMap::new();
    for n in names() {
        if let Some(other) = seen.insert(n.placement().hash(), n.name) {
            panic!("{other} and {} are one value", n.name);
        }
    }
}

#[test]
fn the_way_of_writing_does_not_matter() {
    let plain = hash(json!({ "block": { "attn": { "in_scale": 2 } } }));
    assert_eq!(
        plain,
        hash(json!({ "block": { "attn": { "in_scale": 2.0 } } }))
    );
    assert_eq!(
        plain,
        hash(
            json!({ "final_norm": true, "block": { "ffn": {}, "attn": { "in_scale": 2.0e0,
            "skip": "raw", "out_norm": null } } })
        )
    );
    let patched = |layers: Value, set: Value| {
        hash(json!({ "base": "sandwich", "overrides": [{ "layers": layers, "set": set }] }))
    };
    let first = patched(
        json!([0]),
        json!({ "attn": { "out_norm": { "gain_init": 1 } } }),
    );
    assert_eq!(
        first,
        patched(
            json!({ "indices": [0, 0] }),
            json!({ "attn": { "out_norm": true } })
        )
    );
    assert_eq!(
        first,
        patched(
            json!({ "range": { "start": 0, "end": 1 } }),
            json!({ "attn": { "out_norm": true } })
        )
    );
    assert_eq!(
        patched(json!([2, 1, 3]), json!({ "attn": { "in_norm": false } })),
        patched(
            json!({ "range": { "start": 1, "end": 4 } }),
            json!({ "attn": { "in_norm": false } })
        )
    );
    let mut negative = get("pre-norm");
    negative.logits.z_loss = -0.0;
    assert_eq!(negative.hash(), get("pre-norm").hash());
}

#[test]
fn values_made_in_code_hash_like_values_read() {
    let mut made = get("hybridnorm");
    made.overrides.push(Override {
        layers: Selector::Range { start: 0, end: 1 },
        set: json!({ "ffn": { "skip": "raw", "in_scale": 1 } }),
    });
    let read = hash(json!({ "base": "hybridnorm", "overrides": [
        { "layers": [0], "set": { "ffn": { "in_scale": 1.0, "skip": "raw" } } }] }));
    assert_eq!(made.hash(), read);
}

#[test]
fn every_field_counts() {
    let base = get("pre-norm").hash();
    for change in [
        json!({ "final_norm": false }),
        json!({ "norm": { "eps": 1.0001e-5 } }),
        json!({ "norm": { "bias": true } }),
        json!({ "embed": { "norm": true } }),
        json!({ "logits": { "z_loss": 1e-5 } }),
        json!({ "init": { "gains": { "v": 2 } } }),
        json!({ "block": { "attn_inner": { "head_gain": true } } }),
        json!({ "block": { "ffn_inner": { "mid_norm": true } } }),
    ] {
        let mut value = change.clone();
        value["base"] = json!("pre-norm");
        assert_ne!(hash(value), base, "{change}");
    }
}

#[test]
fn different_writings_of_the_same_blocks_agree_once_resolved() {
    let star = resolve(&get("hybridnorm-star"), 1, 64).unwrap();
    let first = resolve(&get("pre-qkv-pre"), 1, 64).unwrap();
    assert_eq!(star.hash(), first.hash());
    assert_ne!(get("hybridnorm-star").hash(), get("pre-qkv-pre").hash());
}

/// Hashes stand in checkpoints and reports: a change here is a change of format.
#[test]
fn hashes_are_stable() {
    let golden: BTreeMap<&str, &str> = GOLDEN.iter().copied().collect();
    for n in names() {
        let hash = n.placement().hash();
        assert_eq!(golden.get(n.name), Some(&hash.as_str()), "{}", n.name);
    }
    assert_eq!(golden.len(), names().len());
}

const GOLDEN: &[(&str, &str)] = &[];
