//! Graph transformations: gradients, narrowing to last positions, mixed precision, early scheduling, recomputation, fusion, removal of
//! unused ops.

mod dead_code;
mod fuse;
mod gradients;
mod narrow;
mod precision;
mod recompute;
mod schedule_early;
#[cfg(test)]
mod tests;

pub(crate) use dead_code::remove_unused;
pub(crate) use fuse::fuse;
pub use gradients::{gradients, vector_jacobian_product};
pub(crate) use narrow::narrow;
#[cfg(feature = "bench")]
pub(crate) use precision::precision_of_single_ops;
pub(crate) use precision::{
    has_bf16_residual, precision, rounded_copies, rounded_weights, update_rounded_weights,
};
pub(crate) use recompute::recompute;
pub(crate) use schedule_early::schedule_early;
