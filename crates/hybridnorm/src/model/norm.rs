//! Norm module: declares the parameters of a norm site (`Norm::new`) and records the norm op (`norm`).

use super::parameter_builder::ParameterBuilder;
use super::registry::{Param, Role};
use crate::graph::Value;
use crate::ops;
use crate::placement::{Gain, NormFn, NormScalar, NormSpec};
use hybridnorm_kernels::norm::NormConfig;

/// A norm over rows of a fixed width. The [`NormSpec`] determines its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Norm function and layout of its parameters.
    pub config: NormConfig,
    params: Option<Param>,
}

/// Properties of a norm site beyond the model's [`NormSpec`].
#[derive(Debug, Clone, Copy)]
pub(super) struct NormSite {
    /// Elements of a row.
    pub(super) width: usize,
    /// Number of gain vectors: row r uses vector `r % groups` (per-head gains).
    pub(super) groups: usize,
    /// True if it may have gain and bias.
    pub(super) affine: bool,
    /// Effective initial gain.
    pub(super) gain_init: f64,
    /// eps, if it differs from the model's.
    pub(super) eps: Option<f64>,
}

impl NormSite {
    /// Returns the site of a norm with a gain over rows of `width`.
    pub(super) fn of_width(width: usize) -> Self {
        Self {
            width,
            groups: 1,
            affine: true,
            gain_init: 1.0,
            eps: None,
        }
    }
}

impl Norm {
    /// Declares the norm of a site.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>, path: &str, site: NormSite) -> Self {
        let norm: NormSpec = builder.norm().clone();
        let function = norm
            .kind
            .expect("resolve() removes all norms if there is no norm function");
        let gain = if site.affine { norm.gain } else { Gain::None };
        let config = NormConfig {
            function,
            eps: site.eps.unwrap_or(norm.eps) as f32,
            gain,
            bias: norm.bias && site.affine,
            width: site.width,
            groups: site.groups,
        };
        let init = match gain {
            Gain::OnePlus => site.gain_init - 1.0,
            _ => site.gain_init,
        };
        let channels = site.width * site.groups;
        let scalars = function.scalars().iter().map(|&scalar| {
            let name = match scalar {
                NormScalar::Alpha => "alpha",
                NormScalar::Shift => "shift",
            };
            (name, 1, norm.initial(scalar))
        });
        // In the order in which the op reads them.
        let affine = [
            (gain != Gain::None).then_some(("gain", channels, init)),
            config.bias.then_some(("bias", channels, 0.0)),
        ];
        let vectors: Vec<_> = affine.into_iter().flatten().chain(scalars).collect();
        Self {
            config,
            params: builder.add_vectors(path, Role::Norm, &vectors),
        }
    }

    /// Returns its parameters, if any.
    pub(super) fn param_value<'g>(&self, like: Value<'g>) -> Option<Value<'g>> {
        self.params.map(|params| params.value(like.builder()))
    }
}

/// Computes `norm(x)`; returns `x` without a norm.
pub fn norm<'g>(norm: &Option<Norm>, x: Value<'g>) -> Value<'g> {
    match norm {
        Some(norm) => ops::norm(x, norm.param_value(x), norm.config),
        None => x,
    }
}

/// Normalizes rows to length 1: `x / |x|`.
pub(super) fn normalize_l2(x: Value<'_>) -> Value<'_> {
    ops::norm(x, None, l2_norm_config(x.shape().width()))
}

/// Returns the norm that normalizes rows to length 1.
pub(super) fn l2_norm_config(width: usize) -> NormConfig {
    NormConfig {
        function: NormFn::L2,
        eps: 1e-12,
        gain: Gain::None,
        bias: false,
        width,
        groups: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnorm_kernels::norm::forward;

    #[test]
    fn norm_functions_are_scale_invariant_where_declared() {
        let x: Vec<f32> = (0..8).map(|i| (i as f32 - 2.0) / 4.0).collect();
        let larger: Vec<f32> = x.iter().map(|x| 3.0 * x).collect();
        for function in NormFn::ALL {
            let config = NormConfig {
                function,
                ..l2_norm_config(x.len())
            };
            let params = vec![0.5; config.params_len()];
            let [y, of_larger] = [&x, &larger].map(|x| {
                let mut y = vec![0.0; x.len()];
                forward(&config, x, &params, &mut y);
                y
            });
            let is_same = y.iter().zip(&of_larger).all(|(a, b)| (a - b).abs() < 1e-5);
            let norm = NormSpec {
                kind: Some(function),
                ..NormSpec::default()
            };
            assert_eq!(is_same, norm.is_scale_invariant(), "{function:?}");
        }
    }
}
