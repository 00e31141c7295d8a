//! Resolution of a placement to numbers: the value of each formula in each block.

mod init;
mod scale;

use serde::{Deserialize, Serialize};

use super::error::PlacementErrorKind::OutOfRange;
use super::error::{PlacementError, join};
use super::hash::canonical_hash;
use super::layers::{check_depth, overridden_blocks};
use super::serde_forms;
use super::spec::{
    AttnInner, Block, FfnInner, HeadNorm, InitScheme, NormScalar, NormSpec, OutNorm, Placement,
    QkOrder, ResolvedBlock, ResolvedScale, Scale, Skip, Streams, SubLayer, UnresolvedBlock,
};

pub use init::{Projection, ResolvedInit, ResolvedProjectionGains};
pub use scale::ScaleContext;

/// A placement resolved at one depth and width: every formula is replaced by its value.
///
/// ```
/// use hybridnorm::placement::{ResolvedScale, named, resolve};
///
/// // HybridNorm* in four blocks of width 64: the first block has another configuration.
/// let resolved = resolve(&named("hybridnorm-star")?, 4, 64)?;
/// let in_norms: Vec<bool> = resolved.blocks.iter().map(|block| block.attn.in_norm).collect();
/// assert_eq!(in_norms, [true, false, false, false]);
/// assert_eq!(resolved.embed_scale, ResolvedScale::Const(1.0));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Resolved {
    /// Width of the model.
    pub d_model: usize,
    /// Resolved blocks, first to last.
    pub blocks: Vec<ResolvedBlock>,
    /// Number of residual streams, and how a sub-layer reads them.
    #[serde(default, skip_serializing_if = "serde_forms::is_default")]
    pub streams: Streams,
    /// The norm function; without one the blocks have no norms.
    pub norm: NormSpec,
    /// Scale of the embedding.
    pub embed_scale: ResolvedScale,
    /// True if the scaled embedding is normalized.
    pub embed_norm: bool,
    /// Initial standard deviation of the embedding, if the placement sets it.
    pub embed_init_std: Option<f64>,
    /// True if, with two streams, the main one is normalized before the two are summed.
    #[serde(default, skip_serializing_if = "serde_forms::is_default")]
    pub merge_norm: bool,
    /// True if a norm precedes the output head.
    pub final_norm: bool,
    /// Scale and soft cap of the logits.
    pub logits: ResolvedLogits,
    /// Distribution of the initial weights.
    pub init: ResolvedInit,
    /// True if the vectors of every matrix along the width are normalized to unit length, at initialization and
    /// after every optimizer step.
    #[serde(default, skip_serializing_if = "serde_forms::is_default")]
    pub unit_weights: bool,
}

/// Resolved scale and soft cap of the logits: `softcap(scale · z)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResolvedLogits {
    /// `c · tanh(z / c)`.
    pub softcap: Option<f64>,
    /// Scale of the logits before the cap; a vector has one number per vocabulary entry.
    pub scale: ResolvedScale,
    /// Coefficient of `logsumexp(z)²` in the loss; 0 is off.
    pub z_loss: f64,
}

impl Resolved {
    /// Returns the number of blocks.
    ///
    /// ```
    /// use hybridnorm::placement::{named, resolve};
    /// assert_eq!(resolve(&named("pre-norm")?, 12, 768)?.n_layers(), 12);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the canonical hash of the resolved value (16 hex digits).
    ///
    /// ```
    /// use hybridnorm::placement::{named, resolve};
    /// let placement = named("pre-norm")?;
    /// let (shallow, deep) = (resolve(&placement, 12, 768)?, resolve(&placement, 24, 768)?);
    /// assert_ne!(shallow.hash(), deep.hash());
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn hash(&self) -> String {
        canonical_hash(self)
    }

    /// Returns the initial standard deviation of a block's matrix; `layer` is 0-based.
    ///
    /// [`InitScheme`] documents the rule of each scheme; the gain of the projection multiplies it. Unit-length
    /// vectors have elements of root mean square `1/√d`, whatever their initial distribution.
    ///
    /// # Panics
    /// `layer` is not below [`n_layers`](Self::n_layers).
    ///
    /// ```
    /// use hybridnorm::placement::{Projection, named, resolve};
    /// // HybridNorm initializes output projections with σ/√(2L).
    /// let resolved = resolve(&named("hybridnorm")?, 12, 768)?;
    /// assert_eq!(resolved.weight_std(0, Projection::Q, 768, 768), resolved.init.std);
    /// assert_eq!(
    ///     resolved.weight_std(0, Projection::O, 768, 768),
    ///     resolved.init.std / 24f64.sqrt()
    /// );
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn weight_std(
        &self,
        layer: usize,
        projection: Projection,
        fan_in: usize,
        fan_out: usize,
    ) -> f64 {
        if self.unit_weights {
            return self.inv_sqrt_width();
        }
        let depth = self.n_layers() as f64;
        let std = match self.init.scheme {
            InitScheme::Normal => self.init.std,
            InitScheme::Megatron if matches!(projection, Projection::O | Projection::Down) => {
                self.init.std / (2.0 * depth).sqrt()
            }
            InitScheme::Megatron => self.init.std,
            InitScheme::DepthScaled if matches!(projection, Projection::O | Projection::Down) => {
                1.0 / (2.0 * fan_in as f64 * (layer + 1) as f64).sqrt()
            }
            InitScheme::DepthScaled => 1.0 / (fan_in as f64).sqrt(),
            InitScheme::Xavier => (2.0 / (fan_in + fan_out) as f64).sqrt(),
        };
        std * self.init.gains[layer].get(projection)
    }

    /// Returns the initial standard deviation of the embedding: `1/√d` for unit-length vectors, else the
    /// placement's value if set, else σ if the scheme has one, else `1/√d`.
    ///
    /// ```
    /// use hybridnorm::placement::{named, resolve};
    /// let mut placement = named("pre-norm")?;
    /// placement.embed.init_std = Some(0.02);
    /// assert_eq!(resolve(&placement, 12, 768)?.embed_std(), 0.02);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn embed_std(&self) -> f64 {
        if self.unit_weights {
            return self.inv_sqrt_width();
        }
        self.embed_init_std.unwrap_or(match self.init.scheme {
            InitScheme::Normal | InitScheme::Megatron => self.init.std,
            InitScheme::DepthScaled | InitScheme::Xavier => self.inv_sqrt_width(),
        })
    }

    /// Returns the initial standard deviation of an untied output head: `1/√d` for unit-length vectors, else σ for
    /// `normal` and `1/√d` for the other schemes.
    ///
    /// ```
    /// use hybridnorm::placement::{named, resolve};
    /// let resolved = resolve(&named("hybridnorm")?, 12, 256)?;
    /// assert_eq!(resolved.head_std(), 1.0 / 16.0);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn head_std(&self) -> f64 {
        match self.init.scheme {
            InitScheme::Normal if !self.unit_weights => self.init.std,
            _ => self.inv_sqrt_width(),
        }
    }

    fn inv_sqrt_width(&self) -> f64 {
        1.0 / (self.d_model as f64).sqrt()
    }

    /// Returns the number of standard deviations at which initial weights are truncated, if any.
    ///
    /// ```
    /// use hybridnorm::placement::{Placement, named, resolve};
    /// assert_eq!(resolve(&named("hybridnorm")?, 12, 768)?.truncation_std(), Some(3.0));
    /// assert_eq!(resolve(&Placement::default(), 12, 768)?.truncation_std(), None);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn truncation_std(&self) -> Option<f64> {
        matches!(
            self.init.scheme,
            InitScheme::Megatron | InitScheme::DepthScaled
        )
        .then_some(3.0)
    }
}

/// Maximum number of blocks, so that a typo does not exhaust memory.
pub const MAX_LAYERS: usize = 10_000;

/// Resolves a placement for `n_layers` blocks of width `d_model`.
///
/// Without a norm function every norm is removed and a normalized skip becomes a raw one, so that code
/// that reads the result need not check for a norm function.
///
/// # Errors
/// `n_layers` or `d_model` is 0, a selector or override is invalid at this depth, or a scale cannot be evaluated.
/// Consistency is checked by [`validate`](super::validate()).
///
/// ```
/// use hybridnorm::placement::{ResolvedScale, named, resolve};
/// // DeepNorm multiplies the skip by (2L)^(1/4).
/// let deepnorm = resolve(&named("deepnorm")?, 12, 768)?;
/// assert_eq!(
///     deepnorm.blocks[0].attn.skip_scale,
///     ResolvedScale::Const(24f64.powf(0.25))
/// );
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn resolve(
    placement: &Placement,
    n_layers: usize,
    d_model: usize,
) -> Result<Resolved, PlacementError> {
    let mut resolved = resolve_keeping_norms(placement, n_layers, d_model)?;
    if resolved.norm.kind.is_none() {
        resolved.blocks.iter_mut().for_each(Block::remove_norms);
        resolved.embed_norm = false;
        resolved.merge_norm = false;
        resolved.final_norm = false;
    }
    Ok(resolved)
}

/// Resolves, keeping the norms even if there is no norm function.
pub(super) fn resolve_keeping_norms(
    placement: &Placement,
    n_layers: usize,
    d_model: usize,
) -> Result<Resolved, PlacementError> {
    check_size(n_layers, d_model)?;
    let model_context = ScaleContext {
        layer_number: None,
        n_layers,
        d_model,
    };
    let blocks = resolve_blocks(placement, model_context)?;
    let init = init::resolve_init(placement, model_context)?;
    let logits = ResolvedLogits {
        softcap: placement.logits.softcap,
        scale: placement
            .logits
            .scale
            .resolve(model_context, "logits.scale")?,
        z_loss: placement.logits.z_loss,
    };
    Ok(Resolved {
        d_model,
        blocks,
        streams: placement.streams,
        norm: NormSpec {
            alpha_init: match placement.norm.has_alpha() {
                true => Some(placement.norm.initial(NormScalar::Alpha)),
                false => placement.norm.alpha_init,
            },
            ..placement.norm.clone()
        },
        embed_scale: placement
            .embed
            .scale
            .resolve(model_context, "embed.scale")?,
        embed_norm: placement.embed.norm,
        embed_init_std: placement.embed.init_std,
        merge_norm: placement.merge_norm,
        final_norm: placement.final_norm,
        logits,
        init,
        unit_weights: placement.unit_weights,
    })
}

fn check_size(n_layers: usize, d_model: usize) -> Result<(), PlacementError> {
    if n_layers == 0 || d_model == 0 {
        let problem =
            format!("n_layers and d_model must be at least 1, not {n_layers} and {d_model}");
        return Err(PlacementError::new(OutOfRange, "", problem));
    }
    check_depth(n_layers)
}

/// Returns every block with resolved scales; `model_context` holds depth and width.
fn resolve_blocks(
    placement: &Placement,
    model_context: ScaleContext,
) -> Result<Vec<ResolvedBlock>, PlacementError> {
    let blocks = overridden_blocks(placement, model_context.n_layers)?;
    let resolved = blocks.iter().enumerate().map(|(layer, overridden)| {
        resolve_block(&overridden.block, &|path, scale| {
            scale.resolve(
                model_context.in_block(layer),
                &overridden.origin(placement, path),
            )
        })
    });
    resolved.collect()
}

type Evaluate<'a> = &'a dyn Fn(&str, &Scale) -> Result<ResolvedScale, PlacementError>;

fn resolve_block(
    block: &UnresolvedBlock,
    value: Evaluate,
) -> Result<ResolvedBlock, PlacementError> {
    let (inner, ffn_inner) = (&block.attn_inner, &block.ffn_inner);
    Ok(Block {
        topology: block.topology,
        attn: sub_layer(&block.attn, "attn", value)?,
        attn_inner: AttnInner {
            clip_qkv: inner.clip_qkv,
            q_norm: inner.q_norm,
            k_norm: inner.k_norm,
            v_norm: inner.v_norm,
            qk_order: inner.qk_order,
            qk_post_scale: value("attn_inner.qk_post_scale", &inner.qk_post_scale)?,
            attn_scale: inner.attn_scale,
            attn_softcap: inner.attn_softcap,
            ctx_norm: inner.ctx_norm,
            head_gain: inner.head_gain,
            norm_eps: inner.norm_eps,
        },
        ffn: sub_layer(&block.ffn, "ffn", value)?,
        ffn_inner: FfnInner {
            gate_norm: ffn_inner.gate_norm,
            up_norm: ffn_inner.up_norm,
            gate_scale: value("ffn_inner.gate_scale", &ffn_inner.gate_scale)?,
            up_scale: value("ffn_inner.up_scale", &ffn_inner.up_scale)?,
            mid_norm: ffn_inner.mid_norm,
        },
    })
}

fn sub_layer(
    sub: &SubLayer<Scale>,
    name: &str,
    value: Evaluate,
) -> Result<SubLayer<ResolvedScale>, PlacementError> {
    let value = |field: &str, scale: &Scale| value(&join(name, field), scale);
    let out_norm = match &sub.out_norm {
        Some(norm) => Some(OutNorm {
            gain_init: value("out_norm.gain_init", &norm.gain_init)?,
        }),
        None => None,
    };
    Ok(SubLayer {
        read_scale: value("read_scale", &sub.read_scale)?,
        in_norm: sub.in_norm,
        in_scale: value("in_scale", &sub.in_scale)?,
        skip: sub.skip,
        skip_scale: value("skip_scale", &sub.skip_scale)?,
        out_norm,
        out_scale: value("out_scale", &sub.out_scale)?,
        combine: sub.combine,
        post_norm: sub.post_norm,
    })
}

impl<S: Default + PartialEq> Block<S> {
    /// Turns every norm off, makes every normalized skip raw, and resets `qk_order` and `qk_post_scale`, which require
    /// norms on q and k.
    ///
    /// ```
    /// use hybridnorm::placement::{Placement, named};
    /// let mut block = named("hybridnorm")?.block;
    /// block.remove_norms();
    /// assert_eq!(block, Placement::default().block);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn remove_norms(&mut self) {
        for sub in [&mut self.attn, &mut self.ffn] {
            sub.in_norm = false;
            sub.out_norm = None;
            sub.post_norm = false;
            if sub.skip == Skip::Normed {
                sub.skip = Skip::Raw;
            }
        }
        let inner = &mut self.attn_inner;
        for norm in [
            &mut inner.q_norm,
            &mut inner.k_norm,
            &mut inner.v_norm,
            &mut inner.ctx_norm,
        ] {
            *norm = HeadNorm::None;
        }
        inner.qk_order = QkOrder::BeforeRope;
        inner.qk_post_scale = S::default();
        let inner = &mut self.ffn_inner;
        (inner.gate_norm, inner.up_norm, inner.mid_norm) = (false, false, false);
    }
}
