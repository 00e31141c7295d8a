//! Warnings about placements that are valid but known to train badly.

use super::super::layers::select_layers;
use super::super::norm_functions::EpsTerm;
use super::super::resolve::Projection;
use super::super::spec::{
    HeadNorm, InitScheme, ResolvedBlock, ResolvedScale, Scale, Skip, Streams, Topology,
};
use super::{
    BlockContext, ValidationContext, Warning, WarningRule, block_output_is_normalized,
    sub_layer_output_is_normalized,
};

pub(super) fn collect(context: &ValidationContext) -> Vec<Warning> {
    let mut all = Vec::new();
    no_layers(context, &mut all);
    double_norm(context, &mut all);
    unbounded(context, &mut all);
    depth_scaled_twice(context, &mut all);
    hybrid_init(context, &mut all);
    eps(context, &mut all);
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

fn blocks<'a>(context: &'a ValidationContext<'a>) -> impl Iterator<Item = BlockContext<'a>> {
    (0..context.resolved.n_layers()).map(|layer| context.block(layer))
}

fn no_layers(context: &ValidationContext, all: &mut Vec<Warning>) {
    let depth = context.resolved.n_layers();
    for (index, entry) in context.placement.overrides.iter().enumerate() {
        if select_layers(&entry.layers, depth).is_ok_and(|chosen| chosen.is_empty()) {
            warn(
                all,
                WarningRule::NoLayers,
                format!("overrides[{index}].layers"),
                format!(
                    "matches none of the {depth} blocks, so the override has no effect at this depth; \
                     use more blocks or another selector"
                ),
            );
        }
    }
}

/// True if the (main) residual stream that enters this block has just been normalized.
fn input_is_normalized(block: &BlockContext) -> bool {
    match block.layer.checked_sub(1) {
        None => block.context.resolved.embed_norm,
        Some(before) => block_output_is_normalized(&block.context.resolved.blocks[before]),
    }
}

fn double_norm_message(what: &str, todo: &str) -> String {
    format!("{what}, so the residual stream is normalized twice in a row; {todo}")
}

fn double_norm(context: &ValidationContext, all: &mut Vec<Warning>) {
    if context.has_no_norm_function() {
        return;
    }
    // With siamese streams a sub-layer reads a sum, which has not been normalized yet.
    if context.resolved.streams != Streams::Siamese {
        double_skip(context, all);
    }
    double_end(context, all);
}

fn double_skip(context: &ValidationContext, all: &mut Vec<Warning>) {
    for block in blocks(context) {
        let spec = block.spec;
        if spec.attn.skip == Skip::Normed && input_is_normalized(&block) {
            warn(
                all,
                WarningRule::DoubleNorm,
                block.origin("attn.skip"),
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
                block.origin("ffn.skip"),
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
fn double_end(context: &ValidationContext, all: &mut Vec<Warning>) {
    let r = context.resolved;
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
fn unbounded(context: &ValidationContext, all: &mut Vec<Warning>) {
    if context.has_no_norms() {
        return model_without_norms(context, all);
    }
    for block in blocks(context) {
        let spec = block.spec;
        let inner = &spec.attn_inner;
        let attn_normed = spec.attn.in_norm
            || spec.attn.out_norm.is_some()
            || sub_layer_output_is_normalized(&spec.attn)
            || inner.v_norm != HeadNorm::None
            || inner.ctx_norm != HeadNorm::None;
        if !attn_normed && !input_is_normalized(&block) {
            warn(
                all,
                WarningRule::UnboundedAttention,
                block.origin("attn.in_norm"),
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
            || (parallel && input_is_normalized(&block))
            || (spec.ffn_inner.up_norm
                && (spec.ffn_inner.gate_norm || !context.facts.has_gated_activation));
        if !ffn_normed {
            warn(
                all,
                WarningRule::UnboundedFfn,
                block.origin("ffn.in_norm"),
                "the feed-forward has no norm between the residual stream and its output, so the \
                 residual stream can grow without bound; set ffn.in_norm = true or ffn.out_norm = \
                 true",
            );
        }
    }
}

/// Warns if a model without norms adds unscaled branch outputs (ReZero initializes their scale to 0).
fn model_without_norms(context: &ValidationContext, all: &mut Vec<Warning>) {
    let starts_small = |factor: ResolvedScale| match factor {
        ResolvedScale::Const(value) => value.abs() < 1.0,
        ResolvedScale::Learned { init, .. } => init.abs() < 1.0,
    };
    for block in blocks(context) {
        for (name, rule, sub) in [
            ("attn", WarningRule::UnboundedAttention, &block.spec.attn),
            ("ffn", WarningRule::UnboundedFfn, &block.spec.ffn),
        ] {
            if !starts_small(sub.out_scale) {
                warn(
                    all,
                    rule,
                    block.origin(&format!("{name}.out_scale")),
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
fn depth_scaled_twice(context: &ValidationContext, all: &mut Vec<Warning>) {
    let scheme = context.resolved.init.scheme;
    if !matches!(scheme, InitScheme::DepthScaled | InitScheme::Megatron) {
        return;
    }
    let shrinks = |scale: &Scale| matches!(scale, Scale::Formula(f) if f.depends_on_layer());
    for block in blocks(context) {
        let unresolved = &context.blocks[block.layer].block;
        for (name, sub) in [("attn", &unresolved.attn), ("ffn", &unresolved.ffn)] {
            if shrinks(&sub.in_scale) {
                warn(
                    all,
                    WarningRule::DepthScaledTwice,
                    block.origin(&format!("{name}.in_scale")),
                    "in_scale and the initial weights both shrink with depth, which the authors of \
                     LayerNorm Scaling advise against; set init.scheme = \"normal\"",
                );
            }
        }
    }
}

/// Warns about HybridNorm without megatron init: at 550M, perplexity is 20.00 with megatron init, 20.44
/// normal, 20.40 depth-scaled (arXiv 2503.04598, init ablation).
fn hybrid_init(context: &ValidationContext, all: &mut Vec<Warning>) {
    let scheme = context.resolved.init.scheme;
    if !matches!(scheme, InitScheme::Normal | InitScheme::DepthScaled)
        || context.has_no_norm_function()
    {
        return;
    }
    let hybrid = |block: &ResolvedBlock| {
        let inner = &block.attn_inner;
        let heads = [inner.q_norm, inner.k_norm, inner.v_norm];
        block.ffn.skip == Skip::Normed
            && !block.attn.in_norm
            && heads.iter().all(|norm| *norm != HeadNorm::None)
    };
    if context.resolved.blocks.iter().any(hybrid) {
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
const MAX_EPS_FRACTION: f64 = 0.05;

/// Warns if eps is not small compared with the variance of the first block's queries, which with raw
/// embeddings is `d · σ_w² · σ_e²` at initialization. Not checked for siamese streams, which add a norm
/// to the input, or for sums over a latent's channels, whose number is not known here.
fn eps(context: &ValidationContext, all: &mut Vec<Warning>) {
    let r = context.resolved;
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
        && !(context.facts.is_latent_attention && term == EpsTerm::Sum);
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
        EpsTerm::Sum => (of_norm / context.facts.head_dim as f64, " per channel"),
        EpsTerm::Mean => (of_norm, ""),
    };
    if eps > MAX_EPS_FRACTION * variance {
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
