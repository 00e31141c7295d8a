use serde_json::json;

use super::*;

pub(super) fn text(name: &str) -> String {
    Explanation::of(&get(name)).unwrap().named(name).to_text()
}

/// Asserts that the text contains these lines, ignoring alignment.
pub(super) fn assert_contains_lines(name: &str, lines: &[&str]) {
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text(name);
    let have: Vec<String> = text.lines().map(squeeze).collect();
    for line in lines {
        let found = have.contains(&squeeze(line));
        assert!(found, "no line\n{line}\nin {name}:\n{text}");
    }
}

/// Returns the part of the text from the first block to the head.
pub(super) fn blocks(name: &str) -> String {
    blocks_of(&text(name))
}

pub(super) fn blocks_of(text: &str) -> String {
    let (_, rest) = text.split_once("\n\nblock").unwrap();
    let (blocks, _) = rest.split_once("\n\nhead\n").unwrap();
    format!("block{blocks}\n")
}

pub(super) const FFN: &str = "F(u) = W_down (φ(W_gate u) ⊙ W_up u)";
pub(super) const ATTENTION: &str =
    "A(u) = W_O · softmax(RoPE(q) RoPE(k)ᵀ / √hd) v,  q, k, v = W_q u, W_k u, W_v u";

#[test]
fn hybridnorm_explanation() {
    let expected = "\
hybridnorm  (12 blocks of width 768, hash a62977297bdb054b)

embedding
  X₀ = E[token]

blocks 1–12
  Y  = X + A_QKV(X)
  Z  = N(Y)
  X′ = Z + F(Z)
where
  A_QKV(u) = W_O · softmax(RoPE(N(q)) RoPE(N(k))ᵀ / √hd) N(v),  q, k, v = W_q u, W_k u, W_v u
  N        : on q, k, v: over each head's channels, one gain shared by all heads
  F(u)     = W_down (φ(W_gate u) ⊙ W_up u)
  per block: d + 3·hd norm parameters, d + h·hd + 2·kv·hd normalized elements per token

head
  logits = W_head N(X_L)

norm
  N(x) = g ⊙ x / √(mean(x²) + 1e-5)
  g    : initialized to 1, separate for every norm

initial weights
  W      : normal truncated at 3σ, σ = 1/√(2.5·d) = 0.02282; W_O and W_down at σ/√(2L) = 0.004658
  E      : normal, standard deviation 0.02282
  W_head : normal, standard deviation 0.03608 if not tied to E
";
    assert_eq!(text("hybridnorm"), expected);
}

#[test]
fn hybridnorm_star_blocks() {
    let inner = "where
  A_QKV(u) = W_O · softmax(RoPE(N(q)) RoPE(N(k))ᵀ / √hd) N(v),  q, k, v = W_q u, W_k u, W_v u
  N        : on q, k, v: over each head's channels, one gain shared by all heads
  F(u)     = W_down (φ(W_gate u) ⊙ W_up u)
";
    let expected = format!(
        "\
block 1
  Y  = X + A_QKV(N(X))
  X′ = Y + F(N(Y))
{inner}  \
  per block: 2d + 3·hd norm parameters, 2d + h·hd + 2·kv·hd normalized elements per token

blocks 2–12
  Y  = X + A_QKV(X)
  Z  = N(Y)
  X′ = Z + F(Z)
{inner}  \
  per block: d + 3·hd norm parameters, d + h·hd + 2·kv·hd normalized elements per token
"
    );
    assert_eq!(blocks("hybridnorm-star"), expected);
}

#[test]
fn pre_norm_blocks() {
    let expected = format!(
        "\
blocks 1–12
  Y  = X + A(N(X))
  X′ = Y + F(N(Y))
where
  {ATTENTION}
  {FFN}
  per block: 2d norm parameters, 2d normalized elements per token
"
    );
    assert_eq!(blocks("pre-norm"), expected);
}

#[test]
fn deepnorm_blocks() {
    let expected = "\
blocks 1–12
  Y  = N((2L)^(1/4)·X + A(X))
  X′ = N((2L)^(1/4)·Y + F(Y))
where
  A(u)       = W_O · softmax(RoPE(q) RoPE(k)ᵀ / √hd) v,  q, k, v = W_q u, W_k u, W_v u
  F(u)       = W_down (φ(W_gate u) ⊙ W_up u)
  (2L)^(1/4) = 2.213
  per block: 2d norm parameters, 2d normalized elements per token
";
    assert_eq!(blocks("deepnorm"), expected);
    assert_contains_lines(
        "deepnorm",
        &[
            "logits = W_head X_L",
            "W_v, W_O, W_gate, W_up, W_down : initial weights times (8L)^(-1/4)",
            "(8L)^(-1/4)                    = 0.3195",
        ],
    );
}

#[test]
fn keel_blocks() {
    let expected = format!(
        "\
block 1
  Y  = X + A(N₁(X))
  X′ = N₃(Y + F(N₂(Y)))
where
  {ATTENTION}
  {FFN}
  per block: 3d norm parameters, 3d normalized elements per token

blocks 2–12
  Y  = N₂(2L·X + A(N₁(X)))
  X′ = N₄(2L·Y + F(N₃(Y)))
where
  {ATTENTION}
  {FFN}
  2L   = 24
  per block: 4d norm parameters, 4d normalized elements per token
"
    );
    assert_eq!(blocks("keel"), expected);
}

#[test]
fn gpt_j_blocks() {
    let expected = format!(
        "\
blocks 1–12
  Z  = N(X)
  X′ = X + A(Z) + F(Z)
where
  {ATTENTION}
  {FFN}
  per block: d norm parameters, d normalized elements per token
"
    );
    assert_eq!(blocks("gpt-j-parallel"), expected);
}

/// Lines of the explanation that distinguish each named placement without a full expected text.
const DEFINING_LINES: &[(&str, &[&str])] = &[
    (
        "hybridnorm-7b",
        &[
            "Y  = X + N₁(A_QKV(X))",
            "N₁       : gain initialized to 1/√(2L)",
        ],
    ),
    (
        "hybridnorm-ds",
        &["Y  = X + (1/√l)·A_QKV(X)", "X′ = Z + (1/√l)·F(Z)"],
    ),
    (
        "first-qkv-pre",
        &["block 1", "X′ = Y + F(N(Y))", "X′ = Z + F(Z)"],
    ),
    ("first-embed-norm", &["X₀ = N(E[token])", "X′ = Z + F(Z)"]),
    ("qkv-pre", &["Y  = X + A_QKV(X)", "X′ = Y + F(N(Y))"]),
    ("pre-qkv-pre", &["Y  = X + A_QKV(N(X))", "X′ = Y + F(N(Y))"]),
    ("pre-qkv-post", &["Y  = X + A_QKV(N(X))", "X′ = Z + F(Z)"]),
    ("qkvc-post", &["Y  = X + A_QKVC(X)"]),
    ("qkc-post", &["Y  = X + A_QKC(X)"]),
    ("kv-post", &["Y  = X + A_KV(X)"]),
    ("kc-post", &["Y  = X + A_KC(X)"]),
    ("qk-post", &["Y  = X + A_QK(X)", "warnings"]),
    ("pre-post", &["Y  = X + A(N(X))", "X′ = Z + F(Z)"]),
    ("post-pre", &["Y  = Z + A(Z)", "X′ = Y + F(N(Y))"]),
    (
        "post-norm",
        &[
            "Y  = N(X + A(X))",
            "X′ = N(Y + F(Y))",
            "logits = W_head X_L",
        ],
    ),
    (
        "post-norm-entry",
        &["Z₁ = N(X)", "Y  = Z₁ + A(Z₁)", "X′ = Z₂ + F(Z₂)"],
    ),
    ("pre-norm-qk", &["Y  = X + A_QK(N(X))"]),
    (
        "pre-norm-qk-full",
        &["N_full  : on q, k: over the channels of all heads together"],
    ),
    (
        "sandwich",
        &["Y  = X + N₂(A(N₁(X)))", "X′ = Y + N₄(F(N₃(Y)))"],
    ),
    ("olmo2", &["Y  = X + N(A_QK(X))", "X′ = Y + N(F(Y))"]),
    (
        "swin-v2-res-post",
        &["Y  = X + N₁(A(X))", "N₁   : gain initialized to 0"],
    ),
    ("sub-ln", &["F(u) = W_down N(φ(W_gate u) ⊙ W_up u)"]),
    ("normformer", &["X′ = λ₁·Y + F(N₃(Y))"]),
    (
        "simple-norm",
        &["F(u)     = W_down (φ(N(W_gate u)) ⊙ N(W_up u))"],
    ),
    ("neox-parallel", &["X′ = X + A(N₁(X)) + F(N₂(X))"]),
    ("dyt", &["N(x) = g ⊙ tanh(α·x)", "X₀ = λ₁·E[token]"]),
    ("derf", &["N(x) = g ⊙ erf(α·x + s) + b"]),
    (
        "mix-ln",
        &[
            "blocks 1–3",
            "Y  = N(X + A(X))",
            "blocks 4–12",
            "Y  = X + A(N(X))",
        ],
    ),
    (
        "lns",
        &[
            "Y  = X + A((1/√l)·N(X))",
            "1/√l = 1 … 0.2887  (l is the 1-based block index)",
        ],
    ),
    (
        "spannorm",
        &["X′ = N(X + F(Y))", "block 1", "Y  = N₂(X + A(N₁(X)))"],
    ),
    ("b2t", &["X′ = N(X + Y + F(Y))"]),
    ("layerscale", &["Y  = X + λ₁·A(N(X))"]),
    (
        "rezero",
        &[
            "Y  = X + λ₁·A(X)",
            "λ₁   : learned scalar, initialized to 0",
        ],
    ),
    ("minimax-text-01", &["Y  = (2L)^(1/4)·Z₁ + A(Z₁)"]),
    (
        "gemma2",
        &["X₀ = √d·E[token]", "logits = 30·tanh(W_head N(X_L) / 30)"],
    ),
    (
        "gemma3",
        &[
            "Y  = X + N₂(A_QK(N₁(X)))",
            "N(x) = (1 + w) ⊙ x / √(mean(x²) + 1e-6)",
        ],
    ),
    (
        "gemma3n",
        &["N°       : on v: over each head's channels, without parameters"],
    ),
    ("nanochat", &["X₀ = N(E[token])", "Y  = X + A_QK(N(X))"]),
    ("deepseek-v3", &["Y  = X + A_QV(N(X))", "X′ = Y + F(N(Y))"]),
];

#[test]
fn every_named_placement_shows_its_defining_lines() {
    for (name, lines) in DEFINING_LINES {
        assert_contains_lines(name, lines);
    }
    let golden = [
        "hybridnorm",
        "hybridnorm-star",
        "pre-norm",
        "deepnorm",
        "keel",
        "gpt-j-parallel",
        "resi-dual",
        "siamese-norm",
        "siamese-hybrid",
        "ngpt",
    ];
    assert_eq!(
        DEFINING_LINES.len() + golden.len(),
        named_placements().len()
    );
}

#[test]
fn scales_caps_and_clips_are_visible() {
    let p = of(json!({
        "base": "pre-norm-qk",
        "block": {
            "attn": { "in_scale": 0.5, "skip_scale": 2, "out_scale": -0.25 },
            "attn_inner": {
                "clip_qkv": 8, "qk_order": "after_rope", "qk_post_scale": 1.2,
                "attn_scale": 0.125, "attn_softcap": 50, "ctx_norm": "per_head_own",
                "head_gain": true,
            },
            "ffn": { "skip": "raw_plus_block_input", "skip_scale": 0.5 },
        },
        "logits": { "scale": 0.5, "z_loss": 1e-4 },
    }));
    let facts = ModelFacts {
        has_gated_activation: false,
        ..SMALL
    };
    let text = Explanation::new(&p, 4, &facts).unwrap().to_text();
    for piece in [
        "Y  = 2·X + (-0.25)·A_QKC(0.5·N(X))",
        "X′ = 0.5·(X + Y) + F(N(Y))",
        "W_O · γ ⊙ N_own(softmax(50·tanh(S / 50)) v)",
        "q, k, v = clip(W_q u, W_k u, W_v u; ±8)",
        "= 0.125 · 1.2·N(RoPE(q)) 1.2·N(RoPE(k))ᵀ",
        "F(u)     = W_down φ(W_up u)",
        "logits = 0.5·W_head N(X_L)",
        "loss   = cross-entropy + 1e-4·logsumexp(logits)²",
    ] {
        assert!(text.contains(piece), "no {piece} in\n{text}");
    }
}

#[test]
fn group_titles_list_their_blocks() {
    let titles = |value: Value| -> Vec<String> {
        let e = Explanation::of(&of(value)).unwrap();
        e.groups.into_iter().map(|group| group.title).collect()
    };
    let scattered = json!({ "base": "pre-norm", "overrides": [
        { "layers": { "every": 6 }, "set": { "ffn": { "post_norm": true } } },
        { "layers": { "last": 1 }, "set": { "ffn": { "post_norm": false } } },
        { "layers": [2], "set": { "ffn": { "post_norm": true } } },
    ] });
    assert_eq!(titles(scattered), ["blocks 1–2, 4–5, 7–12", "blocks 3, 6"]);
    assert_eq!(titles(json!("hybridnorm*")), ["block 1", "blocks 2–12"]);
}

#[test]
fn totals_count_every_block_and_the_outer_norms() {
    let e = Explanation::of(&get("hybridnorm-star")).unwrap();
    assert_eq!(e.norm_parameters.to_string(), "14d + 36·hd");
    assert_eq!(
        e.normalized_elements.to_string(),
        "14d + 12·h·hd + 24·kv·hd"
    );
    let e = Explanation::of(&get("dyt")).unwrap();
    assert_eq!(e.norm_parameters.to_string(), "25d + 25");
    assert_eq!(e.learned_parameters.to_string(), "1");
}

#[test]
fn explanation_round_trips_through_json() {
    for n in named_placements() {
        let e = Explanation::of(&n.placement()).unwrap().named(n.name);
        let json = serde_json::to_string(&e).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), e);
    }
}

#[test]
fn an_invalid_placement_is_not_explained() {
    let p = of(json!({ "base": "pre-norm", "final_norm": false }));
    assert_eq!(Explanation::of(&p).unwrap_err().field, "final_norm");
}

#[test]
fn latex_is_balanced_and_ascii() {
    for n in named_placements() {
        assert_latex_is_balanced(&Explanation::of(&n.placement()).unwrap(), n.name);
    }
}

/// Asserts that the LaTeX of an explanation is ASCII and balanced.
pub(super) fn assert_latex_is_balanced(explanation: &Explanation, name: &str) {
    let latex = explanation.to_latex();
    assert!(latex.is_ascii(), "{name}: {latex}");
    let mut depth = 0_i32;
    let mut escaped = false;
    for c in latex.chars() {
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth -= 1,
            _ => {}
        }
        assert!(depth >= 0, "{name}");
        escaped = c == '\\' && !escaped;
    }
    assert_eq!(depth, 0, "{name}");
    let count = |piece: &str| latex.matches(piece).count();
    assert_eq!(count("\\begin{align*}"), count("\\end{align*}"));
    assert!(count("\\begin{align*}") >= 5);
    assert_eq!(count("\\left"), count("\\right"), "{name}");
    assert_eq!(count("$") % 2, 0);
    assert!(!latex.contains('?'), "{name}: {latex}");
    for row in latex.lines().filter(|row| row.starts_with("  ")) {
        assert_eq!(row.matches('&').count(), 1, "{row}");
    }
}

#[test]
fn latex_of_hybridnorm_has_its_equations() {
    let latex = Explanation::of(&get("hybridnorm")).unwrap().to_latex();
    for piece in [
        "  Y &= X + A_{\\mathrm{QKV}}(X) \\\\",
        "  Z &= N(Y) \\\\",
        "  X' &= Z + F(Z) \\\\",
        "\\noindent blocks 1--12",
        "\\mathrm{RoPE}(N(q)) \\, \\mathrm{RoPE}(N(k))^{\\top} / \\sqrt{d_h}",
    ] {
        assert!(latex.contains(piece), "{latex}");
    }
}
