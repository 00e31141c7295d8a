//! Definitions of multi-head latent attention: the projections of the latents, and the norms.

use super::super::spec::{AttnInner, AttnScale, HeadNorm, Scale};
use super::inner::{AttentionOperands, head_norm_notes, rope};
use super::math::{Equation, Math, apply, comma, number, plain, sym, times};
use super::scales::Scales;

/// `q = (q_c, RoPE(q_r))` from the query latent, `k = (k_c, RoPE(k_r))` and `v` from the key/value
/// latent and the rotary key.
pub(super) fn operands(inner: &AttnInner<Scale>, scales: &mut Scales) -> AttentionOperands {
    let post_scale = scales.factor(&inner.qk_post_scale);
    let scaled = |x| times(post_scale.clone(), x);
    let (q, k, v) = (plain("q"), plain("k"), plain("v"));
    let [c_q, c_kv, k_r] = latents();
    let (q_c, q_r, k_c) = (
        subscripted("q", "c"),
        subscripted("q", "r"),
        subscripted("k", "c"),
    );
    let rotary_key = norm(inner.k_norm, &k_r);
    let lines = vec![
        first_projection(inner.clip_qkv),
        Equation::new(
            comma(&q_c, &q_r),
            split_projection("UQ", &norm(inner.q_norm, &c_q)),
        ),
        Equation::new(
            comma(&k_c, &v),
            split_projection("UKV", &norm(inner.v_norm, &c_kv)),
        ),
        Equation::new(q.clone(), scaled(concat(&q_c, &apply(&rope(), &q_r)))),
        Equation::new(
            k.clone(),
            scaled(concat(&k_c, &apply(&rope(), &rotary_key))),
        ),
    ];
    AttentionOperands {
        q,
        k,
        v,
        source: None,
        lines,
        notes: notes(inner),
    }
}

/// `c_q, c_kv, k_r = split(W_D u)`
fn first_projection(clip: Option<f64>) -> Equation {
    let [c_q, c_kv, k_r] = latents();
    let split = split_projection("D", &plain("u"));
    let split = match clip {
        None => split,
        Some(limit) => {
            let limit = number(limit);
            sym(
                format!("clip({}; ±{})", split.text, limit.text),
                format!(
                    "\\operatorname{{clip}}({};\\ \\pm {})",
                    split.latex, limit.latex
                ),
            )
        }
    };
    Equation::new(comma(&comma(&c_q, &c_kv), &k_r), split)
}

fn latents() -> [Math; 3] {
    [
        subscripted("c", "q"),
        subscripted("c", "kv"),
        subscripted("k", "r"),
    ]
}

fn subscripted(letter: &str, index: &str) -> Math {
    sym(
        format!("{letter}_{index}"),
        format!("{letter}_{{\\mathrm{{{index}}}}}"),
    )
}

/// `split(W x)`
fn split_projection(weight: &str, x: &Math) -> Math {
    sym(
        format!("split(W_{weight} {})", x.text),
        format!(
            "\\operatorname{{split}}(W_{{\\mathrm{{{weight}}}}} {})",
            x.latex
        ),
    )
}

/// Concatenation of two vectors.
fn concat(a: &Math, b: &Math) -> Math {
    sym(
        format!("[{}; {}]", a.text, b.text),
        format!("[{};\\ {}]", a.latex, b.latex),
    )
}

fn norm(norm: HeadNorm, x: &Math) -> Math {
    match norm {
        HeadNorm::None => x.clone(),
        _ if has_no_gain(norm) => apply(&sym("N°", "N^{\\circ}"), x),
        _ => apply(&plain("N"), x),
    }
}

fn has_no_gain(norm: HeadNorm) -> bool {
    matches!(norm, HeadNorm::PerHeadNoGain | HeadNorm::FullNoGain)
}

/// Notes on the query latent, the key/value latent and the rotary key with their norms, on the norm of
/// the context, and on the head width.
fn notes(inner: &AttnInner<Scale>) -> Vec<Equation> {
    let norms = [inner.q_norm, inner.v_norm, inner.k_norm];
    let prose = [
        "query latent",
        "key/value latent, up-projected to values and the nope part of keys",
        "rotary key, shared by all heads",
    ];
    let mut lines: Vec<_> = latents()
        .into_iter()
        .zip(norms)
        .zip(prose)
        .map(|((name, norm), prose)| {
            let normed = match norm {
                HeadNorm::None => "no norm",
                _ if has_no_gain(norm) => "normalized over its full width, without parameters",
                _ => "normalized over its full width",
            };
            Equation::note(name, format!("{prose}; {normed}"))
        })
        .collect();
    if inner.ctx_norm != HeadNorm::None {
        let width = sym("hd_v", "d_{\\mathrm{v}}");
        lines.push(Equation::note(width, "width of a head's value and context"));
    }
    lines.extend(head_norm_notes(&[('c', inner.ctx_norm)]));
    if !matches!(inner.attn_scale, AttnScale::Const(_)) {
        lines.push(Equation::note(
            sym("hd", "d_h"),
            "width of a query head, nope and rotary part",
        ));
    }
    lines
}
