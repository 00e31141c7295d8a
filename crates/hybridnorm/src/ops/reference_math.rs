//! Formulas shared by several references, in double precision.

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
