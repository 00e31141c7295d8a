//! Graph transformations: gradients, narrowing to last positions, hoisting, recomputation, fusion, removal of
//! unused ops.

mod dead_code;
mod fuse;
mod hoist;
mod narrow;
mod recompute;
mod reverse;
#[cfg(test)]
mod tests;

pub(crate) use dead_code::remove_unused;
pub(crate) use fuse::fuse;
pub(crate) use hoist::hoist;
pub(crate) use narrow::narrow;
pub(crate) use recompute::recompute;
pub use reverse::{gradients, vector_jacobian_product};
