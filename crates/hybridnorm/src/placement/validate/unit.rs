//! Errors of states and weights normalized to unit length (nGPT).

use super::super::error::PlacementError;
use super::super::spec::{
    Combine, Factor, Init, InitScheme, Scale, Skip, StdRule, SubLayer, Topology,
};
use super::model::roles;
use super::{BlockContext, ONE, Validation};

/// Rejects settings of the initial weights, whose magnitude the normalization to unit length removes.
pub(super) fn check(case: &Validation) -> Result<(), PlacementError> {
    if !case.resolved.unit_weights {
        return Ok(());
    }
    let no_effect = |field: &str| {
        Err(PlacementError::new(
            field,
            "unit_weights brings every vector of the weights to length 1, so this has no effect; \
             remove it or set unit_weights = false",
        ))
    };
    let Init { scheme, std, gains } = &case.placement.init;
    if *scheme != InitScheme::default() {
        return no_effect("init.scheme");
    }
    if *std != StdRule::default() {
        return no_effect("init.std");
    }
    if let Some((role, _)) = roles(gains)
        .into_iter()
        .find(|(_, gain)| **gain != Scale::default())
    {
        return no_effect(&format!("init.gains.{role}"));
    }
    if case.placement.embed.init_std.is_some() {
        return no_effect("embed.init_std");
    }
    if case.facts.latent {
        return Err(PlacementError::new(
            "unit_weights",
            "is not defined for latent attention, whose projections up have no side of the width; \
             set unit_weights = false",
        ));
    }
    Ok(())
}

pub(super) fn check_block(site: &BlockContext) -> Result<(), PlacementError> {
    for (name, sub) in site.sub_layers() {
        if sub.combine == Combine::LerpUnit {
            lerp_unit(site, name, sub)?;
        }
    }
    Ok(())
}

/// `s' = unit(skip + out_scale · (o − skip))`
fn lerp_unit(
    site: &BlockContext,
    name: &str,
    sub: &SubLayer<Factor>,
) -> Result<(), PlacementError> {
    let (field, problem) = match sub {
        _ if site.case.resolved.streams.is_dual() => (
            "combine",
            "`lerp_unit` moves one state, but there are two streams; use `add` or streams = \
             \"single\"",
        ),
        _ if site.spec.topology != Topology::Sequential => (
            "combine",
            "`lerp_unit` moves the state towards one output, but a parallel block adds two; use \
             `add` or topology = \"sequential\"",
        ),
        sub if !matches!(sub.skip, Skip::Raw | Skip::Normed) => (
            "skip",
            "`lerp_unit` moves from the state that the sub-layer reads; use `raw` or `normed`",
        ),
        sub if sub.skip_scale != ONE => (
            "skip_scale",
            "`lerp_unit` weighs skip and output against each other by out_scale alone, so the \
             skip must not be scaled; set skip_scale = 1",
        ),
        sub if sub.post_norm => (
            "post_norm",
            "`lerp_unit` brings the state to unit length itself; set post_norm = false",
        ),
        sub if sub.out_scale == ONE => (
            "out_scale",
            "moves the state all the way to the output, so that nothing is left of the skip; use a \
             smaller number or a learned scale, such as nGPT's 0.05",
        ),
        _ => return Ok(()),
    };
    site.fail(&format!("{name}.{field}"), problem)
}
