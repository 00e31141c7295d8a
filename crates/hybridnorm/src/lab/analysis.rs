//! From the runs of a study to what they say.
//!
//! Each placement is judged at its own best learning rate, and compared with the baseline seed by
//! seed, since runs with the same seed share initial values and batches. Three kinds of luck are
//! accounted for: that of the seeds by a t-test, that of choosing the learning rate on the same
//! seeds by [`stats::paired_of_best`](super::stats::paired_of_best), and that of having many placements
//! by Bonferroni's correction. Verdicts are read off the intervals, which are corrected so, too: words
//! and intervals cannot contradict each other.
//!
//! No verdict is given while runs are missing, and none that a learning rate outside those tried, or
//! one at which some seeds were lost, could turn around.
//!
//! Choosing each seed's rate on the other seeds would not do instead: losses so chosen are correlated
//! from seed to seed, and where curves are flat it finds differences that do not exist more than twice
//! as often as it should (`simpler_tests_claim_too_much` in the tests).

mod compare;
mod rules;
mod show;
mod sweep;
mod words;

#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::stats::{Paired, Summary};
pub use rules::Rules;
use sweep::Sweep;
pub use words::{sentence, verdict};

/// One run as the statistics see it.
///
/// There is at most one for each placement, learning rate and seed; of several, the last counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Name of the placement.
    pub placement: String,
    /// Peak learning rate.
    pub lr: f64,
    /// Runs with the same seed share initial values and batches.
    pub seed: u64,
    /// How it ended.
    pub result: Outcome,
    /// Training throughput; 0 if it is not known.
    pub tokens_per_second: f64,
    /// Spikes of its training loss.
    pub spikes: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With this validation loss, in nats per token. One that is not finite counts as diverged.
    Loss(f64),
    /// With this validation loss, without having learned more than token frequencies yet: a matter of
    /// the study's budget, no failure.
    NotLearned(f64),
    /// It was lost: its numbers stopped being finite, it lost what it had learned, or it ended far
    /// above the best of its placement.
    Diverged,
    /// Successive halving left it out.
    Halved,
}

/// What the runs of a study say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// By which rules.
    pub rules: Rules,
    /// Runs that the study consists of.
    pub planned: usize,
    /// Runs that are recorded.
    pub recorded: usize,
    /// True if no run is missing. Otherwise nothing is compared.
    pub complete: bool,
    /// Runs that are planned and not recorded.
    pub missing: usize,
    /// One entry a placement, in the order of their first runs.
    pub placements: Vec<PlacementSummary>,
}

/// What the runs of one placement say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementSummary {
    /// Its name.
    pub placement: String,
    /// One entry a learning rate, ascending.
    pub rates: Vec<RateSummary>,
    /// The learning rate with the lowest mean loss, of those judged on equal seeds: where no seed
    /// was lost, had not learned yet or was left out, and as many finished as at any other such rate, the same ones.
    pub best: Option<Best>,
    /// The largest learning rate tried such that no seed was lost at it or at a smaller one. A run that
    /// halving left out was not lost as far as it went; a rate at which it left out all of them does not
    /// count.
    pub largest_stable_lr: Option<f64>,
    /// The unbroken run of learning rates around the best whose mean loss is at most
    /// [`Rules::tolerance`] above the best one's. Rates not judged on equal seeds end it, so that it
    /// is a lower bound where halving left runs out.
    pub tolerance: Option<Span>,
    /// Sensitivity to the learning rate (Wortsman et al. 2023, arXiv 2309.14322), in nats: the mean
    /// over the rates tried of `min(loss, loss cap) - best loss`, where a diverged seed counts as the
    /// cap; see [`Rules::loss_cap`]. `None` without a best rate, and where halving left runs out,
    /// since the losses at those rates are not known. Comparable only over the same rates.
    pub lr_sensitivity: Option<f64>,
    /// Loss spikes in all runs together.
    pub spikes: u64,
    /// Runs with at least one loss spike.
    pub spiked_runs: u64,
    /// Training throughput: the median over runs.
    pub tokens_per_second: Option<f64>,
    /// Against the baseline.
    pub against: Option<Comparison>,
    /// Why there is no comparison. `None` also for the baseline.
    pub why_not: Option<String>,
}

/// How the runs of a placement at one learning rate ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSummary {
    /// Peak learning rate.
    pub lr: f64,
    /// Runs that finished.
    pub finished: u64,
    /// Runs that were lost; the same as `lost`.
    pub diverged: u64,
    /// Runs that were lost.
    #[serde(default)]
    pub lost: u64,
    /// Runs that had not learned yet at their end.
    #[serde(default)]
    pub not_learned: u64,
    /// Runs that successive halving left out.
    pub halved: u64,
    /// Validation loss of the finished runs, in nats per token.
    pub loss: Option<Summary>,
}

/// A placement at its best learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Peak learning rate.
    pub lr: f64,
    /// Validation loss there, in nats per token. Chosen for being low, it is a little too low.
    pub loss: Summary,
    /// Where it is the smallest, the largest or the only one of the rates tried, a better one may lie
    /// beyond.
    pub at_edge: Option<Edge>,
    /// Learning rates that may be as good, itself included, for all the seeds can tell: those whose
    /// mean loss is not above the best one's by a t-test at 0.01, and those that halving left out.
    /// The luck of being the best of so many is what comparisons allow for.
    pub contenders: usize,
}

/// An end of the learning rates tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// The smallest.
    Lowest,
    /// The largest.
    Highest,
    /// Both: no other was tried.
    Only,
}

/// A range of learning rates, as far as the grid tells: its true ends lie between `low` and
/// `next_below`, and between `high` and `next_above`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Smallest.
    pub low: f64,
    /// Largest.
    pub high: f64,
    /// `high / low`: a lower bound, limited by the grid. Spans of placements are not compared.
    pub factor: f64,
    /// The next smaller rate tried, which is outside, or was left out by successive halving; `None` where
    /// none was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_below: Option<f64>,
    /// The next larger rate tried, which is outside, or was left out by successive halving; `None` where
    /// none was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_above: Option<f64>,
}

/// A placement against the baseline, each at its own best learning rate, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Seeds that both have.
    pub pairs: usize,
    /// Mean validation loss of the placement over these seeds, in nats per token.
    pub loss: f64,
    /// The same of the baseline.
    pub baseline_loss: f64,
    /// Loss of the placement minus that of the baseline: negative is better. The interval has the
    /// level `1 - alpha` for all comparisons of the analysis together (Bonferroni). It and `p` allow for
    /// [`Best::contenders`], so that the ends may differ in their distance from the mean. `p` is that of
    /// no difference, of this comparison alone.
    pub difference: Paired,
    /// Probability of such a difference where the true one is not beyond [`Rules::margin`], times the
    /// number of comparisons (Bonferroni): below [`Rules::alpha`] exactly if the interval lies beyond
    /// the margin.
    pub p_adjusted: f64,
    /// The same by Holm's correction, which is less strict and has no intervals of its own: verdicts do
    /// not go by it.
    pub p_holm: f64,
    /// What can be claimed.
    pub verdict: Verdict,
    /// Fresh seeds with which, in a new study, a true difference as large as the one seen is found to be
    /// beyond [`Rules::margin`] with probability [`Rules::power`], if its standard deviation is the one
    /// seen. From few seeds it is a rough guess. `None` above [`super::stats::MOST_SEEDS`], or if the
    /// difference seen is within the margin. Adding seeds to this study until something is found would
    /// raise the probability of a false claim.
    pub seeds_to_resolve: Option<u64>,
    /// By what factor the baseline's compute would have to grow for the placement's loss, if loss
    /// falls as `irreducible + constant · compute^-exponent` (the form of Kaplan et al. 2020, arXiv
    /// 2001.08361, with a floor): `((L_baseline - irreducible) / (L_placement - irreducible))^(1/exponent)`.
    /// `None` if a loss is not above the irreducible one.
    pub compute_gain: Option<f64>,
    /// Tokens per second over those of the baseline.
    pub throughput_ratio: Option<f64>,
    /// `compute_gain · throughput_ratio`: the gain in time rather than in compute.
    pub effective_speedup: Option<f64>,
}

/// What a comparison claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Loss lower than the baseline's by more than the margin, and not by chance.
    Better,
    /// Loss higher than the baseline's by more than the margin, and not by chance.
    Worse,
    /// None of the others can be claimed.
    Indistinguishable,
    /// The whole interval lies within the margin, and no learning rate stands against it that was not
    /// tried or at which seeds were lost.
    Equivalent,
}

impl Analysis {
    /// Comparisons with the baseline that the study is for, those that cannot be made included.
    pub fn comparisons(&self) -> usize {
        let others = self.placements.iter();
        others
            .filter(|entry| entry.placement != self.rules.baseline)
            .count()
    }
}

impl RateSummary {
    /// All runs.
    pub fn runs(&self) -> u64 {
        self.finished + self.diverged + self.not_learned + self.halved
    }
}

/// How each run ended, seen beside the others of its placement: see [`Rules::lost_above`].
pub fn outcomes(points: &[Point], rules: &Rules) -> Vec<Outcome> {
    let sweeps = Sweep::all(points, rules.lost_above);
    let outcome = |point: &Point| {
        let sweep = sweeps.iter().find(|sweep| sweep.name == point.placement);
        let judged = sweep.and_then(|sweep| sweep.outcome(point.lr, point.seed));
        judged.unwrap_or(point.result)
    };
    points.iter().map(outcome).collect()
}

/// Judges runs by rules, as a complete study. It never fails: what cannot be said is `None`, with a
/// reason where a comparison is missing.
pub fn analyse(points: &[Point], rules: &Rules) -> Analysis {
    analyse_planned(points, points.len(), rules)
}

/// As [`analyse`], of a study with `planned` runs. While fewer are recorded, nothing is compared: which
/// runs are missing need not be chance.
pub fn analyse_planned(points: &[Point], planned: usize, rules: &Rules) -> Analysis {
    analyse_group(points, planned, 0, rules)
}

/// As [`analyse_planned`], of one group of runs of a study whose other groups lack `missing_elsewhere` runs:
/// while one is missing in any group, nothing is compared in any.
pub fn analyse_group(
    points: &[Point],
    planned: usize,
    missing_elsewhere: usize,
    rules: &Rules,
) -> Analysis {
    let sweeps = Sweep::all(points, rules.lost_above);
    let loss_cap = (rules.loss_cap).or_else(|| {
        let means = sweeps.iter().flat_map(Sweep::mean_losses);
        means.max_by(f64::total_cmp)
    });
    let mut placements: Vec<PlacementSummary> = sweeps
        .iter()
        .map(|sweep| sweep.summary(rules, loss_cap))
        .collect();
    let recorded = points.len();
    let is_complete = recorded >= planned && missing_elsewhere == 0;
    if !is_complete {
        let reason = match recorded < planned {
            true => format!("incomplete: {recorded} of {planned} runs"),
            false => format!("incomplete: {missing_elsewhere} runs of other groups are missing"),
        };
        for placement in &mut placements {
            if placement.placement != rules.baseline {
                placement.why_not = Some(reason.clone());
            }
        }
    } else {
        compare::all(&sweeps, &mut placements, rules);
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
