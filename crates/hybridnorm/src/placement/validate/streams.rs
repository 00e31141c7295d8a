//! Errors of placements with two streams, and of two-stream fields with one stream.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{Conflict, NoEffect};
use super::super::spec::{Skip, Streams, Topology};
use super::{BlockContext, ONE, Validation};

pub(super) fn check(case: &Validation) -> Result<(), PlacementError> {
    let are_two = case.resolved.streams.is_dual();
    if are_two && case.without_norms() {
        return Err(PlacementError::new(
            Conflict,
            "streams",
            "norm.kind = \"none\" disables the norm on the second stream, whose magnitude grows \
             with depth; use another kind of norm or streams = \"single\"",
        ));
    }
    if case.resolved.merge_norm && !are_two {
        return Err(PlacementError::new(
            NoEffect,
            "merge_norm",
            "there is one stream and nothing to merge, so this has no effect; set final_norm, or \
             streams = \"residual_dual\" or \"siamese\"",
        ));
    }
    Ok(())
}

pub(super) fn check_block(site: &BlockContext) -> Result<(), PlacementError> {
    read_scale(site)?;
    if !site.case.resolved.streams.is_dual() {
        return Ok(());
    }
    if site.spec.topology != Topology::Sequential {
        return site.fail(
            Conflict,
            "topology",
            "two streams require sequential sub-layers; set topology = \"sequential\" or streams = \
             \"single\"",
        );
    }
    for (name, sub) in site.sub_layers() {
        if !matches!(sub.skip, Skip::Raw | Skip::Normed) {
            return site.fail(
                Conflict,
                &format!("{name}.skip"),
                "with two streams the skip is the main stream or the sub-layer input; use `raw` or \
                 `normed`, or streams = \"single\"",
            );
        }
    }
    Ok(())
}

fn read_scale(site: &BlockContext) -> Result<(), PlacementError> {
    if site.case.resolved.streams == Streams::Siamese {
        return Ok(());
    }
    for (name, sub) in site.sub_layers() {
        if sub.read_scale != ONE {
            return site.fail(
                NoEffect,
                &format!("{name}.read_scale"),
                "scales the main stream in the sum that siamese sub-layers read, so it has no \
                 effect here; set streams = \"siamese\" or use in_scale",
            );
        }
    }
    Ok(())
}
