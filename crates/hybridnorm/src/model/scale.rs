//! Scale of a value: constant or learned.

use super::parameter_builder::ParameterBuilder;
use super::registry::{Param, Role};
use crate::graph::{Builder, Value};
use crate::ops;
use crate::placement::{LearnedShape, ResolvedScale};

/// Scale of rows: a constant, a learned scalar, or a learned vector with one element per channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// A constant.
    Constant(f64),
    /// A parameter times a constant.
    Learned(Param, f64),
}

impl Scale {
    /// Declares a resolved scale for rows of `width` channels.
    pub(super) fn new(
        builder: &mut ParameterBuilder<'_>,
        path: &str,
        factor: ResolvedScale,
        width: usize,
    ) -> Self {
        let ResolvedScale::Learned { shape, init, start } = factor else {
            let ResolvedScale::Const(constant) = factor else {
                unreachable!()
            };
            return Self::Constant(constant);
        };
        let n = match shape {
            LearnedShape::Scalar => 1,
            LearnedShape::Vector => width,
        };
        let vector = [("factor", n, start.unwrap_or(init))];
        let param = builder.add_vectors(path, Role::Scale, &vector);
        Self::Learned(
            param.expect("one vector"),
            start.map_or(1.0, |start| init / start),
        )
    }

    /// Returns the constant, if the scale is not learned.
    pub fn constant(&self) -> Option<f64> {
        match self {
            Self::Constant(constant) => Some(*constant),
            Self::Learned(..) => None,
        }
    }

    /// Returns the learned factors, if any.
    pub(super) fn learned<'g>(&self, graph: &'g Builder) -> Option<Value<'g>> {
        match self {
            Self::Constant(_) => None,
            Self::Learned(param, times) => Some(param.value(graph) * *times),
        }
    }
}

/// Computes `scale · x`; returns `x` if the scale is 1.
pub fn scale<'g>(scale: &Scale, x: Value<'g>) -> Value<'g> {
    match scale.learned(x.builder()) {
        None => x * scale.constant().unwrap_or(1.0),
        Some(factors) => {
            let repeat = x.shape().width() / factors.shape().elements();
            ops::scale_columns(x, factors, repeat)
        }
    }
}
