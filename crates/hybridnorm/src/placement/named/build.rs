//! Builder steps of the named placements.

use super::super::norm_functions::properties;
use super::super::spec::{
    AttnInner, Combine, FfnInner, Formula, HeadNorm, Init, InitScheme, LearnedShape, NormFn,
    OutNorm, Override, Placement, ProjectionGains, Scale, Selector, Skip, StdRule, Streams,
    SubLayer,
};

/// A sub-layer with unresolved scales.
pub(super) type Sub = SubLayer<Scale>;

/// Base placement: raw skip connections, no norm except the final one.
pub(super) fn base() -> Placement {
    Placement::default()
}

/// Pre-norm: a norm before each sub-layer.
pub(super) fn pre_norm_base() -> Placement {
    base().sub_layers(in_norm)
}

/// Post-norm: a norm on each residual sum; the last one replaces the final norm.
pub(super) fn post_norm_base() -> Placement {
    base().sub_layers(post_norm).without_final_norm()
}

/// Builder methods of a placement.
pub(super) trait PlacementBuilder {
    fn attn(self, step: impl Fn(&mut Sub)) -> Self;
    fn ffn(self, step: impl Fn(&mut Sub)) -> Self;
    fn sub_layers(self, step: impl Fn(&mut Sub)) -> Self;
    fn inner(self, step: impl Fn(&mut AttnInner<Scale>)) -> Self;
    fn ffn_inner(self, step: impl Fn(&mut FfnInner<Scale>)) -> Self;
    fn override_blocks(self, layers: Selector, set: serde_json::Value) -> Self;
    fn without_final_norm(self) -> Self;
    fn streams(self, streams: Streams) -> Self;
    fn kind(self, kind: impl Into<Option<NormFn>>) -> Self;
    fn eps(self, eps: f64) -> Self;
    fn init(self, scheme: InitScheme, std: StdRule) -> Self;
    fn gains(
        self,
        gain: Scale,
        projections: impl Fn(&mut ProjectionGains) -> Vec<&mut Scale>,
    ) -> Self;
}

impl PlacementBuilder for Placement {
    fn attn(mut self, step: impl Fn(&mut Sub)) -> Self {
        step(&mut self.block.attn);
        self
    }
    fn ffn(mut self, step: impl Fn(&mut Sub)) -> Self {
        step(&mut self.block.ffn);
        self
    }
    fn sub_layers(self, step: impl Fn(&mut Sub)) -> Self {
        self.attn(&step).ffn(&step)
    }
    fn inner(mut self, step: impl Fn(&mut AttnInner<Scale>)) -> Self {
        step(&mut self.block.attn_inner);
        self
    }
    fn ffn_inner(mut self, step: impl Fn(&mut FfnInner<Scale>)) -> Self {
        step(&mut self.block.ffn_inner);
        self
    }
    fn override_blocks(mut self, layers: Selector, set: serde_json::Value) -> Self {
        self.overrides.push(Override { layers, set });
        self
    }
    fn without_final_norm(mut self) -> Self {
        self.final_norm = false;
        self
    }
    fn streams(mut self, streams: Streams) -> Self {
        self.streams = streams;
        self
    }
    fn kind(mut self, kind: impl Into<Option<NormFn>>) -> Self {
        self.norm.kind = kind.into();
        self.norm.bias = self
            .norm
            .kind
            .is_some_and(|function| properties(function).bias);
        self
    }
    fn eps(mut self, eps: f64) -> Self {
        self.norm.eps = eps;
        self
    }
    fn init(mut self, scheme: InitScheme, std: StdRule) -> Self {
        self.init = Init {
            scheme,
            std,
            ..self.init
        };
        self
    }
    fn gains(
        mut self,
        gain: Scale,
        projections: impl Fn(&mut ProjectionGains) -> Vec<&mut Scale>,
    ) -> Self {
        for value in projections(&mut self.init.gains) {
            *value = gain.clone();
        }
        self
    }
}

pub(super) fn in_norm(s: &mut Sub) {
    s.in_norm = true;
}

pub(super) fn post_norm(s: &mut Sub) {
    s.post_norm = true;
}

/// Input norm whose output is also the skip connection.
pub(super) fn normed_skip(s: &mut Sub) {
    s.in_norm = true;
    s.skip = Skip::Normed;
}

pub(super) fn skip(skip: Skip) -> impl Fn(&mut Sub) {
    move |s| s.skip = skip
}

pub(super) fn out_norm(s: &mut Sub) {
    s.out_norm = Some(OutNorm::default());
}

pub(super) fn out_norm_from(gain_init: Scale) -> impl Fn(&mut Sub) {
    move |s| {
        s.out_norm = Some(OutNorm {
            gain_init: gain_init.clone(),
        })
    }
}

pub(super) fn read_scale(scale: Scale) -> impl Fn(&mut Sub) {
    move |s| s.read_scale = scale.clone()
}

pub(super) fn in_scale(scale: Scale) -> impl Fn(&mut Sub) {
    move |s| s.in_scale = scale.clone()
}

pub(super) fn skip_scale(scale: Scale) -> impl Fn(&mut Sub) {
    move |s| s.skip_scale = scale.clone()
}

pub(super) fn out_scale(scale: Scale) -> impl Fn(&mut Sub) {
    move |s| s.out_scale = scale.clone()
}

/// Norms on a subset of `q`, `k`, `v` and the context `c`, in the notation of the HybridNorm paper's
/// appendix.
pub(super) fn head_norms(subset: &'static str, norm: HeadNorm) -> impl Fn(&mut AttnInner<Scale>) {
    move |inner| {
        for letter in subset.chars() {
            match letter {
                'q' => inner.q_norm = norm,
                'k' => inner.k_norm = norm,
                'v' => inner.v_norm = norm,
                _ => inner.ctx_norm = norm,
            }
        }
    }
}

/// `s' = unit(s + rate · (o − s))`
pub(super) fn lerp_unit(rate: Scale) -> impl Fn(&mut Sub) {
    move |s| {
        s.combine = Combine::LerpUnit;
        s.out_scale = rate.clone();
    }
}

pub(super) fn formula(formula: Formula) -> Scale {
    Scale::Formula(formula)
}

/// `(k·L)^p`.
pub(super) fn depth_power(k: f64, p: f64) -> Scale {
    formula(Formula::DepthPower { k, p })
}

pub(super) fn learned(shape: LearnedShape, init: Scale) -> Scale {
    Scale::Learned {
        shape,
        init: Box::new(init),
        start: None,
    }
}

/// Learned factor per channel with initial value `init`, whose parameter starts at `start`.
pub(super) fn vector_from(init: Scale, start: Scale) -> Scale {
    Scale::Learned {
        shape: LearnedShape::Vector,
        init: Box::new(init),
        start: Some(Box::new(start)),
    }
}

/// Gains of all weights but q and k: those that a sub-layer's output is proportional to.
pub(super) fn all_but_qk(gains: &mut ProjectionGains) -> Vec<&mut Scale> {
    vec![
        &mut gains.v,
        &mut gains.o,
        &mut gains.gate,
        &mut gains.up,
        &mut gains.down,
    ]
}
