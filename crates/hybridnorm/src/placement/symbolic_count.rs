//! Counts of the parameters and elements of norms and scales, as formulas of the model's sizes.

use std::fmt;
use std::ops::{Add, AddAssign, Mul};

use serde::{Deserialize, Serialize};

use super::norm_sites::{Site, elements, parameters, sites};
use super::serde_forms;
use super::spec::{AttnScale, LearnedShape, NormSpec, ResolvedBlock, ResolvedScale, SubLayer};

/// A count as a sum of multiples of the model's sizes.
///
/// With latent attention, a norm of the context counts the value head dimension `hd_v` instead of `hd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SymbolicCount {
    /// Multiples of the width `d`.
    pub d: usize,
    /// Multiples of the head width `hd`.
    pub hd: usize,
    /// Multiples of all query heads together, `h·hd`.
    pub h_hd: usize,
    /// Multiples of all key/value heads together, `kv·hd`.
    pub kv_hd: usize,
    /// Multiples of the feed-forward width `f`.
    pub f: usize,
    /// Multiples of the number of query heads `h`.
    pub h: usize,
    /// Multiples of the query latent's width `d_q` (latent attention).
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub q_latent: usize,
    /// Multiples of the key/value latent's width `d_kv` (latent attention).
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub kv_latent: usize,
    /// Multiples of the rotary key's width `d_r` (latent attention).
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub rotary: usize,
    /// Multiples of a value head's width `hd_v` (latent attention).
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub value: usize,
    /// Multiples of all value heads together, `h·hd_v` (latent attention).
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub h_value: usize,
    /// Multiples of the size of the vocabulary `v`.
    #[serde(skip_serializing_if = "serde_forms::is_default")]
    pub vocab: usize,
    /// The constant term.
    pub one: usize,
}

/// Sizes of a model, to evaluate a [`SymbolicCount`]; 0 for sizes that the model does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelSizes {
    /// Width `d`.
    pub d: usize,
    /// Head width `hd`.
    pub hd: usize,
    /// Query heads `h`.
    pub h: usize,
    /// Key/value heads `kv`.
    pub kv: usize,
    /// Feed-forward width `f`.
    pub f: usize,
    /// Width of the query latent `d_q`.
    pub q_latent: usize,
    /// Width of the key/value latent `d_kv`.
    pub kv_latent: usize,
    /// Width of the rotary key `d_r`.
    pub rope_dim: usize,
    /// Width of a value head `hd_v`.
    pub v_dim: usize,
    /// Size of the vocabulary `v`.
    pub vocab: usize,
}

impl SymbolicCount {
    pub(super) const ZERO: Self = Self {
        d: 0,
        hd: 0,
        h_hd: 0,
        kv_hd: 0,
        f: 0,
        h: 0,
        q_latent: 0,
        kv_latent: 0,
        rotary: 0,
        value: 0,
        h_value: 0,
        vocab: 0,
        one: 0,
    };
    pub(super) const D: Self = Self { d: 1, ..Self::ZERO };
    pub(super) const HD: Self = Self {
        hd: 1,
        ..Self::ZERO
    };
    pub(super) const H_HD: Self = Self {
        h_hd: 1,
        ..Self::ZERO
    };
    pub(super) const KV_HD: Self = Self {
        kv_hd: 1,
        ..Self::ZERO
    };
    pub(super) const F: Self = Self { f: 1, ..Self::ZERO };
    pub(super) const Q_LATENT: Self = Self {
        q_latent: 1,
        ..Self::ZERO
    };
    pub(super) const KV_LATENT: Self = Self {
        kv_latent: 1,
        ..Self::ZERO
    };
    pub(super) const ROTARY: Self = Self {
        rotary: 1,
        ..Self::ZERO
    };
    pub(super) const VALUE: Self = Self {
        value: 1,
        ..Self::ZERO
    };
    pub(super) const H_VALUE: Self = Self {
        h_value: 1,
        ..Self::ZERO
    };
    pub(super) const VOCAB: Self = Self {
        vocab: 1,
        ..Self::ZERO
    };
    pub(super) const ONE: Self = Self {
        one: 1,
        ..Self::ZERO
    };

    /// Returns the count at these sizes.
    ///
    /// ```
    /// use hybridnorm::placement::{ModelSizes, SymbolicCount};
    /// let count = SymbolicCount { d: 2, one: 1, ..SymbolicCount::default() };
    /// assert_eq!(count.evaluate(ModelSizes { d: 768, ..ModelSizes::default() }), 1537);
    /// ```
    pub fn evaluate(&self, sizes: ModelSizes) -> usize {
        self.d * sizes.d
            + self.hd * sizes.hd
            + self.h_hd * sizes.h * sizes.hd
            + self.kv_hd * sizes.kv * sizes.hd
            + self.f * sizes.f
            + self.h * sizes.h
            + self.q_latent * sizes.q_latent
            + self.kv_latent * sizes.kv_latent
            + self.rotary * sizes.rope_dim
            + self.value * sizes.v_dim
            + self.h_value * sizes.h * sizes.v_dim
            + self.vocab * sizes.vocab
            + self.one
    }

    /// Returns the number of parameters of all norms of a block with grouped-query attention, without those of a second
    /// stream.
    ///
    /// ```
    /// use hybridnorm::placement::{SymbolicCount, named, resolve};
    /// let pre_norm = resolve(&named("pre-norm")?, 12, 768)?;
    /// let count = SymbolicCount::norm_parameters(&pre_norm.blocks[0], &pre_norm.norm);
    /// assert_eq!(count.to_string(), "2d");
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn norm_parameters(block: &ResolvedBlock, norm: &NormSpec) -> Self {
        parameters(sites(block, false), norm)
    }

    /// Returns the number of parameters of one norm over the model width.
    ///
    /// ```
    /// use hybridnorm::placement::{NormSpec, SymbolicCount};
    /// assert_eq!(SymbolicCount::norm(&NormSpec::default()).to_string(), "d");
    /// let with_bias = NormSpec { bias: true, ..NormSpec::default() };
    /// assert_eq!(SymbolicCount::norm(&with_bias).to_string(), "2d");
    /// ```
    pub fn norm(norm: &NormSpec) -> Self {
        Site::with_gain(Self::D).parameters(norm)
    }

    /// Returns the number of elements per token that pass through the norms of a block with grouped-query attention,
    /// without those of a second stream.
    ///
    /// ```
    /// use hybridnorm::placement::{SymbolicCount, named, resolve};
    /// let hybridnorm = resolve(&named("hybridnorm")?, 12, 768)?;
    /// let count = SymbolicCount::normalized_elements(&hybridnorm.blocks[0]);
    /// assert_eq!(count.to_string(), "d + h·hd + 2·kv·hd");
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn normalized_elements(block: &ResolvedBlock) -> Self {
        elements(sites(block, false))
    }

    /// Returns the number of parameters in the learned scales of a block: all that a placement adds besides its norms.
    ///
    /// ```
    /// use hybridnorm::placement::{SymbolicCount, named, resolve};
    /// let layerscale = resolve(&named("layerscale")?, 12, 768)?;
    /// let count = SymbolicCount::learned_scales(&layerscale.blocks[0]);
    /// assert_eq!(count.to_string(), "2d");
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn learned_scales(block: &ResolvedBlock) -> Self {
        let (inner, hidden) = (&block.attn_inner, &block.ffn_inner);
        let wide = [&block.attn, &block.ffn]
            .into_iter()
            .flat_map(scales)
            .map(Self::scale)
            .fold(Self::ZERO, Add::add);
        let mut sum = wide
            + Self::per(inner.qk_post_scale, Self::KV_HD)
            + Self::per(hidden.gate_scale, Self::F)
            + Self::per(hidden.up_scale, Self::F);
        sum.h += usize::from(inner.head_gain);
        sum.h += usize::from(inner.attn_scale == AttnScale::Cosine);
        sum
    }

    /// Returns the number of parameters of one scale over the model width.
    ///
    /// ```
    /// use hybridnorm::placement::{LearnedShape, ResolvedScale, SymbolicCount};
    /// let learned = ResolvedScale::Learned { shape: LearnedShape::Vector, init: 1.0, start: None };
    /// assert_eq!(SymbolicCount::scale(learned).to_string(), "d");
    /// assert_eq!(SymbolicCount::scale(ResolvedScale::Const(2.0)).to_string(), "0");
    /// ```
    pub fn scale(factor: ResolvedScale) -> Self {
        Self::per(factor, Self::D)
    }

    /// Returns the number of parameters of the scale on the logits.
    ///
    /// ```
    /// use hybridnorm::placement::{LearnedShape, ResolvedScale, SymbolicCount};
    /// let learned = ResolvedScale::Learned { shape: LearnedShape::Vector, init: 1.0, start: None };
    /// assert_eq!(SymbolicCount::logit_scale(learned).to_string(), "v");
    /// ```
    pub fn logit_scale(factor: ResolvedScale) -> Self {
        Self::per(factor, Self::VOCAB)
    }

    /// Returns the number of parameters of a scale whose vectors have this width.
    fn per(factor: ResolvedScale, width: Self) -> Self {
        match factor {
            ResolvedScale::Const(_) => Self::ZERO,
            ResolvedScale::Learned { shape, .. } => match shape {
                LearnedShape::Scalar => Self::ONE,
                LearnedShape::Vector => width,
            },
        }
    }
}

fn scales(sub: &SubLayer<ResolvedScale>) -> [ResolvedScale; 4] {
    [sub.read_scale, sub.in_scale, sub.skip_scale, sub.out_scale]
}

impl Add for SymbolicCount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            d: self.d + other.d,
            hd: self.hd + other.hd,
            h_hd: self.h_hd + other.h_hd,
            kv_hd: self.kv_hd + other.kv_hd,
            f: self.f + other.f,
            h: self.h + other.h,
            q_latent: self.q_latent + other.q_latent,
            kv_latent: self.kv_latent + other.kv_latent,
            rotary: self.rotary + other.rotary,
            value: self.value + other.value,
            h_value: self.h_value + other.h_value,
            vocab: self.vocab + other.vocab,
            one: self.one + other.one,
        }
    }
}

impl AddAssign for SymbolicCount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<usize> for SymbolicCount {
    type Output = Self;

    fn mul(self, n: usize) -> Self {
        Self {
            d: self.d * n,
            hd: self.hd * n,
            h_hd: self.h_hd * n,
            kv_hd: self.kv_hd * n,
            f: self.f * n,
            h: self.h * n,
            q_latent: self.q_latent * n,
            kv_latent: self.kv_latent * n,
            rotary: self.rotary * n,
            value: self.value * n,
            h_value: self.h_value * n,
            vocab: self.vocab * n,
            one: self.one * n,
        }
    }
}

impl fmt::Display for SymbolicCount {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let named = [
            (self.d, "d"),
            (self.h_hd, "h·hd"),
            (self.kv_hd, "kv·hd"),
            (self.hd, "hd"),
            (self.q_latent, "d_q"),
            (self.kv_latent, "d_kv"),
            (self.rotary, "d_r"),
            (self.h_value, "h·hd_v"),
            (self.value, "hd_v"),
            (self.f, "f"),
            (self.h, "h"),
            (self.vocab, "v"),
        ];
        let mut terms: Vec<String> = named
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| match count {
                1 => name.into(),
                _ if name.contains('·') => format!("{count}·{name}"),
                _ if name.len() == 1 => format!("{count}{name}"),
                _ => format!("{count}·{name}"),
            })
            .collect();
        if self.one > 0 || terms.is_empty() {
            terms.push(self.one.to_string());
        }
        f.write_str(&terms.join(" + "))
    }
}
