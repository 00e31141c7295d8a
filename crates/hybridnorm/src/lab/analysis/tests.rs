//! Small hand-made studies, one for each property of the analysis.

use super::*;

mod comparisons;
mod undecided;

pub(super) fn run_outcome(placement: &str, lr: f64, seed: u64, result: Outcome) -> RunOutcome {
    RunOutcome {
        placement: placement.to_owned(),
        lr,
        seed,
        outcome: result,
        tokens_per_second: 1000.0,
        spikes: 0,
    }
}

/// Returns runs with seeds 0, 1, … at one learning rate.
pub(super) fn runs(placement: &str, lr: f64, losses: &[f64]) -> Vec<RunOutcome> {
    let run = |(seed, &loss)| run_outcome(placement, lr, seed as u64, Outcome::Loss(loss));
    losses.iter().enumerate().map(run).collect()
}

pub(super) fn study(parts: &[(&str, f64, &[f64])]) -> Vec<RunOutcome> {
    parts
        .iter()
        .flat_map(|(placement, lr, losses)| runs(placement, *lr, losses))
        .collect()
}

/// Returns a study with these losses at 1e-3, and clearly higher ones at the neighbouring learning rates.
pub(super) fn curves_with_minimum(parts: &[(&str, &[f64])]) -> Vec<RunOutcome> {
    let mut run_outcomes = Vec::new();
    for (placement, losses) in parts {
        let adjacent: Vec<f64> = losses.iter().map(|loss| loss + 0.2).collect();
        run_outcomes.extend(runs(placement, 1e-3, losses));
        run_outcomes.extend(runs(placement, 1e-4, &adjacent));
        run_outcomes.extend(runs(placement, 1e-2, &adjacent));
    }
    run_outcomes
}

/// Returns rules without a margin, and without divergence relative to other runs.
fn without_margin() -> AnalysisRules {
    AnalysisRules {
        margin: 0.0,
        diverged_above_best: f64::MAX,
        ..AnalysisRules::default()
    }
}

fn single_summary(run_outcomes: &[RunOutcome]) -> PlacementSummary {
    analyze(run_outcomes, &without_margin())
        .placements
        .remove(0)
}

fn single_summary_with_rules(
    run_outcomes: &[RunOutcome],
    rules: &AnalysisRules,
) -> PlacementSummary {
    analyze(run_outcomes, rules).placements.remove(0)
}

fn assert_close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-9,
        "found {found}, expected {expected}"
    );
}

/// Returns a loss curve over three learning rates, with the best in the middle.
fn curve_with_minimum() -> Vec<RunOutcome> {
    study(&[
        ("a", 1e-2, &[3.5, 3.7]),
        ("a", 1e-4, &[3.03, 3.05]),
        ("a", 1e-3, &[3.0, 3.02]),
    ])
}

#[test]
fn learning_rates_are_summarized_in_ascending_order() {
    let mut run_outcomes = curve_with_minimum();
    run_outcomes.push(run_outcome("a", 1e-2, 2, Outcome::Diverged));
    run_outcomes.push(run_outcome("a", 1e-2, 3, Outcome::Loss(f64::NAN)));
    run_outcomes.push(run_outcome("a", 1e-4, 2, Outcome::Eliminated));
    let learning_rates = single_summary(&run_outcomes).learning_rates;
    let counts: Vec<_> = (learning_rates.iter())
        .map(|summary| {
            (
                summary.lr,
                summary.finished,
                summary.diverged,
                summary.eliminated,
            )
        })
        .collect();
    assert_eq!(counts, [(1e-4, 2, 0, 1), (1e-3, 2, 0, 0), (1e-2, 2, 2, 0)]);
    let loss = learning_rates[2].loss.unwrap();
    assert_close(loss.mean, 3.6);
    assert_eq!((loss.n, loss.min, loss.max), (2, 3.5, 3.7));
}

#[test]
fn placements_keep_their_order() {
    let run_outcomes = study(&[
        ("b", 1e-3, &[3.0]),
        ("a", 1e-3, &[3.0]),
        ("b", 1e-2, &[3.0]),
    ]);
    let analysis = analyze(&run_outcomes, &AnalysisRules::default());
    let names: Vec<_> = (analysis.placements.iter())
        .map(|entry| entry.placement.as_str())
        .collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn the_best_learning_rate_has_the_lowest_mean() {
    let best = single_summary(&curve_with_minimum()).best.unwrap();
    assert_eq!((best.lr, best.loss.n, best.at_edge), (1e-3, 2, None));
    assert_close(best.loss.mean, 3.01);
}

#[test]
fn best_learning_rate_at_a_grid_edge_is_marked() {
    let edge = |parts: &[(&str, f64, &[f64])]| single_summary(&study(parts)).best.unwrap().at_edge;
    let low: (&str, f64, &[f64]) = ("a", 1e-4, &[3.0]);
    assert_eq!(edge(&[low, ("a", 1e-3, &[3.1])]), Some(Edge::Lowest));
    assert_eq!(edge(&[low, ("a", 1e-3, &[2.9])]), Some(Edge::Highest));
    assert_eq!(edge(&[low]), Some(Edge::Only));
}

#[test]
fn learning_rates_are_compared_on_equal_seeds() {
    // A lower loss, first over fewer seeds, then over other seeds.
    for (seeds, losses) in [(vec![0], vec![2.0]), (vec![0, 7], vec![2.0, 2.0])] {
        let mut run_outcomes = curve_with_minimum();
        for (seed, loss) in seeds.into_iter().zip(losses) {
            run_outcomes.push(run_outcome("a", 1e-5, seed, Outcome::Loss(loss)));
        }
        assert_eq!(single_summary(&run_outcomes).best.unwrap().lr, 1e-3);
    }
    // More seeds take precedence over more learning rates with the same seeds.
    let few = [("a", 1e-5, &[2.0][..]), ("a", 1e-4, &[2.0][..])];
    let run_outcomes = [study(&few), runs("a", 1e-3, &[3.0, 3.0])].concat();
    assert_eq!(single_summary(&run_outcomes).best.unwrap().lr, 1e-3);
    for outcome in [Outcome::Diverged, Outcome::Eliminated] {
        let mut run_outcomes = curve_with_minimum();
        run_outcomes.push(run_outcome("a", 1e-3, 2, outcome));
        assert_eq!(single_summary(&run_outcomes).best.unwrap().lr, 1e-4);
    }
}

#[test]
fn no_best_learning_rate_without_complete_seeds() {
    let mut run_outcomes = runs("a", 1e-3, &[3.0, 3.0]);
    run_outcomes.push(run_outcome("a", 1e-3, 2, Outcome::Diverged));
    let found = single_summary(&run_outcomes);
    assert_eq!(
        (found.best, found.lr_tolerance, found.lr_sensitivity),
        (None, None, None)
    );
    assert_eq!(
        found.no_comparison_reason.as_deref(),
        Some("the study has no runs of the baseline")
    );
}

#[test]
fn the_stable_range_ends_before_the_first_divergence() {
    let mut run_outcomes = curve_with_minimum();
    run_outcomes.extend(runs("a", 3e-2, &[3.9, 3.9]));
    assert_eq!(single_summary(&run_outcomes).largest_stable_lr, Some(3e-2));
    // A larger learning rate without divergence does not count; an eliminated run does not end the range.
    run_outcomes.push(run_outcome("a", 1e-2, 2, Outcome::Diverged));
    run_outcomes.push(run_outcome("a", 1e-3, 2, Outcome::Eliminated));
    assert_eq!(single_summary(&run_outcomes).largest_stable_lr, Some(1e-3));
    run_outcomes.push(run_outcome("a", 1e-4, 2, Outcome::Diverged));
    assert_eq!(single_summary(&run_outcomes).largest_stable_lr, None);
}

#[test]
fn tolerance_is_the_unbroken_range_around_the_best() {
    let span = single_summary(&curve_with_minimum()).lr_tolerance.unwrap();
    assert_eq!((span.low, span.high), (1e-4, 1e-3));
    assert_close(span.factor, 10.0);
    let mut run_outcomes = curve_with_minimum();
    // Within the tolerance, but beyond a learning rate that is not.
    run_outcomes.extend(runs("a", 1e-1, &[3.02, 3.02]));
    assert_eq!(single_summary(&run_outcomes).lr_tolerance, Some(span));
    run_outcomes.push(run_outcome("a", 1e-4, 2, Outcome::Diverged));
    assert_eq!(
        single_summary(&run_outcomes).lr_tolerance.unwrap().factor,
        1.0
    );
}

#[test]
fn sensitivity_counts_diverged_seeds_as_the_cap() {
    // 0.03, 0 and 0.54 above the best: the cap is the largest mean, 3.6, so the loss 3.7 counts as 3.6.
    assert_close(
        single_summary(&curve_with_minimum())
            .lr_sensitivity
            .unwrap(),
        (0.03 + 0.0 + 0.54) / 3.0,
    );
    let rules = AnalysisRules {
        loss_cap: Some(4.0),
        ..without_margin()
    };
    let mut run_outcomes = curve_with_minimum();
    let sensitivity =
        |run_outcomes: &[RunOutcome]| analyze(run_outcomes, &rules).placements[0].lr_sensitivity;
    assert_close(
        sensitivity(&run_outcomes).unwrap(),
        (0.03 + 0.0 + 0.59) / 3.0,
    );
    run_outcomes.push(run_outcome("a", 1e-2, 2, Outcome::Diverged));
    let at_last = (0.49 + 0.69 + 0.99) / 3.0;
    assert_close(
        sensitivity(&run_outcomes).unwrap(),
        (0.03 + 0.0 + at_last) / 3.0,
    );
    run_outcomes.push(run_outcome("a", 1e-4, 2, Outcome::Eliminated));
    assert_eq!(sensitivity(&run_outcomes), None);
}

#[test]
fn spikes_and_throughput_are_over_all_runs() {
    let mut run_outcomes = curve_with_minimum();
    for (index, run) in run_outcomes.iter_mut().enumerate() {
        run.spikes = [0, 2, 0, 0, 5, 0][index];
        run.tokens_per_second = [100.0, 300.0, 200.0, 900.0, 0.0, f64::NAN][index];
    }
    let found = single_summary(&run_outcomes);
    assert_eq!((found.spikes, found.spiked_runs), (7, 2));
    assert_eq!(found.tokens_per_second, Some(250.0));
}

#[test]
fn tied_learning_rates_are_counted() {
    let n_statistically_tied = |run_outcomes: &[RunOutcome]| {
        single_summary(run_outcomes)
            .best
            .unwrap()
            .n_statistically_tied
    };
    let curve = study(&[
        ("a", 1e-4, &[3.010, 3.002, 3.003]),
        ("a", 1e-3, &[3.001, 3.003, 3.008]),
        ("a", 1e-2, &[3.501, 3.502, 3.505]),
    ]);
    assert_eq!(n_statistically_tied(&curve), 2);
    // A seed effect common to all learning rates is not noise.
    let mut shifted = curve.clone();
    for run in shifted.iter_mut().filter(|run| run.seed == 1) {
        let Outcome::Loss(loss) = run.outcome else {
            unreachable!()
        };
        run.outcome = Outcome::Loss(loss + 5.0);
    }
    assert_eq!(n_statistically_tied(&shifted), 2);
    // The noise cannot be estimated from one seed.
    let single = study(&[("a", 1e-4, &[3.0]), ("a", 1e-3, &[4.0])]);
    assert_eq!(n_statistically_tied(&single), 2);
    // Eliminated learning rates may have been as good.
    let mut eliminated = curve;
    eliminated.push(run_outcome("a", 1e-1, 0, Outcome::Eliminated));
    assert_eq!(n_statistically_tied(&eliminated), 3);
}

/// Returns a baseline and three placements: clearly better, clearly worse, similar.
pub(super) fn study_of_four_placements() -> Vec<RunOutcome> {
    let mut run_outcomes = curves_with_minimum(&[
        ("pre-norm", &[3.00, 3.05, 2.98, 3.02]),
        ("good", &[2.90, 2.951, 2.879, 2.92]),
        ("bad", &[3.20, 3.251, 3.179, 3.22]),
        ("same", &[3.01, 3.04, 3.00, 3.01]),
    ]);
    for run in run_outcomes
        .iter_mut()
        .filter(|run| run.placement == "good")
    {
        run.tokens_per_second = 800.0;
    }
    run_outcomes
}

fn comparison_of(analysis: &Analysis, name: &str) -> Comparison {
    let entry = analysis
        .placements
        .iter()
        .find(|entry| entry.placement == name);
    entry.unwrap().comparison.clone().unwrap()
}

#[test]
fn a_missing_comparison_has_a_reason() {
    let reason = |run_outcomes: &[RunOutcome], rules: &AnalysisRules| {
        let analysis = analyze(run_outcomes, rules);
        let entry = analysis
            .placements
            .into_iter()
            .find(|entry| entry.placement == "x");
        let entry = entry.unwrap();
        assert_eq!(entry.comparison, None);
        entry.no_comparison_reason.unwrap()
    };
    let rules = AnalysisRules::default();
    let base = runs("pre-norm", 1e-3, &[3.0, 3.1]);
    let x = runs("x", 1e-3, &[3.0, 3.1]);
    let diverged = |name: &str| vec![run_outcome(name, 1e-3, 0, Outcome::Diverged)];
    assert_eq!(reason(&x, &rules), "the study has no runs of the baseline");
    assert_eq!(
        reason(&[base.clone(), diverged("x")].concat(), &rules),
        "no learning rate at which every seed finished"
    );
    assert_eq!(
        reason(&[diverged("pre-norm"), x.clone()].concat(), &rules),
        "the baseline has no learning rate at which every seed finished"
    );
    assert_eq!(
        reason(&[base.clone(), runs("x", 1e-3, &[3.0])].concat(), &rules),
        "fewer than 2 seeds in common with the baseline"
    );
    let wrong = AnalysisRules {
        alpha: 1.5,
        ..rules.clone()
    };
    let both = [base, x].concat();
    assert_eq!(
        reason(&both, &wrong),
        "alpha = 1.5, expected between 0 and 1"
    );
    let analysis = analyze(&both, &rules);
    assert_eq!(analysis.placements[0].comparison, None);
    assert_eq!(analysis.placements[0].no_comparison_reason, None);
}

fn named<'a>(analysis: &'a Analysis, name: &str) -> &'a PlacementSummary {
    let mut entries = analysis.placements.iter();
    entries.find(|entry| entry.placement == name).unwrap()
}

#[test]
fn diverged_not_learned_and_slow_differ() {
    let mut run_outcomes = study(&[
        ("a", 1e-4, &[5.9, 5.9]),
        ("a", 1e-3, &[4.3, 4.31]),
        ("a", 1e-2, &[4.34, 5.9]),
    ]);
    run_outcomes.push(run_outcome("a", 1e-5, 0, Outcome::NotLearned(6.3)));
    run_outcomes.push(run_outcome("a", 1e-1, 0, Outcome::NotLearned(6.3)));
    let found = single_summary_with_rules(&run_outcomes, &AnalysisRules::default());
    let counts: Vec<_> = (found.learning_rates.iter())
        .map(|summary| (summary.finished, summary.diverged, summary.not_learned))
        .collect();
    // Slow below the best learning rate, diverged above it; not learned counts as diverged only above it.
    assert_eq!(
        counts,
        [(0, 0, 1), (2, 0, 0), (2, 0, 0), (1, 1, 0), (0, 1, 0)]
    );
    assert_eq!(found.best.unwrap().lr, 1e-3);
}

#[test]
fn verdicts_match_intervals() {
    use rand::{RngExt, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let mut counts = [0; 4];
    for _ in 0..2000 {
        let mut run_outcomes = Vec::new();
        let size: f64 = random.random_range(0.0..0.06);
        let noise: f64 = random.random_range(0.0005..0.01);
        for name in ["pre-norm", "x", "y"] {
            let shift = random.random_range(-size..=size);
            for lr in [1e-4, 1e-3, 1e-2] {
                let bend: f64 = if lr == 1e-3 { 0.0 } else { 0.05 };
                let losses: Vec<f64> = (0..4)
                    .map(|_| 3.0 + shift + bend + random.random_range(-noise..noise))
                    .collect();
                run_outcomes.extend(runs(name, lr, &losses));
            }
        }
        let analysis = analyze(&run_outcomes, &AnalysisRules::default());
        for entry in &analysis.placements[1..] {
            let text = comparison_text(entry, &analysis);
            let Some(found) = &entry.comparison else {
                assert!(
                    text.contains("undecided") && !text.contains("better than"),
                    "{text}"
                );
                continue;
            };
            let (low, high) = (found.difference.low, found.difference.high);
            let margin = analysis.rules.margin;
            let expected = match () {
                () if high < -margin => Verdict::Better,
                () if low > margin => Verdict::Worse,
                () if low > -margin && high < margin => Verdict::Equivalent,
                () => Verdict::NotSignificant,
            };
            assert_eq!(found.verdict, expected, "{found:?}");
            let claims = matches!(expected, Verdict::Better | Verdict::Worse);
            assert_eq!(found.p_adjusted < 0.05, claims, "{found:?}");
            assert_eq!(
                text.contains("is better than"),
                expected == Verdict::Better,
                "{text}"
            );
            assert_eq!(
                text.contains("is worse than"),
                expected == Verdict::Worse,
                "{text}"
            );
            assert_eq!(
                text.contains("is equivalent to"),
                expected == Verdict::Equivalent,
                "{text}"
            );
            counts[expected as usize] += 1;
        }
    }
    assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
}

#[test]
fn analysis_round_trips_through_json() {
    let mut run_outcomes = study_of_four_placements();
    // With zero variance, t is not finite.
    run_outcomes.extend(runs("constant", 1e-3, &[4.0, 4.05, 3.98, 4.02]));
    run_outcomes.push(run_outcome("diverged", f64::MAX, 0, Outcome::Diverged));
    let analysis = analyze(&run_outcomes, &AnalysisRules::default());
    let text = serde_json::to_string(&analysis).unwrap();
    assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), analysis);
}
