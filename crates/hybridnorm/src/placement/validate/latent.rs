//! Errors of settings that multi-head latent attention does not support.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::Conflict;
use super::super::spec::{AttnScale, QkOrder, ResolvedScale};
use super::BlockContext;

pub(super) fn check_block(block: &BlockContext) -> Result<(), PlacementError> {
    if !block.context.facts.is_latent_attention {
        return Ok(());
    }
    let (field, problem) = match &block.spec.attn_inner {
        inner if inner.attn_scale == AttnScale::Cosine => (
            "attn_scale",
            "cosine attention is not defined for latent attention, which does not materialize keys \
             while decoding; use `inv_sqrt_head_dim`, `sqrt_head_dim` or a number",
        ),
        inner if inner.qk_order == QkOrder::AfterRope => (
            "qk_order",
            "a norm after the rotary embedding is not defined for latent attention, whose norms \
             apply to the latents and the rotary key before it; use `before_rope`",
        ),
        inner if matches!(inner.qk_post_scale, ResolvedScale::Learned { .. }) => (
            "qk_post_scale",
            "a learned scale is not defined for latent attention, which does not materialize keys \
             while decoding; use a number",
        ),
        _ => return Ok(()),
    };
    block.fail(Conflict, &format!("attn_inner.{field}"), problem)
}
