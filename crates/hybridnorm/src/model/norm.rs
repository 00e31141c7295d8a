//! A norm with its parameters.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::eager::{self as ops, NormFn};
use crate::placement::{Gain, NormKind, NormSpec};

/// A norm over rows of a fixed width. Which parameters exist follows from the [`NormSpec`].
#[derive(Module, Debug)]
pub struct Norm {
    /// One number per channel (and group).
    pub gain: Option<Param<Tensor<1>>>,
    /// One number per channel (and group).
    pub bias: Option<Param<Tensor<1>>>,
    /// DyT's and Derf's input factor.
    pub alpha: Option<Param<Tensor<1>>>,
    /// Derf's input shift.
    pub shift: Option<Param<Tensor<1>>>,
    #[module(skip)]
    op: NormOp,
    #[module(skip)]
    gain_start: GainStart,
}

/// The op's settings.
#[derive(Debug, Clone, Copy)]
pub struct NormOp(pub ops::Norm);

/// What all elements of the gain start from.
#[derive(Debug, Clone, Copy)]
pub struct GainStart(f64);

/// What a norm site asks for beyond the model's [`NormSpec`].
#[derive(Debug, Clone, Copy)]
pub struct NormSite {
    /// Elements per row.
    pub width: usize,
    /// Parameter vectors, used in turn by consecutive rows.
    pub groups: usize,
    /// Whether this site has parameters at all.
    pub affine: bool,
    /// Where the gain's effect starts; 1 unless the placement says otherwise.
    pub gain_init: f64,
}

impl NormSite {
    /// A norm with a gain over rows of `width`.
    pub fn of_width(width: usize) -> Self {
        Self {
            width,
            groups: 1,
            affine: true,
            gain_init: 1.0,
        }
    }
}

impl Norm {
    /// Makes the norm of a site.
    pub fn new(spec: &NormSpec, site: NormSite, device: &Device) -> Self {
        let function = match spec.kind {
            NormKind::Rmsnorm | NormKind::None => NormFn::Rms,
            NormKind::Layernorm => NormFn::Layer,
            NormKind::L2 => NormFn::L2,
            NormKind::Dyt => NormFn::Dyt,
            NormKind::Derf => NormFn::Derf,
        };
        let gain = match spec.gain {
            Gain::Plain if site.affine => ops::Gain::Plain,
            Gain::OnePlus if site.affine => ops::Gain::OnePlus,
            _ => ops::Gain::None,
        };
        let gain_start = match gain {
            ops::Gain::OnePlus => site.gain_init - 1.0,
            _ => site.gain_init,
        };
        let op = ops::Norm {
            function,
            eps: spec.eps as f32,
            gain,
            bias: spec.bias && site.affine,
            width: site.width,
            groups: site.groups,
        };
        let vector =
            |value: f64, n: usize| Param::from_data(vec![value as f32; n].as_slice(), device);
        let affine = site.width * site.groups;
        Self {
            gain: (gain != ops::Gain::None).then(|| vector(gain_start, affine)),
            bias: op.bias.then(|| vector(0.0, affine)),
            alpha: matches!(function, NormFn::Dyt | NormFn::Derf)
                .then(|| vector(spec.alpha_init.unwrap_or(0.5), 1)),
            shift: (function == NormFn::Derf).then(|| vector(0.0, 1)),
            op: NormOp(op),
            gain_start: GainStart(gain_start),
        }
    }

    /// Normalizes.
    pub fn forward(&self, x_btd: Tensor<3>) -> Tensor<3> {
        let params = self.params(&x_btd.device());
        ops::norm(x_btd, params, self.op.0)
    }

    /// `s = x + o` and the normalized `s`.
    pub fn of_sum(&self, x_btd: Tensor<3>, o_btd: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let params = self.params(&x_btd.device());
        let [s, n] = ops::add_norm(x_btd, o_btd, params, self.op.0);
        (s, n)
    }

    /// How far each element of the gain is from where it started; nothing where there is no gain.
    pub fn gain_drift(&self) -> Vec<f64> {
        let Some(gain) = &self.gain else {
            return Vec::new();
        };
        let values = gain.val().into_data_as::<f32>();
        let values = values.as_slice::<f32>().expect("converted to f32");
        let drift = |&value: &f32| f64::from(value) - self.gain_start.0;
        values.iter().map(drift).collect()
    }

    /// The op's settings.
    pub fn op(&self) -> ops::Norm {
        self.op.0
    }

    /// All parameters in one vector, in the order the op reads them.
    pub fn params(&self, device: &Device) -> Tensor<1> {
        let mut parts: Vec<_> = [&self.gain, &self.bias, &self.alpha, &self.shift]
            .into_iter()
            .flatten()
            .map(Param::val)
            .collect();
        match parts.len() {
            0 => Tensor::empty([0], device),
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 0),
        }
    }
}

/// Vectors (b, t, d) of length 1: `x / |x|`.
pub(super) fn unit(x_btd: Tensor<3>) -> Tensor<3> {
    let [_, _, d] = x_btd.dims();
    let nothing = Tensor::empty([0], (&x_btd.device(), x_btd.dtype()));
    ops::norm(x_btd, nothing, unit_length(d))
}

/// The op that gives vectors of length 1.
pub(super) fn unit_length(width: usize) -> ops::Norm {
    ops::Norm {
        function: NormFn::L2,
        eps: 1e-12,
        gain: ops::Gain::None,
        bias: false,
        width,
        groups: 1,
    }
}
