//! Whether a placement makes sense at a depth and size: errors for what cannot work or has no
//! effect, warnings for what is known to work badly.

mod advice;
mod block;
mod model;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::PlacementError;
use super::layers::{LayerRule, rules};
use super::resolve::{Resolved, as_written};
use super::spec::{BlockSpec, Factor, HeadNorm, NormKind, Placement};

/// What validation must know of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Width of the model.
    pub d_model: usize,
    /// Width of one attention head.
    pub head_dim: usize,
    /// Whether the feed-forward's activation is gated (SwiGLU and the like).
    pub gated: bool,
}

impl Default for ModelFacts {
    /// Width 768, heads of 64, gated: the smallest shape of the HybridNorm paper's family.
    fn default() -> Self {
        Self {
            d_model: 768,
            head_dim: 64,
            gated: true,
        }
    }
}

/// Something that is allowed and known to work badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Which rule speaks.
    pub rule: WarningRule,
    /// Path of the field, as in [`PlacementError`].
    pub field: String,
    /// What, why, and what to do.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "placement.{}: {}", self.field, self.message)
    }
}

/// The rules that warn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningRule {
    /// A norm of a normed state on the same path.
    DoubleNorm,
    /// Attention puts the raw stream on the residual through its value and output projections.
    UnboundedAttention,
    /// The feed-forward reads and writes the raw stream.
    UnboundedFfn,
    /// Inputs that shrink with depth meet initial weights that do so too.
    DepthScaledTwice,
    /// HybridNorm without the initialization it needs.
    HybridInit,
    /// eps is not small against what the first block norms.
    EpsTooLarge,
    /// An override that names no block at this depth.
    NoLayers,
}

/// Judges a placement at a depth and size.
///
/// # Errors
/// The first thing that cannot work or has no effect; the message says what, why and what to do.
pub fn validate(
    placement: &Placement,
    n_layers: usize,
    facts: &ModelFacts,
) -> Result<Vec<Warning>, PlacementError> {
    if facts.head_dim == 0 {
        return Err(PlacementError::new("", "heads of width 0 are no model"));
    }
    let resolved = as_written(placement, n_layers, facts.d_model)?;
    let rules = rules(placement, n_layers)?;
    let case = Case {
        placement,
        rules: &rules,
        resolved: &resolved,
        facts,
    };
    model::check(&case)?;
    for layer in 0..n_layers {
        block::check(&case.site(layer))?;
    }
    model::check_final_norm(&case)?;
    Ok(advice::warnings(&case))
}

/// What is being judged.
struct Case<'a> {
    placement: &'a Placement,
    rules: &'a [LayerRule],
    resolved: &'a Resolved,
    facts: &'a ModelFacts,
}

/// One block of it.
struct Site<'a> {
    case: &'a Case<'a>,
    layer: usize,
    spec: &'a BlockSpec,
}

impl<'a> Case<'a> {
    fn site(&'a self, layer: usize) -> Site<'a> {
        Site {
            case: self,
            layer,
            spec: &self.resolved.blocks[layer],
        }
    }

    /// Whether norms are left out altogether.
    fn without_norms(&self) -> bool {
        self.resolved.norm.kind == NormKind::None
    }

    /// Whether no norm stands anywhere in the model, head norms included.
    fn norm_free(&self) -> bool {
        let r = self.resolved;
        self.without_norms() || !(r.embed_norm || r.final_norm || r.blocks.iter().any(has_norm))
    }
}

impl Site<'_> {
    /// Where this block's value of a field is written.
    fn origin(&self, path: &str) -> String {
        self.case.rules[self.layer].origin(self.case.placement, path)
    }

    /// An error at a field of this block.
    fn error(&self, path: &str, problem: impl Into<String>) -> PlacementError {
        PlacementError::new(self.origin(path), problem)
    }
}

fn has_norm(block: &BlockSpec) -> bool {
    let sub = |s: &super::spec::SubLayer<Factor>| s.in_norm || s.post_norm || s.out_norm.is_some();
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

const ONE: Factor = Factor::Const(1.0);
