//! Functions shared by all benchmarks.

use crate::error::{Error, Result};

/// Returns the median; for an even number of values, the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => 0.5 * (sorted[middle - 1] + sorted[middle]),
    }
}

/// Checks that the duration of a measurement is finite and not negative.
///
/// # Errors
/// If it is negative or not finite.
pub fn check_seconds(seconds: f64) -> Result<()> {
    match seconds.is_finite() && seconds >= 0.0 {
        true => Ok(()),
        false => Err(Error::out_of_range(
            "seconds",
            seconds,
            "a finite non-negative number",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_numbers_of_values() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn invalid_durations_are_rejected() {
        assert!(check_seconds(0.0).is_ok());
        for seconds in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(check_seconds(seconds).is_err());
        }
    }
}
