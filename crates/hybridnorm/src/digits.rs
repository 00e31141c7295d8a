//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
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

/// A share as percent, without needless digits: `0.95` as `95 %`.
pub fn percent(share: f64) -> String {
    let text = format!("{:.3}", 100.0 * share);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A perplexity: `74.72`, `2.1e9`, or that it is beyond 64-bit numbers.
pub fn perplexity(perplexity: f64) -> String {
    match perplexity {
        p if p.is_nan() => "not a number".into(),
        p if p.is_infinite() => "over 1e308".into(),
        p if p >= 1e6 => format!("{p:.2e}"),
        p if p < 10.0 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
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
}
