//! Statistical analysis of the runs of a study.
//!
//! Each placement is evaluated at its own best learning rate and compared with the baseline paired by seed,
//! since runs with the same seed share initial weights and batches. Three sources of false positives are controlled:
//! seed noise by a t-test, selection of the learning rate on the same seeds by
//! [`stats::paired_t_test_with_selection`](super::stats::paired_t_test_with_selection), and multiple placements by
//! Bonferroni correction. Verdicts follow from the corrected intervals, so that text and intervals cannot contradict
//! each other.
//!
//! No verdict is given while runs are missing, or if it could be reversed by a learning rate outside the grid or by one
//! at which some seeds failed.
//!
//! Choosing the learning rate of each seed on the other seeds is not an alternative: losses chosen this way are
//! correlated across seeds, and on flat curves the false positive rate is more than twice the nominal one
//! (`uncorrected_tests_exceed_the_nominal_false_positive_rate` in the tests).

mod compare;
mod format;
mod rules;
mod sweep;
mod text;

#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::stats::{PairedTest, Summary};
pub use rules::AnalysisRules;
use sweep::Sweep;
pub use text::{comparison_text, summary_text};

/// One run, as input to the statistics.
///
/// At most one per placement, learning rate and seed; of duplicates, the last counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RunOutcome {
    /// Name of the placement.
    pub placement: String,
    /// Peak learning rate.
    pub lr: f64,
    /// Random seed: runs with the same seed share initial weights and batches.
    pub seed: u64,
    /// Outcome of the run.
    #[serde(rename = "result")]
    pub outcome: Outcome,
    /// Training throughput; 0 if unknown.
    pub tokens_per_second: f64,
    /// Number of training loss spikes.
    pub spikes: u64,
}

impl RunOutcome {
    /// Returns a run of unknown throughput without loss spikes.
    pub fn new(placement: impl Into<String>, lr: f64, seed: u64, outcome: Outcome) -> Self {
        Self {
            placement: placement.into(),
            lr,
            seed,
            outcome,
            tokens_per_second: 0.0,
            spikes: 0,
        }
    }
}

/// Outcome of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Finished with this validation loss, in nats per token. A loss that is not finite counts as diverged.
    Loss(f64),
    /// Finished with this validation loss, but the training loss did not fall at least 0.1 nats below the unigram loss.
    /// Does not count as diverged.
    NotLearned(f64),
    /// Diverged: values became non-finite, the training loss rose again, or the final loss is far above the best
    /// of its placement.
    Diverged,
    /// Eliminated by successive halving.
    #[serde(rename = "halved")]
    Eliminated,
}

/// Analysis of the runs of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Analysis {
    /// Rules of the analysis.
    pub rules: AnalysisRules,
    /// Number of planned runs.
    pub planned: usize,
    /// Number of recorded runs.
    pub recorded: usize,
    /// True if no run is missing. Otherwise nothing is compared.
    pub complete: bool,
    /// Number of planned runs that are not recorded.
    pub missing: usize,
    /// One entry per placement, in the order of their first runs.
    pub placements: Vec<PlacementSummary>,
}

/// Analysis of the runs of one placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PlacementSummary {
    /// Name of the placement.
    pub placement: String,
    /// One entry per learning rate, ascending.
    #[serde(rename = "rates")]
    pub learning_rates: Vec<LearningRateSummary>,
    /// Learning rate with the lowest mean loss, among those at which every seed finished (none diverged, not
    /// learned yet or eliminated), on the same, largest set of seeds.
    pub best: Option<Best>,
    /// Largest learning rate tried such that no seed diverged at it or at a smaller one. A run eliminated by
    /// halving counts as not diverged; a learning rate at which all runs were eliminated does not count.
    pub largest_stable_lr: Option<f64>,
    /// Contiguous range of learning rates around the best one whose mean loss is at most [`AnalysisRules::tolerance`]
    /// above the best. Learning rates without the same, complete set of seeds end it, so it is a lower bound
    /// where halving eliminated runs.
    #[serde(rename = "tolerance")]
    pub lr_tolerance: Option<LrRange>,
    /// Learning rate sensitivity (Wortsman et al. 2023, arXiv 2309.14322), in nats: the mean over the learning
    /// rates tried of `min(loss, loss cap) - best loss`, where a diverged seed counts as the cap; see
    /// [`AnalysisRules::loss_cap`]. `None` without a best learning rate, and where halving eliminated runs, since their
    /// final losses are unknown. Comparable only over the same learning rates.
    pub lr_sensitivity: Option<f64>,
    /// Number of loss spikes in all runs.
    pub spikes: u64,
    /// Number of runs with at least one loss spike.
    pub spiked_runs: u64,
    /// Training throughput, median over runs.
    pub tokens_per_second: Option<f64>,
    /// Comparison with the baseline.
    #[serde(rename = "against")]
    pub comparison: Option<Comparison>,
    /// Reason for a missing comparison. `None` also for the baseline.
    #[serde(rename = "why_not")]
    pub no_comparison_reason: Option<String>,
}

/// Outcomes of the runs of a placement at one learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LearningRateSummary {
    /// Peak learning rate.
    pub lr: f64,
    /// Number of finished runs.
    pub finished: u64,
    /// Number of diverged runs.
    pub diverged: u64,
    /// Copy of `diverged`, written for programs that read the earlier format.
    #[serde(default)]
    pub lost: u64,
    /// Number of runs that had not learned yet at their end.
    #[serde(default)]
    pub not_learned: u64,
    /// Number of runs eliminated by successive halving.
    #[serde(rename = "halved")]
    pub eliminated: u64,
    /// Validation loss of the finished runs, in nats per token.
    pub loss: Option<Summary>,
}

/// A placement at its best learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Best {
    /// Peak learning rate.
    pub lr: f64,
    /// Validation loss there, in nats per token; biased slightly low by the selection.
    pub loss: Summary,
    /// Set if it is the smallest, the largest or the only learning rate tried: a better one may lie outside.
    pub at_edge: Option<Edge>,
    /// Number of learning rates that may be as good, including this one: those whose mean loss is not significantly
    /// above the best (one-sided t-test at 0.01), and those with runs eliminated by halving. Comparisons correct for
    /// the selection among this many.
    #[serde(rename = "contenders")]
    pub n_statistically_tied: usize,
}

/// Edge of the learning rate grid. Not `#[non_exhaustive]`: a grid has no other edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// Smallest learning rate.
    Lowest,
    /// Largest learning rate.
    Highest,
    /// Both: only one learning rate was tried.
    Only,
}

/// Range of learning rates at grid resolution: its true ends lie between `low` and `next_below`, and between
/// `high` and `next_above`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LrRange {
    /// Smallest learning rate.
    pub low: f64,
    /// Largest learning rate.
    pub high: f64,
    /// `high / low`: a lower bound, limited by the grid. Not compared across placements.
    pub factor: f64,
    /// Next smaller learning rate tried, which is outside the range; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_below: Option<f64>,
    /// Next larger learning rate tried, which is outside the range; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_above: Option<f64>,
}

/// Comparison of a placement with the baseline, each at its own best learning rate, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Comparison {
    /// Number of common seeds.
    pub pairs: usize,
    /// Mean validation loss of the placement over these seeds, in nats per token.
    pub loss: f64,
    /// Mean validation loss of the baseline over these seeds, in nats per token.
    pub baseline_loss: f64,
    /// Loss of the placement minus that of the baseline: negative is better. The interval has the simultaneous
    /// level `1 - alpha` over all comparisons of the analysis (Bonferroni). It and `p` correct for
    /// [`Best::n_statistically_tied`], so the interval may be asymmetric about the mean. `p` tests for no
    /// difference in this comparison alone.
    pub difference: PairedTest,
    /// p value of the null hypothesis that the true difference is not beyond [`AnalysisRules::margin`], times the
    /// number of comparisons (Bonferroni): below [`AnalysisRules::alpha`] if and only if the interval lies beyond the
    /// margin.
    pub p_adjusted: f64,
    /// As `p_adjusted`, by Holm's correction, which is less conservative but has no corresponding intervals: verdicts
    /// do not use it.
    pub p_holm: f64,
    /// Verdict of the comparison.
    pub verdict: Verdict,
    /// Number of fresh seeds with which a new study detects a true difference of the observed size as beyond
    /// [`AnalysisRules::margin`] with power [`AnalysisRules::power`], assuming the observed standard deviation. A rough
    /// estimate for few seeds. `None` above [`super::stats::MAX_SEEDS`], or if the observed difference is within the
    /// margin. Adding seeds to this study until a difference is significant would raise the false positive rate.
    #[serde(rename = "seeds_to_resolve")]
    pub seeds_for_significance: Option<u64>,
    /// Factor by which the baseline's compute would have to grow to reach the placement's loss, if loss scales
    /// as `irreducible + constant · compute^-exponent` (the form of Kaplan et al. 2020, arXiv 2001.08361, with a
    /// floor): `((L_baseline - irreducible) / (L_placement - irreducible))^(1/exponent)`. `None` if a loss is
    /// not above the irreducible one.
    pub compute_gain: Option<f64>,
    /// Tokens per second, relative to the baseline.
    pub throughput_ratio: Option<f64>,
    /// `compute_gain · throughput_ratio`: the gain in time rather than in compute.
    pub effective_speedup: Option<f64>,
}

/// Verdict of a comparison. Not `#[non_exhaustive]`, so that every `match` on a verdict is checked for exhaustiveness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Loss significantly lower than the baseline's, by more than the margin.
    Better,
    /// Loss significantly higher than the baseline's, by more than the margin.
    Worse,
    /// Difference not significant: none of the other verdicts holds.
    #[serde(rename = "indistinguishable")]
    NotSignificant,
    /// The whole interval lies within the margin, and no learning rate outside the grid, or with failed seeds,
    /// could have a lower loss.
    Equivalent,
}

impl Analysis {
    /// Returns the number of planned comparisons with the baseline, including those that cannot be made.
    pub fn n_planned_comparisons(&self) -> usize {
        let others = self.placements.iter();
        others
            .filter(|entry| entry.placement != self.rules.baseline)
            .count()
    }
}

impl LearningRateSummary {
    /// Returns the number of runs.
    pub fn run_count(&self) -> u64 {
        self.finished + self.diverged + self.not_learned + self.eliminated
    }
}

/// Returns the outcome of each run relative to the other runs of its placement: see
/// [`AnalysisRules::diverged_above_best`].
///
/// ```
/// use hybridnorm::lab::analysis::{AnalysisRules, Outcome, RunOutcome, outcomes};
///
/// let run = |lr, loss| RunOutcome::new("pre-norm", lr, 1, Outcome::Loss(loss));
/// let found = outcomes(&[run(1e-3, 3.0), run(1e-2, 5.9)], &AnalysisRules::default());
/// assert_eq!(found, [Outcome::Loss(3.0), Outcome::Diverged]);
/// ```
pub fn outcomes(runs: &[RunOutcome], rules: &AnalysisRules) -> Vec<Outcome> {
    let sweeps = Sweep::group_by_placement(runs, rules.diverged_above_best);
    let outcome = |run: &RunOutcome| {
        let sweep = sweeps.iter().find(|sweep| sweep.name == run.placement);
        let relative = sweep.and_then(|sweep| sweep.outcome(run.lr, run.seed));
        relative.unwrap_or(run.outcome)
    };
    runs.iter().map(outcome).collect()
}

/// Analyzes runs as a complete study. Never fails: undefined quantities are `None`, with a reason for a missing
/// comparison.
///
/// ```
/// use hybridnorm::lab::analysis::{AnalysisRules, Outcome, RunOutcome, Verdict, analyze, summary_text};
///
/// let mut runs = Vec::new();
/// for (placement, shift) in [("pre-norm", 0.0), ("hybridnorm", -0.1)] {
///     for (lr, above) in [(1e-4, 0.2), (1e-3, 0.0), (1e-2, 0.2)] {
///         for (seed, noise) in [(1, 0.001), (2, -0.002), (3, 0.003)] {
///             let loss = 3.0 + shift + above + noise * (1.0 + shift);
///             runs.push(RunOutcome::new(placement, lr, seed, Outcome::Loss(loss)));
///         }
///     }
/// }
/// let analysis = analyze(&runs, &AnalysisRules::default());
/// let comparison = analysis.placements[1].comparison.as_ref().unwrap();
/// assert_eq!(comparison.verdict, Verdict::Better);
/// assert!(summary_text(&analysis)[0].starts_with("hybridnorm has the lowest mean validation loss"));
/// ```
pub fn analyze(runs: &[RunOutcome], rules: &AnalysisRules) -> Analysis {
    analyze_planned(runs, runs.len(), 0, rules)
}

/// As [`analyze`], for one group of a study, of which `planned` runs are planned and whose other groups lack
/// `missing_in_other_groups` runs.
///
/// While a run is missing in any group, nothing is compared in any group, since runs need not be missing at
/// random.
pub fn analyze_planned(
    runs: &[RunOutcome],
    planned: usize,
    missing_in_other_groups: usize,
    rules: &AnalysisRules,
) -> Analysis {
    let sweeps = Sweep::group_by_placement(runs, rules.diverged_above_best);
    let loss_cap = (rules.loss_cap).or_else(|| {
        let means = sweeps.iter().flat_map(Sweep::mean_losses);
        means.max_by(f64::total_cmp)
    });
    let mut placements: Vec<PlacementSummary> = sweeps
        .iter()
        .map(|sweep| sweep.summary(rules, loss_cap))
        .collect();
    let recorded = runs.len();
    let is_complete = recorded >= planned && missing_in_other_groups == 0;
    if is_complete {
        compare::all(&sweeps, &mut placements, rules);
    } else {
        let reason = match recorded < planned {
            true => format!("incomplete: {recorded} of {planned} runs"),
            false => {
                format!("incomplete: {missing_in_other_groups} runs of other groups are missing")
            }
        };
        for placement in &mut placements {
            if placement.placement != rules.baseline {
                placement.no_comparison_reason = Some(reason.clone());
            }
        }
    }
    Analysis {
        rules: rules.clone(),
        planned,
        recorded,
        complete: is_complete,
        missing: planned.saturating_sub(recorded),
        placements,
    }
}
