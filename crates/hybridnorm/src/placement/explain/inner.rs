//! The definitions of attention and the feed-forward, with the norms and scales inside them.

use super::super::spec::{AttnInner, AttnScale, FfnInner, HeadNorm, QkOrder, Scale};
use super::math::{Equation, Math, apply, number, plain, sym, times};
use super::scales::Scales;

/// `A` with the normed ones of q, k, v and the context as an index.
pub(super) fn attention_name(inner: &AttnInner<Scale>) -> Math {
    let marks: String = sites(inner)
        .iter()
        .filter(|(_, norm)| *norm != HeadNorm::None)
        .map(|(letter, _)| letter.to_ascii_uppercase())
        .collect();
    match marks.as_str() {
        "" => plain("A"),
        marks => sym(format!("A_{marks}"), format!("A_{{\\mathrm{{{marks}}}}}")),
    }
}

fn sites(inner: &AttnInner<Scale>) -> [(char, HeadNorm); 4] {
    [
        ('q', inner.q_norm),
        ('k', inner.k_norm),
        ('v', inner.v_norm),
        ('c', inner.ctx_norm),
    ]
}

pub(super) fn attention(inner: &AttnInner<Scale>, scales: &mut Scales) -> Vec<Equation> {
    let post_scale = scales.factor(&inner.qk_post_scale);
    let rotated = |name: &str, norm: HeadNorm| {
        let (rope, x) = (sym("RoPE", "\\mathrm{RoPE}"), plain(name));
        let turned = match inner.qk_order {
            _ if norm == HeadNorm::None => return apply(&rope, &x),
            QkOrder::BeforeRope => apply(&rope, &head_norm(norm, &x)),
            QkOrder::AfterRope => head_norm(norm, &apply(&rope, &x)),
        };
        times(post_scale.clone(), turned)
    };
    let (q, k) = (rotated("q", inner.q_norm), rotated("k", inner.k_norm));
    let v = head_norm(inner.v_norm, &plain("v"));
    let scores = scores(inner.attn_scale, &q, &k);
    let mut lines = Vec::new();
    let mut logits = scores.clone();
    if let Some(cap) = inner.attn_softcap {
        let cap = number(cap);
        logits = sym(
            format!("{0}·tanh(S / {0})", cap.text),
            format!("{0} \\tanh(S / {0})", cap.latex),
        );
        lines.push(Equation::new(plain("S"), scores));
    }
    let mut context = sym(
        format!("softmax({}) {}", logits.text, v.text),
        format!(
            "\\operatorname{{softmax}}\\left({}\\right) {}",
            logits.latex, v.latex
        ),
    );
    context = head_norm(inner.ctx_norm, &context);
    if inner.head_gain {
        let inside = match inner.ctx_norm {
            HeadNorm::None => sym(
                format!("({})", context.text),
                format!("\\left({}\\right)", context.latex),
            ),
            _ => context,
        };
        context = sym(
            format!("γ ⊙ {}", inside.text),
            format!("\\gamma \\odot {}", inside.latex),
        );
        lines.push(Equation::note(
            sym("γ", "\\gamma"),
            "learned, one number per head, starts at 1",
        ));
    }
    if inner.attn_scale == AttnScale::Cosine {
        lines.push(Equation::note(
            sym("τ", "\\tau"),
            "learned, one number per head, starts at 0.1, kept ≥ 0.01",
        ));
    }
    let projections = projections(inner.clip_qkv);
    let output = sym(
        format!("W_O · {},  {}", context.text, projections.text),
        format!("W_O \\, {},\\quad {}", context.latex, projections.latex),
    );
    let name = apply(&attention_name(inner), &plain("u"));
    lines.insert(0, Equation::new(name, output));
    lines.extend(head_norm_notes(inner));
    lines
}

fn scores(scale: AttnScale, q: &Math, k: &Math) -> Math {
    let product = sym(
        format!("{} {}ᵀ", q.text, k.text),
        format!("{} \\, {}^{{\\top}}", q.latex, k.latex),
    );
    match scale {
        AttnScale::InvSqrtHeadDim => sym(
            format!("{} / √hd", product.text),
            format!("{} / \\sqrt{{d_h}}", product.latex),
        ),
        AttnScale::SqrtHeadDim => sym(
            format!("√hd · {}", product.text),
            format!("\\sqrt{{d_h}} \\, {}", product.latex),
        ),
        AttnScale::Const(1.0) => product,
        AttnScale::Const(value) => {
            let value = number(value);
            sym(
                format!("{} · {}", value.text, product.text),
                format!("{} \\, {}", value.latex, product.latex),
            )
        }
        AttnScale::Cosine => sym(
            format!("cos({}, {}) / τ", q.text, k.text),
            format!("\\cos({}, {}) / \\tau", q.latex, k.latex),
        ),
    }
}

fn projections(clip: Option<f64>) -> Math {
    match clip {
        None => sym(
            "q, k, v = W_q u, W_k u, W_v u",
            "q, k, v = W_q u,\\ W_k u,\\ W_v u",
        ),
        Some(limit) => {
            let limit = number(limit);
            sym(
                format!("q, k, v = clip(W_q u, W_k u, W_v u; ±{})", limit.text),
                format!(
                    "q, k, v = \\operatorname{{clip}}(W_q u,\\ W_k u,\\ W_v u;\\ \\pm {})",
                    limit.latex
                ),
            )
        }
    }
}

fn head_norm(norm: HeadNorm, x: &Math) -> Math {
    match norm {
        HeadNorm::None => x.clone(),
        some => apply(&head_norm_name(some), x),
    }
}

fn head_norm_name(norm: HeadNorm) -> Math {
    match norm {
        HeadNorm::None | HeadNorm::PerHead => plain("N"),
        HeadNorm::PerHeadOwn => sym("N_own", "N_{\\mathrm{own}}"),
        HeadNorm::PerHeadPlain => sym("N°", "N^{\\circ}"),
        HeadNorm::Full => sym("N_full", "N_{\\mathrm{full}}"),
        HeadNorm::FullPlain => sym("N°_full", "N^{\\circ}_{\\mathrm{full}}"),
    }
}

/// One line per kind of head norm: what it is taken over and what parameters it has.
fn head_norm_notes(inner: &AttnInner<Scale>) -> Vec<Equation> {
    let kinds = [
        (
            HeadNorm::PerHead,
            "over each head's channels, one gain for all heads",
        ),
        (
            HeadNorm::PerHeadOwn,
            "over each head's channels, a gain for every head",
        ),
        (
            HeadNorm::PerHeadPlain,
            "over each head's channels, without parameters",
        ),
        (HeadNorm::Full, "over the channels of all heads together"),
        (
            HeadNorm::FullPlain,
            "over the channels of all heads together, without parameters",
        ),
    ];
    kinds
        .into_iter()
        .filter_map(|(kind, prose)| {
            let of: Vec<_> = sites(inner)
                .into_iter()
                .filter(|(_, norm)| *norm == kind)
                .map(|(letter, _)| match letter {
                    'c' => "context".to_string(),
                    letter => letter.to_string(),
                })
                .collect();
            let name = head_norm_name(kind);
            let prose = format!("on {}: {prose}", of.join(", "));
            (!of.is_empty()).then(|| Equation::note(name, prose))
        })
        .collect()
}

pub(super) fn feed_forward(inner: &FfnInner, gated: bool) -> Equation {
    let norm = |on: bool, x: Math| match on {
        true => apply(&plain("N"), &x),
        false => x,
    };
    let act = sym("φ", "\\varphi");
    let linear = |name: &str| sym(format!("W_{name} u"), format!("W_{{\\mathrm{{{name}}}}} u"));
    let up = norm(inner.up_norm, linear("up"));
    let hidden = if gated {
        let gate = apply(&act, &norm(inner.gate_norm, linear("gate")));
        sym(
            format!("{} ⊙ {}", gate.text, up.text),
            format!("{} \\odot {}", gate.latex, up.latex),
        )
    } else {
        apply(&act, &up)
    };
    let hidden = match (inner.mid_norm, gated) {
        (true, _) => apply(&plain("N"), &hidden),
        (false, true) => apply(&plain(""), &hidden),
        (false, false) => hidden,
    };
    Equation::new(
        apply(&plain("F"), &plain("u")),
        sym(
            format!("W_down {}", hidden.text),
            format!("W_{{\\mathrm{{down}}}} {}", hidden.latex),
        ),
    )
}
