//! CPU kernels for training decoder language models, over plain `f32` slices.
//!
//! Every op is one module with its forward pass and, where it has one, its backward pass; its tests compare with a
//! naive `f64` reference. There is no tensor type and no I/O here.
//!
//! # Conventions
//!
//! * **Layout.** Slices are contiguous and row-major; a "row" is the last axis. Weights of a linear layer
//!   are `(out, in)` as in PyTorch.
//! * **Output.** Forward and backward functions overwrite their outputs, whatever they contained.
//! * **Lengths.** Each public function first checks the lengths of its slices and panics with a message
//!   that names the slice. Validating user input is up to the caller.
//! * **Threads.** Work is distributed over the current rayon pool, and results are bit-identical for any
//!   number of threads: chunks depend only on shapes, each chunk is reduced in a fixed order, and
//!   partial sums are added in the order of the chunks.
//! * **Instruction sets.** Loops are compiled for the baseline, AVX2 with FMA and AVX-512, and selected
//!   at run time. Multiply-adds are fused only where explicit in the code, so that all of these are
//!   bit-identical; only the matmuls in bfloat16 depend on the instruction set ([`matmul`]).
//! * **Numbers.** A NaN or an infinity in the input propagates to the output; it is never hidden.

#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cache;
mod chunks;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod experts;
pub mod floats;
pub mod latent;
pub mod linear;
mod math;
pub mod matmul;
pub mod muon;
pub mod norm;
mod parallel;
mod prefetch;
pub mod qkv;
pub mod router;
mod simd;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod splitmix64;
pub mod tensor_stats;
#[cfg(test)]
mod testing;
pub mod unit;
