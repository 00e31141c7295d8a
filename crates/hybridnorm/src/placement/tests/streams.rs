use serde_json::json;

use super::explain::{ATTENTION, FFN, assert_contains_lines, blocks};
use super::validate::{block, rejects, warnings, warns};
use super::*;

/// Returns a pre-norm placement with two streams and further fields.
fn dual(streams: &str, fields: Value) -> Value {
    let mut value = block("pre-norm", fields);
    value["streams"] = json!(streams);
    value
}

#[test]
fn named_two_stream_placements_match_their_papers() {
    let r = resolve(&get("resi-dual"), 4, 64).unwrap();
    assert_eq!(r.streams, Streams::ResidualDual);
    assert!(!r.final_norm && !r.merge_norm);
    for block in &r.blocks {
        assert!(block.attn.post_norm && block.ffn.post_norm);
        assert!(!block.attn.in_norm && !block.ffn.in_norm);
    }
    let eighth = ResolvedScale::Const(1.0 / 8.0_f64.sqrt());
    let r = resolve(&get("siamese-norm"), 4, 64).unwrap();
    assert_eq!(r.streams, Streams::Siamese);
    assert!(!r.final_norm && !r.merge_norm);
    for sub in [&r.blocks[3].attn, &r.blocks[3].ffn] {
        assert!(sub.in_norm && sub.post_norm);
        assert_eq!(sub.out_scale, eighth);
    }
    let r = resolve(&get("siamese-hybrid"), 4, 64).unwrap();
    let Block {
        attn,
        attn_inner,
        ffn,
        ..
    } = &r.blocks[3];
    assert!(r.final_norm && r.merge_norm);
    assert!(!attn.in_norm && attn.post_norm && ffn.in_norm && !ffn.post_norm);
    assert_eq!([attn.out_scale, ffn.out_scale], [eighth; 2]);
    assert_eq!(attn_inner.v_norm, HeadNorm::PerHead);
    let vector = ResolvedScale::Learned {
        shape: LearnedShape::Vector,
        init: 1.0,
        start: None,
    };
    assert_eq!(
        [attn.read_scale, ffn.read_scale],
        [vector, ResolvedScale::Const(1.0)]
    );
}

#[test]
fn two_stream_fields_require_two_streams() {
    let scale = |name: &str| json!({ name: { "read_scale": 0.5 } });
    for name in ["attn", "ffn"] {
        let field = format!("block.{name}.read_scale");
        rejects(block("pre-norm", scale(name)), &field, "siamese");
        rejects(dual("residual_dual", scale(name)), &field, "no effect");
        assert_eq!(warnings(dual("siamese", scale(name))), []);
    }
    let merge = json!({ "base": "pre-norm", "merge_norm": true });
    rejects(merge, "merge_norm", "one stream");
}

#[test]
fn two_streams_require_sequential_topology_and_raw_or_normed_skips() {
    for streams in ["residual_dual", "siamese"] {
        let parallel = json!({ "topology": "parallel_two" });
        rejects(dual(streams, parallel), "block.topology", "sequential");
        for skip in ["block_input", "raw_plus_block_input"] {
            let skip = json!({ "ffn": { "skip": skip } });
            rejects(dual(streams, skip), "block.ffn.skip", "`raw` or `normed`");
        }
        let lerp = json!({ "ffn": { "combine": "lerp_unit", "out_scale": 0.1 } });
        rejects(dual(streams, lerp), "block.ffn.combine", "two streams");
        let normed = json!({ "ffn": { "skip": "normed", "skip_scale": 2 } });
        assert_eq!(warnings(dual(streams, normed)), []);
        let mut without = dual(streams, json!({}));
        without["norm"] = json!({ "kind": "none" });
        rejects(without, "streams", "norm.kind");
    }
}

/// The norm on the second stream is always present at the end.
#[test]
fn two_streams_need_no_final_norm() {
    let mut value = dual("siamese", json!({}));
    value["final_norm"] = json!(false);
    assert_eq!(warnings(value), []);
}

#[test]
fn a_merge_norm_after_a_norm_warns() {
    let rule = WarningRule::DoubleNorm;
    let twice = json!({ "base": "resi-dual", "merge_norm": true });
    warns(twice, rule, "merge_norm", "merge_norm = false");
    let sum = json!({ "base": "resi-dual", "final_norm": true });
    assert_eq!(warnings(sum), []);
}

/// With siamese streams the input of sub-layers is a sum, also if the main stream ends in a norm.
#[test]
fn a_normed_skip_of_a_sum_is_normed_once() {
    let skip = json!({ "ffn": { "in_norm": true, "skip": "normed" } });
    warns(
        block("resi-dual", skip.clone()),
        WarningRule::DoubleNorm,
        "block.ffn.skip",
        "attn.post_norm",
    );
    assert_eq!(warnings(block("siamese-norm", skip)), []);
}

#[test]
fn a_raw_main_stream_warns() {
    for streams in ["residual_dual", "siamese"] {
        let raw = dual(streams, json!({ "attn": { "in_norm": false } }));
        let rule = WarningRule::UnboundedAttention;
        warns(raw, rule, "block.attn.in_norm", "without bound");
    }
}

#[test]
fn no_eps_warning_for_siamese_streams() {
    let facts = ModelFacts {
        d_model: 2048,
        ..SMALL
    };
    assert_eq!(validate(&get("siamese-hybrid"), 12, &facts).unwrap(), []);
}

#[test]
fn a_second_stream_adds_norms() {
    let count = |name: &str| {
        let r = resolve(&get(name), 12, 64).unwrap();
        let parameters = r.norm_parameters(5, false).to_string();
        let elements = r.normalized_elements(5, false).to_string();
        (parameters, elements, r.n_norms_outside_blocks())
    };
    let of = |parameters: &str, elements: &str, outer| (parameters.into(), elements.into(), outer);
    assert_eq!(count("post-norm"), of("2d", "2d", 0));
    assert_eq!(count("resi-dual"), of("2d", "2d", 1));
    assert_eq!(count("siamese-norm"), of("6d", "6d", 1));
    let hybrid = of("4d + 3·hd", "4d + h·hd + 2·kv·hd", 3);
    assert_eq!(count("siamese-hybrid"), hybrid);
    let e = Explanation::of(&get("siamese-hybrid")).unwrap();
    assert_eq!(e.norm_parameters.to_string(), "51d + 36·hd");
    assert_eq!(e.learned_parameters.to_string(), "12d");
}

#[test]
fn resi_dual_blocks() {
    let expected = format!(
        "\
blocks 1–12
  G₁ = A(X)
  Y  = N(X + G₁)
  G₂ = F(Y)
  X′ = N(Y + G₂)
  D′ = D + G₁ + G₂
where
  {ATTENTION}
  {FFN}
  D    : second stream, the embedding plus all sub-layer outputs
  per block: 2d norm parameters, 2d normalized elements per token
"
    );
    assert_eq!(blocks("resi-dual"), expected);
    assert_contains_lines("resi-dual", &["X₀ = E[token]", "D₀ = X₀"]);
    assert_contains_lines("resi-dual", &["logits = W_head (X_L + N(D_L))"]);
}

#[test]
fn siamese_blocks() {
    assert_contains_lines(
        "siamese-norm",
        &[
            "R₁ = X + N(D)",
            "G₁ = A(N(R₁))",
            "Y  = N(X + (1/√(2l))·G₁)",
            "R₂ = Y + N(D + G₁)",
            "G₂ = F(N(R₂))",
            "X′ = N(Y + (1/√(2l))·G₂)",
            "D′ = D + G₁ + G₂",
            "logits = W_head (X_L + N(D_L))",
        ],
    );
    assert_contains_lines(
        "siamese-hybrid",
        &[
            "R₁ = λ₁·X + N(D)",
            "G₁ = A_QKV(R₁)",
            "X′ = Y + (1/√(2l))·G₂",
            "λ₁ : learned, one number per channel, initialized to 1",
            "logits = W_head N₃(N₁(X_L) + N₂(D_L))",
        ],
    );
}

#[test]
fn normalized_skips_are_named_with_two_streams() {
    let skip = json!({ "ffn": { "skip": "normed", "out_norm": true, "post_norm": true } });
    let p = of(dual("siamese", skip));
    let text = Explanation::of(&p).unwrap().to_text();
    for piece in [
        "R₂ = Y + N(D + G₁)",
        "Z  = N(R₂)",
        "G₂ = N(F(Z))",
        "X′ = N(Z + G₂)",
    ] {
        assert!(text.contains(piece), "no {piece} in\n{text}");
    }
}
