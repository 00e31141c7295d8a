//! Sentences and verdicts of small hand-made studies.

use super::super::tests::{
    curves_with_minimum, run_outcome, runs, study, study_of_four_placements,
};
use super::super::{AnalysisRules, Outcome, RunOutcome, analyze, analyze_planned};
use super::*;

fn sentence_of(run_outcomes: &[RunOutcome], name: &str) -> String {
    let analysis = analyze(run_outcomes, &AnalysisRules::default());
    let entry = analysis
        .placements
        .iter()
        .find(|entry| entry.placement == name);
    comparison_text(entry.unwrap(), &analysis)
}

#[test]
fn sentences_state_the_verdict() {
    let run_outcomes = study_of_four_placements();
    assert_eq!(
        sentence_of(&run_outcomes, "good"),
        "good is better than pre-norm by 0.1000 nats (simultaneous 95 % interval 0.0980 to \
         0.1020, beyond the margin of 0.01 nats, p < 0.001 corrected for 3 comparisons, 4 seeds)"
    );
    assert_eq!(
        sentence_of(&run_outcomes, "bad"),
        "bad is worse than pre-norm by 0.2000 nats (simultaneous 95 % interval 0.1980 to \
         0.2020, beyond the margin of 0.01 nats, p < 0.001 corrected for 3 comparisons, 4 seeds)"
    );
    assert_eq!(
        sentence_of(&run_outcomes, "same"),
        "same is not significantly different from pre-norm beyond the margin at 4 seeds (difference 0.002 nats, \
         simultaneous 95 % interval -0.034 to 0.039, margin 0.01 nats); the observed difference is \
         within the margin"
    );
    assert_eq!(
        sentence_of(&run_outcomes, "pre-norm"),
        "pre-norm is the baseline: 3.012 nats at its best learning rate, 0.001 (4 seeds)"
    );
}

#[test]
fn sentences_explain_when_more_seeds_do_not_help() {
    let base = runs("pre-norm", 1e-3, &[3.0, 3.1, 3.0]);
    let nearly = runs("x", 1e-3, &[3.2, 2.8999, 3.0]);
    assert_eq!(
        sentence_of(&[base.clone(), nearly].concat(), "x"),
        "x is not significantly different from pre-norm beyond the margin at 3 seeds (difference 0.00 nats, 95 % interval \
         -0.50 to 0.50, margin 0.01 nats); the observed difference is within the margin; this holds at \
         learning rate 0.001 only, since no other was tried"
    );
    let equal = runs("x", 1e-3, &[3.0, 3.1, 3.0]);
    assert_eq!(
        sentence_of(&[base.clone(), equal].concat(), "x"),
        "x is not significantly different from pre-norm beyond the margin at 3 seeds (difference 0.000 nats, 95 % interval \
         0.000 to 0.000, margin 0.01 nats); the observed difference is 0; this holds at learning rate \
         0.001 only, since no other was tried"
    );
    let single = runs("x", 1e-3, &[3.0]);
    assert_eq!(
        sentence_of(&[base, single].concat(), "x"),
        "x is not compared with pre-norm: fewer than 2 seeds in common with the baseline"
    );
}

#[test]
fn summary_of_a_typical_study() {
    let mut run_outcomes = study(&[
        ("pre-norm", 3e-4, &[3.03, 3.08, 3.01, 3.06]),
        ("pre-norm", 1e-3, &[3.00, 3.05, 2.98, 3.02]),
        ("good", 3e-4, &[2.95, 3.00, 2.93, 2.97]),
        ("good", 1e-3, &[2.90, 2.951, 2.879, 2.92]),
        ("good", 3e-3, &[2.92, 2.97, 2.90, 2.94]),
        ("bad", 3e-4, &[3.20, 3.251, 3.179, 3.22]),
        ("bad", 1e-3, &[3.40, 3.45, 3.38, 3.42]),
        ("bad", 3e-3, &[4.40, 4.45, 4.38, 4.42]),
        ("same", 1e-3, &[3.01, 3.04, 3.00, 3.01]),
        ("same", 3e-4, &[3.31, 3.34, 3.30, 3.31]),
    ]);
    for name in ["pre-norm", "same"] {
        run_outcomes.push(run_outcome(name, 3e-3, 0, Outcome::Diverged));
    }
    let text = summary_text(&analyze(&run_outcomes, &AnalysisRules::default()));
    assert_eq!(
        text,
        [
            "good has the lowest mean validation loss (2.913 nats at learning rate 0.001, 4 seeds) and \
             is better than the baseline, pre-norm; no other compared placement differs \
             significantly from the baseline.",
            "Learning rates within 0.05 nats of a placement's best loss: pre-norm 0.0003 to 0.001, good \
             0.001 to 0.003, bad 0.0003, same 0.001 (of those tried, whose neighbours differ by a factor \
             of 3 to 3.3; ranges are at grid resolution and are not compared); diverged runs: pre-norm \
             1 of 9 (at 0.003), bad 4 of 12 (at 0.003), same 1 of 9 (at 0.003).",
            "Based on 4 seeds, each placement at the best of 3 learning rates; intervals and p values are \
             corrected for selecting the learning rate and for 3 comparisons; differences within 0.01 nats \
             are ignored; not compared: bad (undecided: its best learning rate is at the edge of the grid \
             (the lowest tried), and a better one may lie outside; 0.200 nats above the baseline at the \
             learning rates tried); not significantly different from pre-norm beyond the margin: same, where the observed \
             difference is within the margin; warning: the best learning rate is the lowest tried for bad: \
             a better one may lie outside the grid."
        ]
    );
}

#[test]
fn summary_of_a_difference_within_noise() {
    let run_outcomes = study(&[
        ("pre-norm", 1e-4, &[3.30, 3.32]),
        ("pre-norm", 1e-3, &[3.00, 3.02]),
        ("pre-norm", 1e-2, &[3.30, 3.32]),
        ("x", 1e-4, &[3.02, 3.0]),
        ("x", 1e-3, &[3.0, 2.99]),
        ("x", 1e-2, &[3.03, 3.02]),
    ]);
    let text = summary_text(&analyze(&run_outcomes, &AnalysisRules::default()));
    assert_eq!(
        text[0],
        "x has the lowest mean validation loss (2.995 nats at learning rate 0.001, 2 seeds), but is \
         not significantly different from the baseline, pre-norm, beyond the margin."
    );
    assert_eq!(
        text[1],
        "Learning rates within 0.05 nats of a placement's best loss: pre-norm 0.001, x 0.0001 to 0.01 (of \
         those tried, whose neighbours differ by a factor of 10; ranges are at grid resolution and \
         are not compared); diverged runs: pre-norm 1 of 6 (at 0.01)."
    );
    assert!(
        text[2].contains("corrected for selecting the learning rate; differences within 0.01 nats")
    );
}

#[test]
fn equivalence_is_reported() {
    let run_outcomes = curves_with_minimum(&[
        ("pre-norm", &[3.0, 3.1, 3.2, 3.3]),
        ("x", &[3.001, 3.101, 3.2012, 3.3012]),
    ]);
    assert_eq!(
        sentence_of(&run_outcomes, "x"),
        "x is equivalent to pre-norm within the margin of 0.01 nats (difference 0.00110 nats, 95 % \
         interval 0.00092 to 0.00128, 4 seeds)"
    );
    let text = summary_text(&analyze(&run_outcomes, &AnalysisRules::default())).join(" ");
    assert!(text.contains("; equivalent to the baseline: x"), "{text}");
    assert!(
        text.contains("every comparison made with pre-norm is significant or equivalent"),
        "{text}"
    );
    assert!(!text.contains("not significant"), "{text}");
}

#[test]
fn a_tie_has_no_winner() {
    let losses: &[f64] = &[3.0, 3.1, 3.2];
    let run_outcomes =
        curves_with_minimum(&[("pre-norm", losses), ("x", losses), ("y", &[3.1, 3.2, 3.3])]);
    let text = summary_text(&analyze(&run_outcomes, &AnalysisRules::default()));
    assert!(
        text[0].starts_with("pre-norm shares the lowest mean validation loss with x (3.100 nats"),
        "{text:?}"
    );
}

#[test]
fn a_study_without_any_record_is_incomplete() {
    let text = summary_text(&analyze_planned(&[], 6, 0, &AnalysisRules::default()));
    assert!(
        text[0].starts_with("Incomplete: 0 of 6 runs are recorded."),
        "{text:?}"
    );
    assert!(
        text[1].starts_with("Learning rate tolerance and stability are unknown"),
        "{text:?}"
    );
}

const ONE_LEARNING_RATE: &str =
    "Only one learning rate was tried: learning rate tolerance is unknown";

fn summary(run_outcomes: &[RunOutcome]) -> Vec<String> {
    summary_text(&analyze(run_outcomes, &AnalysisRules::default()))
}

#[test]
fn summary_without_comparisons() {
    let one_learning_rate = &format!("{ONE_LEARNING_RATE}; no run diverged.");
    assert_eq!(
        summary(&[]),
        [
            "The study has no runs: no placement can be called best.",
            "Learning rate tolerance and stability are unknown.",
            "No comparison was made.",
        ]
    );
    assert_eq!(
        summary(&study(&[("pre-norm", 1e-3, &[3.0]), ("x", 1e-3, &[2.0])])),
        [
            "x has the lowest mean validation loss (2.000 nats at learning rate 0.001, 1 seed), but \
             is not compared with the baseline, pre-norm.",
            one_learning_rate,
            "No placement is called better or worse: fewer than 2 seeds in common with the baseline; warning: \
             the best learning rate is the only one tried for pre-norm and x: a better one may lie \
             outside the grid.",
        ]
    );
    assert_eq!(
        summary(&study(&[
            ("x", 1e-3, &[3.0, 3.1]),
            ("y", 1e-3, &[2.0, 2.1])
        ])),
        [
            "y has the lowest mean validation loss (2.050 nats at learning rate 0.001, 2 seeds); the \
             study has no runs of the baseline, pre-norm.",
            one_learning_rate,
            "No placement is called better or worse: the study has no runs of the baseline; warning: the best \
             learning rate is the only one tried for x and y: a better one may lie outside the grid.",
        ]
    );
}

#[test]
fn summary_of_a_single_placement() {
    assert_eq!(
        summary(&[run_outcome("x", 1e-3, 0, Outcome::Diverged)]),
        [
            "No placement finished all its seeds at any learning rate: none can be called best.",
            &format!("{ONE_LEARNING_RATE}; diverged runs: x 1 of 1 (at 0.001)."),
            "No placement is called better or worse: the study has no runs of the baseline.",
        ]
    );
    assert_eq!(
        summary(&study(&[
            ("pre-norm", 1e-3, &[3.0, 3.1]),
            ("pre-norm", 3e-3, &[3.2, 3.3])
        ])),
        [
            "pre-norm has the lowest mean validation loss (3.050 nats at learning rate 0.001, 2 \
             seeds) and is the baseline.",
            "Learning rates within 0.05 nats of a placement's best loss: pre-norm 0.001 (of those tried, \
             whose neighbours differ by a factor of 3; ranges are at grid resolution and are not \
             compared); no run diverged.",
            "No placement is called better or worse, since there is no placement besides the baseline; \
             warning: the best learning rate is the lowest tried for pre-norm: a better one \
             may lie outside the grid.",
        ]
    );
}
