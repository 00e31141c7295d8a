//! Errors of states and weights normalized to unit length (nGPT).

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{Conflict, NoEffect};
use super::super::spec::{
    Combine, Init, InitScheme, ResolvedScale, Scale, Skip, StdRule, SubLayer, Topology,
};
use super::model::gains_by_projection;
use super::{BlockContext, ONE, ValidationContext};

/// Rejects settings of the initial weights, whose magnitude the normalization to unit length removes.
pub(super) fn check(context: &ValidationContext) -> Result<(), PlacementError> {
    if !context.resolved.unit_weights {
        return Ok(());
    }
    let no_effect = |field: &str| {
        Err(PlacementError::new(
            NoEffect,
            field,
            "unit_weights normalizes every weight vector to length 1, so this has no effect; \
             remove it or set unit_weights = false",
        ))
    };
    let Init { scheme, std, gains } = &context.placement.init;
    if *scheme != InitScheme::default() {
        return no_effect("init.scheme");
    }
    if *std != StdRule::default() {
        return no_effect("init.std");
    }
    if let Some((projection, _)) = gains_by_projection(gains)
        .into_iter()
        .find(|(_, gain)| **gain != Scale::default())
    {
        return no_effect(&format!("init.gains.{projection}"));
    }
    if context.placement.embed.init_std.is_some() {
        return no_effect("embed.init_std");
    }
    if context.facts.is_latent_attention {
        return Err(PlacementError::new(
            Conflict,
            "unit_weights",
            "is not defined for latent attention, whose up projections have no dimension of size \
             d_model; set unit_weights = false",
        ));
    }
    Ok(())
}

pub(super) fn check_block(block: &BlockContext) -> Result<(), PlacementError> {
    for (name, sub) in block.sub_layers() {
        if sub.combine == Combine::LerpUnit {
            lerp_unit(block, name, sub)?;
        }
    }
    Ok(())
}

/// `s' = unit(skip + out_scale · (g − skip))`
fn lerp_unit(
    block: &BlockContext,
    name: &str,
    sub: &SubLayer<ResolvedScale>,
) -> Result<(), PlacementError> {
    let (field, problem) = match sub {
        _ if block.context.resolved.streams.is_dual() => (
            "combine",
            "`lerp_unit` does not support two streams; use `add` or streams = \"single\"",
        ),
        _ if block.spec.topology != Topology::Sequential => (
            "combine",
            "`lerp_unit` does not support parallel blocks; use `add` or topology = \"sequential\"",
        ),
        sub if !matches!(sub.skip, Skip::Raw | Skip::Normed) => (
            "skip",
            "`lerp_unit` interpolates from the sub-layer input; use `raw` or `normed`",
        ),
        sub if sub.skip_scale != ONE => (
            "skip_scale",
            "`lerp_unit` interpolates with out_scale alone; set skip_scale = 1",
        ),
        sub if sub.post_norm => (
            "post_norm",
            "`lerp_unit` itself normalizes the residual stream to unit length; set post_norm = false",
        ),
        sub if sub.out_scale == ONE => (
            "out_scale",
            "replaces the residual stream with the output, which removes the skip connection; use a smaller \
             number or a learned scale, such as nGPT's 0.05",
        ),
        _ => return Ok(()),
    };
    block.fail(Conflict, &format!("{name}.{field}"), problem)
}
