//! Statistics for comparisons: summaries, paired t-tests, Holm correction, sample sizes.
//!
//! Each side of a comparison may be the best of several alternatives, selected on the same values that are
//! compared. The best of `k` equal means is biased low by the selection, and a plain t-test mistakes that bias for a
//! difference. [`paired_t_test_with_selection`] therefore replaces the standard normal variable in the numerator of t
//! by the maximum of `k` independent ones (the Studentized maximum). With `k = 1` this is Student's t.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::erf::{erfc, erfc_inv};
use statrs::function::gamma::ln_gamma;

/// Largest number of seeds that [`required_seeds`] considers.
pub const MAX_SEEDS: u64 = 10_000;

/// Summary statistics of a sample.
///
/// ```
/// use hybridnorm::lab::stats::{Summary, median};
///
/// let losses = [3.0, 3.2, 3.7];
/// let summary = Summary::of(&losses).unwrap();
/// assert_eq!((summary.n, summary.max), (3, 3.7));
/// assert_eq!(median(&losses), Some(3.2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation with divisor `n - 1`; `None` for a single number.
    pub sd: Option<f64>,
    /// Minimum.
    pub min: f64,
    /// Maximum.
    pub max: f64,
}

impl Summary {
    /// Returns the summary of `values`; `None` if empty or if a value is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            n,
            mean,
            sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// Returns the median; `None` if `values` is empty or a value is not finite.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    Some(f64::midpoint(sorted[low], sorted[high]))
}

/// Two-sided t-test of the null hypothesis that the mean of paired differences is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PairedTest {
    /// Number of differences.
    pub n: usize,
    /// Mean difference.
    pub mean: f64,
    /// Standard deviation of the differences, with divisor `n - 1`.
    pub sd: f64,
    /// Lower end of the confidence interval of the mean.
    pub low: f64,
    /// Upper end of the confidence interval of the mean.
    pub high: f64,
    /// `mean / (sd / √n)`; `None` if `sd` is 0.
    pub t: Option<f64>,
    /// Two-sided p value: probability of a `|t|` at least this large if the true mean is 0.
    pub p: f64,
}

/// Tests paired differences; `level` is the level of the confidence interval, such as 0.95.
///
/// `None` for fewer than 2 differences, for a difference that is not finite, and for a level outside (0, 1).
/// With zero variance, `p` is 0, or 1 if all differences are 0.
///
/// ```
/// use hybridnorm::lab::stats::paired_t_test;
///
/// let differences = [-0.11, -0.09, -0.10];
/// let test = paired_t_test(&differences, 0.95).unwrap();
/// assert!(test.p < 0.01 && test.high < 0.0);
/// ```
pub fn paired_t_test(differences: &[f64], level: f64) -> Option<PairedTest> {
    paired_t_test_with_selection(differences, level, 1, 1)
}

/// Tests paired differences `first - second`, lower being better, where `first` is the best by mean
/// of `first_candidates` alternatives and `second` of `second_candidates`.
///
/// Selection of `first` biases the difference low: it raises the upper end of the interval, and `p` if the mean
/// is negative. Selection of `second` does the opposite. `p < 1 - level` if and only if the interval excludes 0.
/// With counts of 1 both are exact; otherwise they are conservative, since they assume that all alternatives are
/// equally good and independent, and that the other side is constant. In all other respects as [`paired_t_test`].
pub fn paired_t_test_with_selection(
    differences: &[f64],
    level: f64,
    first_candidates: usize,
    second_candidates: usize,
) -> Option<PairedTest> {
    let Summary { n, mean, sd, .. } = Summary::of(differences)?;
    t_test([mean, sd?], n, level, [first_candidates, second_candidates])
}

/// Tests paired differences of scores that are multiples of `resolution`, such as accuracies on 100 documents, of 0.01.
///
/// Rounding hides variance: equal differences of accuracies on few documents do not prove that a difference has none.
/// The standard deviation is therefore at least that of the rounding of two scores, `resolution / √6` (a uniform
/// distribution of width w has the variance w² / 12). In all other respects as [`paired_t_test`].
///
/// ```
/// use hybridnorm::lab::stats::paired_t_test_of_multiples;
///
/// // Two seeds, one more correct answer of ten in both.
/// let test = paired_t_test_of_multiples(&[0.1, 0.1], 0.95, 0.1).unwrap();
/// assert!(test.p > 0.1);
/// ```
pub fn paired_t_test_of_multiples(
    differences: &[f64],
    level: f64,
    resolution: f64,
) -> Option<PairedTest> {
    let Summary { n, mean, sd, .. } = Summary::of(differences)?;
    t_test([mean, sd?.max(resolution / 6_f64.sqrt())], n, level, [1, 1])
}

/// Tests the mean of `n` differences with this mean and standard deviation, selected among these candidates.
fn t_test(
    [mean, sd]: [f64; 2],
    n: usize,
    level: f64,
    [first_candidates, second_candidates]: [usize; 2],
) -> Option<PairedTest> {
    if !(level > 0.0 && level < 1.0) {
        return None;
    }
    let standard_error = sd / (n as f64).sqrt();
    let student = Student::new(n - 1)?;
    let tail = (1.0 - level) / 2.0;
    let t = (sd > 0.0).then(|| mean / standard_error);
    let p = match t {
        None if mean == 0.0 => 1.0,
        None => 0.0,
        Some(t) => {
            let candidates = if t < 0.0 {
                first_candidates
            } else {
                second_candidates
            };
            (2.0 * student.tail(t.abs(), candidates)).min(1.0)
        }
    };
    Some(PairedTest {
        n,
        mean,
        sd,
        low: mean - student.critical(tail, second_candidates) * standard_error,
        high: mean + student.critical(tail, first_candidates) * standard_error,
        t,
        p,
    })
}

/// Returns the value that Student's t exceeds with probability `tail`; `None` for 0 degrees of freedom and for a
/// tail outside (0, 1).
pub fn t_critical(tail: f64, degrees_of_freedom: usize) -> Option<f64> {
    let student = Student::new(degrees_of_freedom)?;
    (tail > 0.0 && tail < 1.0).then(|| student.t.inverse_cdf(1.0 - tail))
}

/// Adjusts p values for multiple comparisons by Holm's step-down procedure (Scandinavian Journal of Statistics
/// 6, 1979), in the order given: rejecting those below α keeps the probability of any false rejection (the
/// family-wise error rate) at α.
///
/// ```
/// assert_eq!(hybridnorm::lab::stats::holm(&[0.5, 0.01]), [0.5, 0.02]);
/// ```
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[index]).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

/// Returns the smallest number of seeds with which a two-sided paired t-test at level `alpha` detects a mean
/// difference of `difference` with a power of at least `power`, if the differences have the standard deviation
/// `sd`.
///
/// `None` if [`MAX_SEEDS`] are too few, if `difference` is 0, and for arguments out of range; `power` must be
/// at least 0.5 and below 1.
///
/// ```
/// use hybridnorm::lab::stats::required_seeds;
///
/// assert_eq!(required_seeds(0.02, 0.02, 0.05, 0.8), Some(10));
/// ```
pub fn required_seeds(difference: f64, sd: f64, alpha: f64, power: f64) -> Option<u64> {
    required_seeds_with_selection(difference, sd, alpha, power, 1)
}

/// As [`required_seeds`], for the test of [`paired_t_test_with_selection`] where the better side is the best of
/// `candidates` alternatives.
pub fn required_seeds_with_selection(
    difference: f64,
    sd: f64,
    alpha: f64,
    power: f64,
    candidates: usize,
) -> Option<u64> {
    let difference_usable = difference.is_finite() && difference != 0.0;
    let sd_usable = sd.is_finite() && sd >= 0.0;
    let levels_usable = alpha > 0.0 && alpha < 1.0 && (0.5..1.0).contains(&power);
    if !(difference_usable && sd_usable && levels_usable) {
        return None;
    }
    let effect = difference.abs() / sd;
    // The solution for a known standard deviation, with the usual small-sample correction, is close: only a few steps
    // remain.
    let tail_per_candidate = -((-alpha / 2.0).ln_1p() / candidates.max(1) as f64).exp_m1();
    let critical = upper_quantile(tail_per_candidate);
    let n_for_known_sd = ((critical + upper_quantile(1.0 - power)) / effect).powi(2);
    if n_for_known_sd > (MAX_SEEDS + 1) as f64 {
        return None;
    }
    let enough = |n: u64| power_of(effect, n, alpha, candidates) >= power;
    let mut n = ((n_for_known_sd + critical.powi(2) / 2.0) as u64).clamp(2, MAX_SEEDS);
    while n > 2 && enough(n - 1) {
        n -= 1;
    }
    while n <= MAX_SEEDS && !enough(n) {
        n += 1;
    }
    (n <= MAX_SEEDS).then_some(n)
}

/// Returns the power of the test if the true mean is `effect` standard deviations from 0.
fn power_of(effect: f64, n: u64, alpha: f64, candidates: usize) -> f64 {
    let Some(student) = Student::new(n as usize - 1) else {
        return 0.0;
    };
    let noncentrality = effect * (n as f64).sqrt();
    if noncentrality.is_infinite() {
        return 1.0;
    }
    let critical = student.critical(alpha / 2.0, candidates);
    student.noncentral_tail(critical, noncentrality)
        + student.noncentral_tail(critical, -noncentrality)
}

/// Distribution of normal variables divided by an independent estimate `s` of their standard deviation.
struct Student {
    t: StudentsT,
    degrees_of_freedom: f64,
    /// Constant term of the log density of `s = √(χ²/degrees_of_freedom)`.
    constant: f64,
    /// Range in which that density is not negligible.
    range: (f64, f64),
}

impl Student {
    fn new(degrees_of_freedom: usize) -> Option<Self> {
        let degrees_of_freedom = degrees_of_freedom as f64;
        let half = degrees_of_freedom / 2.0;
        // The density falls at least as fast as that of a normal variable with this spread.
        let spread = (2.0 * degrees_of_freedom).sqrt().recip();
        Some(Self {
            t: StudentsT::new(0.0, 1.0, degrees_of_freedom).ok()?,
            degrees_of_freedom,
            constant: 2.0_f64.ln() + half * half.ln() - ln_gamma(half),
            range: ((1.0 - 10.0 * spread).max(0.0), 1.0 + 10.0 * spread),
        })
    }

    fn density(&self, s: f64) -> f64 {
        (self.constant + (self.degrees_of_freedom - 1.0) * s.ln()
            - self.degrees_of_freedom * s * s / 2.0)
            .exp()
    }

    /// Returns the probability that the maximum of `k` variables over `s` exceeds `t >= 0`.
    fn tail(&self, t: f64, k: usize) -> f64 {
        if k <= 1 {
            return self.t.sf(t);
        }
        // 1 - (1 - one)^k without cancellation.
        let largest = |s: f64| {
            let one = upper_tail(t * s);
            one * (0..k).fold(0.0, |sum, _| 1.0 + (1.0 - one) * sum)
        };
        let high = self.range.1.min(MAX_Z / t);
        integrate(self.range.0, high, |s| largest(s) * self.density(s))
    }

    /// Returns the `t` that the maximum of `k` variables over `s` exceeds with probability `tail`.
    fn critical(&self, tail: f64, k: usize) -> f64 {
        let one = self.t.inverse_cdf(1.0 - tail);
        if k <= 1 {
            return one;
        }
        // The root lies between the critical value of one variable and the Bonferroni bound. In logarithms the
        // function is nearly linear, so that a few secant steps suffice.
        let excess = |log_t: f64| (self.tail(log_t.exp(), k) / tail).ln();
        let (low, high) = (one.ln(), self.t.inverse_cdf(1.0 - tail / k as f64).ln());
        let (mut older, mut newer) = ((low, excess(low)), (high, excess(high)));
        for _ in 0..20 {
            let slope = (newer.1 - older.1) / (newer.0 - older.0);
            if newer.1.abs() < 1e-10 || slope == 0.0 {
                break;
            }
            let next = (newer.0 - newer.1 / slope).clamp(low, high);
            (older, newer) = (newer, (next, excess(next)));
        }
        newer.0.exp()
    }

    /// Returns the probability that a variable with mean `noncentrality` over `s` exceeds `t > 0` (noncentral t).
    fn noncentral_tail(&self, t: f64, noncentrality: f64) -> f64 {
        let (low, high) = self.range;
        // For smaller `s` the variable certainly exceeds `t`, for larger `s` never.
        let certain_below = ((noncentrality - MAX_Z) / t).clamp(low, high);
        let impossible_above = ((noncentrality + MAX_Z) / t).clamp(low, high);
        integrate(low, certain_below, |s| self.density(s))
            + integrate(certain_below, impossible_above, |s| {
                upper_tail(t * s - noncentrality) * self.density(s)
            })
    }
}

/// Standard deviations beyond which the tail of a normal variable is negligible: its probability is 1e-19.
const MAX_Z: f64 = 9.0;

/// Returns the probability that a standard normal variable exceeds `z`.
fn upper_tail(z: f64) -> f64 {
    0.5 * erfc(z * std::f64::consts::FRAC_1_SQRT_2)
}

/// Returns the upper quantile of the standard normal distribution at probability `tail`.
fn upper_quantile(tail: f64) -> f64 {
    std::f64::consts::SQRT_2 * erfc_inv(2.0 * tail)
}

/// Integrates a smooth function from `low` to `high`: 5-point Gauss-Legendre on 16 panels.
fn integrate(low: f64, high: f64, function: impl Fn(f64) -> f64) -> f64 {
    const PANELS: usize = 16;
    if high <= low {
        return 0.0;
    }
    let root = (10.0_f64 / 7.0).sqrt();
    let (near, far) = (
        (5.0 - 2.0 * root).sqrt() / 3.0,
        (5.0 + 2.0 * root).sqrt() / 3.0,
    );
    let weight_term = 13.0 * 70.0_f64.sqrt();
    let (near_weight, far_weight) = ((322.0 + weight_term) / 900.0, (322.0 - weight_term) / 900.0);
    let half = (high - low) / (2 * PANELS) as f64;
    let panel = |index: usize| {
        let middle = low + half * (2 * index + 1) as f64;
        let both = |at: f64| function(middle - half * at) + function(middle + half * at);
        128.0 / 225.0 * function(middle) + near_weight * both(near) + far_weight * both(far)
    };
    half * (0..PANELS).map(panel).sum::<f64>()
}
