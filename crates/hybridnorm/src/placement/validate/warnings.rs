//! Warnings about placements that are valid but known to train badly.

use super::super::layers::select_layers;
use super::super::norm_functions::EpsTerm;
use super::super::resolve::Projection;
use super::super::spec::{
    HeadNorm, InitScheme, ResolvedBlock, ResolvedScale, Scale, Skip, Streams, Topology,
};
use super::{
    BlockContext, Validation, Warning, WarningRule, block_output_is_normalized,
    sub_layer_output_is_normalized,
};

pub(super) fn collect(case: &Validation) -> Vec<Warning> {
    let mut all = Vec::new();
    no_layers(case, &mut all);
    double_norm(case, &mut all);
    unbounded(case, &mut all);
    depth_scaled_twice(case, &mut all);
    hybrid_init(case, &mut all);
    eps(case, &mut all);
    all
}

/// Adds a warning unless there already is one of this rule for this field.
fn warn(all: &mut Vec<Warning>, rule: WarningRule, field: String, message: impl Into<String>) {
    let seen = |w: &Warning| w.rule == rule && w.field == field;
    if !all.iter().any(seen) {
        all.push(Warning {
            rule,
            field,
            message: message.into(),
        });
    }
}

fn sites<'a>(case: &'a Validation<'a>) -> impl Iterator<Item = BlockContext<'a>> {
    (0..case.resolved.n_layers()).map(|layer| case.site(layer))
}

fn no_layers(case: &Validation, all: &mut Vec<Warning>) {
    let depth = case.resolved.n_layers();
    for (number, entry) in case.placement.overrides.iter().enumerate() {
        if select_layers(&entry.layers, depth).is_ok_and(|chosen| chosen.is_empty()) {
            warn(
                all,
                WarningRule::NoLayers,
                format!("overrides[{number}].layers"),
                format!(
                    "matches none of the {depth} blocks, so the override has no effect at this depth; \
                     use more blocks or another selector"
                ),
            );
        }
    }
}

/// True if the (main) residual stream that enters this block has just been normalized.
fn input_is_normalized(site: &BlockContext) -> bool {
    match site.layer.checked_sub(1) {
        None => site.case.resolved.embed_norm,
        Some(before) => block_output_is_normalized(&site.case.resolved.blocks[before]),
    }
}

fn double_norm_message(what: &str, todo: &str) -> String {
    format!("{what}, so the residual stream is normalized twice in a row; {todo}")
}

fn double_norm(case: &Validation, all: &mut Vec<Warning>) {
    if case.without_norms() {
        return;
    }
    // With siamese streams a sub-layer reads a sum, which has not been normalized yet.
    if case.resolved.streams != Streams::Siamese {
        double_skip(case, all);
    }
    double_end(case, all);
}

fn double_skip(case: &Validation, all: &mut Vec<Warning>) {
    for site in sites(case) {
        let spec = site.spec;
        if spec.attn.skip == Skip::Normed && input_is_normalized(&site) {
            warn(
                all,
                WarningRule::DoubleNorm,
                site.origin("attn.skip"),
                double_norm_message(
                    "this skip normalizes a residual stream that is already normalized",
                    "use a raw skip or remove the norm before it",
                ),
            );
        }
        let sequential = spec.topology == Topology::Sequential;
        if sequential && spec.ffn.skip == Skip::Normed && sub_layer_output_is_normalized(&spec.attn)
        {
            let previous = match spec.attn.post_norm {
                true => "attn.post_norm",
                false => "attn.combine",
            };
            warn(
                all,
                WarningRule::DoubleNorm,
                site.origin("ffn.skip"),
                double_norm_message(
                    &format!(
                        "this skip normalizes a residual stream that {previous} already normalizes"
                    ),
                    "remove one of them",
                ),
            );
        }
    }
}

/// Warns if the norm that reads the last block's output is a second norm in a row. With two streams that
/// norm is `merge_norm`, and the final norm reads a sum.
fn double_end(case: &Validation, all: &mut Vec<Warning>) {
    let r = case.resolved;
    let (field, is_on) = match r.streams.is_dual() {
        true => ("merge_norm", r.merge_norm),
        false => ("final_norm", r.final_norm),
    };
    if is_on && r.blocks.last().is_some_and(block_output_is_normalized) {
        warn(
            all,
            WarningRule::DoubleNorm,
            field.into(),
            double_norm_message(
                "the last block already ends in a norm",
                &format!("set {field} = false"),
            ),
        );
    }
}

/// Warns about sub-layers without a norm between the residual stream and their output. QK-Post, whose
/// attention passes the raw stream through W_V and W_O, diverged in the HybridNorm paper; QKC-Post and
/// OLMo 2, which normalize the context or the output, did not. A second stream is only read through a
/// norm, so only the main stream is checked.
fn unbounded(case: &Validation, all: &mut Vec<Warning>) {
    if case.has_no_norms() {
        return model_without_norms(case, all);
    }
    for site in sites(case) {
        let spec = site.spec;
        let inner = &spec.attn_inner;
        let attn_normed = spec.attn.in_norm
            || spec.attn.out_norm.is_some()
            || sub_layer_output_is_normalized(&spec.attn)
            || inner.v_norm != HeadNorm::None
            || inner.ctx_norm != HeadNorm::None;
        if !attn_normed && !input_is_normalized(&site) {
            warn(
                all,
                WarningRule::UnboundedAttention,
                site.origin("attn.in_norm"),
                "attention has no norm between the residual stream and its output (in_norm, \
                 v_norm, ctx_norm, out_norm and post_norm are all off), so the residual stream can \
                 grow without bound; such a placement (qk-post) diverged in the HybridNorm paper; \
                 add a norm on v or the context",
            );
        }
        let parallel = spec.topology != Topology::Sequential;
        let ffn_normed = spec.ffn.in_norm
            || spec.ffn.out_norm.is_some()
            || sub_layer_output_is_normalized(&spec.ffn)
            || spec.ffn_inner.mid_norm
            || sub_layer_output_is_normalized(&spec.attn)
            || (parallel && input_is_normalized(&site))
            || (spec.ffn_inner.up_norm
                && (spec.ffn_inner.gate_norm || !case.facts.has_gated_activation));
        if !ffn_normed {
            warn(
                all,
                WarningRule::UnboundedFfn,
                site.origin("ffn.in_norm"),
                "the feed-forward has no norm between the residual stream and its output, so the \
                 residual stream can grow without bound; set ffn.in_norm = true or ffn.out_norm = \
                 true",
            );
        }
    }
}

/// Warns if a model without norms adds unscaled branch outputs (ReZero initializes their scale to 0).
fn model_without_norms(case: &Validation, all: &mut Vec<Warning>) {
    let starts_small = |factor: ResolvedScale| match factor {
        ResolvedScale::Const(value) => value.abs() < 1.0,
        ResolvedScale::Learned { init, .. } => init.abs() < 1.0,
    };
    for site in sites(case) {
        for (name, rule, sub) in [
            ("attn", WarningRule::UnboundedAttention, &site.spec.attn),
            ("ffn", WarningRule::UnboundedFfn, &site.spec.ffn),
        ] {
            if !starts_small(sub.out_scale) {
                warn(
                    all,
                    rule,
                    site.origin(&format!("{name}.out_scale")),
                    "the model has no norms and adds this output unscaled, so the residual stream \
                     can grow without bound; initialize out_scale to a small value, as ReZero does \
                     with a learned scalar initialized to 0",
                );
            }
        }
    }
}

/// Warns if input scales and initial weights both shrink with depth, which the authors of LayerNorm
/// Scaling advise against.
fn depth_scaled_twice(case: &Validation, all: &mut Vec<Warning>) {
    let scheme = case.resolved.init.scheme;
    if !matches!(scheme, InitScheme::DepthScaled | InitScheme::Megatron) {
        return;
    }
    let shrinks = |scale: &Scale| matches!(scale, Scale::Formula(f) if f.depends_on_layer());
    for site in sites(case) {
        let block = &case.blocks[site.layer].block;
        for (name, sub) in [("attn", &block.attn), ("ffn", &block.ffn)] {
            if shrinks(&sub.in_scale) {
                warn(
                    all,
                    WarningRule::DepthScaledTwice,
                    site.origin(&format!("{name}.in_scale")),
                    "in_scale and the initial weights both shrink with depth, which the authors of \
                     LayerNorm Scaling advise against; set init.scheme = \"normal\"",
                );
            }
        }
    }
}

/// Warns about HybridNorm without megatron init: at 550M, perplexity is 20.00 with megatron init, 20.44
/// normal, 20.40 depth-scaled (arXiv 2503.04598, init ablation).
fn hybrid_init(case: &Validation, all: &mut Vec<Warning>) {
    let scheme = case.resolved.init.scheme;
    if !matches!(scheme, InitScheme::Normal | InitScheme::DepthScaled) || case.without_norms() {
        return;
    }
    let hybrid = |block: &ResolvedBlock| {
        let inner = &block.attn_inner;
        let heads = [inner.q_norm, inner.k_norm, inner.v_norm];
        block.ffn.skip == Skip::Normed
            && !block.attn.in_norm
            && heads.iter().all(|norm| *norm != HeadNorm::None)
    };
    if case.resolved.blocks.iter().any(hybrid) {
        warn(
            all,
            WarningRule::HybridInit,
            "init.scheme".into(),
            "HybridNorm needs smaller initial output projections: its paper reports perplexity \
             20.00 with `megatron`, 20.44 with `normal` and 20.40 with `depth_scaled`, and \
             re-implementations without it diverged; set init.scheme = \"megatron\"",
        );
    }
}

/// Ratio of eps to the variance of a norm's input above which eps changes the norm.
const EPS_SHARE: f64 = 0.05;

/// Warns if eps is not small compared with the variance of the first block's queries, which with raw
/// embeddings is `d · σ_w² · σ_e²` at initialization. Not checked for siamese streams, which add a norm
/// to the input, or for sums over a latent's channels, whose number is not known here.
fn eps(case: &Validation, all: &mut Vec<Warning>) {
    let r = case.resolved;
    let Some(term) = r.norm.eps_term() else {
        return;
    };
    let first = &r.blocks[0];
    let (inner, attn) = (&first.attn_inner, &first.attn);
    let heads = [inner.q_norm, inner.k_norm, inner.v_norm];
    let applies = heads.iter().any(|norm| *norm != HeadNorm::None)
        && !attn.in_norm
        && !r.embed_norm
        && r.streams != Streams::Siamese
        && !(case.facts.is_latent_attention && term == EpsTerm::Sum);
    if !applies {
        return;
    }
    let start = |factor: ResolvedScale| match factor {
        ResolvedScale::Const(value) => value,
        ResolvedScale::Learned { init, .. } => init,
    };
    let d = r.d_model;
    let input = r.embed_std() * start(r.embed_scale) * start(attn.in_scale);
    let variance = d as f64 * (r.weight_std(0, Projection::Q, d, d) * input).powi(2);
    let (of_norm, field) = match inner.norm_eps {
        Some(eps) => (eps, "block.attn_inner.norm_eps"),
        None => (r.norm.eps, "norm.eps"),
    };
    let (eps, per) = match term {
        EpsTerm::Sum => (of_norm / case.facts.head_dim as f64, " per channel"),
        EpsTerm::Mean => (of_norm, ""),
    };
    if eps > EPS_SHARE * variance {
        warn(
            all,
            WarningRule::EpsTooLarge,
            field.into(),
            format!(
                "the first block normalizes queries of raw embeddings, whose initial variance is about {variance:.1e}; eps{per} is {:.0} % of it, so the normalized queries have \
                 an RMS below 1; use a smaller eps (1e-6), normalize or scale the embedding, or \
                 set attn.in_norm in the first block (hybridnorm-star)",
                100.0 * eps / variance
            ),
        );
    }
}
