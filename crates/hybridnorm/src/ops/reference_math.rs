//! Formulas shared by several references, in double precision.

use std::borrow::Cow;

use half::bf16;
use hybridnorm_kernels::matmul::Precision;

/// Returns `ln(Σ exp(z))` of a row, with the maximum subtracted to avoid overflow.
pub(super) fn log_sum_exp(z: &[f64]) -> f64 {
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln()
}

/// Returns `exp(z) / Σ exp(z)` of a row, and the log-sum-exp.
pub(super) fn softmax(z: &[f64]) -> (Vec<f64>, f64) {
    let lse = log_sum_exp(z);
    (z.iter().map(|z| (z - lse).exp()).collect(), lse)
}

/// Rounds numbers to bfloat16.
pub(crate) fn round_to_bf16(x: &mut [f64]) {
    x.iter_mut().for_each(|x| *x = bf16::from_f64(*x).to_f64());
}

/// Returns the operand of a matmul as it is read in this precision.
pub(super) fn operand(precision: Precision, x: &[f64]) -> Cow<'_, [f64]> {
    match precision {
        Precision::F32 => Cow::Borrowed(x),
        Precision::Bf16 => {
            let mut x = x.to_vec();
            round_to_bf16(&mut x);
            Cow::Owned(x)
        }
    }
}
