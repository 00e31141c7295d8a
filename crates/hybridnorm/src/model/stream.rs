//! What runs through the blocks.

use burn::tensor::Tensor;

use super::norm::Norm;
use crate::eager as ops;

/// All that a block reads and writes.
#[derive(Debug)]
pub struct State {
    /// The stream; the main one where there are two.
    pub x: Stream,
    /// The second stream (b, t, d), where there is one.
    pub y: Option<Tensor<3>>,
}

/// One stream (b, t, d). A sum is added up by whoever reads it, since a norm does so on its way.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them at a time")]
pub enum Stream {
    /// The values.
    Whole(Tensor<3>),
    /// The skip, and what is added to it.
    Sum(Tensor<3>, Tensor<3>),
}

impl State {
    /// A state of nothing but the main stream.
    pub fn single(x: Tensor<3>) -> Self {
        Self {
            x: Stream::Whole(x),
            y: None,
        }
    }

    /// The streams' values, the main one first.
    pub fn whole(self) -> Vec<Tensor<3>> {
        let x = self.x.whole();
        std::iter::once(x).chain(self.y).collect()
    }

    /// The state of these values, see [`State::whole`].
    pub fn of(streams: Vec<Tensor<3>>) -> Self {
        let mut streams = streams.into_iter();
        let x = streams.next().expect("a main stream");
        Self {
            y: streams.next(),
            ..Self::single(x)
        }
    }
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
