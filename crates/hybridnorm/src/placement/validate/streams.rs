//! Errors of placements with two streams, and of two-stream fields with one stream.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{Conflict, NoEffect};
use super::super::spec::{Skip, Streams, Topology};
use super::{BlockContext, ONE, ValidationContext};

pub(super) fn check(context: &ValidationContext) -> Result<(), PlacementError> {
    let has_two_streams = context.resolved.streams.is_dual();
    if has_two_streams && context.has_no_norm_function() {
        return Err(PlacementError::new(
            Conflict,
            "streams",
            "norm.kind = \"none\" disables the norm on the second stream, whose magnitude grows \
             with depth; use another kind of norm or streams = \"single\"",
        ));
    }
    if context.resolved.merge_norm && !has_two_streams {
        return Err(PlacementError::new(
            NoEffect,
            "merge_norm",
            "there is one stream and nothing to merge, so this has no effect; set final_norm, or \
             streams = \"residual_dual\" or \"siamese\"",
        ));
    }
    Ok(())
}

pub(super) fn check_block(block: &BlockContext) -> Result<(), PlacementError> {
    read_scale(block)?;
    if !block.context.resolved.streams.is_dual() {
        return Ok(());
    }
    if block.spec.topology != Topology::Sequential {
        return block.fail(
            Conflict,
            "topology",
            "two streams require sequential sub-layers; set topology = \"sequential\" or streams = \
             \"single\"",
        );
    }
    for (name, sub) in block.sub_layers() {
        if !matches!(sub.skip, Skip::Raw | Skip::Normed) {
            return block.fail(
                Conflict,
                &format!("{name}.skip"),
                "with two streams the skip is the main stream or the sub-layer input; use `raw` or \
                 `normed`, or streams = \"single\"",
            );
        }
    }
    Ok(())
}

fn read_scale(block: &BlockContext) -> Result<(), PlacementError> {
    if block.context.resolved.streams == Streams::Siamese {
        return Ok(());
    }
    for (name, sub) in block.sub_layers() {
        if sub.read_scale != ONE {
            return block.fail(
                NoEffect,
                &format!("{name}.read_scale"),
                "scales the main stream in the sum that siamese sub-layers read, so it has no \
                 effect here; set streams = \"siamese\" or use in_scale",
            );
        }
    }
    Ok(())
}
