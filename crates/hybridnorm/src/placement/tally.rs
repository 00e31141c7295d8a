//! Counting what norms and scales cost, as formulas of the model's sizes.

use std::fmt;
use std::ops::{Add, AddAssign, Mul};

use serde::{Deserialize, Serialize};

use super::spec::{
    AttnScale, BlockSpec, Factor, Gain, HeadNorm, LearnedShape, NormKind, NormSpec, Topology,
};

/// A count as a sum of multiples of the model's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
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
    /// The constant term.
    pub one: usize,
}

/// Sizes of a model, to turn a [`Tally`] into a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
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
}

impl Tally {
    const D: Self = Self::terms(1, 0, 0, 0, 0);
    const HD: Self = Self::terms(0, 1, 0, 0, 0);
    const H_HD: Self = Self::terms(0, 0, 1, 0, 0);
    const KV_HD: Self = Self::terms(0, 0, 0, 1, 0);
    const F: Self = Self::terms(0, 0, 0, 0, 1);

    const fn terms(d: usize, hd: usize, h_hd: usize, kv_hd: usize, f: usize) -> Self {
        Self {
            d,
            hd,
            h_hd,
            kv_hd,
            f,
            h: 0,
            one: 0,
        }
    }

    fn ones(count: usize) -> Self {
        Self {
            one: count,
            ..Self::default()
        }
    }

    /// The count at these sizes.
    pub fn at(&self, shape: Shape) -> usize {
        self.d * shape.d
            + self.hd * shape.hd
            + self.h_hd * shape.h * shape.hd
            + self.kv_hd * shape.kv * shape.hd
            + self.f * shape.f
            + self.h * shape.h
            + self.one
    }

    /// Parameters of all norms of a block.
    pub fn norm_parameters(block: &BlockSpec, norm: &NormSpec) -> Self {
        sites(block)
            .into_iter()
            .map(|site| site.parameters(norm))
            .fold(Self::default(), Add::add)
    }

    /// Parameters of one norm of the whole width.
    pub fn of_one_norm(norm: &NormSpec) -> Self {
        Site::wide(Self::D).parameters(norm)
    }

    /// Elements per token that pass through a norm of a block.
    pub fn normalized_elements(block: &BlockSpec) -> Self {
        sites(block)
            .into_iter()
            .map(|site| site.elements)
            .fold(Self::default(), Add::add)
    }

    /// Learned scales of a block: everything that a placement adds besides its norms.
    pub fn learned_parameters(block: &BlockSpec) -> Self {
        let (attn, ffn, inner) = (&block.attn, &block.ffn, &block.attn_inner);
        let scales = [
            attn.in_scale,
            attn.skip_scale,
            attn.out_scale,
            ffn.in_scale,
            ffn.skip_scale,
            ffn.out_scale,
        ];
        let mut sum = scales
            .into_iter()
            .map(Self::of_factor)
            .fold(Self::default(), Add::add);
        if let Factor::Learned { shape, .. } = inner.qk_post_scale {
            match shape {
                LearnedShape::Scalar => sum.one += 1,
                LearnedShape::Vector => sum.hd += 1,
            }
        }
        sum.h += usize::from(inner.head_gain);
        sum.h += usize::from(inner.attn_scale == AttnScale::Cosine);
        sum
    }

    /// Parameters of one scale of the whole width.
    pub fn of_factor(factor: Factor) -> Self {
        match factor {
            Factor::Const(_) => Self::default(),
            Factor::Learned { shape, .. } => match shape {
                LearnedShape::Scalar => Self::ones(1),
                LearnedShape::Vector => Self::D,
            },
        }
    }
}

/// One norm of a block.
struct Site {
    elements: Tally,
    /// Width of the gain; `None` without parameters.
    gain: Option<Tally>,
}

impl Site {
    fn wide(width: Tally) -> Self {
        Self {
            elements: width,
            gain: Some(width),
        }
    }

    fn head(norm: HeadNorm, width: Tally) -> Option<Self> {
        let gain = match norm {
            HeadNorm::None => return None,
            HeadNorm::PerHead => Some(Tally::HD),
            HeadNorm::PerHeadOwn | HeadNorm::Full => Some(width),
            HeadNorm::PerHeadPlain | HeadNorm::FullPlain => None,
        };
        Some(Self {
            elements: width,
            gain,
        })
    }

    fn parameters(&self, norm: &NormSpec) -> Tally {
        let Some(width) = self.gain else {
            return Tally::default();
        };
        let vectors = usize::from(norm.gain != Gain::None) + usize::from(norm.bias);
        let scalars = match norm.kind {
            NormKind::Rmsnorm | NormKind::Layernorm | NormKind::L2 => 0,
            NormKind::Dyt => 1,
            NormKind::Derf => 2,
            NormKind::None => return Tally::default(),
        };
        width * vectors + Tally::ones(scalars)
    }
}

fn sites(block: &BlockSpec) -> Vec<Site> {
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
    let inner = &block.attn_inner;
    let heads = [
        (inner.q_norm, Tally::H_HD),
        (inner.k_norm, Tally::KV_HD),
        (inner.v_norm, Tally::KV_HD),
        (inner.ctx_norm, Tally::H_HD),
    ];
    let hidden = [
        block.ffn_inner.gate_norm,
        block.ffn_inner.up_norm,
        block.ffn_inner.mid_norm,
    ];
    let of = |on: bool, width| on.then(|| Site::wide(width));
    wide.into_iter()
        .filter_map(|on| of(on, Tally::D))
        .chain(heads.into_iter().filter_map(|(n, w)| Site::head(n, w)))
        .chain(hidden.into_iter().filter_map(|on| of(on, Tally::F)))
        .collect()
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            d: self.d + other.d,
            hd: self.hd + other.hd,
            h_hd: self.h_hd + other.h_hd,
            kv_hd: self.kv_hd + other.kv_hd,
            f: self.f + other.f,
            h: self.h + other.h,
            one: self.one + other.one,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<usize> for Tally {
    type Output = Self;

    fn mul(self, n: usize) -> Self {
        Self {
            d: self.d * n,
            hd: self.hd * n,
            h_hd: self.h_hd * n,
            kv_hd: self.kv_hd * n,
            f: self.f * n,
            h: self.h * n,
            one: self.one * n,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let named = [
            (self.d, "d"),
            (self.h_hd, "h·hd"),
            (self.kv_hd, "kv·hd"),
            (self.hd, "hd"),
            (self.f, "f"),
            (self.h, "h"),
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
