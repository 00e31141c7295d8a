//! From the runs of a study to what they say.
//!
//! Each placement is judged at its own best learning rate, and compared with the baseline seed by
//! seed, since runs with the same seed share initial values and batches. Three kinds of luck are
//! accounted for: that of the seeds by a t-test, that of choosing the learning rate on the same
//! seeds by [`stats::paired_of_best`], and that of having many placements by Holm's correction.
//!
//! Choosing each seed's rate on the other seeds would not do instead: losses so chosen are correlated
//! from seed to seed, and where curves are flat it finds differences that do not exist more than twice
//! as often as it should (`simpler_tests_claim_too_much` in the tests).

mod show;
mod sweep;
mod words;

#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::stats::{self, Paired, Summary};
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
    /// It stopped learning, or its numbers stopped being finite.
    Diverged,
    /// Successive halving left it out.
    Halved,
}

/// By which rules runs are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The placement with which all others are compared.
    pub baseline: String,
    /// Largest probability of any false claim that a placement is better or worse; confidence
    /// intervals have the level `1 - alpha`.
    pub alpha: f64,
    /// Probability with which [`Comparison::seeds_to_resolve`] seeds find a difference.
    pub power: f64,
    /// How far above its best loss a placement may be within its tolerance, in nats.
    pub tolerance: f64,
    /// Loss that no amount of compute goes below, in nats; see [`Comparison::compute_gain`].
    pub irreducible_loss: f64,
    /// Exponent of compute in the law of [`Comparison::compute_gain`].
    pub compute_exponent: f64,
    /// What a diverged run counts as in [`PlacementSummary::lr_sensitivity`], in nats, and the most
    /// any run counts as; `None`: the largest mean loss at any placement and learning rate. Its
    /// authors took the loss at initialization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_cap: Option<f64>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            baseline: "pre-norm".to_owned(),
            alpha: 0.05,
            power: 0.8,
            tolerance: 0.05,
            irreducible_loss: 1.6,
            compute_exponent: 0.0941,
            loss_cap: None,
        }
    }
}

impl Rules {
    /// What is wrong with them, in one line that names the key. Where something is, [`analyse`]
    /// compares nothing and gives it as the reason.
    pub fn problem(&self) -> Option<String> {
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let checks = [
            (
                "alpha",
                self.alpha,
                self.alpha > 0.0 && self.alpha < 1.0,
                "must lie between 0 and 1",
            ),
            (
                "power",
                self.power,
                (0.5..1.0).contains(&self.power),
                "must be at least 0.5 and below 1",
            ),
            (
                "tolerance",
                self.tolerance,
                not_negative(self.tolerance),
                "must not be negative",
            ),
            (
                "irreducible_loss",
                self.irreducible_loss,
                not_negative(self.irreducible_loss),
                "must not be negative",
            ),
            (
                "compute_exponent",
                self.compute_exponent,
                not_negative(self.compute_exponent) && self.compute_exponent > 0.0,
                "must be above 0",
            ),
            (
                "loss_cap",
                self.loss_cap.unwrap_or_default(),
                self.loss_cap.is_none_or(not_negative),
                "must not be negative",
            ),
        ];
        let (key, value, _, expected) = checks.into_iter().find(|(_, _, right, _)| !right)?;
        Some(format!("{key} = {value} {expected}"))
    }
}

/// What the runs of a study say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// By which rules.
    pub rules: Rules,
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
    /// diverged or was left out, and as many finished as at any other such rate, the same ones.
    pub best: Option<Best>,
    /// The largest learning rate such that no seed diverged at it or at a smaller one. A run that
    /// halving left out did not diverge as far as it went.
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
    /// Runs that diverged.
    pub diverged: u64,
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
    /// Where it is the smallest or the largest of several rates tried, a better one may lie beyond.
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
}

/// A range of learning rates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Smallest.
    pub low: f64,
    /// Largest.
    pub high: f64,
    /// `high / low`.
    pub factor: f64,
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
    /// Loss of the placement minus that of the baseline: negative is better. `p` and the interval
    /// allow for [`Best::contenders`], so that the ends may differ in their distance from the mean.
    pub difference: Paired,
    /// `p` by Holm's correction for all comparisons of the analysis.
    pub p_holm: f64,
    /// What can be claimed.
    pub verdict: Verdict,
    /// Seeds with which a true difference as large as the one seen is found with probability
    /// [`Rules::power`], if its standard deviation is the one seen: at [`Rules::alpha`] divided by
    /// the number of comparisons, which is the strictest that Holm's correction asks for. From few
    /// seeds it is a rough guess. `None` above [`stats::MOST_SEEDS`], or if no difference was seen.
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
    /// Lower loss than the baseline, and not by chance.
    Better,
    /// Higher loss than the baseline, and not by chance.
    Worse,
    /// Neither can be claimed.
    Indistinguishable,
}

/// Judges runs by rules. It never fails: what cannot be said is `None`, with a reason where a
/// comparison is missing.
pub fn analyse(points: &[Point], rules: &Rules) -> Analysis {
    let sweeps = Sweep::all(points);
    let loss_cap = (rules.loss_cap).or_else(|| {
        let means = sweeps.iter().flat_map(Sweep::mean_losses);
        means.max_by(f64::total_cmp)
    });
    let mut placements: Vec<PlacementSummary> = sweeps
        .iter()
        .map(|sweep| sweep.summary(rules, loss_cap))
        .collect();

    let baseline = sweeps.iter().find(|sweep| sweep.name == rules.baseline);
    let mut tests = Vec::new();
    for (index, sweep) in sweeps.iter().enumerate() {
        if sweep.name == rules.baseline {
            continue;
        }
        match Test::of(sweep, baseline, rules) {
            Ok(test) => tests.push((index, test)),
            Err(reason) => placements[index].why_not = Some(reason),
        }
    }
    let p: Vec<f64> = tests.iter().map(|(_, test)| test.difference.p).collect();
    let baseline_throughput = (placements.iter())
        .find(|placement| placement.placement == rules.baseline)
        .and_then(|placement| placement.tokens_per_second);
    for ((index, test), p_holm) in tests.iter().zip(stats::holm(&p)) {
        let placement = &mut placements[*index];
        let ratio = (placement.tokens_per_second)
            .zip(baseline_throughput)
            .map(|(ours, theirs)| ours / theirs);
        placement.against = Some(test.comparison(p_holm, p.len(), ratio, rules));
    }
    Analysis {
        rules: rules.clone(),
        placements,
    }
}

/// A comparison before those of other placements are known.
struct Test {
    loss: f64,
    baseline_loss: f64,
    difference: Paired,
    contenders: usize,
}

impl Test {
    fn of(sweep: &Sweep, baseline: Option<&Sweep>, rules: &Rules) -> Result<Self, String> {
        if let Some(problem) = rules.problem() {
            return Err(problem);
        }
        let baseline = baseline.ok_or("the study has no runs of the baseline")?;
        let best = sweep
            .best()
            .ok_or("no learning rate at which every seed finished")?;
        let theirs = baseline
            .best()
            .ok_or("the baseline has no learning rate at which every seed finished")?;
        let pairs: Vec<(f64, f64)> = best.pairs(theirs).collect();
        let differences: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours - theirs).collect();
        let level = 1.0 - rules.alpha;
        let (first_of, second_of) = (sweep.contenders(), baseline.contenders());
        let difference = stats::paired_of_best(&differences, level, first_of, second_of)
            .ok_or("fewer than 2 seeds in common with the baseline")?;
        let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let mean = |losses: Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
        Ok(Self {
            loss: mean(ours),
            baseline_loss: mean(theirs),
            difference,
            contenders: if difference.mean < 0.0 {
                first_of
            } else {
                second_of
            },
        })
    }

    fn comparison(
        &self,
        p_holm: f64,
        comparisons: usize,
        throughput_ratio: Option<f64>,
        rules: &Rules,
    ) -> Comparison {
        let Paired { n, mean, sd, .. } = self.difference;
        let verdict = match p_holm < rules.alpha {
            true if mean < 0.0 => Verdict::Better,
            true => Verdict::Worse,
            false => Verdict::Indistinguishable,
        };
        let reducible = |loss: f64| {
            let left = loss - rules.irreducible_loss;
            (left > 0.0).then_some(left)
        };
        let compute_gain = reducible(self.baseline_loss)
            .zip(reducible(self.loss))
            .map(|(theirs, ours)| (theirs / ours).powf(rules.compute_exponent.recip()))
            .filter(|gain| gain.is_finite());
        Comparison {
            pairs: n,
            loss: self.loss,
            baseline_loss: self.baseline_loss,
            difference: self.difference,
            p_holm,
            verdict,
            seeds_to_resolve: stats::seeds_needed_of_best(
                mean,
                sd,
                rules.alpha / comparisons as f64,
                rules.power,
                self.contenders,
            ),
            compute_gain,
            throughput_ratio,
            effective_speedup: compute_gain.zip(throughput_ratio).map(|(a, b)| a * b),
        }
    }
}
