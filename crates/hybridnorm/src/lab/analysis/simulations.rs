//! Simulated studies with known ground truth, passed through all of [`analyze`].
//!
//! `cargo test --release -p hybridnorm --lib claims_are_rare_in_many -- --ignored --nocapture` prints the proportions
//! for many more of them (docs/findings.md).

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::super::stats;
use super::*;

/// Standard deviation of a run's loss given its seed effect, in nats.
const NOISE: f64 = 0.01;

/// Standard deviation of the seed effect, which all runs with a seed share.
const SEED_EFFECT: f64 = 0.03;

const RATES: [f64; 5] = [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2];

/// Loss increase at the learning rates next to the best, in units of the noise. Loss is a parabola in the
/// logarithm of the learning rate.
const STEEP: f64 = 8.0;

/// Ground truth of one placement.
#[derive(Clone, Copy)]
struct Truth {
    /// Loss at the best learning rate, in units of the noise above 3 nats.
    loss: f64,
    /// Curvature of the loss; see [`STEEP`].
    curvature: f64,
}

/// Simulates a study; the first placement is the baseline.
fn points(truths: &[Truth], seeds: u64, random: &mut ChaCha8Rng) -> Vec<RunOutcome> {
    let mut normal = || -> f64 { StandardNormal.sample(random) };
    let shared: Vec<f64> = (0..seeds).map(|_| SEED_EFFECT * normal()).collect();
    let mut points = Vec::new();
    for (index, truth) in truths.iter().enumerate() {
        for (rate, lr) in RATES.into_iter().enumerate() {
            for seed in 0..seeds {
                let bend = truth.curvature * (rate as f64 - 2.0).powi(2);
                let loss = 3.0 + NOISE * (truth.loss + bend + normal()) + shared[seed as usize];
                points.push(RunOutcome {
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
    points
}

/// Proportions of studies.
#[derive(Debug, Default)]
struct Shares {
    /// With at least one verdict "better".
    better: f64,
    /// With at least one verdict "better" or "worse".
    any: f64,
    /// With the first interval covering the true difference, or no first comparison.
    covered: f64,
    /// With a first comparison: there is none if a learning rate outside the grid might reverse the verdict.
    shown: f64,
    /// With a significant t-test of the same losses, not corrected for the choice of learning rates.
    plain: f64,
    /// With a significant t-test of losses at learning rates chosen on the other seeds.
    other_seeds: f64,
}

/// Returns the losses at the learning rate that is best on all seeds, or for each seed on the other seeds.
fn losses(points: &[RunOutcome], placement: &str, seeds: u64, on_others: bool) -> Vec<f64> {
    let own: Vec<&RunOutcome> = (points.iter())
        .filter(|point| point.placement == placement)
        .collect();
    let loss = |lr: f64, seed: u64| {
        let run = own
            .iter()
            .find(|point| point.lr == lr && point.seed == seed);
        match run.unwrap().outcome {
            Outcome::Loss(loss) => loss,
            other => panic!("{other:?}"),
        }
    };
    let at_chosen = |seed: u64| {
        let sum = |lr: &f64| -> f64 {
            let selecting_seeds = (0..seeds).filter(|&other| !on_others || other != seed);
            selecting_seeds.map(|other| loss(*lr, other)).sum()
        };
        let lr = RATES.into_iter().min_by(|a, b| sum(a).total_cmp(&sum(b)));
        loss(lr.unwrap(), seed)
    };
    (0..seeds).map(at_chosen).collect()
}

/// Returns true if a plain t-test with Holm's correction finds a significant difference.
fn plain_claim(points: &[RunOutcome], placements: usize, seeds: u64, on_others: bool) -> bool {
    let baseline = losses(points, "pre-norm", seeds, on_others);
    let p: Vec<f64> = (1..placements)
        .map(|index| {
            let own = losses(points, &format!("variant-{index}"), seeds, on_others);
            let differences: Vec<f64> = own.iter().zip(&baseline).map(|(a, b)| a - b).collect();
            stats::paired_t_test(&differences, 0.95).unwrap().p
        })
        .collect();
    stats::holm(&p).into_iter().any(|p| p < 0.05)
}

fn shares(truths: &[Truth], seeds: u64, studies: usize, others: bool) -> Shares {
    let mut random = ChaCha8Rng::seed_from_u64(seeds + studies as u64);
    // Without a margin, claims are most frequent. High losses at the edges of the grid do not count as diverged.
    let rules = AnalysisRules {
        margin: 0.0,
        diverged_above_best: 1.0,
        ..AnalysisRules::default()
    };
    let (mut shares, each) = (Shares::default(), 1.0 / studies as f64);
    let difference = NOISE * (truths[1].loss - truths[0].loss);
    for _ in 0..studies {
        let points = points(truths, seeds, &mut random);
        let analysis = analyze(&points, &rules);
        // There is no comparison where a verdict could be reversed.
        let comparisons: Vec<&Comparison> = (analysis.placements[1..].iter())
            .filter_map(|placement| placement.comparison.as_ref())
            .collect();
        let says = |verdict: Verdict| comparisons.iter().any(|one| one.verdict == verdict);
        let (better, worse) = (says(Verdict::Better), says(Verdict::Worse));
        let first = analysis.placements[1].comparison.as_ref();
        let is_covered = first.is_none_or(|first| {
            let PairedTest { low, high, .. } = first.difference;
            low <= difference && difference <= high
        });
        shares.better += each * f64::from(better);
        shares.any += each * f64::from(better || worse);
        shares.covered += each * f64::from(is_covered);
        shares.shown += each * f64::from(first.is_some());
        if others {
            let claim = |on_others| plain_claim(&points, truths.len(), seeds, on_others);
            shares.plain += each * f64::from(claim(false));
            shares.other_seeds += each * f64::from(claim(true));
        }
    }
    shares
}

/// Returns three standard errors of a proportion whose true value is `share`.
fn margin(share: f64, studies: usize) -> f64 {
    3.0 * (share * (1.0 - share) / studies as f64).sqrt()
}

/// Returns a baseline and `variants` other placements that differ from it only in curvature.
fn null(baseline: f64, variant: f64, variants: usize) -> Vec<Truth> {
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
        for curvature in [STEEP, 0.3] {
            let found = shares(&null(curvature, curvature, 7), seeds, STUDIES, false);
            let most = 0.05 + margin(0.05, STUDIES);
            let about = format!("{seeds} seeds, curvature {curvature}: {found:?}");
            assert!(found.better <= most && found.any <= most, "{about}");
            // Bonferroni level of one of seven intervals.
            let level = 1.0 - 0.05 / 7.0;
            assert!(found.covered >= level - margin(level, STUDIES), "{about}");
            if curvature == STEEP {
                // There is only one contender: the interval is exact, not just conservative.
                assert!(found.covered <= level + margin(level, STUDIES), "{about}");
            }
        }
    }
}

#[test]
fn a_flatter_curve_is_not_better() {
    for seeds in [3, 5] {
        for (baseline, variant) in [(STEEP, 0.0), (1.0, 0.0)] {
            let found = shares(&null(baseline, variant, 7), seeds, STUDIES, false);
            let most = 0.05 + margin(0.05, STUDIES);
            let about = format!("{seeds} seeds, {baseline} against {variant}: {found:?}");
            assert!(found.better <= most && found.any <= most, "{about}");
            assert!(found.covered >= 0.95 - margin(0.95, STUDIES), "{about}");
        }
    }
}

/// Justifies the correction for the choice of learning rates: both obvious alternatives claim too much.
#[test]
fn uncorrected_tests_exceed_the_nominal_false_positive_rate() {
    let studies = 2 * STUDIES;
    let most = 0.05 + margin(0.05, studies);
    let flatter = shares(&null(STEEP, 0.0, 1), 10, studies, true);
    assert!(flatter.plain > most && flatter.any <= most, "{flatter:?}");
    let flat = shares(&null(0.3, 0.3, 1), 10, studies, true);
    assert!(flat.other_seeds > most && flat.any <= most, "{flat:?}");
}

/// Returns a baseline and a variant better by `effect` standard deviations of the differences.
fn better_by(effect: f64) -> [Truth; 2] {
    [0.0, -effect * 2.0_f64.sqrt()].map(|loss| Truth {
        loss,
        curvature: STEEP,
    })
}

#[test]
fn power_matches_the_computed_power() {
    // statsmodels 0.15.0, TTestPower().power, one sample, two-sided.
    for (seeds, effect, power) in [(5, 1.0, 0.40139), (3, 1.0, 0.17926), (20, 1.0, 0.98859)] {
        let found = shares(&better_by(effect), seeds, STUDIES, false);
        let distance = (found.any - power).abs();
        assert!(
            distance <= margin(power, STUDIES),
            "{seeds} seeds: {found:?}, not {power}"
        );
        assert!((found.covered - 0.95).abs() <= margin(0.95, STUDIES));
    }
}

#[test]
fn required_seeds_suffice() {
    for effect in [1.0, 1.5] {
        let sd = NOISE * 2.0_f64.sqrt();
        let seeds = stats::required_seeds(effect * sd, sd, 0.05, 0.8).unwrap();
        let found = shares(&better_by(effect), seeds, STUDIES, false);
        assert!(found.better >= 0.8 - margin(0.8, STUDIES), "{found:?}");
        let fewer = shares(&better_by(effect), seeds - 1, STUDIES, false);
        assert!(fewer.better <= 0.8 + margin(0.8, STUDIES), "{fewer:?}");
    }
}

#[test]
#[ignore = "takes up to a minute"]
fn false_positive_rates_hold() {
    claims_are_rare(STUDIES);
}

#[test]
#[ignore = "takes minutes; prints the shares that docs/findings.md shows"]
fn false_positive_rates_hold_in_many_studies() {
    claims_are_rare(10 * STUDIES);
}

/// Prints the proportions over `studies` studies of every kind and asserts the nominal levels.
fn claims_are_rare(studies: usize) {
    println!("seeds variants curvatures  better    any  plain other-seeds  covered  shown");
    for seeds in [2, 3, 5, 10] {
        for variants in [1, 7] {
            for (baseline, variant) in [
                (STEEP, STEEP),
                (1.0, 1.0),
                (0.3, 0.3),
                (0.0, 0.0),
                (STEEP, 0.0),
                (STEEP, 0.3),
                (STEEP, 1.0),
                (1.0, 0.0),
                (0.0, STEEP),
            ] {
                let found = shares(&null(baseline, variant, variants), seeds, studies, true);
                println!(
                    "{seeds:5} {variants:8} {baseline:4} {variant:4}  {:8.4} {:6.4} {:6.4} {:11.4} {:8.4} {:6.4}",
                    found.better,
                    found.any,
                    found.plain,
                    found.other_seeds,
                    found.covered,
                    found.shown
                );
                assert!(found.any <= 0.05 + margin(0.05, studies), "{found:?}");
                assert!(found.covered >= 0.95 - margin(0.95, studies), "{found:?}");
            }
        }
    }
}
