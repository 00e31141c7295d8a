use serde_json::json;

use super::*;

#[test]
fn selectors_match_expected_blocks() {
    let chosen = |s: Selector| select_layers(&s, 12).unwrap();
    assert_eq!(chosen(Selector::Indices(vec![3, 1, 3])), [1, 3]);
    assert_eq!(chosen(Selector::Range { start: 2, end: 4 }), [2, 3]);
    assert_eq!(chosen(Selector::FirstFraction(0.25)), [0, 1, 2]);
    assert_eq!(chosen(Selector::Last(2)), [10, 11]);
    assert_eq!(chosen(Selector::Every(6)), [5, 11]);
    assert_eq!(chosen(Selector::Every(1)).len(), 12);
    assert_eq!(
        select_layers(&Selector::FirstFraction(0.29), 100)
            .unwrap()
            .len(),
        29
    );
    assert!(
        select_layers(&Selector::FirstFraction(0.25), 3)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn depths_beyond_the_limit_are_errors() {
    let placement = get("pre-norm");
    let depth = usize::MAX / 2;
    let errors = [
        select_layers(&Selector::Every(1), depth).err(),
        unresolved_blocks(&placement, depth).err(),
        resolve(&placement, depth, 8).err(),
        validate(&placement, depth, &SMALL).err(),
    ];
    for error in errors {
        let error = error.unwrap();
        assert_eq!(error.kind, PlacementErrorKind::OutOfRange, "{error}");
    }
}

#[test]
fn an_override_turns_the_block_of_any_placement_into_that_of_any_other() {
    for from in named_placements() {
        for to in named_placements() {
            let [mut from, to] = [get(from.name), get(to.name)];
            from.overrides.clear();
            let changed = from.with_override(Selector::Every(1), |block| *block = to.block.clone());
            assert_eq!(
                unresolved_blocks(&changed, 2).unwrap(),
                [to.block.clone(), to.block]
            );
        }
    }
}

#[test]
fn later_overrides_take_precedence() {
    let p = of(json!({
        "base": "hybridnorm",
        "overrides": [
            { "layers": { "range": { "start": 0, "end": 3 } },
              "set": { "ffn": { "skip": "raw", "in_scale": 0.5 } } },
            { "layers": { "last": 2 }, "set": { "ffn": { "skip": "normed" } } },
        ],
    }));
    let r = resolve(&p, 4, 64).unwrap();
    let seen: Vec<_> = r
        .blocks
        .iter()
        .map(|b| (b.ffn.skip, b.ffn.in_scale))
        .collect();
    let (half, one) = (ResolvedScale::Const(0.5), ResolvedScale::Const(1.0));
    assert_eq!(
        seen,
        [
            (Skip::Raw, half),
            (Skip::Raw, half),
            (Skip::Normed, half),
            (Skip::Normed, one)
        ]
    );
}

#[test]
fn an_override_replaces_a_scale_as_a_whole() {
    let p = of(json!({
        "base": "deepnorm",
        "overrides": [{
            "layers": [0],
            "set": { "attn": { "skip_scale": { "learned": { "shape": "scalar", "init": 1 } } } },
        }],
    }));
    let r = resolve(&p, 2, 64).unwrap();
    let one = ResolvedScale::Learned {
        shape: LearnedShape::Scalar,
        init: 1.0,
        start: None,
    };
    assert_eq!(r.blocks[0].attn.skip_scale, one);
}

#[test]
fn norm_kind_none_removes_all_norms() {
    for n in named_placements() {
        let mut p = n.placement();
        p.norm = NormSpec {
            kind: None,
            ..NormSpec::default()
        };
        let r = resolve(&p, 12, 64).unwrap();
        assert!(!r.embed_norm && !r.final_norm, "{}", n.name);
        for block in &r.blocks {
            // Unit-length states do not count as norms of the placement.
            let units = [block.attn.combine, block.ffn.combine]
                .iter()
                .filter(|combine| **combine == Combine::LerpUnit)
                .count();
            let left = SymbolicCount {
                d: units,
                ..SymbolicCount::default()
            };
            assert_eq!(SymbolicCount::normalized_elements(block), left);
            assert!(block.attn.skip != Skip::Normed && block.ffn.skip != Skip::Normed);
        }
    }
}

#[test]
fn formulas_have_their_values() {
    let at = ScaleContext {
        layer_number: Some(4),
        n_layers: 8,
        d_model: 64,
    };
    let value = |f: Formula| f.value(at).unwrap();
    assert_eq!(value(Formula::InvSqrtLayer), 0.5);
    assert!((value(Formula::InvSqrt2Layer) - 8.0_f64.sqrt().recip()).abs() < 1e-15);
    assert_eq!(value(Formula::InvSqrt2Depth), 0.25);
    assert_eq!(value(Formula::TwoDepth), 16.0);
    assert_eq!(value(Formula::DepthPower { k: 2.0, p: 0.25 }), 2.0);
    assert_eq!(value(Formula::SqrtWidth), 8.0);
    assert_eq!(value(Formula::InvSqrtWidth), 0.125);
    assert!((value(Formula::SqrtLn2Depth) - 16.0_f64.ln().sqrt()).abs() < 1e-15);
    assert_eq!(value(Formula::LayerScale), 0.1);
    let outside = ScaleContext {
        layer_number: None,
        ..at
    };
    assert_eq!(Formula::InvSqrtLayer.value(outside), None);
}

#[test]
fn invalid_scales_are_rejected_with_their_field() {
    let learned = json!({ "learned": { "shape": "scalar", "init": 1 } });
    let cases = [
        (
            json!({ "embed": { "scale": "inv_sqrt_layer" } }),
            "embed.scale",
        ),
        (
            json!({ "logits": { "scale": "inv_sqrt_2_layer" } }),
            "logits.scale",
        ),
        (
            json!({ "block": { "ffn": { "out_scale":
                { "learned": { "shape": "scalar", "init": learned } } } } }),
            "block.ffn.out_scale",
        ),
        (
            json!({ "init": { "gains": { "v": learned } } }),
            "init.gains.v",
        ),
        (
            json!({ "block": { "attn": { "skip_scale":
                { "depth_power": { "k": -1, "p": 0.5 } } } } }),
            "block.attn.skip_scale",
        ),
    ];
    for (value, field) in cases {
        let error = resolve(&of(value), 4, 64).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn zero_layers_or_width_is_rejected() {
    assert!(resolve(&get("pre-norm"), 0, 64).is_err());
    assert!(resolve(&get("pre-norm"), 4, 0).is_err());
}

#[test]
fn initial_weights_follow_their_scheme() {
    let std = |scheme: &str, layer, projection| {
        let p = of(json!({ "init": { "scheme": scheme } }));
        resolve(&p, 8, 256)
            .unwrap()
            .weight_std(layer, projection, 100, 300)
    };
    let sigma = 1.0 / 640.0_f64.sqrt();
    assert_eq!(std("normal", 3, Projection::Down), sigma);
    assert_eq!(std("megatron", 3, Projection::Up), sigma);
    assert_eq!(std("megatron", 3, Projection::Down), sigma / 4.0);
    assert_eq!(std("megatron", 0, Projection::O), sigma / 4.0);
    assert_eq!(std("depth_scaled", 1, Projection::Q), 0.1);
    assert_eq!(std("depth_scaled", 1, Projection::O), 0.05);
    assert!((std("xavier", 1, Projection::V) - 0.005_f64.sqrt()).abs() < 1e-15);
}

#[test]
fn embedding_and_head_follow_the_scheme_too() {
    let r = resolve(&get("hybridnorm"), 4, 100).unwrap();
    assert_eq!(r.embed_std(), r.init.std);
    assert_eq!(r.head_std(), 0.1);
    assert_eq!(r.truncation_std(), Some(3.0));
    let r = resolve(&get("pre-norm"), 4, 100).unwrap();
    assert_eq!(r.head_std(), r.init.std);
    assert_eq!(r.truncation_std(), None);
}

#[test]
fn resolved_placement_round_trips_through_json() {
    for n in named_placements() {
        let r = resolve(&n.placement(), 5, 64).unwrap();
        let json = serde_json::to_string(&r).unwrap();
        assert_eq!(serde_json::from_str::<Resolved>(&json).unwrap(), r);
    }
}
