//! Formatting of numbers and names in sentences.

use super::super::stats::PairedTest;
use crate::format_number::with_thousands_separators;

/// Number of decimals of a difference, so that the half-width of its interval has two significant digits.
pub(super) struct Decimals(usize);

impl Decimals {
    pub fn of(difference: &PairedTest) -> Self {
        let half = (difference.high - difference.low) / 2.0;
        let scale = if half > 0.0 {
            half
        } else {
            difference.mean.abs()
        };
        Self::of_size(scale)
    }

    /// Returns the decimals for two significant digits of `size`.
    pub fn of_size(size: f64) -> Self {
        match size > 0.0 {
            true => Self((1.0 - size.log10().floor()).clamp(0.0, 6.0) as usize),
            false => Self(3),
        }
    }

    pub fn format(&self, nats: f64) -> String {
        let text = format!("{nats:.*}", self.0);
        // No sign if all digits are 0.
        match text.strip_prefix('-') {
            Some(rest) if rest.chars().all(|letter| matches!(letter, '0' | '.')) => rest.to_owned(),
            _ => text,
        }
    }
}

/// Formats with at most one decimal, omitted if it is 0.
pub(super) fn one_decimal(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// Formats as `12,345 seeds`.
pub(super) fn seeds(count: u64) -> String {
    counts([count].into_iter(), "seed")
}

/// Formats as `3 seeds`, or as `3 to 5 seeds` if counts differ.
pub(super) fn counts(counts: impl Iterator<Item = u64> + Clone, what: &str) -> String {
    let (least, most) = (counts.clone().min(), counts.max());
    match (least.unwrap_or(0), most.unwrap_or(0)) {
        (1, 1) => format!("1 {what}"),
        (least, most) if least == most => format!("{} {what}s", with_thousands_separators(least)),
        (least, most) => format!(
            "{} to {} {what}s",
            with_thousands_separators(least),
            with_thousands_separators(most)
        ),
    }
}

/// Joins names: `a`, `a and b`, `a, b and c`.
pub(super) fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            (one_decimal(10.0), one_decimal(3.16)),
            ("10".into(), "3.2".into())
        );
        assert_eq!(seeds(1), "1 seed");
        assert_eq!(seeds(10_000), "10,000 seeds");
        assert_eq!(counts([5, 3].into_iter(), "rate"), "3 to 5 rates");
        assert_eq!(Decimals(2).format(-0.004), "0.00");
        assert_eq!(Decimals(2).format(-0.006), "-0.01");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }
}
