//! Errors of model-wide fields.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{self, Conflict, NoEffect, OutOfRange};
use super::super::norm_functions::names_with_alpha;
use super::super::spec::{
    Embed, Gain, Init, InitScheme, Logits, NormSpec, ProjectionGains, ResolvedScale, Scale, StdRule,
};
use super::{ONE, ValidationContext, block_output_is_normalized};

pub(super) fn check(context: &ValidationContext) -> Result<(), PlacementError> {
    norm(&context.placement.norm)?;
    overrides(context)?;
    embed(context, &context.placement.embed)?;
    logits(context, &context.placement.logits)?;
    init(&context.placement.init)
}

fn fail<T>(
    kind: PlacementErrorKind,
    field: &str,
    problem: impl Into<String>,
) -> Result<T, PlacementError> {
    Err(PlacementError::new(kind, field, problem))
}

/// Checks that a number is finite and above 0.
pub(super) fn positive(value: f64, field: &str, what: &str) -> Result<(), PlacementError> {
    let problem = match value.is_finite() && value > 0.0 {
        // Models compute in single precision, in which it would be 0 or infinite.
        true if (value as f32).is_normal() => return Ok(()),
        true => format!("{what} is {value:e}; it must be in the range of single precision"),
        false => format!("{what} is {value}; it must be a finite number above 0"),
    };
    fail(OutOfRange, field, problem)
}

fn norm(norm: &NormSpec) -> Result<(), PlacementError> {
    positive(norm.eps, "norm.eps", "eps")?;
    if let Some(alpha) = norm.alpha_init {
        if !norm.has_alpha() {
            let problem = format!(
                "only {} have an α, so this has no effect; remove it or change norm.kind",
                names_with_alpha()
            );
            return fail(NoEffect, "norm.alpha_init", problem);
        }
        positive(alpha, "norm.alpha_init", "the initial α")?;
    }
    if norm.kind.is_none() {
        if norm.gain != Gain::Plain {
            return fail(
                NoEffect,
                "norm.gain",
                "norm.kind = \"none\" disables every norm, so norm.gain has no effect; remove it",
            );
        }
        if norm.bias {
            return fail(
                NoEffect,
                "norm.bias",
                "norm.kind = \"none\" disables every norm, so norm.bias has no effect; remove it",
            );
        }
    }
    Ok(())
}

fn overrides(context: &ValidationContext) -> Result<(), PlacementError> {
    for (index, entry) in context.placement.overrides.iter().enumerate() {
        if entry.set.as_object().is_none_or(|set| set.is_empty()) {
            return fail(
                NoEffect,
                &format!("overrides[{index}].set"),
                "the override is not a table with fields, so it has no effect; name the fields to \
                 change or remove it",
            );
        }
    }
    Ok(())
}

fn embed(context: &ValidationContext, embed: &Embed) -> Result<(), PlacementError> {
    if let Some(std) = embed.init_std {
        positive(std, "embed.init_std", "the standard deviation")?;
    }
    if context.resolved.embed_scale == ResolvedScale::Const(0.0) {
        return fail(
            OutOfRange,
            "embed.scale",
            "a factor of 0 removes the input; give another number",
        );
    }
    let is_scale_invariant = context.resolved.norm.is_scale_invariant();
    if embed.norm && is_scale_invariant && context.resolved.embed_scale != ONE {
        return fail(
            NoEffect,
            "embed.scale",
            "embed.norm cancels embed.scale, so it has no effect; remove one of them",
        );
    }
    Ok(())
}

fn logits(context: &ValidationContext, logits: &Logits) -> Result<(), PlacementError> {
    if let Some(cap) = logits.softcap {
        positive(cap, "logits.softcap", "the cap")?;
    }
    if !(logits.z_loss.is_finite() && logits.z_loss >= 0.0) {
        let problem = format!(
            "the coefficient is {}; it must be a finite number, 0 or above",
            logits.z_loss
        );
        return fail(OutOfRange, "logits.z_loss", problem);
    }
    match context.resolved.logits.scale {
        ResolvedScale::Const(0.0) => fail(
            OutOfRange,
            "logits.scale",
            "a factor of 0 removes the logits",
        ),
        _ => Ok(()),
    }
}

fn init(init: &Init) -> Result<(), PlacementError> {
    if let StdRule::Const(std) = init.std {
        positive(std, "init.std", "the standard deviation")?;
        if matches!(init.scheme, InitScheme::DepthScaled | InitScheme::Xavier) {
            return fail(
                NoEffect,
                "init.std",
                "`depth_scaled` and `xavier` compute standard deviations from the shape of each \
                 matrix, so this has no effect; remove it or use `normal` or `megatron`",
            );
        }
    }
    for (projection, gain) in gains_by_projection(&init.gains) {
        if *gain == Scale::Const(0.0) && !matches!(projection, "o" | "down") {
            return fail(
                OutOfRange,
                &format!("init.gains.{projection}"),
                "a gain of 0 is supported for `o` and `down` only; use another number",
            );
        }
    }
    Ok(())
}

/// Returns the gains and the names of their projections.
pub(super) fn gains_by_projection(g: &ProjectionGains) -> [(&'static str, &Scale); 7] {
    [
        ("q", &g.q),
        ("k", &g.k),
        ("v", &g.v),
        ("o", &g.o),
        ("gate", &g.gate),
        ("up", &g.up),
        ("down", &g.down),
    ]
}

/// Checks that the last block ends in a norm if there is no final norm. A second stream has its own norm,
/// and a model without norms needs none.
pub(super) fn check_final_norm(context: &ValidationContext) -> Result<(), PlacementError> {
    let r = context.resolved;
    let ends_in_norm = r.blocks.last().is_some_and(block_output_is_normalized);
    if r.final_norm || ends_in_norm || r.streams.is_dual() || context.has_no_norms() {
        return Ok(());
    }
    fail(
        Conflict,
        "final_norm",
        "without a final norm the output head reads a raw sum whose magnitude grows with depth; \
         set final_norm = true, or end the last block in a norm with ffn.post_norm = true",
    )
}
