//! Validation of the topology of one block: its sub-layers, their inputs and skip connections.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{Conflict, InvalidValue, NoEffect, OutOfRange};
use super::super::spec::{Gain, ResolvedScale, Skip, SubLayer, Topology};
use super::{BlockContext, ONE};

pub(super) fn check(block: &BlockContext) -> Result<(), PlacementError> {
    for (name, sub) in block.sub_layers() {
        sub_layer(block, name, sub)?;
    }
    topology(block)?;
    skips(block)
}

fn sub_layer(
    block: &BlockContext,
    name: &str,
    sub: &SubLayer<ResolvedScale>,
) -> Result<(), PlacementError> {
    if sub.skip == Skip::Normed && !sub.in_norm {
        return block.fail(
            Conflict,
            &format!("{name}.skip"),
            format!(
                "a normalized skip (\"normed\") is the output of {name}.in_norm, which is off; set {name}.in_norm = \
                 true or {name}.skip = \"raw\""
            ),
        );
    }
    for (field, factor) in [("in_scale", sub.in_scale), ("out_scale", sub.out_scale)] {
        if factor == ResolvedScale::Const(0.0) {
            return block.fail(
                OutOfRange,
                &format!("{name}.{field}"),
                "a constant factor of 0 removes the sub-layer: its weights never receive a \
                 gradient; use a learned scale initialized to 0",
            );
        }
    }
    out_norm(block, name, sub)
}

fn out_norm(
    block: &BlockContext,
    name: &str,
    sub: &SubLayer<ResolvedScale>,
) -> Result<(), PlacementError> {
    let Some(norm) = &sub.out_norm else {
        return Ok(());
    };
    let path = format!("{name}.out_norm.gain_init");
    let ResolvedScale::Const(start) = norm.gain_init else {
        return block.fail(
            InvalidValue,
            &path,
            "the gain is a parameter, so gain_init must be a number or a formula, not learned",
        );
    };
    let norms = &block.context.resolved.norm;
    if start != 1.0 && norms.kind.is_none() {
        return block.fail(
            NoEffect,
            &path,
            "norm.kind = \"none\" disables this norm, so gain_init has no effect; use out_scale",
        );
    }
    if start != 1.0 && norms.gain == Gain::None {
        return block.fail(
            NoEffect,
            &path,
            "with norm.gain = \"none\" this norm has no gain, so gain_init has no effect; use \
             out_scale",
        );
    }
    if start == 0.0 && matches!(sub.out_scale, ResolvedScale::Learned { init: 0.0, .. }) {
        return block.fail(
            Conflict,
            &format!("{name}.out_scale"),
            "the output norm's gain and this scale are both initialized to 0, so neither receives \
             a gradient; initialize one of them to a nonzero value",
        );
    }
    Ok(())
}

fn topology(block: &BlockContext) -> Result<(), PlacementError> {
    let (attn, ffn) = (&block.spec.attn, &block.spec.ffn);
    if block.spec.topology == Topology::Sequential {
        return Ok(());
    }
    if attn.skip != Skip::Raw {
        return block.fail(
            Conflict,
            "attn.skip",
            "a parallel block adds both outputs to its raw input; set attn.skip = \"raw\"",
        );
    }
    if ffn.skip != Skip::Raw {
        return block.fail(
            NoEffect,
            "ffn.skip",
            "a parallel block has one skip, attn.skip, so this has no effect; set ffn.skip = \
             \"raw\"",
        );
    }
    if ffn.skip_scale != ONE {
        return block.fail(
            NoEffect,
            "ffn.skip_scale",
            "a parallel block has one skip, attn.skip, so this has no effect; set attn.skip_scale",
        );
    }
    if ffn.post_norm {
        return block.fail(
            NoEffect,
            "ffn.post_norm",
            "a parallel block has one sum, normalized by attn.post_norm, so this has no effect; \
             set attn.post_norm",
        );
    }
    if block.spec.topology == Topology::ParallelShared && attn.in_norm != ffn.in_norm {
        return block.fail(
            Conflict,
            "ffn.in_norm",
            format!(
                "`parallel_shared` has one input norm for both, but attn.in_norm is {} and \
                 ffn.in_norm is {}; make them equal or use `parallel_two`",
                attn.in_norm, ffn.in_norm
            ),
        );
    }
    Ok(())
}

fn skips(block: &BlockContext) -> Result<(), PlacementError> {
    if matches!(
        block.spec.attn.skip,
        Skip::BlockInput | Skip::RawPlusBlockInput
    ) {
        return block.fail(
            Conflict,
            "attn.skip",
            "the input of attention is the block input; use `block_input` and \
             `raw_plus_block_input` only for ffn.skip of a sequential block",
        );
    }
    Ok(())
}
