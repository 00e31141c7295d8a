use super::*;

fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "found {found}, expected {expected}"
    );
}

/// Extra sleep under two drugs: `sleep` of R (Cushny and Peebles 1905, used by Student 1908).
const SLEEP: [(f64, f64); 10] = [
    (0.7, 1.9),
    (-1.6, 0.8),
    (-0.2, 1.1),
    (-1.2, 0.1),
    (-0.1, -0.1),
    (3.4, 4.4),
    (3.7, 5.5),
    (0.8, 1.6),
    (0.0, 4.6),
    (2.0, 3.4),
];

#[test]
fn paired_matches_r_on_sleep() {
    let differences = SLEEP.map(|(first, second)| first - second);
    let test = paired_t_test(&differences, 0.95).unwrap();
    assert_eq!(test.n, 10);
    close(test.mean, -1.58, 1e-12);
    // The standard deviation is from scipy 1.17.1, the rest from R's t.test(paired = TRUE).
    close(test.sd, 1.2299954832798732, 1e-12);
    close(test.t.unwrap(), -4.0621, 5e-5);
    close(test.p, 0.002833, 5e-7);
    close(test.low, -2.4598858, 5e-8);
    close(test.high, -0.7001142, 5e-8);
}

#[test]
fn quantiles_match_published_tables() {
    // NIST/SEMATECH e-Handbook 1.3.6.7.2, upper critical values of Student's t.
    for (freedom, upper, expected) in [
        (1, 0.025, 12.706),
        (2, 0.025, 4.303),
        (4, 0.025, 2.776),
        (9, 0.025, 2.262),
        (30, 0.025, 2.042),
        (5, 0.005, 4.032),
        (100, 0.001, 3.174),
        (9999, 0.025, 1.960),
    ] {
        close(t_critical(upper, freedom).unwrap(), expected, 5.1e-4);
    }
    assert_eq!(t_critical(0.025, 0), None);
    assert_eq!(t_critical(1.0, 3), None);
}

#[test]
fn without_variance_p_is_0_or_1() {
    let test = paired_t_test(&[0.5, 0.5, 0.5], 0.95).unwrap();
    assert_eq!((test.p, test.t, test.low, test.high), (0.0, None, 0.5, 0.5));
    assert_eq!(paired_t_test(&[0.0, 0.0], 0.95).unwrap().p, 1.0);
}

#[test]
fn invalid_input_is_none() {
    assert_eq!(paired_t_test(&[0.5], 0.95), None);
    assert_eq!(paired_t_test(&[0.5, f64::NAN], 0.95), None);
    for level in [0.0, 1.0, f64::NAN] {
        assert_eq!(paired_t_test(&[0.5, 0.6], level), None);
    }
}

#[test]
fn summary_and_median() {
    let summary = Summary::of(&[2.0, 4.0, 9.0]).unwrap();
    assert_eq!((summary.n, summary.mean), (3, 5.0));
    assert_eq!((summary.min, summary.max), (2.0, 9.0));
    close(summary.sd.unwrap(), 13.0_f64.sqrt(), 1e-15);
    assert_eq!(Summary::of(&[2.0]).unwrap().sd, None);
    assert_eq!(Summary::of(&[]), None);
    assert_eq!(median(&[9.0, 2.0, 4.0]), Some(4.0));
    assert_eq!(median(&[9.0, 2.0, 4.0, 5.0]), Some(4.5));
    assert_eq!(median(&[]), None);
}

#[test]
fn holm_by_hand() {
    // Sorted: 0.005·4, 0.01·3, 0.03·2, 0.04·1, where the last may not fall below 0.06.
    // statsmodels 0.15.0, multipletests(method="holm"), agrees.
    let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (found, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        close(*found, expected, 1e-15);
    }
    assert_eq!(holm(&[0.5, 0.9]), [1.0, 1.0]);
    assert_eq!(holm(&[]), [] as [f64; 0]);
}

#[test]
fn power_matches_the_noncentral_t() {
    // statsmodels 0.15.0, TTestPower().power (one sample, two-sided), and scipy's nct.
    for (n, effect, alpha, expected) in [
        (20, 1.0, 0.05, 0.9885912947787758),
        (5, 1.0, 0.05, 0.40138991737179536),
        (3, 1.0, 0.05, 0.1792553937765518),
        (2, 3.0, 0.05, 0.26077071422910975),
        (10, 0.5, 0.01, 0.10269750953959988),
        (200, 0.2, 0.05, 0.8036666605857853),
        (9000, 0.03, 0.05, 0.81213331096999),
    ] {
        close(power_of(effect, n, alpha, 1), expected, 1e-7);
    }
}

#[test]
fn required_seeds_are_rounded_up() {
    // statsmodels 0.15.0, TTestPower().solve_power: 9.938, 33.367, 198.15, 43.995, 18.303,
    // 8722.9, 2.48.
    for (effect, alpha, power, expected) in [
        (1.0, 0.05, 0.8, 10),
        (0.5, 0.05, 0.8, 34),
        (0.2, 0.05, 0.8, 199),
        (0.5, 0.05, 0.9, 44),
        (1.0, 0.01, 0.9, 19),
        (0.03, 0.05, 0.8, 8723),
        (5.0, 0.05, 0.8, 3),
    ] {
        let seeds = |sign: f64| required_seeds(sign * 3.0 * effect, 3.0, alpha, power);
        assert_eq!(seeds(1.0), Some(expected), "{effect} {alpha} {power}");
        assert_eq!(seeds(-1.0), Some(expected));
    }
    // statsmodels: 12560.1.
    assert_eq!(required_seeds(0.025, 1.0, 0.05, 0.8), None);
    assert_eq!(required_seeds(0.0, 1.0, 0.05, 0.8), None);
    assert_eq!(required_seeds(1.0, 1.0, 0.05, 1.0), None);
    assert_eq!(required_seeds(1.0, 1.0, 0.05, 0.4), None);
    assert_eq!(required_seeds(f64::NAN, 1.0, 0.05, 0.8), None);
    assert_eq!(required_seeds(1.0, 0.0, 0.05, 0.8), Some(2));
}

#[test]
fn studentized_maximum() {
    // Adaptive quadrature by scipy 1.17.1; the first two also from 4 million samples.
    for (t, k, freedom, expected) in [
        (2.0, 3, 4, 0.15240428897815095),
        (5.0, 5, 2, 0.06702935794222499),
        (12.0, 2, 1, 0.04516723530086655),
        (3.0, 8, 9, 0.05303283197417042),
        (50.0, 5, 2, 0.0007184482831975079),
    ] {
        let student = Student::new(freedom).unwrap();
        close(student.tail(t, k), expected, 1e-8);
        close(student.critical(student.tail(t, k), k), t, 1e-6 * t);
    }
    // The general formula agrees with Student's t at k = 1.
    let student = Student::new(3).unwrap();
    close(
        student.noncentral_tail(2.5, 0.0),
        student.tail(2.5, 1),
        1e-9,
    );
}

#[test]
fn selection_on_one_side_widens_one_end() {
    let differences = [-0.3, -0.1, -0.2, -0.25];
    let plain = paired_t_test(&differences, 0.95).unwrap();
    let first = paired_t_test_with_selection(&differences, 0.95, 4, 1).unwrap();
    assert_eq!(first.low, plain.low);
    assert!(first.high > plain.high && first.p > plain.p);
    let second = paired_t_test_with_selection(&differences, 0.95, 1, 4).unwrap();
    assert_eq!((second.high, second.p), (plain.high, plain.p));
    assert!(second.low < plain.low);
    // At a level of 1 - p, the interval ends at 0.
    let edge = paired_t_test_with_selection(&differences, 1.0 - first.p, 4, 1).unwrap();
    close(edge.high, 0.0, 1e-8);
}
