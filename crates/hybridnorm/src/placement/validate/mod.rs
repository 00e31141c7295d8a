//! Validation of a placement at a depth and size: errors for invalid settings or settings without effect, warnings for
//! settings that are known to train badly.

mod block;
mod inner;
mod latent;
mod model;
mod streams;
mod unit;
mod warnings;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::PlacementError;
use super::error::PlacementErrorKind::{self, OutOfRange};
use super::layers::{OverriddenBlock, overridden_blocks};
use super::resolve::{Resolved, resolve_keeping_norms};
use super::serde_forms;
use super::spec::{Combine, HeadNorm, Placement, ResolvedBlock, ResolvedScale, SubLayer, Topology};

/// Dimensions and architecture of the model that validation depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Width of the model.
    pub d_model: usize,
    /// Width of one attention head.
    pub head_dim: usize,
    /// True if the feed-forward's activation is gated (SwiGLU and the like).
    #[serde(rename = "gated")]
    pub has_gated_activation: bool,
    /// True for multi-head latent attention (MLA), which determines the sites of the inner norms (see
    /// [`spec`](super::spec)).
    #[serde(default, skip_serializing_if = "serde_forms::is_default")]
    #[serde(rename = "latent")]
    pub is_latent_attention: bool,
}

impl Default for ModelFacts {
    /// Width 768, grouped-query attention with head_dim 64, a gated activation: the smallest model of the HybridNorm
    /// paper.
    fn default() -> Self {
        Self {
            d_model: 768,
            head_dim: 64,
            has_gated_activation: true,
            is_latent_attention: false,
        }
    }
}

/// A setting that is valid but known to train badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Warning {
    /// Rule that raised the warning.
    pub rule: WarningRule,
    /// Path of the field, as in [`PlacementError`].
    pub field: String,
    /// The problem, its reason, and its remedy.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "placement.{}: {}", self.field, self.message)
    }
}

/// Rules that raise warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningRule {
    /// A norm applied to an already normalized residual stream.
    DoubleNorm,
    /// No norm between residual stream and attention output.
    UnboundedAttention,
    /// No norm between residual stream and feed-forward output.
    UnboundedFfn,
    /// Inputs and initial weights both shrink with depth.
    DepthScaledTwice,
    /// HybridNorm without the initialization it needs.
    HybridInit,
    /// eps is not small compared with the variance of the inputs of the first block's norms.
    EpsTooLarge,
    /// An override that matches no block at this depth.
    NoLayers,
}

/// Validates a placement at a depth and size.
///
/// # Errors
/// The first setting that is invalid or has no effect; the message states problem, reason and remedy.
///
/// ```
/// use hybridnorm::placement::{ModelFacts, WarningRule, named, validate};
/// let facts = ModelFacts::default();
/// // Norms on q and k alone leave the path through v without a norm.
/// let warnings = validate(&named("qk-post")?, 12, &facts)?;
/// assert_eq!(warnings[0].rule, WarningRule::UnboundedAttention);
///
/// let mut placement = named("pre-norm")?;
/// placement.final_norm = false;
/// let error = validate(&placement, 12, &facts).unwrap_err();
/// assert_eq!(error.field, "final_norm");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn validate(
    placement: &Placement,
    n_layers: usize,
    facts: &ModelFacts,
) -> Result<Vec<Warning>, PlacementError> {
    if facts.head_dim == 0 {
        return Err(PlacementError::new(
            OutOfRange,
            "",
            "head_dim must be at least 1",
        ));
    }
    let resolved = resolve_keeping_norms(placement, n_layers, facts.d_model)?;
    let blocks = overridden_blocks(placement, n_layers)?;
    let context = ValidationContext {
        placement,
        blocks: &blocks,
        resolved: &resolved,
        facts,
    };
    model::check(&context)?;
    streams::check(&context)?;
    unit::check(&context)?;
    for layer in 0..n_layers {
        let block = context.block(layer);
        block::check(&block)?;
        streams::check_block(&block)?;
        unit::check_block(&block)?;
        inner::check(&block)?;
        latent::check_block(&block)?;
    }
    model::check_final_norm(&context)?;
    Ok(warnings::collect(&context))
}

/// A placement under validation.
struct ValidationContext<'a> {
    placement: &'a Placement,
    blocks: &'a [OverriddenBlock],
    resolved: &'a Resolved,
    facts: &'a ModelFacts,
}

/// One block of a placement under validation.
struct BlockContext<'a> {
    context: &'a ValidationContext<'a>,
    layer: usize,
    spec: &'a ResolvedBlock,
}

impl<'a> ValidationContext<'a> {
    fn block(&'a self, layer: usize) -> BlockContext<'a> {
        BlockContext {
            context: self,
            layer,
            spec: &self.resolved.blocks[layer],
        }
    }

    /// True if there is no norm function.
    fn has_no_norm_function(&self) -> bool {
        self.resolved.norm.kind.is_none()
    }

    /// True if no site of the model has a norm, head norms and unit length included.
    fn has_no_norms(&self) -> bool {
        let r = self.resolved;
        let has_norm = r.embed_norm || r.final_norm || r.blocks.iter().any(has_norm);
        !r.blocks.iter().any(has_unit_length) && (self.has_no_norm_function() || !has_norm)
    }
}

impl BlockContext<'_> {
    /// Returns the path at which this block's value of a field was set.
    fn origin(&self, path: &str) -> String {
        self.context.blocks[self.layer].origin(self.context.placement, path)
    }

    /// Returns an error at a field of this block.
    fn fail<T>(
        &self,
        kind: PlacementErrorKind,
        path: &str,
        problem: impl Into<String>,
    ) -> Result<T, PlacementError> {
        Err(PlacementError::new(kind, self.origin(path), problem))
    }

    /// Returns the two sub-layers and their names.
    fn sub_layers(&self) -> [(&'static str, &SubLayer<ResolvedScale>); 2] {
        [("attn", &self.spec.attn), ("ffn", &self.spec.ffn)]
    }
}

fn has_norm(block: &ResolvedBlock) -> bool {
    let sub = |s: &SubLayer<ResolvedScale>| s.in_norm || s.post_norm || s.out_norm.is_some();
    let inner = &block.attn_inner;
    let heads = [inner.q_norm, inner.k_norm, inner.v_norm, inner.ctx_norm];
    let ffn = &block.ffn_inner;
    sub(&block.attn)
        || sub(&block.ffn)
        || heads.iter().any(|norm| *norm != HeadNorm::None)
        || ffn.gate_norm
        || ffn.up_norm
        || ffn.mid_norm
}

fn has_unit_length(block: &ResolvedBlock) -> bool {
    [&block.attn, &block.ffn]
        .iter()
        .any(|sub| sub.combine == Combine::LerpUnit)
}

/// True if the residual stream after this sub-layer is normalized or has unit length.
fn sub_layer_output_is_normalized(sub: &SubLayer<ResolvedScale>) -> bool {
    sub.post_norm || sub.combine == Combine::LerpUnit
}

/// True if the residual stream after this block is normalized or has unit length.
fn block_output_is_normalized(block: &ResolvedBlock) -> bool {
    match block.topology {
        Topology::Sequential => sub_layer_output_is_normalized(&block.ffn),
        Topology::ParallelShared | Topology::ParallelTwo => {
            sub_layer_output_is_normalized(&block.attn)
        }
    }
}

const ONE: ResolvedScale = ResolvedScale::Const(1.0);
