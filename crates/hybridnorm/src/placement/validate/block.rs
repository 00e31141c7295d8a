//! Errors of the wiring of one block: its sub-layers and how they are connected.

use super::super::error::PlacementError;
use super::super::spec::{Factor, Gain, Skip, SubLayer, Topology};
use super::{BlockContext, ONE};

pub(super) fn check(site: &BlockContext) -> Result<(), PlacementError> {
    for (name, sub) in site.sub_layers() {
        sub_layer(site, name, sub)?;
    }
    topology(site)?;
    skips(site)
}

fn sub_layer(
    site: &BlockContext,
    name: &str,
    sub: &SubLayer<Factor>,
) -> Result<(), PlacementError> {
    if sub.skip == Skip::Normed && !sub.in_norm {
        return site.fail(
            &format!("{name}.skip"),
            format!(
                "a normed skip carries the result of {name}.in_norm, which is off; set \
                 {name}.in_norm = true or {name}.skip = \"raw\""
            ),
        );
    }
    for (field, factor) in [("in_scale", sub.in_scale), ("out_scale", sub.out_scale)] {
        if factor == Factor::Const(0.0) {
            return site.fail(
                &format!("{name}.{field}"),
                "a constant factor of 0 cuts the sub-layer off for good, and its weights never get \
                 a gradient; use a learned scale that starts at 0",
            );
        }
    }
    out_norm(site, name, sub)
}

fn out_norm(site: &BlockContext, name: &str, sub: &SubLayer<Factor>) -> Result<(), PlacementError> {
    let Some(norm) = &sub.out_norm else {
        return Ok(());
    };
    let path = format!("{name}.out_norm.gain_init");
    let Factor::Const(start) = norm.gain_init else {
        return site.fail(
            &path,
            "the gain is a parameter already, so its initial value must be a number or a formula, \
             not learned",
        );
    };
    let norms = &site.case.resolved.norm;
    if start != 1.0 && norms.kind.is_none() {
        return site.fail(
            &path,
            "norm.kind = \"none\" leaves this norm out, so an initial gain has no effect; use \
             out_scale",
        );
    }
    if start != 1.0 && norms.gain == Gain::None {
        return site.fail(
            &path,
            "norm.gain = \"none\" gives this norm no gain, so its initial value has no effect; use \
             out_scale",
        );
    }
    if start == 0.0 && matches!(sub.out_scale, Factor::Learned { init: 0.0, .. }) {
        return site.fail(
            &format!("{name}.out_scale"),
            "the output norm's gain and this scale both start at 0, so neither ever gets a \
             gradient; let one of them start elsewhere",
        );
    }
    Ok(())
}

fn topology(site: &BlockContext) -> Result<(), PlacementError> {
    let (attn, ffn) = (&site.spec.attn, &site.spec.ffn);
    if site.spec.topology == Topology::Sequential {
        return Ok(());
    }
    if attn.skip != Skip::Raw {
        return site.fail(
            "attn.skip",
            "a parallel block adds both outputs to its raw input; set attn.skip = \"raw\"",
        );
    }
    if ffn.skip != Skip::Raw {
        return site.fail(
            "ffn.skip",
            "a parallel block has one skip, that of attention, so this has no effect; set \
             ffn.skip = \"raw\"",
        );
    }
    if ffn.skip_scale != ONE {
        return site.fail(
            "ffn.skip_scale",
            "a parallel block has one skip, that of attention, so this has no effect; set \
             attn.skip_scale",
        );
    }
    if ffn.post_norm {
        return site.fail(
            "ffn.post_norm",
            "a parallel block has one sum, that of attention, so this has no effect; set \
             attn.post_norm",
        );
    }
    if site.spec.topology == Topology::ParallelShared && attn.in_norm != ffn.in_norm {
        return site.fail(
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

fn skips(site: &BlockContext) -> Result<(), PlacementError> {
    if matches!(
        site.spec.attn.skip,
        Skip::BlockInput | Skip::RawPlusBlockInput
    ) {
        return site.fail(
            "attn.skip",
            "attention comes first, so its state is the block's input itself; skips from the \
             block's input belong to ffn.skip of a sequential block",
        );
    }
    Ok(())
}
