//! The ops as a textbook writes them: plain loops on one thread, in `f32`, written to be read.
//!
//! Layouts and arguments are those of the kernels; only the forms that are measured exist.

pub mod activation;
pub mod attention;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod qkv;
pub mod simple;

/// Sum of products, from left to right.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `sum += factor x`.
fn add_scaled(factor: f32, x: &[f32], sum: &mut [f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}
