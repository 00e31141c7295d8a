//! Studies whose verdict is neither better nor worse.

use super::*;

#[test]
fn nothing_is_compared_while_runs_are_missing() {
    let run_outcomes = study_of_four_placements();
    let analysis = analyze_planned(
        &run_outcomes,
        run_outcomes.len() + 1,
        0,
        &AnalysisRules::default(),
    );
    assert!(!analysis.complete && analysis.missing == 1);
    for name in ["good", "bad", "same"] {
        let entry = named(&analysis, name);
        assert_eq!(entry.comparison, None);
        assert_eq!(
            entry.no_comparison_reason.as_deref(),
            Some("incomplete: 48 of 49 runs")
        );
    }
    assert!(summary_text(&analysis)[0].starts_with("Incomplete: 48 of 49 runs are recorded."));
}

#[test]
fn a_difference_within_the_margin_is_never_better_or_worse() {
    // Highly significant, but within the margin.
    let run_outcomes = curves_with_minimum(&[
        ("pre-norm", &[3.0, 3.1, 3.2, 3.3]),
        ("x", &[2.9950, 3.0951, 3.1950, 3.2951]),
    ]);
    let found = comparison_of(&analyze(&run_outcomes, &AnalysisRules::default()), "x");
    assert!(found.difference.p < 1e-6);
    assert_eq!(
        (found.verdict, found.p_adjusted),
        (Verdict::Equivalent, 1.0)
    );
    assert_eq!(
        comparison_of(&analyze(&run_outcomes, &without_margin()), "x").verdict,
        Verdict::Better
    );
}

#[test]
fn an_optimum_at_the_edge_is_undecided() {
    let base: [(&str, f64, &[f64]); 3] = [
        ("pre-norm", 1e-4, &[3.10, 3.15, 3.08, 3.12]),
        ("pre-norm", 1e-3, &[3.00, 3.05, 2.98, 3.02]),
        ("pre-norm", 1e-2, &[3.10, 3.15, 3.08, 3.12]),
    ];
    let worse: [(&str, f64, &[f64]); 3] = [
        ("x", 1e-4, &[3.40, 3.45, 3.38, 3.42]),
        ("x", 1e-3, &[3.30, 3.35, 3.28, 3.32]),
        ("x", 1e-2, &[3.20, 3.251, 3.179, 3.22]),
    ];
    let both = [study(&base), study(&worse)].concat();
    let analysis = analyze(&both, &AnalysisRules::default());
    let reason = named(&analysis, "x").no_comparison_reason.clone().unwrap();
    assert!(
        reason.starts_with("undecided: its best learning rate is at the edge"),
        "{reason}"
    );
    // With the roles swapped, the baseline may be better at another learning rate.
    let mut swapped = both;
    for run in &mut swapped {
        run.placement = match run.placement.as_str() {
            "x" => "pre-norm".into(),
            _ => "x".into(),
        };
    }
    let analysis = analyze(&swapped, &AnalysisRules::default());
    let reason = named(&analysis, "x").no_comparison_reason.clone().unwrap();
    assert!(
        reason.starts_with("undecided: the baseline's best learning rate"),
        "{reason}"
    );
}

#[test]
fn a_tied_learning_rate_at_the_edge_is_undecided() {
    let base = curves_with_minimum(&[("pre-norm", &[3.00, 3.05, 2.98, 3.02])]);
    let at = |lr: f64, shift: f64| {
        let losses = [3.20, 3.251, 3.179, 3.22].map(|loss| loss + shift);
        runs("x", lr, &losses)
    };
    let reason = |edge: f64, edge_lr: f64| {
        let mut run_outcomes = base.clone();
        for (lr, shift) in [(1e-4, 0.3), (1e-3, 0.0), (1e-2, 0.3)] {
            run_outcomes.extend(at(lr, if lr == edge_lr { edge } else { shift }));
        }
        let analysis = analyze(&run_outcomes, &AnalysisRules::default());
        named(&analysis, "x").no_comparison_reason.clone()
    };
    for (lr, message) in [
        (1e-2, "0.01 (the highest tried)"),
        (1e-4, "0.0001 (the lowest tried)"),
    ] {
        for tied in [0.0, 0.001] {
            let found = reason(tied, lr).unwrap();
            assert!(found.starts_with("undecided: "), "{found}");
            // Of tied learning rates the smallest is the best, which may be the edge itself.
            assert!(found.contains(message) || tied == 0.0, "{found}");
            assert!(found.contains("edge of the grid"), "{found}");
        }
        assert_eq!(reason(0.1, lr), None);
    }
}

#[test]
fn missing_runs_of_another_group_prevent_comparison() {
    let run_outcomes = study_of_four_placements();
    let analysis = analyze_planned(
        &run_outcomes,
        run_outcomes.len(),
        6,
        &AnalysisRules::default(),
    );
    assert!(!analysis.complete && analysis.missing == 0);
    let entry = named(&analysis, "bad");
    assert_eq!(
        entry.no_comparison_reason.as_deref(),
        Some("incomplete: 6 runs of other groups are missing")
    );
    assert!(summary_text(&analysis)[0].starts_with("Incomplete: runs of another group"));
}

#[test]
fn possibly_better_learning_rates_prevent_equivalence() {
    let losses: [&[f64]; 2] = [&[3.0, 3.1, 3.2], &[3.0001, 3.1002, 3.2]];
    let verdict = |run_outcomes: &[RunOutcome]| {
        comparison_of(&analyze(run_outcomes, &AnalysisRules::default()), "x").verdict
    };
    let whole = curves_with_minimum(&[("pre-norm", losses[0]), ("x", losses[1])]);
    assert_eq!(verdict(&whole), Verdict::Equivalent);
    let without = |name: &str, lr: f64| -> Vec<RunOutcome> {
        let stays = |run: &&RunOutcome| run.placement != name || run.lr != lr;
        whole.iter().filter(stays).cloned().collect()
    };
    for name in ["x", "pre-norm"] {
        for lr in [1e-4, 1e-2] {
            assert_eq!(verdict(&without(name, lr)), Verdict::NotSignificant);
        }
    }
    // A learning rate with a diverged seed, whose remaining seeds have lower losses.
    let mut with_failed_seed = whole.clone();
    with_failed_seed.extend(runs("x", 2e-3, &[2.9, 3.0]));
    with_failed_seed.push(run_outcome("x", 2e-3, 2, Outcome::Diverged));
    assert_eq!(verdict(&with_failed_seed), Verdict::NotSignificant);
    // A single learning rate is an edge on both sides, whatever the difference.
    for shift in [0.4, -0.4] {
        let other = losses[0].iter().map(|loss| loss + shift + 0.001 * loss);
        let other: Vec<f64> = other.collect();
        let run_outcomes = study(&[("pre-norm", 1e-3, losses[0]), ("x", 1e-3, &other)]);
        let analysis = analyze(&run_outcomes, &AnalysisRules::default());
        let reason = named(&analysis, "x").no_comparison_reason.clone().unwrap();
        assert!(
            reason.starts_with("undecided: only one learning rate was tried"),
            "{reason}"
        );
    }
}
