//! Simulated studies with known ground truth, analyzed by [`analyze`].
//!
//! `cargo test --release -p hybridnorm --lib false_positive_rates_hold_in_many -- --ignored --nocapture` prints the
//! proportions for many more of them (docs/findings.md).

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::super::stats;
use super::*;

/// Standard deviation of a run's loss given its seed effect, in nats.
const NOISE: f64 = 0.01;

/// Standard deviation of the seed effect, which all runs with a seed share.
const SEED_EFFECT: f64 = 0.03;

const LEARNING_RATES: [f64; 5] = [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2];

/// Loss increase at the learning rates next to the best, in units of the noise. Loss is a parabola in the
/// logarithm of the learning rate.
const CURVATURE: f64 = 8.0;

/// Ground truth of one placement.
#[derive(Clone, Copy)]
struct Truth {
    /// Loss at the best learning rate, in units of the noise above 3 nats.
    loss: f64,
    /// Curvature of the loss; see [`CURVATURE`].
    curvature: f64,
}

/// Simulates a study; the first placement is the baseline.
fn runs(truths: &[Truth], seeds: u64, random: &mut ChaCha8Rng) -> Vec<RunOutcome> {
    let mut normal = || -> f64 { StandardNormal.sample(random) };
    let shared: Vec<f64> = (0..seeds).map(|_| SEED_EFFECT * normal()).collect();
    let mut runs = Vec::new();
    for (index, truth) in truths.iter().enumerate() {
        for (lr_index, lr) in LEARNING_RATES.into_iter().enumerate() {
            for seed in 0..seeds {
                let penalty = truth.curvature * (lr_index as f64 - 2.0).powi(2);
                let loss = 3.0 + NOISE * (truth.loss + penalty + normal()) + shared[seed as usize];
                runs.push(RunOutcome {
                    placement: match index {
                        0 => "pre-norm".to_owned(),
                        _ => format!("variant-{index}"),
                    },
                    lr,
                    seed,
                    outcome: Outcome::Loss(loss),
                    tokens_per_second: 1000.0,
                    spikes: 0,
                });
            }
        }
    }
    runs
}

/// Proportions of studies.
#[derive(Debug, Default)]
struct Proportions {
    /// With at least one verdict "better".
    better: f64,
    /// With at least one verdict "better" or "worse".
    any: f64,
    /// With the first interval covering the true difference, or no first comparison.
    covered: f64,
    /// With a first comparison: there is none if a learning rate outside the grid might reverse the verdict.
    compared: f64,
    /// With a significant t-test of the same losses, not corrected for the choice of learning rates.
    uncorrected: f64,
    /// With a significant t-test of losses at learning rates chosen on the other seeds.
    other_seeds: f64,
}

/// Returns the losses at the learning rate that is best on all seeds, or for each seed on the other seeds.
fn losses(
    runs: &[RunOutcome],
    placement: &str,
    seeds: u64,
    selected_on_other_seeds: bool,
) -> Vec<f64> {
    let own: Vec<&RunOutcome> = (runs.iter())
        .filter(|run| run.placement == placement)
        .collect();
    let loss = |lr: f64, seed: u64| {
        let run = own.iter().find(|run| run.lr == lr && run.seed == seed);
        match run.unwrap().outcome {
            Outcome::Loss(loss) => loss,
            other => panic!("{other:?}"),
        }
    };
    let at_chosen = |seed: u64| {
        let sum = |lr: &f64| -> f64 {
            let selecting_seeds =
                (0..seeds).filter(|&other| !selected_on_other_seeds || other != seed);
            selecting_seeds.map(|other| loss(*lr, other)).sum()
        };
        let lr = LEARNING_RATES
            .into_iter()
            .min_by(|a, b| sum(a).total_cmp(&sum(b)));
        loss(lr.unwrap(), seed)
    };
    (0..seeds).map(at_chosen).collect()
}

/// Returns true if a plain t-test with Holm's correction finds a significant difference.
fn uncorrected_test_is_significant(
    runs: &[RunOutcome],
    placements: usize,
    seeds: u64,
    selected_on_other_seeds: bool,
) -> bool {
    let baseline = losses(runs, "pre-norm", seeds, selected_on_other_seeds);
    let p: Vec<f64> = (1..placements)
        .map(|index| {
            let own = losses(
                runs,
                &format!("variant-{index}"),
                seeds,
                selected_on_other_seeds,
            );
            let differences: Vec<f64> = own.iter().zip(&baseline).map(|(a, b)| a - b).collect();
            stats::paired_t_test(&differences, 0.95).unwrap().p
        })
        .collect();
    stats::holm(&p).into_iter().any(|p| p < 0.05)
}

fn proportions(
    truths: &[Truth],
    seeds: u64,
    studies: usize,
    with_uncorrected_tests: bool,
) -> Proportions {
    let mut random = ChaCha8Rng::seed_from_u64(seeds + studies as u64);
    // Without a margin, significant verdicts are most frequent. High losses at the edges of the grid do not count as
    // diverged.
    let rules = AnalysisRules {
        margin: 0.0,
        diverged_above_best: 1.0,
        ..AnalysisRules::default()
    };
    let (mut proportions, each) = (Proportions::default(), 1.0 / studies as f64);
    let difference = NOISE * (truths[1].loss - truths[0].loss);
    for _ in 0..studies {
        let runs = runs(truths, seeds, &mut random);
        let analysis = analyze(&runs, &rules);
        // There is no comparison where a verdict could be reversed.
        let comparisons: Vec<&Comparison> = (analysis.placements[1..].iter())
            .filter_map(|placement| placement.comparison.as_ref())
            .collect();
        let has_verdict = |verdict: Verdict| comparisons.iter().any(|one| one.verdict == verdict);
        let (better, worse) = (has_verdict(Verdict::Better), has_verdict(Verdict::Worse));
        let first = analysis.placements[1].comparison.as_ref();
        let is_covered = first.is_none_or(|first| {
            let PairedTest { low, high, .. } = first.difference;
            low <= difference && difference <= high
        });
        proportions.better += each * f64::from(better);
        proportions.any += each * f64::from(better || worse);
        proportions.covered += each * f64::from(is_covered);
        proportions.compared += each * f64::from(first.is_some());
        if with_uncorrected_tests {
            let is_significant = |selected_on_other_seeds| {
                uncorrected_test_is_significant(&runs, truths.len(), seeds, selected_on_other_seeds)
            };
            proportions.uncorrected += each * f64::from(is_significant(false));
            proportions.other_seeds += each * f64::from(is_significant(true));
        }
    }
    proportions
}

/// Returns three standard errors of a proportion whose true value is `proportion`.
fn three_standard_errors(proportion: f64, studies: usize) -> f64 {
    3.0 * (proportion * (1.0 - proportion) / studies as f64).sqrt()
}

/// Returns a baseline and `variants` other placements that differ from it only in curvature.
fn null_hypothesis(baseline: f64, variant: f64, variants: usize) -> Vec<Truth> {
    let truth = |curvature| Truth {
        loss: 0.0,
        curvature,
    };
    let mut truths = vec![truth(baseline)];
    truths.extend(vec![truth(variant); variants]);
    truths
}

const STUDIES: usize = 1000;

#[test]
fn false_positive_rate_is_at_most_alpha() {
    for seeds in [3, 5] {
        for curvature in [CURVATURE, 0.3] {
            let found = proportions(
                &null_hypothesis(curvature, curvature, 7),
                seeds,
                STUDIES,
                false,
            );
            let limit = 0.05 + three_standard_errors(0.05, STUDIES);
            let context = format!("{seeds} seeds, curvature {curvature}: {found:?}");
            assert!(found.better <= limit && found.any <= limit, "{context}");
            // Bonferroni level of one of seven intervals.
            let level = 1.0 - 0.05 / 7.0;
            assert!(
                found.covered >= level - three_standard_errors(level, STUDIES),
                "{context}"
            );
            if curvature == CURVATURE {
                // No other learning rate is tied with the best: the interval is exact, not just conservative.
                assert!(
                    found.covered <= level + three_standard_errors(level, STUDIES),
                    "{context}"
                );
            }
        }
    }
}

#[test]
fn a_flatter_curve_is_not_better() {
    for seeds in [3, 5] {
        for (baseline, variant) in [(CURVATURE, 0.0), (1.0, 0.0)] {
            let found = proportions(
                &null_hypothesis(baseline, variant, 7),
                seeds,
                STUDIES,
                false,
            );
            let limit = 0.05 + three_standard_errors(0.05, STUDIES);
            let context = format!("{seeds} seeds, {baseline} against {variant}: {found:?}");
            assert!(found.better <= limit && found.any <= limit, "{context}");
            assert!(
                found.covered >= 0.95 - three_standard_errors(0.95, STUDIES),
                "{context}"
            );
        }
    }
}

/// Justifies the correction for the choice of learning rates: the false positive rates of both obvious alternatives
/// exceed the nominal one.
#[test]
fn uncorrected_tests_exceed_the_nominal_false_positive_rate() {
    let studies = 2 * STUDIES;
    let limit = 0.05 + three_standard_errors(0.05, studies);
    let flatter = proportions(&null_hypothesis(CURVATURE, 0.0, 1), 10, studies, true);
    assert!(
        flatter.uncorrected > limit && flatter.any <= limit,
        "{flatter:?}"
    );
    let flat = proportions(&null_hypothesis(0.3, 0.3, 1), 10, studies, true);
    assert!(flat.other_seeds > limit && flat.any <= limit, "{flat:?}");
}

/// Returns a baseline and a variant better by `effect` standard deviations of the differences.
fn better_by(effect: f64) -> [Truth; 2] {
    [0.0, -effect * 2.0_f64.sqrt()].map(|loss| Truth {
        loss,
        curvature: CURVATURE,
    })
}

#[test]
fn power_matches_the_computed_power() {
    // statsmodels 0.15.0, TTestPower().power, one sample, two-sided.
    for (seeds, effect, power) in [(5, 1.0, 0.40139), (3, 1.0, 0.17926), (20, 1.0, 0.98859)] {
        let found = proportions(&better_by(effect), seeds, STUDIES, false);
        let distance = (found.any - power).abs();
        assert!(
            distance <= three_standard_errors(power, STUDIES),
            "{seeds} seeds: {found:?}, not {power}"
        );
        assert!((found.covered - 0.95).abs() <= three_standard_errors(0.95, STUDIES));
    }
}

#[test]
fn required_seeds_suffice() {
    for effect in [1.0, 1.5] {
        let sd = NOISE * 2.0_f64.sqrt();
        let seeds = stats::required_seeds(effect * sd, sd, 0.05, 0.8).unwrap();
        let found = proportions(&better_by(effect), seeds, STUDIES, false);
        assert!(
            found.better >= 0.8 - three_standard_errors(0.8, STUDIES),
            "{found:?}"
        );
        let fewer = proportions(&better_by(effect), seeds - 1, STUDIES, false);
        assert!(
            fewer.better <= 0.8 + three_standard_errors(0.8, STUDIES),
            "{fewer:?}"
        );
    }
}

#[test]
#[ignore = "takes up to a minute"]
fn false_positive_rates_hold_in_studies() {
    check_false_positive_rates(STUDIES);
}

#[test]
#[ignore = "takes minutes; prints the proportions that docs/findings.md shows"]
fn false_positive_rates_hold_in_many_studies() {
    check_false_positive_rates(10 * STUDIES);
}

/// Prints the proportions over `studies` studies of every kind and asserts the nominal levels.
fn check_false_positive_rates(studies: usize) {
    println!("seeds variants curvatures  better    any  plain other-seeds  covered  shown");
    for seeds in [2, 3, 5, 10] {
        for variants in [1, 7] {
            for (baseline, variant) in [
                (CURVATURE, CURVATURE),
                (1.0, 1.0),
                (0.3, 0.3),
                (0.0, 0.0),
                (CURVATURE, 0.0),
                (CURVATURE, 0.3),
                (CURVATURE, 1.0),
                (1.0, 0.0),
                (0.0, CURVATURE),
            ] {
                let found = proportions(
                    &null_hypothesis(baseline, variant, variants),
                    seeds,
                    studies,
                    true,
                );
                println!(
                    "{seeds:5} {variants:8} {baseline:4} {variant:4}  {:8.4} {:6.4} {:6.4} {:11.4} {:8.4} {:6.4}",
                    found.better,
                    found.any,
                    found.uncorrected,
                    found.other_seeds,
                    found.covered,
                    found.compared
                );
                assert!(
                    found.any <= 0.05 + three_standard_errors(0.05, studies),
                    "{found:?}"
                );
                assert!(
                    found.covered >= 0.95 - three_standard_errors(0.95, studies),
                    "{found:?}"
                );
            }
        }
    }
}
