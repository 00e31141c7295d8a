//! Definitions of attention and the feed-forward, with their inner norms and scales.

use super::super::spec::{AttnInner, AttnScale, FfnInner, HeadNorm, QkOrder, Scale};
use super::latent;
use super::math::{Equation, Math, apply, bracket, number, plain, sym, times};
use super::scales::Scales;

/// `A` with a subscript that lists which of q, k, v and the context are normalized.
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

/// Operands of the attention logits and the context.
pub(super) struct AttentionOperands {
    pub q: Math,
    pub k: Math,
    pub v: Math,
    /// Their definitions, appended to the equation of attention.
    pub source: Option<Math>,
    /// Their definitions, on separate lines.
    pub lines: Vec<Equation>,
    /// Definitions of the norms on them.
    pub notes: Vec<Equation>,
}

pub(super) fn attention(
    inner: &AttnInner<Scale>,
    latent: bool,
    scales: &mut Scales,
) -> Vec<Equation> {
    let operands = match latent {
        true => latent::operands(inner, scales),
        false => operands(inner, scales),
    };
    let mut lines = operands.lines;
    let scores = scores(inner.attn_scale, &operands.q, &operands.k);
    let mut logits = scores.clone();
    if let Some(cap) = inner.attn_softcap {
        let cap = number(cap);
        logits = sym(
            format!("{0}·tanh(S / {0})", cap.text),
            format!("{0} \\tanh(S / {0})", cap.latex),
        );
        lines.push(Equation::new(plain("S"), scores));
    }
    let context = context(inner, &logits, &operands.v, &mut lines);
    if inner.attn_scale == AttnScale::Cosine {
        lines.push(Equation::note(
            sym("τ", "\\tau"),
            "learned, one number per head, initialized to 0.1, clamped to ≥ 0.01",
        ));
    }
    let output = sym(
        format!("W_O · {}", context.text),
        format!("W_O \\, {}", context.latex),
    );
    let output = match operands.source {
        Some(source) => sym(
            format!("{},  {}", output.text, source.text),
            format!("{},\\quad {}", output.latex, source.latex),
        ),
        None => output,
    };
    let name = apply(&attention_name(inner), &plain("u"));
    lines.insert(0, Equation::new(name, output));
    lines.extend(operands.notes);
    lines.extend(inner.norm_eps.map(|eps| {
        let prose = format!("inside attention with eps {}", number(eps).text);
        Equation::note(plain("N"), prose)
    }));
    lines
}

/// Multi-head attention: three projections, normalized per head or over all heads.
fn operands(inner: &AttnInner<Scale>, scales: &mut Scales) -> AttentionOperands {
    let channel = "channel of every key/value head";
    let post_scale = scales.factor_per(channel, &inner.qk_post_scale);
    let rotary = |name: &str, norm: HeadNorm| {
        let (rope, x) = (rope(), plain(name));
        let x = match inner.qk_order {
            _ if norm == HeadNorm::None => return apply(&rope, &x),
            QkOrder::BeforeRope => apply(&rope, &head_norm(norm, &x)),
            QkOrder::AfterRope => head_norm(norm, &apply(&rope, &x)),
        };
        times(post_scale.clone(), x)
    };
    AttentionOperands {
        q: rotary("q", inner.q_norm),
        k: rotary("k", inner.k_norm),
        v: head_norm(inner.v_norm, &plain("v")),
        source: Some(projections(inner.clip_qkv)),
        lines: Vec::new(),
        notes: head_norm_notes(&sites(inner)),
    }
}

pub(super) fn rope() -> Math {
    sym("RoPE", "\\mathrm{RoPE}")
}

/// The weighted sum of values with its norm and gain.
fn context(inner: &AttnInner<Scale>, logits: &Math, v: &Math, lines: &mut Vec<Equation>) -> Math {
    let sum = sym(
        format!("softmax({}) {}", logits.text, v.text),
        format!(
            "\\operatorname{{softmax}}\\left({}\\right) {}",
            logits.latex, v.latex
        ),
    );
    let context = head_norm(inner.ctx_norm, &sum);
    if !inner.head_gain {
        return context;
    }
    lines.push(Equation::note(
        sym("γ", "\\gamma"),
        "learned, one number per head, initialized to 1",
    ));
    let inside = match inner.ctx_norm {
        HeadNorm::None => sym(
            format!("({})", context.text),
            format!("\\left({}\\right)", context.latex),
        ),
        _ => context,
    };
    sym(
        format!("γ ⊙ {}", inside.text),
        format!("\\gamma \\odot {}", inside.latex),
    )
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
        HeadNorm::PerHeadNoGain => sym("N°", "N^{\\circ}"),
        HeadNorm::Full => sym("N_full", "N_{\\mathrm{full}}"),
        HeadNorm::FullNoGain => sym("N°_full", "N^{\\circ}_{\\mathrm{full}}"),
    }
}

/// One line per kind of head norm: the channels it covers and its parameters.
pub(super) fn head_norm_notes(sites: &[(char, HeadNorm)]) -> Vec<Equation> {
    let kinds = [
        (
            HeadNorm::PerHead,
            "over each head's channels, one gain shared by all heads",
        ),
        (
            HeadNorm::PerHeadOwn,
            "over each head's channels, a separate gain per head",
        ),
        (
            HeadNorm::PerHeadNoGain,
            "over each head's channels, without parameters",
        ),
        (HeadNorm::Full, "over the channels of all heads together"),
        (
            HeadNorm::FullNoGain,
            "over the channels of all heads together, without parameters",
        ),
    ];
    kinds
        .into_iter()
        .filter_map(|(kind, prose)| {
            let of: Vec<_> = sites
                .iter()
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

pub(super) fn feed_forward(inner: &FfnInner<Scale>, gated: bool, scales: &mut Scales) -> Equation {
    let mut projection = |name: &str, norm: bool, scale: &Scale| {
        let x = sym(format!("W_{name} u"), format!("W_{{\\mathrm{{{name}}}}} u"));
        let x = match norm {
            true => apply(&plain("N"), &x),
            false => x,
        };
        times(scales.factor(scale), x)
    };
    let act = sym("φ", "\\varphi");
    let hidden = if gated {
        let gate = projection("gate", inner.gate_norm, &inner.gate_scale);
        let gate = apply(&act, &gate);
        let up = projection("up", inner.up_norm, &inner.up_scale);
        sym(
            format!("{} ⊙ {}", gate.text, up.text),
            format!("{} \\odot {}", gate.latex, up.latex),
        )
    } else {
        apply(&act, &projection("up", inner.up_norm, &inner.up_scale))
    };
    let hidden = match (inner.mid_norm, gated) {
        (true, _) => apply(&plain("N"), &hidden),
        (false, true) => bracket(&hidden),
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
