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
    }
}
