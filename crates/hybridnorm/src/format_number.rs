//! Formatting of numbers for output.

/// Formats a number as in a configuration file: `0.001`, `1e300`.
pub fn config_number(value: f64) -> String {
    const MAX_DIGITS: usize = 20;
    let digits = value.to_string();
    match digits.len() <= MAX_DIGITS {
        true => digits,
        false => format!("{value:?}"),
    }
}

/// Formats `1234567` as `1,234,567`.
///
/// ```
/// assert_eq!(hybridnorm::format_number::with_thousands_separators(1_234_567), "1,234,567");
/// ```
pub fn with_thousands_separators(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a fraction as percent without trailing zeros: `0.95` as `95 %`.
pub fn percent(share: f64) -> String {
    let text = format!("{:.3}", 100.0 * share);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Formats a perplexity: `74.72`, `2.1e9`, or `over 1e308` if it overflows f64.
pub fn perplexity(perplexity: f64) -> String {
    match perplexity {
        p if p.is_nan() => "not a number".into(),
        p if p.is_infinite() => "over 1e308".into(),
        p if p >= 1e6 => format!("{p:.2e}"),
        p if p < 10.0 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

/// Placeholder for a missing number.
pub const NONE: &str = "–";

/// Formats a difference of losses, with its sign.
pub fn difference(value: f64) -> String {
    finite_or_dash(value, |value| {
        let digits = format!("{:.4}", value.abs());
        match (digits == "0.0000", value < 0.0) {
            (true, _) => digits,
            (false, true) => format!("−{digits}"),
            (false, false) => format!("+{digits}"),
        }
    })
}

/// Formats a probability.
pub fn probability(p: f64) -> String {
    match p {
        p if !p.is_finite() => NONE.to_owned(),
        p if p < 0.001 => "<0.001".to_owned(),
        p => format!("{p:.3}"),
    }
}

/// Formats a ratio: `1.23×`.
pub fn ratio(value: f64) -> String {
    match value {
        value if !value.is_finite() => NONE.to_owned(),
        value if (0.01..100.0).contains(&value) => format!("{value:.2}×"),
        value => format!("{}×", compact(value)),
    }
}

/// Formats a quantity with three significant digits.
pub fn compact(value: f64) -> String {
    finite_or_dash(value, |value| {
        let size = value.abs();
        if size == 0.0 {
            "0".to_owned()
        } else if (1e-3..1e4).contains(&size) {
            let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        } else {
            trim_mantissa(&format!("{value:.2e}"))
        }
    })
}

/// Formats a number by `text`, or returns [`NONE`] if it is not finite.
pub(crate) fn finite_or_dash(value: f64, text: impl Fn(f64) -> String) -> String {
    match value.is_finite() {
        true => text(value),
        false => NONE.to_owned(),
    }
}

/// Removes the trailing zeros of the mantissa, as in `3.0000e-3`.
pub(crate) fn trim_mantissa(scientific: &str) -> String {
    match scientific.split_once('e') {
        Some((digits, exponent)) if digits.contains('.') => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}e{exponent}")
        }
        _ => scientific.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(with_thousands_separators(0), "0");
        assert_eq!(with_thousands_separators(999), "999");
        assert_eq!(with_thousands_separators(1_234_567), "1,234,567");
        assert_eq!(percent(1.0 - 0.05), "95 %");
        assert_eq!(percent(1.0 - 0.005), "99.5 %");
        assert_eq!(percent(0.05), "5 %");
        assert_eq!(percent(0.975), "97.5 %");
        assert_eq!(percent(0.00125), "0.125 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(perplexity(74.7152), "74.72");
        assert_eq!(perplexity(1.0834), "1.083");
        assert_eq!(perplexity(123_456.789), "123456.79");
        assert_eq!(perplexity(f64::exp(481.0)), "7.86e208");
        assert_eq!(perplexity(f64::exp(800.0)), "over 1e308");
    }

    #[test]
    fn differences_have_a_sign_unless_they_round_to_zero() {
        assert_eq!(difference(-0.01234), "−0.0123");
        assert_eq!(difference(0.5), "+0.5000");
        assert_eq!(difference(-0.00001), "0.0000");
        assert_eq!(difference(f64::INFINITY), NONE);
    }

    #[test]
    fn probabilities_and_ratios() {
        assert_eq!(probability(0.0004), "<0.001");
        assert_eq!(probability(0.0125), "0.013");
        assert_eq!(ratio(1.234), "1.23×");
        assert_eq!(ratio(12345.0), "1.23e4×");
        assert_eq!(ratio(1.74e-6), "1.74e-6×");
    }
}
