//! RMS and maximum absolute value of a tensor, for recording activations.

use crate::floats::Floats;
use crate::parallel::ELEMENTS;
use crate::simd::{dispatch, sum_squares_f64};
use rayon::prelude::*;

pub use crate::simd::larger_or_nan;

/// Magnitude of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorStats {
    /// Root mean square; 0 if empty.
    pub rms: f64,
    /// Largest absolute value; 0 if empty, NaN if an element is NaN.
    pub max: f32,
}

/// Computes RMS and maximum absolute value of `x`.
pub fn tensor_stats<'a>(x: impl Into<Floats<'a>>) -> TensorStats {
    let x = x.into();
    let chunk = |start: usize| {
        let x = x.slice(start..x.len().min(start + ELEMENTS)).to_f32();
        dispatch(
            #[inline(always)]
            || (sum_squares_f64(&x), largest_bits(&x)),
        )
    };
    let starts: Vec<usize> = (0..x.len()).step_by(ELEMENTS).collect();
    let chunks: Vec<(f64, u32)> = starts.into_par_iter().map(chunk).collect();
    let squares: f64 = chunks.iter().map(|(squares, _)| squares).sum();
    let bits = chunks.iter().map(|&(_, bits)| bits).max();
    TensorStats {
        rms: (squares / x.len().max(1) as f64).sqrt(),
        max: f32::from_bits(bits.unwrap_or(0)),
    }
}

/// Returns the bits of the largest absolute value: the bits of non-negative numbers are ordered like the numbers, with
/// NaN above infinity.
#[inline(always)]
fn largest_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |top, x| top.max(x.abs().to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_bit_identical_for_any_thread_count, to_f64};

    #[test]
    fn tensor_stats_match_double_precision() {
        for len in [1, 7, 1000, 3 * ELEMENTS + 5] {
            let x = Rng::new(len as u64).normal(len);
            let exact = to_f64(&x);
            let mean = exact.iter().map(|v| v * v).sum::<f64>() / len as f64;
            let found = tensor_stats(&x);
            assert!((found.rms - mean.sqrt()).abs() < 1e-10);
            let top = exact.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert_eq!(f64::from(found.max), top);
        }
    }

    #[test]
    fn non_finite_values_propagate() {
        assert!(tensor_stats(&[1.0, f32::NAN, -3.0]).max.is_nan());
        assert!(tensor_stats(&[1.0, f32::NAN]).rms.is_nan());
        let infinite = tensor_stats(&[1.0, f32::NEG_INFINITY]);
        assert_eq!(infinite.max, f32::INFINITY);
        assert_eq!(infinite.rms, f64::INFINITY);
        assert_eq!(
            tensor_stats(&[0.0f32; 0]),
            TensorStats { rms: 0.0, max: 0.0 }
        );
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let x = Rng::new(3).normal(5 * ELEMENTS + 1);
        assert_bit_identical_for_any_thread_count(|| {
            let TensorStats { rms, max } = tensor_stats(&x);
            vec![rms as f32, (rms - f64::from(rms as f32)) as f32, max]
        });
    }
}
