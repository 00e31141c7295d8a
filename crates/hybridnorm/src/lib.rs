//! Train transformer language models and measure where to normalize.
//!
//! Pipeline: text → [`data`] (tokenizer, shards, batch stream) → [`model`] (embedding, blocks, head) →
//! [`train`] (loss, gradients, AdamW, checkpoints) → [`eval`] (loss, text). The positions of norms and skip
//! connections in a block are a value of the algebra in [`placement`].
//!
//! Every command of the command line is a function here; called inside [`threads::run`] it is as fast.
//!
//! ```
//! use hybridnorm::placement::{Explanation, named};
//!
//! let equations = Explanation::of(&named("hybridnorm")?)?.to_text();
//! assert!(equations.contains("X′ = Z + F(Z)"));
//! # Ok::<(), hybridnorm::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// Items shared within the crate have no user where a feature is off; the build with all features checks for dead code.
#![cfg_attr(not(feature = "report"), allow(dead_code, unused_imports))]

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "model")]
pub mod data;
pub mod error;
#[cfg(feature = "model")]
pub mod eval;
#[cfg(feature = "model")]
pub mod exec;
#[cfg(feature = "model")]
pub mod files;
#[cfg(feature = "model")]
pub mod format_number;
#[cfg(feature = "model")]
pub mod graph;
#[cfg(feature = "interop")]
pub mod interop;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "model")]
mod loss;
#[cfg(feature = "model")]
pub mod machine;
#[cfg(feature = "model")]
pub mod memory;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "model")]
pub mod omissions;
#[cfg(feature = "model")]
pub mod ops;
mod parse_errors;
#[cfg(feature = "model")]
pub mod passes;
pub mod placement;
#[cfg(feature = "model")]
pub mod plan;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "model")]
pub mod tensors;
pub mod text;
#[cfg(feature = "model")]
pub mod threads;
#[cfg(feature = "model")]
pub mod train;
#[cfg(feature = "model")]
pub mod untrusted;

pub use error::{Error, Result};
/// CPU kernels, and the types that specify norms, attention and activations to [`ops`].
pub use hybridnorm_kernels as kernels;
#[cfg(feature = "model")]
pub use model::Device;
