use serde_json::json;

use super::explain::{assert_latex_is_balanced, blocks_of};
use super::validate::block;
use super::*;

const LATENT: ModelFacts = ModelFacts {
    is_latent_attention: true,
    ..SMALL
};

fn inner(value: Value) -> Placement {
    of(block("deepseek-v3", json!({ "attn_inner": value })))
}

fn text(placement: &Placement) -> String {
    Explanation::new(placement, 12, &LATENT).unwrap().to_text()
}

#[test]
fn deepseek_normalizes_latents() {
    let r = resolve(&get("deepseek-v3"), 4, 64).unwrap();
    let block = &r.blocks[1];
    assert!(block.attn.in_norm && block.ffn.in_norm);
    let inner = &block.attn_inner;
    assert_eq!([inner.q_norm, inner.v_norm], [HeadNorm::PerHead; 2]);
    assert_eq!([inner.k_norm, inner.ctx_norm], [HeadNorm::None; 2]);
    assert_eq!(r.weight_std(1, Projection::Q, 64, 64), 0.006);
    assert_eq!(r.norm.eps, 1e-6);
}

#[test]
fn most_names_are_valid_with_latent_attention() {
    let mut rejected = Vec::new();
    for n in named_placements() {
        match validate(&n.placement(), 12, &LATENT) {
            Ok(warnings) => assert_eq!(warnings.len(), usize::from(n.name == "qk-post")),
            Err(error) => rejected.push((n.name, error.field)),
        }
    }
    let fields = ["attn_scale", "qk_order"].map(|field| format!("block.attn_inner.{field}"));
    let [cosine, order] = fields;
    assert_eq!(
        rejected,
        [
            ("swin-v2-res-post", cosine),
            ("nanochat", order),
            ("ngpt", "unit_weights".to_string()),
        ]
    );
}

#[test]
fn unsupported_latent_settings_are_rejected() {
    let plain = json!("per_head_plain");
    let learned = json!({ "learned": { "shape": "scalar", "init": 1 } });
    for (field, value) in [
        (
            "attn_scale",
            json!({ "attn_scale": "cosine", "q_norm": "none" }),
        ),
        ("qk_order", json!({ "qk_order": "after_rope" })),
        (
            "qk_post_scale",
            json!({ "q_norm": plain, "k_norm": plain, "qk_post_scale": learned }),
        ),
    ] {
        let placement = inner(value);
        assert!(validate(&placement, 12, &SMALL).is_ok());
        let error = validate(&placement, 12, &LATENT).unwrap_err();
        assert_eq!(error.field, format!("block.attn_inner.{field}"));
        assert!(error.problem.contains("not defined for latent attention"));
    }
    let unit = of(json!({ "base": "pre-norm", "unit_weights": true }));
    let error = validate(&unit, 12, &LATENT).unwrap_err();
    assert_eq!(error.field, "unit_weights");
    assert!(error.problem.contains("not defined for latent attention"));
}

#[test]
fn a_norm_on_the_key_value_latent_bounds_attention() {
    let bare = |inner: Value| {
        let fields = json!({ "attn": { "in_norm": false }, "attn_inner": inner });
        validate(&of(block("deepseek-v3", fields)), 12, &LATENT).unwrap()
    };
    let rules = |all: Vec<Warning>| all.into_iter().map(|w| w.rule).collect::<Vec<_>>();
    let unbounded = WarningRule::UnboundedAttention;
    assert!(!rules(bare(json!({}))).contains(&unbounded));
    assert!(rules(bare(json!({ "v_norm": "none" }))).contains(&unbounded));
}

#[test]
fn latents_are_counted_by_their_widths() {
    let count = |placement: &Placement| {
        let r = resolve(placement, 12, 64).unwrap();
        let parameters = r.norm_parameters(0, true).to_string();
        (parameters, r.normalized_elements(0, true).to_string())
    };
    let both = "2d + d_q + d_kv".to_string();
    assert_eq!(count(&get("deepseek-v3")), (both.clone(), both.clone()));
    for norm in ["per_head_own", "full"] {
        let same = inner(json!({ "q_norm": norm, "v_norm": norm }));
        assert_eq!(count(&same), (both.clone(), both.clone()));
    }
    let plain = inner(json!({
        "q_norm": "per_head_plain", "v_norm": "full_plain", "k_norm": "full", "ctx_norm": "per_head",
    }));
    let elements = "2d + d_q + d_kv + d_r + h·hd_v".to_string();
    assert_eq!(count(&plain), ("2d + d_r + hd_v".to_string(), elements));
    let sizes = ModelSizes {
        d: 7168,
        q_latent: 1536,
        kv_latent: 512,
        rope_dim: 64,
        ..ModelSizes::default()
    };
    let r = resolve(&get("deepseek-v3"), 61, 7168).unwrap();
    assert_eq!(r.norm_parameters(0, true).evaluate(sizes), 16_384);
}

#[test]
fn value_gain_is_applied_to_the_value_up_projection() {
    let facts = ModelFacts {
        is_latent_attention: true,
        ..ModelFacts::default()
    };
    let explanation = Explanation::new(&get("deepnorm"), 12, &facts).unwrap();
    let text = explanation.to_text();
    assert!(text.contains("W_UV, W_O"), "{text}");
    assert!(!text.contains("W_v"), "{text}");
}

#[test]
fn latent_attention_explanation() {
    let expected = "\
blocks 1–12
  Y  = X + A_QV(N(X))
  X′ = Y + F(N(Y))
where
  A_QV(u)        = W_O · softmax(q kᵀ / √hd) v
  c_q, c_kv, k_r = split(W_D u)
  q_c, q_r       = split(W_UQ N(c_q))
  k_c, v         = split(W_UKV N(c_kv))
  q              = [q_c; RoPE(q_r)]
  k              = [k_c; RoPE(k_r)]
  c_q            : query latent; normalized over its full width
  c_kv           : key/value latent, up-projected to values and the nope part of keys; \
normalized over its full width
  k_r            : rotary key, shared by all heads; no norm
  hd             : width of a query head, nope and rotary part
  F(u)           = W_down (φ(W_gate u) ⊙ W_up u)
  per block: 2d + d_q + d_kv norm parameters, 2d + d_q + d_kv normalized elements per token
";
    assert_eq!(blocks_of(&text(&get("deepseek-v3"))), expected);
}

#[test]
fn scales_caps_and_clips_of_latents_are_visible() {
    let text = text(&inner(json!({
        "clip_qkv": 8, "q_norm": "full_plain", "k_norm": "per_head", "qk_post_scale": 1.2,
        "attn_scale": 0.125, "attn_softcap": 50, "ctx_norm": "per_head_own", "head_gain": true,
    })));
    for piece in [
        "= clip(split(W_D u); ±8)",
        "= split(W_UQ N°(c_q))",
        "q              = 1.2·[q_c; RoPE(q_r)]",
        "k              = 1.2·[k_c; RoPE(N(k_r))]",
        "S              = 0.125 · q kᵀ",
        "W_O · γ ⊙ N_own(softmax(50·tanh(S / 50)) v)",
        "query latent; normalized over its full width, without parameters",
        "N_own          : on context: over each head's channels, a separate gain per head",
    ] {
        assert!(text.contains(piece), "no {piece} in\n{text}");
    }
    assert!(!text.contains("width of a query"));
}

#[test]
fn latent_explanation_is_complete_in_text_latex_and_json() {
    for n in named_placements() {
        let Ok(e) = Explanation::new(&n.placement(), 12, &LATENT) else {
            continue;
        };
        assert_latex_is_balanced(&e, n.name);
        let json = serde_json::to_value(&e).unwrap();
        assert_eq!(json["facts"]["latent"], json!(true));
        assert_eq!(serde_json::from_value::<Explanation>(json).unwrap(), e);
    }
    let heads = Explanation::of(&get("deepseek-v3")).unwrap();
    let json = serde_json::to_value(&heads).unwrap();
    assert!(json["facts"].get("latent").is_none());
}
