//! The stream between two functions of it.

use burn::tensor::Tensor;

use super::norm::Norm;
use crate::ops;

/// The stream (b, t, d). A sum is added up by whoever reads it, since a norm does so on its way.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them at a time")]
pub enum Stream {
    /// The values.
    Whole(Tensor<3>),
    /// The skip, and what is added to it.
    Sum(Tensor<3>, Tensor<3>),
}

impl Stream {
    /// The values.
    pub fn whole(self) -> Tensor<3> {
        match self {
            Self::Whole(x) => x,
            Self::Sum(skip, o) => ops::add(skip, o),
        }
    }

    /// The values `s` and `n = norm(s)`, which is `s` where there is no norm.
    pub fn normed(self, norm: &Option<Norm>) -> (Tensor<3>, Tensor<3>) {
        match (self, norm) {
            (Self::Sum(skip, o), Some(norm)) => norm.of_sum(skip, o),
            (stream, Some(norm)) => {
                let s = stream.whole();
                (s.clone(), norm.forward(s))
            }
            (stream, None) => {
                let s = stream.whole();
                (s.clone(), s)
            }
        }
    }
}
