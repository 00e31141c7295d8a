//! A factor on a tensor: a constant of the layer, or learned.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::eager as ops;
use crate::placement::{Factor, LearnedShape};

/// Multiplies by a constant, a learned number or a learned vector.
#[derive(Module, Debug)]
pub struct Scale {
    /// The parameter, one number or one per channel.
    pub factor: Option<Param<Tensor<1>>>,
    constant: f64,
}

impl Scale {
    /// Makes the scale of a resolved factor for tensors of `width` channels.
    pub fn new(factor: Factor, width: usize, device: &Device) -> Self {
        match factor {
            Factor::Const(constant) => Self {
                factor: None,
                constant,
            },
            Factor::Learned { shape, init, start } => {
                let n = match shape {
                    LearnedShape::Scalar => 1,
                    LearnedShape::Vector => width,
                };
                let begin = vec![start.unwrap_or(init) as f32; n];
                Self {
                    factor: Some(Param::from_data(begin.as_slice(), device)),
                    constant: start.map_or(1.0, |start| init / start),
                }
            }
        }
    }

    /// Multiplies.
    pub fn forward(&self, x_btd: Tensor<3>) -> Tensor<3> {
        match self.learned() {
            Some(factor) => {
                let repeat = x_btd.dims()[2] / factor.dims()[0];
                ops::scale_columns(x_btd, factor, repeat)
            }
            None if self.constant == 1.0 => x_btd,
            None => x_btd * self.constant,
        }
    }

    /// The constant, where nothing is learned.
    pub fn constant(&self) -> Option<f64> {
        self.factor.is_none().then_some(self.constant)
    }

    /// What is learned, one number or one per channel.
    pub fn learned(&self) -> Option<Tensor<1>> {
        let factor = self.factor.as_ref()?.val();
        Some(match self.constant {
            1.0 => factor,
            constant => factor * constant,
        })
    }

    /// Whether it changes nothing.
    pub fn is_one(&self) -> bool {
        self.constant() == Some(1.0)
    }
}
