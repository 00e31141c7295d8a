//! Formatting of numbers in reports.

use crate::format_number::{finite_or_dash, trim_mantissa, with_thousands_separators};
use crate::lab::stats::Summary;

pub(super) use crate::format_number::{NONE, compact, difference, probability, ratio};

/// Formats a learning rate: `3e-3`.
pub(super) fn learning_rate(lr: f64) -> String {
    if !lr.is_finite() {
        return NONE.to_owned();
    }
    trim_mantissa(&format!("{lr:.4e}"))
}

/// Formats a loss with four decimals.
pub(super) fn loss(value: f64) -> String {
    finite_or_dash(value, |value| format!("{value:.4}"))
}

/// Formats a mean loss and, for several losses, their standard deviation.
pub(super) fn mean_sd(losses: &Summary) -> String {
    match losses.sd {
        None => loss(losses.mean),
        Some(sd) => format!("{} ± {}", loss(losses.mean), loss(sd)),
    }
}

/// Formats a value without rounding.
pub(super) fn exact(value: f64) -> String {
    finite_or_dash(value, |value| value.to_string())
}

/// Formats a throughput in tokens per second as an integer with thousands separators.
pub(super) fn throughput(value: f64) -> String {
    finite_or_dash(value, |value| {
        with_thousands_separators(value.round().max(0.0) as u64)
    })
}

/// Formats bytes in MiB.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Formats a count with its noun: `1 run`, `3 runs`.
pub(super) fn count(n: usize, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{} {many}", with_thousands_separators(n as u64)),
    }
}

/// Formats an optional value, or returns [`NONE`].
pub(super) fn or_none<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rates_are_short() {
        assert_eq!(learning_rate(3e-3), "3e-3");
        assert_eq!(learning_rate(0.1 + 0.2), "3e-1");
        assert_eq!(learning_rate(2.5e-4), "2.5e-4");
        assert_eq!(learning_rate(10.0), "1e1");
        assert_eq!(learning_rate(f64::NAN), NONE);
    }

    #[test]
    fn quantities_have_three_digits() {
        assert_eq!(compact(0.0), "0");
        assert_eq!(compact(1234.5), "1234");
        assert_eq!(compact(12.345), "12.3");
        assert_eq!(compact(0.012345), "0.0123");
        assert_eq!(compact(-0.5), "-0.500");
        assert_eq!(compact(1.5e-7), "1.5e-7");
        assert_eq!(with_thousands_separators(1_234_567), "1,234,567");
        assert_eq!(with_thousands_separators(123), "123");
        assert_eq!(mebibytes(3 << 19), "1.5");
    }
}
