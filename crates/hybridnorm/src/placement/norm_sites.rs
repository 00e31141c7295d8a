//! Norm sites of resolved blocks, and their parameters and elements.

use std::ops::Add;

use super::resolve::Resolved;
use super::spec::{
    AttnInner, Combine, Gain, HeadNorm, NormSpec, ResolvedBlock, ResolvedScale, Streams, SubLayer,
    Topology,
};
use super::symbolic_count::SymbolicCount;

impl Resolved {
    /// Returns the number of parameters of all norms of a block, including those of a second stream; `latent` selects
    /// multi-head latent attention.
    ///
    /// # Panics
    /// `layer` is not below [`n_layers`](Self::n_layers).
    ///
    /// ```
    /// use hybridnorm::placement::{ModelSizes, named, resolve};
    /// let hybridnorm = resolve(&named("hybridnorm")?, 12, 768)?;
    /// let count = hybridnorm.norm_parameters(0, false);
    /// assert_eq!(count.to_string(), "d + 3·hd");
    /// assert_eq!(count.evaluate(ModelSizes { d: 768, hd: 64, ..ModelSizes::default() }), 960);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn norm_parameters(&self, layer: usize, latent: bool) -> SymbolicCount {
        parameters(self.sites(layer, latent), &self.norm)
    }

    /// Returns the number of elements per token that pass through the norms of a block. Panics like
    /// [`norm_parameters`](Self::norm_parameters).
    ///
    /// ```
    /// use hybridnorm::placement::{named, resolve};
    /// // In latent attention, DeepSeek-V3 normalizes the latents.
    /// let deepseek = resolve(&named("deepseek-v3")?, 12, 768)?;
    /// let count = deepseek.normalized_elements(0, true);
    /// assert_eq!(count.to_string(), "2d + d_q + d_kv");
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn normalized_elements(&self, layer: usize, latent: bool) -> SymbolicCount {
        elements(self.sites(layer, latent))
    }

    fn sites(&self, layer: usize, latent: bool) -> Vec<Site> {
        let n_stream_norms = match self.streams {
            Streams::Single | Streams::ResidualDual => 0,
            Streams::Siamese => 2,
        };
        let mut sites = sites(&self.blocks[layer], latent);
        sites.extend((0..n_stream_norms).map(|_| Site::with_gain(SymbolicCount::D)));
        sites
    }

    /// Returns the number of norms over the model width outside the blocks.
    ///
    /// ```
    /// use hybridnorm::placement::{named, resolve};
    /// assert_eq!(resolve(&named("pre-norm")?, 12, 768)?.n_norms_outside_blocks(), 1);
    /// assert_eq!(resolve(&named("post-norm")?, 12, 768)?.n_norms_outside_blocks(), 0);
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn n_norms_outside_blocks(&self) -> usize {
        [
            self.embed_norm,
            self.streams.is_dual(),
            self.merge_norm,
            self.final_norm,
        ]
        .into_iter()
        .filter(|on| *on)
        .count()
    }
}

/// Returns the number of parameters of these norms.
pub(super) fn parameters(sites: Vec<Site>, norm: &NormSpec) -> SymbolicCount {
    let each = sites.into_iter().map(|site| site.parameters(norm));
    each.fold(SymbolicCount::ZERO, Add::add)
}

/// Returns the elements per token that pass through these norms.
pub(super) fn elements(sites: Vec<Site>) -> SymbolicCount {
    let each = sites.into_iter().map(|site| site.elements);
    each.fold(SymbolicCount::ZERO, Add::add)
}

/// One norm site of a block.
pub(super) struct Site {
    elements: SymbolicCount,
    /// Width of the gain; `None` if the norm has no parameters.
    gain: Option<SymbolicCount>,
}

impl Site {
    /// Returns a norm with a gain over a vector of this width.
    pub(super) fn with_gain(width: SymbolicCount) -> Self {
        Self {
            elements: width,
            gain: Some(width),
        }
    }

    /// Returns the normalization to unit length of [`Combine::LerpUnit`].
    fn unit(sub: &SubLayer<ResolvedScale>) -> Option<Self> {
        (sub.combine == Combine::LerpUnit).then_some(Self {
            elements: SymbolicCount::D,
            gain: None,
        })
    }

    /// Returns a norm over one vector inside latent attention.
    fn latent(norm: HeadNorm, width: SymbolicCount) -> Option<Self> {
        let gain = match norm {
            HeadNorm::None => return None,
            HeadNorm::PerHead | HeadNorm::PerHeadOwn | HeadNorm::Full => Some(width),
            HeadNorm::PerHeadNoGain | HeadNorm::FullNoGain => None,
        };
        Some(Self {
            elements: width,
            gain,
        })
    }

    fn head(norm: HeadNorm, one: SymbolicCount, width: SymbolicCount) -> Option<Self> {
        let gain = match norm {
            HeadNorm::None => return None,
            HeadNorm::PerHead => Some(one),
            HeadNorm::PerHeadOwn | HeadNorm::Full => Some(width),
            HeadNorm::PerHeadNoGain | HeadNorm::FullNoGain => None,
        };
        Some(Self {
            elements: width,
            gain,
        })
    }

    /// Returns the number of parameters of the norm.
    pub(super) fn parameters(&self, norm: &NormSpec) -> SymbolicCount {
        let (Some(width), Some(_)) = (self.gain, norm.kind) else {
            return SymbolicCount::ZERO;
        };
        let vectors = usize::from(norm.gain != Gain::None) + usize::from(norm.bias);
        width * vectors + SymbolicCount::ONE * norm.scalars().len()
    }
}

/// Returns the norms of a block, without those of a second stream.
pub(super) fn sites(block: &ResolvedBlock, latent: bool) -> Vec<Site> {
    let (attn, ffn) = (&block.attn, &block.ffn);
    let shared = block.topology == Topology::ParallelShared;
    let wide = [
        attn.in_norm,
        attn.out_norm.is_some(),
        attn.post_norm,
        ffn.in_norm && !shared,
        ffn.out_norm.is_some(),
        ffn.post_norm,
    ];
    let hidden = [
        block.ffn_inner.gate_norm,
        block.ffn_inner.up_norm,
        block.ffn_inner.mid_norm,
    ];
    let of = |on: bool, width| on.then(|| Site::with_gain(width));
    wide.into_iter()
        .filter_map(|on| of(on, SymbolicCount::D))
        .chain([attn, ffn].into_iter().filter_map(Site::unit))
        .chain(inside_attention(&block.attn_inner, latent))
        .chain(hidden.into_iter().filter_map(|on| of(on, SymbolicCount::F)))
        .collect()
}

fn inside_attention(inner: &AttnInner<ResolvedScale>, latent: bool) -> Vec<Site> {
    let AttnInner {
        norm_eps: _,
        q_norm,
        k_norm,
        v_norm,
        ctx_norm,
        ..
    } = *inner;
    let context = match latent {
        true => Site::head(ctx_norm, SymbolicCount::VALUE, SymbolicCount::H_VALUE),
        false => Site::head(ctx_norm, SymbolicCount::HD, SymbolicCount::H_HD),
    };
    let qkv_norms = match latent {
        true => [
            Site::latent(q_norm, SymbolicCount::Q_LATENT),
            Site::latent(k_norm, SymbolicCount::ROTARY),
            Site::latent(v_norm, SymbolicCount::KV_LATENT),
        ],
        false => [
            Site::head(q_norm, SymbolicCount::HD, SymbolicCount::H_HD),
            Site::head(k_norm, SymbolicCount::HD, SymbolicCount::KV_HD),
            Site::head(v_norm, SymbolicCount::HD, SymbolicCount::KV_HD),
        ],
    };
    qkv_norms.into_iter().chain([context]).flatten().collect()
}
