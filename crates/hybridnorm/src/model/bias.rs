//! Biases of projections.

use super::registry::Param;
use crate::graph::Value;
use crate::ops;

/// Adds the bias to a projection, if there is one.
pub(super) fn bias<'g>(bias: &Option<Param>, projection: Value<'g>) -> Value<'g> {
    match bias {
        Some(param) => ops::add_bias(projection, param.value(projection.builder())),
        None => projection,
    }
}
