use std::collections::BTreeSet;

use serde_json::json;

use super::*;

#[test]
fn names_and_aliases_are_unique() {
    let mut seen = BTreeSet::new();
    for n in named_placements() {
        for word in n.aliases.iter().chain([&n.name]) {
            assert!(seen.insert(*word), "{word} names two placements");
        }
        assert!(!n.description.is_empty() && !n.source.is_empty());
        assert!(!n.description.contains('\n'));
    }
    assert!(named_placements().len() >= 43);
}

#[test]
fn expected_placements_are_registered() {
    for name in [
        "post-norm",
        "post-norm-entry",
        "pre-norm",
        "pre-norm-qk",
        "pre-norm-qk-full",
        "qkv-pre",
        "pre-qkv-pre",
        "hybridnorm",
        "hybridnorm-star",
        "hybridnorm-7b",
        "hybridnorm-ds",
        "first-qkv-pre",
        "qkvc-post",
        "qkc-post",
        "kv-post",
        "kc-post",
        "qk-post",
        "pre-qkv-post",
        "pre-post",
        "post-pre",
        "sandwich",
        "olmo2",
        "swin-v2-res-post",
        "sub-ln",
        "normformer",
        "simple-norm",
        "deepnorm",
        "mix-ln",
        "lns",
        "keel",
        "spannorm",
        "b2t",
        "gemma2",
        "gemma3",
        "layerscale",
        "rezero",
        "gpt-j-parallel",
        "nanochat",
        "first-embed-norm",
        "neox-parallel",
        "dyt",
        "derf",
        "minimax-text-01",
        "gemma3n",
        "resi-dual",
        "siamese-norm",
        "siamese-hybrid",
        "deepseek-v3",
        "ngpt",
    ] {
        assert_eq!(find_named(name).unwrap().name, name);
    }
}

#[test]
fn aliases_case_and_underscores_resolve_to_the_same_placement() {
    assert_eq!(get("peri-ln"), get("sandwich"));
    assert_eq!(get("output-norm"), get("olmo2"));
    assert_eq!(get("HybridNorm*"), get("hybridnorm-star"));
    assert_eq!(get("Pre_Norm"), get("pre-norm"));
}

#[test]
fn an_unknown_name_lists_the_nearest() {
    let message = named("hybridnrom").unwrap_err().to_string();
    assert!(message.contains("`hybridnorm`"), "{message}");
    assert!(message.contains("hybridnrom"), "{message}");
    let message = named("zzz").unwrap_err().to_string();
    assert!(message.contains("unknown placement zzz"), "{message}");
}

#[test]
fn named_placements_round_trip_through_json_and_toml() {
    for n in named_placements() {
        let value = n.placement();
        let json = serde_json::to_value(&value).unwrap();
        assert_eq!(from_value(json.clone()).unwrap(), value, "{} json", n.name);
        let again: Placement = serde_json::from_value(json).unwrap();
        assert_eq!(again, value, "{} plain json", n.name);
        let toml = toml::to_string(&value).unwrap();
        let table: Value = toml::from_str(&toml).unwrap();
        assert_eq!(from_value(table).unwrap(), value, "{} toml", n.name);
        let again: Placement = toml::from_str(&toml).unwrap();
        assert_eq!(again, value, "{} plain toml", n.name);
        assert_eq!(from_value(json!(n.name)).unwrap(), value);
        assert_eq!(from_value(json!({ "base": n.name })).unwrap(), value);
    }
}

#[test]
fn every_name_is_valid_at_every_depth_and_activation() {
    for n in named_placements() {
        for depth in [1, 2, 3, 12, 29] {
            for gated in [true, false] {
                let facts = ModelFacts {
                    has_gated_activation: gated,
                    ..SMALL
                };
                let verdict = validate(&n.placement(), depth, &facts);
                match verdict {
                    Ok(_) => {}
                    // Its gate norm needs a gate.
                    Err(e) if n.name == "simple-norm" && !gated => {
                        assert_eq!(e.field, "block.ffn_inner.gate_norm");
                    }
                    // Its gate scale needs a gate.
                    Err(e) if n.name == "ngpt" && !gated => {
                        assert_eq!(e.field, "block.ffn_inner.gate_scale");
                    }
                    Err(e) => panic!("{} at {depth}: {e}", n.name),
                }
            }
        }
    }
}

#[test]
fn only_the_placement_that_diverged_warns() {
    for n in named_placements() {
        let rules: Vec<_> = validate(&n.placement(), 12, &SMALL)
            .unwrap()
            .iter()
            .map(|w| w.rule)
            .collect();
        match n.name {
            "qk-post" => assert_eq!(rules, [WarningRule::UnboundedAttention]),
            _ => assert_eq!(rules, [], "{}", n.name),
        }
    }
}

#[test]
fn hybridnorm_matches_the_paper() {
    let r = resolve(&get("hybridnorm"), 12, 2048).unwrap();
    let block = &r.blocks[7];
    assert!(!block.attn.in_norm && block.attn.skip == Skip::Raw);
    assert!(block.ffn.in_norm && block.ffn.skip == Skip::Normed);
    let inner = &block.attn_inner;
    assert_eq!(
        [inner.q_norm, inner.k_norm, inner.v_norm, inner.ctx_norm],
        [
            HeadNorm::PerHead,
            HeadNorm::PerHead,
            HeadNorm::PerHead,
            HeadNorm::None
        ]
    );
    assert_eq!(inner.qk_order, QkOrder::BeforeRope);
    assert!(r.final_norm && !r.embed_norm);
    assert_eq!(r.init.scheme, InitScheme::Megatron);
    assert!((r.init.std - 0.013_975_4).abs() < 1e-7);
    assert_eq!(r.norm.eps, 1e-5);
}

#[test]
fn hybridnorm_star_is_pre_qkv_pre_in_the_first_block_and_hybridnorm_after() {
    let star = resolve(&get("hybridnorm-star"), 12, 768).unwrap();
    let first = resolve(&get("pre-qkv-pre"), 12, 768).unwrap();
    let rest = resolve(&get("hybridnorm"), 12, 768).unwrap();
    assert_eq!(star.blocks[0], first.blocks[0]);
    assert_eq!(star.blocks[1..], rest.blocks[1..]);
}

#[test]
fn hybridnorm_with_raw_skips_is_qkv_pre() {
    let raw = of(json!({ "base": "hybridnorm", "block": { "ffn": { "skip": "raw" } } }));
    assert_eq!(raw, get("qkv-pre"));
}

#[test]
fn the_7b_recipe_norms_the_attention_output() {
    let r = resolve(&get("hybridnorm-7b"), 32, 4096).unwrap();
    for block in &r.blocks {
        let gain = block.attn.out_norm.as_ref().unwrap().gain_init;
        assert_eq!(gain, ResolvedScale::Const(0.125));
        assert!(block.ffn.out_norm.is_none());
    }
    assert!(r.blocks[0].attn.in_norm && !r.blocks[1].attn.in_norm);
}

#[test]
fn deepnorm_has_the_decoder_constants() {
    for depth in [1, 8, 32] {
        let r = resolve(&get("deepnorm"), depth, 64).unwrap();
        let alpha = (2.0 * depth as f64).powf(0.25);
        let beta = (8.0 * depth as f64).powf(-0.25);
        for (block, gains) in r.blocks.iter().zip(&r.init.gains) {
            assert_eq!(block.attn.skip_scale, ResolvedScale::Const(alpha));
            assert_eq!(block.ffn.skip_scale, ResolvedScale::Const(alpha));
            assert!(block.attn.post_norm && block.ffn.post_norm);
            assert_eq!([gains.q, gains.k], [1.0, 1.0]);
            assert_eq!(
                [gains.v, gains.o, gains.gate, gains.up, gains.down],
                [beta; 5]
            );
        }
        assert!(!r.final_norm);
    }
}

#[test]
fn keel_begins_with_plain_pre_norm_attention() {
    let r = resolve(&get("keel"), 12, 64).unwrap();
    let (first, second) = (&r.blocks[0], &r.blocks[1]);
    assert_eq!(first.attn.skip_scale, ResolvedScale::Const(1.0));
    assert!(first.attn.in_norm && !first.attn.post_norm);
    assert_eq!(first.ffn.skip_scale, ResolvedScale::Const(1.0));
    assert!(first.ffn.in_norm && first.ffn.post_norm);
    for sub in [&second.attn, &second.ffn] {
        assert_eq!(sub.skip_scale, ResolvedScale::Const(24.0));
        assert!(sub.in_norm && sub.post_norm);
    }
    assert!(!r.final_norm);
}

#[test]
fn mix_ln_is_post_norm_in_a_quarter() {
    for (depth, posts) in [(12, 3), (24, 6), (3, 0), (5, 1)] {
        let r = resolve(&get("mix-ln"), depth, 64).unwrap();
        let post: Vec<_> = r.blocks.iter().map(|b| b.attn.post_norm).collect();
        let expected: Vec<_> = (0..depth).map(|layer| layer < posts).collect();
        assert_eq!(post, expected);
        for block in &r.blocks {
            assert_eq!(block.attn.in_norm, !block.attn.post_norm);
            assert_eq!(block.ffn.in_norm, !block.ffn.post_norm);
        }
    }
}

#[test]
fn lns_divides_by_the_root_of_the_block_number() {
    let r = resolve(&get("lns"), 9, 64).unwrap();
    for (layer, scale) in [(0, 1.0), (3, 0.5), (8, 1.0 / 3.0)] {
        assert_eq!(r.blocks[layer].attn.in_scale, ResolvedScale::Const(scale));
        assert_eq!(r.blocks[layer].ffn.in_scale, ResolvedScale::Const(scale));
    }
}

#[test]
fn layerscale_initial_value_depends_on_depth() {
    for (depth, init) in [(12, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)] {
        let r = resolve(&get("layerscale"), depth, 64).unwrap();
        let learned = ResolvedScale::Learned {
            shape: LearnedShape::Vector,
            init,
            start: None,
        };
        assert_eq!(r.blocks[0].ffn.out_scale, learned);
    }
}

#[test]
fn rezero_has_no_norm_and_starts_as_identity() {
    let r = resolve(&get("rezero"), 4, 64).unwrap();
    let zero = ResolvedScale::Learned {
        shape: LearnedShape::Scalar,
        init: 0.0,
        start: None,
    };
    for block in &r.blocks {
        assert_eq!(block.attn.out_scale, zero);
        assert_eq!(
            SymbolicCount::normalized_elements(block),
            SymbolicCount::default()
        );
    }
    assert!(!r.final_norm && r.norm.kind.is_none());
}

#[test]
fn minimax_has_its_alpha_at_eighty_blocks() {
    let r = resolve(&get("minimax-text-01"), 80, 64).unwrap();
    let ResolvedScale::Const(alpha) = r.blocks[3].ffn.skip_scale else {
        panic!("a constant");
    };
    assert!((alpha - 3.556_558_820_077_845_5).abs() < 1e-12);
}

#[test]
fn swin_starts_as_identity_with_cosine_attention() {
    let r = resolve(&get("swin-v2-res-post"), 4, 64).unwrap();
    let norm = r.blocks[0].ffn.out_norm.as_ref().unwrap();
    assert_eq!(norm.gain_init, ResolvedScale::Const(0.0));
    assert_eq!(r.blocks[0].attn_inner.attn_scale, AttnScale::Cosine);
    assert!(r.norm.kind == Some(NormFn::Layernorm) && r.norm.bias);
}

#[test]
fn gemma_scales_embeddings_and_has_one_plus_gains() {
    let r = resolve(&get("gemma2"), 4, 256).unwrap();
    assert_eq!(r.embed_scale, ResolvedScale::Const(16.0));
    assert_eq!(r.norm.gain, Gain::OnePlus);
    assert_eq!(r.logits.softcap, Some(30.0));
    assert_eq!(r.blocks[0].attn_inner.attn_softcap, Some(50.0));
    let r = resolve(&get("gemma3n"), 4, 256).unwrap();
    assert_eq!(r.blocks[0].attn_inner.v_norm, HeadNorm::PerHeadNoGain);
    assert_eq!(r.blocks[0].attn_inner.attn_scale, AttnScale::Const(1.0));
    assert_eq!(r.norm.gain, Gain::Plain);
}

#[test]
fn simple_norm_has_the_released_standard_deviations() {
    let r = resolve(&get("simple-norm"), 8, 256).unwrap();
    assert_eq!(r.embed_std(), 1.0);
    assert_eq!(r.weight_std(1, Projection::Q, 256, 256), 0.02);
    assert_eq!(r.weight_std(1, Projection::O, 256, 256), 0.01);
}

#[test]
fn parallel_blocks_share_a_norm_or_do_not() {
    assert_eq!(
        get("gpt-j-parallel").block.topology,
        Topology::ParallelShared
    );
    let d = |name| {
        let r = resolve(&get(name), 2, 64).unwrap();
        SymbolicCount::norm_parameters(&r.blocks[0], &r.norm).d
    };
    assert_eq!((d("gpt-j-parallel"), d("neox-parallel")), (1, 2));
}
