//! Numbers as they are read.

use crate::digits::grouped;

use crate::lab::stats::Summary;

/// What stands where there is no number.
pub(super) const NONE: &str = "–";

/// A learning rate: `3e-3`.
pub(super) fn rate(lr: f64) -> String {
    if !lr.is_finite() {
        return NONE.to_owned();
    }
    trim(&format!("{lr:.4e}"))
}

/// A loss, to four decimals.
pub(super) fn loss(value: f64) -> String {
    finite(value, |value| format!("{value:.4}"))
}

/// A mean loss and, where there are several, their standard deviation.
pub(super) fn mean_sd(losses: &Summary) -> String {
    match losses.sd {
        None => loss(losses.mean),
        Some(sd) => format!("{} ± {}", loss(losses.mean), loss(sd)),
    }
}

/// A difference of losses, with its sign.
pub(super) fn difference(value: f64) -> String {
    finite(value, |value| {
        let digits = format!("{:.4}", value.abs());
        match (digits == "0.0000", value < 0.0) {
            (true, _) => digits,
            (false, true) => format!("−{digits}"),
            (false, false) => format!("+{digits}"),
        }
    })
}

/// A probability.
pub(super) fn probability(p: f64) -> String {
    match p {
        p if !p.is_finite() => NONE.to_owned(),
        p if p < 0.001 => "<0.001".to_owned(),
        p => format!("{p:.3}"),
    }
}

/// How many times as much.
pub(super) fn times(value: f64) -> String {
    match value {
        value if !value.is_finite() => NONE.to_owned(),
        value if (0.01..100.0).contains(&value) => format!("{value:.2}×"),
        value => format!("{}×", compact(value)),
    }
}

/// How many times as much, without needless digits.
pub(super) fn factor(value: f64) -> String {
    finite(value, |value| {
        let text = format!("{value:.1}");
        format!("{}×", text.strip_suffix(".0").unwrap_or(&text))
    })
}

/// Any quantity, to three significant digits.
pub(super) fn compact(value: f64) -> String {
    finite(value, |value| {
        let size = value.abs();
        if size == 0.0 {
            "0".to_owned()
        } else if (1e-3..1e4).contains(&size) {
            let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        } else {
            trim(&format!("{value:.2e}"))
        }
    })
}

/// A setting as it was given.
pub(super) fn plain(value: f64) -> String {
    finite(value, |value| value.to_string())
}

/// A speed, as a whole number with commas.
pub(super) fn speed(value: f64) -> String {
    finite(value, |value| grouped(value.round().max(0.0) as u64))
}

/// Bytes in MiB.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// `one run`, `3 runs`.
pub(super) fn count(n: usize, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{} {many}", grouped(n as u64)),
    }
}

/// Something optional, or a dash.
pub(super) fn or_none<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), text)
}

fn finite(value: f64, text: impl Fn(f64) -> String) -> String {
    match value.is_finite() {
        true => text(value),
        false => NONE.to_owned(),
    }
}

/// `3.0000e-3` without the zeros.
fn trim(scientific: &str) -> String {
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
    fn rates_are_short() {
        assert_eq!(rate(3e-3), "3e-3");
        assert_eq!(rate(0.1 + 0.2), "3e-1");
        assert_eq!(rate(2.5e-4), "2.5e-4");
        assert_eq!(rate(10.0), "1e1");
        assert_eq!(rate(f64::NAN), NONE);
    }

    #[test]
    fn differences_have_a_sign_unless_they_round_to_zero() {
        assert_eq!(difference(-0.01234), "−0.0123");
        assert_eq!(difference(0.5), "+0.5000");
        assert_eq!(difference(-0.00001), "0.0000");
        assert_eq!(difference(f64::INFINITY), NONE);
    }

    #[test]
    fn quantities_have_three_digits() {
        assert_eq!(compact(0.0), "0");
        assert_eq!(compact(1234.5), "1234");
        assert_eq!(compact(12.345), "12.3");
        assert_eq!(compact(0.012345), "0.0123");
        assert_eq!(compact(-0.5), "-0.500");
        assert_eq!(compact(1.5e-7), "1.5e-7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123), "123");
        assert_eq!(mebibytes(3 << 19), "1.5");
    }

    #[test]
    fn probabilities_and_ratios() {
        assert_eq!(probability(0.0004), "<0.001");
        assert_eq!(probability(0.0125), "0.013");
        assert_eq!(times(1.234), "1.23×");
        assert_eq!(times(12345.0), "1.23e4×");
    }
}
