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

pub mod bench;
pub mod data;
pub mod digits;
pub mod error;
pub mod eval;
pub mod exec;
pub mod files;
pub mod foreign;
pub mod graph;
pub mod interop;
pub mod lab;
pub mod machine;
pub mod memory;
pub mod model;
pub mod omissions;
pub mod ops;
pub mod passes;
pub mod placement;
pub mod plan;
pub mod report;
pub mod tensors;
pub mod text;
pub mod threads;
pub mod train;
mod wording;

pub use error::{Error, Result};
/// CPU kernels, and the types that specify norms, attention and activations to [`ops`].
pub use hybridnorm_kernels as kernels;
pub use model::Device;
