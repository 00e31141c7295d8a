//! Paired comparisons with the baseline.

use super::super::super::stats;
use super::super::*;
use super::{
    assert_close, comparison_of, run_outcome, runs, study_of_four_placements, without_margin,
};

#[test]
fn comparisons_are_paired_by_seed() {
    let analysis = analyze(&study_of_four_placements(), &without_margin());
    let good = comparison_of(&analysis, "good");
    let differences = [2.90 - 3.00, 2.951 - 3.05, 2.879 - 2.98, 2.92 - 3.02];
    assert_eq!(good.pairs, 4);
    assert_eq!(
        good.difference,
        stats::paired_t_test(&differences, 1.0 - 0.05 / 3.0).unwrap()
    );
    assert_close(good.loss, 2.9125);
    assert_close(good.baseline_loss, 3.0125);
    assert_eq!(good.verdict, Verdict::Better);
    assert_eq!(comparison_of(&analysis, "bad").verdict, Verdict::Worse);
    let same = comparison_of(&analysis, "same");
    assert_eq!(same.verdict, Verdict::NotSignificant);
    // The largest of three p values is unchanged, the smallest is tripled.
    assert_close(same.p_holm, same.difference.p);
    let (good, bad) = (good, comparison_of(&analysis, "bad"));
    assert_close(bad.p_holm, 3.0 * bad.difference.p);
    assert_close(good.p_holm, 2.0 * good.difference.p);
    let PairedTest { mean, sd, .. } = same.difference;
    let seeds = stats::required_seeds(mean, sd, 0.05 / 3.0, 0.8);
    assert!(seeds.is_some_and(|seeds| seeds > 4));
    assert_eq!(same.seeds_for_significance, seeds);
}

#[test]
fn gains_follow_the_power_law() {
    let rules = AnalysisRules {
        irreducible_loss: 2.0,
        compute_exponent: 0.5,
        ..AnalysisRules::default()
    };
    let good = comparison_of(&analyze(&study_of_four_placements(), &rules), "good");
    let gain = (1.0125_f64 / 0.9125).powi(2);
    assert_close(good.compute_gain.unwrap(), gain);
    assert_close(good.throughput_ratio.unwrap(), 0.8);
    assert_close(good.effective_speedup.unwrap(), 0.8 * gain);
    let rules = AnalysisRules {
        irreducible_loss: 2.95,
        ..rules
    };
    let good = comparison_of(&analyze(&study_of_four_placements(), &rules), "good");
    assert_eq!((good.compute_gain, good.effective_speedup), (None, None));
}

#[test]
fn only_common_seeds_are_compared() {
    let mut run_outcomes = study_of_four_placements();
    run_outcomes.push(run_outcome("good", 1e-3, 9, Outcome::Loss(9.0)));
    let good = comparison_of(&analyze(&run_outcomes, &without_margin()), "good");
    assert_eq!(good.pairs, 4);
    assert_close(good.loss, 2.9125);
}

#[test]
fn selection_widens_the_interval() {
    let plain = comparison_of(
        &analyze(&study_of_four_placements(), &without_margin()),
        "good",
    );
    let mut run_outcomes = study_of_four_placements();
    run_outcomes.extend(runs("good", 3e-3, &[2.95, 2.921, 2.899, 2.91]));
    let analysis = analyze(&run_outcomes, &without_margin());
    assert_eq!(
        analysis.placements[1]
            .best
            .as_ref()
            .unwrap()
            .n_statistically_tied,
        2
    );
    let chosen = comparison_of(&analysis, "good");
    assert_eq!(chosen.difference.mean, plain.difference.mean);
    assert!(chosen.difference.p > 1.5 * plain.difference.p);
    assert!(chosen.difference.high > plain.difference.high);
    assert_eq!(chosen.difference.low, plain.difference.low);
}
