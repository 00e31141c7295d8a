//! The placement algebra: types, named values, layer overrides, validation, equations.

pub mod spec;
pub use spec::*;

/// Why a placement is not valid: the field, what it holds, and what it may hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("placement.{field}: {problem}")]
pub struct PlacementError {
    /// Path of the field, e.g. `block.ffn.skip` or `overrides[0].set`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}
