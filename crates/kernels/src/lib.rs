//! CPU kernels for training decoder language models, over plain `f32` slices.
//!
//! Every op is one file with its forward and its backward pass; a naive `f64` reference lives in
//! the tests of the same file. There is no tensor type and no I/O here.
//!
//! # Conventions
//!
//! * **Layout.** Slices are contiguous and row-major; a "row" is the last axis. Weights of a linear
//!   map are `(out, in)` as in PyTorch.
//! * **Output.** Forward and backward functions overwrite their outputs, whatever these held.
//! * **Lengths.** Each public function checks the lengths of its slices first and panics with a
//!   message that names the slice. Callers validate users' input before they come here.
//! * **Threads.** Work is spread over the current rayon pool, and results have the same bits on
//!   any number of threads: chunks depend only on shapes, each chunk is reduced in a fixed order,
//!   and partial sums of chunks are added in the order of the chunks.
//! * **Instruction sets.** Loops are compiled for the baseline, for AVX2 with FMA and for AVX-512, and
//!   chosen at run time. Multiply-adds are fused only where the code says so, so that all give the
//!   same bits; only matrix products depend on the instruction set.
//! * **Numbers.** A NaN or an infinity in the input shows in the output; it is never hidden.

#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cache;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod experts;
#[allow(unsafe_code)]
pub mod gemm;
pub mod latent;
pub mod linear;
pub mod magnitude;
mod math;
pub mod muon;
pub mod norm;
mod panels;
mod parallel;
pub mod qkv;
pub mod router;
mod simd;
#[cfg(test)]
mod testing;
pub mod unit;
