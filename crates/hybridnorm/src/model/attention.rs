//! The attention function of a block: every head with keys and values of its own (or its group's), or
//! all of them made of one latent.

mod heads;
mod latent;

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::blueprint::Blueprint;
use super::cache::LayerCache;
use super::config::ModelConfig;
use super::norm::{Norm, NormSite};
use super::qk_clip;
use crate::eager as ops;
use crate::placement::{AttnScale, HeadNorm, NormSpec};

pub use heads::Heads;
pub use latent::Latent;

/// What a block does between reading the stream and adding to it for the first time.
#[derive(Module, Debug)]
pub enum Attention {
    /// Grouped-query attention.
    Heads(Heads),
    /// Multi-head latent attention.
    Latent(Latent),
}

/// Which positions a forward pass covers, and their rotations.
#[derive(Debug, Clone)]
pub struct Positions {
    /// Positions before these, held by the cache.
    pub past: usize,
    /// A row of rotations (cosines, then sines) for each new position.
    pub rope: Arc<[f32]>,
}

impl Positions {
    /// The first `seq` positions of a model of this shape.
    pub fn first(config: &ModelConfig, seq: usize) -> Self {
        let rope = ops::rope_table(config.rope_theta, config.rope_dim(), 0, seq);
        Self {
            past: 0,
            rope: rope.into(),
        }
    }
}

impl Attention {
    /// Makes the attention of a block.
    pub(super) fn new(blueprint: &Blueprint<'_>) -> Self {
        match &blueprint.config.mla {
            None => Self::Heads(Heads::new(blueprint)),
            Some(mla) => Self::Latent(Latent::new(blueprint, mla)),
        }
    }

    /// From what the sub-layer reads (b, t, d) to what it adds (b, t, d). With a cache, attends to
    /// its positions too and stores the new ones there.
    pub fn forward(
        &self,
        u_btd: Tensor<3>,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        match self {
            Self::Heads(heads) => heads.forward(u_btd, positions, cache),
            Self::Latent(latent) => latent.forward(u_btd, positions, cache),
        }
    }

    /// The scores of what the sub-layer reads (b, t, d), for looking inside.
    pub(super) fn scores(&self, u_btd: Tensor<3>, positions: &Positions) -> ops::Scores {
        let (packed, spec) = match self {
            Self::Heads(heads) => heads.packed(u_btd, positions),
            Self::Latent(latent) => latent.packed(u_btd, positions),
        };
        ops::attention_scores(packed, spec)
    }

    /// The largest score of every head for what the sub-layer reads (b, t, d), before any soft cap.
    pub(super) fn head_maxima(&self, u_btd: &Tensor<3>, positions: &Positions) -> Vec<f32> {
        let u_btd = u_btd.clone().without_autodiff();
        let (packed, spec) = match self.valid() {
            Self::Heads(heads) => heads.packed(u_btd, positions),
            Self::Latent(latent) => latent.packed(u_btd, positions),
        };
        ops::head_maxima(packed, spec)
    }

    /// Scales queries and keys down so that no head's largest score is above `most`, given the largest
    /// scores; gives the number of heads for which that was needed. See [`qk_clip`](super::qk_clip).
    pub(super) fn clip_scores(&mut self, maxima: &[f32], most: f32) -> usize {
        let factors = qk_clip::factors(maxima, most);
        let clipped = factors.iter().filter(|&&factor| factor < 1.0).count();
        if clipped > 0 {
            match self {
                Self::Heads(heads) => heads.scale_scores(&factors),
                Self::Latent(latent) => latent.scale_scores(&factors),
            }
        }
        clipped
    }

    /// Its norms.
    pub fn norms(&self) -> Vec<&Norm> {
        match self {
            Self::Heads(heads) => heads.norms().collect(),
            Self::Latent(latent) => latent.norms().collect(),
        }
    }
}

/// What multiplies `q·k`.
fn score_scale(scale: AttnScale, head_dim: usize) -> f64 {
    match scale {
        AttnScale::InvSqrtHeadDim => 1.0 / (head_dim as f64).sqrt(),
        AttnScale::SqrtHeadDim => (head_dim as f64).sqrt(),
        AttnScale::Const(value) => value,
        AttnScale::Cosine => 1.0,
    }
}

/// The norm of `heads` vectors of `width`.
fn head_norm(
    kind: HeadNorm,
    heads: usize,
    width: usize,
    blueprint: &Blueprint<'_>,
) -> Option<Norm> {
    let of_width = NormSite::of_width;
    let site = match kind {
        HeadNorm::None => return None,
        HeadNorm::PerHead => of_width(width),
        HeadNorm::PerHeadOwn => NormSite {
            groups: heads,
            ..of_width(width)
        },
        HeadNorm::PerHeadPlain => NormSite {
            affine: false,
            ..of_width(width)
        },
        HeadNorm::Full => of_width(heads * width),
        HeadNorm::FullPlain => NormSite {
            affine: false,
            ..of_width(heads * width)
        },
    };
    let common = blueprint.norm();
    let own = NormSpec {
        eps: blueprint.spec().attn_inner.norm_eps.unwrap_or(common.eps),
        ..common.clone()
    };
    Some(Norm::new(&own, site, blueprint.device))
}

/// What stands between the context (b, t, heads of `width`) and the stream.
fn read_out(
    ctx: Tensor<3>,
    width: usize,
    ctx_norm: &Option<Norm>,
    head_gain: &Option<Param<Tensor<1>>>,
    out: &Param<Tensor<2>>,
) -> Tensor<3> {
    let ctx = match ctx_norm {
        Some(norm) => norm.forward(ctx),
        None => ctx,
    };
    let ctx = match head_gain {
        Some(gain) => ops::scale_columns(ctx, gain.val(), width),
        None => ctx,
    };
    ops::linear(ctx, out.val())
}
