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
    for n in named_placements() {
        if let Some(other) = seen.insert(n.placement().hash(), n.name) {
            panic!("{other} and {} have the same hash", n.name);
        }
    }
}

#[test]
fn hash_is_independent_of_spelling() {
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
    let overridden = |layers: Value, set: Value| {
        hash(json!({ "base": "sandwich", "overrides": [{ "layers": layers, "set": set }] }))
    };
    let first = overridden(
        json!([0]),
        json!({ "attn": { "out_norm": { "gain_init": 1 } } }),
    );
    assert_eq!(
        first,
        overridden(
            json!({ "indices": [0, 0] }),
            json!({ "attn": { "out_norm": true } })
        )
    );
    assert_eq!(
        first,
        overridden(
            json!({ "range": { "start": 0, "end": 1 } }),
            json!({ "attn": { "out_norm": true } })
        )
    );
    assert_eq!(
        overridden(json!([2, 1, 3]), json!({ "attn": { "in_norm": false } })),
        overridden(
            json!({ "range": { "start": 1, "end": 4 } }),
            json!({ "attn": { "in_norm": false } })
        )
    );
    let mut negative = get("pre-norm");
    negative.logits.z_loss = -0.0;
    assert_eq!(negative.hash(), get("pre-norm").hash());
}

#[test]
fn placement_built_in_code_hashes_like_deserialized_placement() {
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
fn every_field_changes_the_hash() {
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
        json!({ "streams": "siamese" }),
        json!({ "merge_norm": true }),
        json!({ "unit_weights": true }),
        json!({ "block": { "attn": { "read_scale": 2 } } }),
        json!({ "block": { "ffn": { "combine": "lerp_unit" } } }),
        json!({ "block": { "ffn_inner": { "gate_scale": 2 } } }),
        json!({ "block": { "ffn_inner": { "up_scale": 2 } } }),
    ] {
        let mut value = change.clone();
        value["base"] = json!("pre-norm");
        assert_ne!(hash(value), base, "{change}");
    }
}

#[test]
fn equivalent_placements_have_equal_resolved_hashes() {
    let star = resolve(&get("hybridnorm-star"), 1, 64).unwrap();
    let first = resolve(&get("pre-qkv-pre"), 1, 64).unwrap();
    assert_eq!(star.hash(), first.hash());
    assert_ne!(get("hybridnorm-star").hash(), get("pre-qkv-pre").hash());
}

/// Hashes are stored in checkpoints and reports: a change here is a change of format.
#[test]
fn hashes_are_stable() {
    let golden: BTreeMap<&str, &str> = GOLDEN.iter().copied().collect();
    for n in named_placements() {
        let hash = n.placement().hash();
        assert_eq!(golden.get(n.name), Some(&hash.as_str()), "{}", n.name);
    }
    assert_eq!(golden.len(), named_placements().len());
}

const GOLDEN: &[(&str, &str)] = &[
    ("hybridnorm", "a62977297bdb054b"),
    ("hybridnorm-star", "f829ce781f6d29f4"),
    ("hybridnorm-7b", "972f5f12f1e021bb"),
    ("hybridnorm-ds", "265cc25da4166b87"),
    ("first-qkv-pre", "560f8d9f7fd0e82d"),
    ("first-embed-norm", "f89064449b86c7c5"),
    ("qkv-pre", "059788c38687570b"),
    ("pre-qkv-pre", "8dbf227003db75df"),
    ("pre-qkv-post", "324d011b02e38519"),
    ("qkvc-post", "8179e9d56b21188f"),
    ("qkc-post", "63e72b2ef6fec2d8"),
    ("kv-post", "8d24c87ddf80dcbd"),
    ("kc-post", "3313c3c88f40f750"),
    ("qk-post", "ddda0ad763e79cfa"),
    ("pre-post", "a3536f79bf1cf15c"),
    ("post-pre", "a315ec5f3ba61151"),
    ("post-norm", "0c66894167fa92d6"),
    ("post-norm-entry", "addb1f283dd9b8dc"),
    ("pre-norm", "a229c0b6e6c6e877"),
    ("pre-norm-qk", "1d5629236c4ff8d7"),
    ("pre-norm-qk-full", "88a82eff730ed26c"),
    ("sandwich", "b22a1754c3d29a91"),
    ("olmo2", "763f4fe3d6e2bc54"),
    ("swin-v2-res-post", "6e3a3544512b2832"),
    ("sub-ln", "948d603c41d0af57"),
    ("normformer", "805a01083fba89a1"),
    ("simple-norm", "3b720d5470b9e60f"),
    ("gpt-j-parallel", "82b4a37e92150fa5"),
    ("neox-parallel", "738329b5aae8ffe3"),
    ("dyt", "00e24cc2b16fd8e4"),
    ("derf", "6bb32cbdc621affc"),
    ("deepnorm", "8ab24878d19391b0"),
    ("mix-ln", "6bf42b66f2172fb6"),
    ("lns", "dd9c5be22706adfc"),
    ("keel", "8d2e3a2cfdd2784e"),
    ("spannorm", "89366f5653a66ee7"),
    ("b2t", "7fc176ffaeed7dfa"),
    ("layerscale", "7715335e73eadffb"),
    ("rezero", "fc711950d2ad401e"),
    ("minimax-text-01", "860ea5911ac214f6"),
    ("gemma2", "13d9079597b6a27b"),
    ("gemma3", "fedf05f0acfc9d0b"),
    ("gemma3n", "28cb034df6ca0d0b"),
    ("nanochat", "9a23ec421b8750f9"),
    ("resi-dual", "463a053a1e06b1b2"),
    ("siamese-norm", "f0ec654028d2d109"),
    ("siamese-hybrid", "6db6207e0368ff78"),
    ("deepseek-v3", "d4146120cc6eabd7"),
    ("ngpt", "9420309b887e9109"),
];
