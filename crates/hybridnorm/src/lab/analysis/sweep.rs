//! Runs of one placement over learning rates and seeds.

use std::collections::BTreeMap;

use super::super::stats::{self, Summary};
use super::{
    AnalysisRules, Best, Edge, LearningRateSummary, LrRange, Outcome, PlacementSummary, RunOutcome,
};

/// Probability of excluding a learning rate that is as good as the best. Smaller than any usual α, so that this
/// error hardly adds to that of the comparison.
const TIE_ALPHA: f64 = 0.01;

/// All runs of a placement.
pub(super) struct Sweep<'a> {
    pub name: &'a str,
    runs: Vec<&'a RunOutcome>,
    /// By ascending learning rate.
    learning_rates: Vec<LearningRateRuns>,
    /// Indices of the learning rates compared on equal seeds.
    candidates: Vec<usize>,
    best: Option<usize>,
}

/// All runs of a placement at one learning rate.
pub(super) struct LearningRateRuns {
    lr: f64,
    /// Outcomes by seed.
    runs: BTreeMap<u64, Outcome>,
}

impl LearningRateRuns {
    fn count(&self, is_counted: impl Fn(Outcome) -> bool) -> usize {
        self.runs
            .values()
            .filter(|&&outcome| is_counted(outcome))
            .count()
    }

    fn diverged(&self) -> usize {
        self.count(|outcome| outcome == Outcome::Diverged)
    }

    fn not_learned(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::NotLearned(_)))
    }

    fn eliminated(&self) -> usize {
        self.count(|outcome| outcome == Outcome::Eliminated)
    }

    fn finished(&self) -> impl Iterator<Item = (u64, f64)> {
        self.runs
            .iter()
            .filter_map(|(&seed, &outcome)| match outcome {
                Outcome::Loss(loss) => Some((seed, loss)),
                Outcome::NotLearned(_) | Outcome::Diverged | Outcome::Eliminated => None,
            })
    }

    /// Returns the losses of the finished runs, by ascending seed.
    fn losses(&self) -> Vec<f64> {
        self.finished().map(|(_, loss)| loss).collect()
    }

    fn loss(&self) -> Option<Summary> {
        Summary::of(&self.losses())
    }

    /// Returns the lower median loss over all seeds; seeds without a loss count as infinite.
    fn median(&self) -> f64 {
        let loss = |outcome: &Outcome| match *outcome {
            Outcome::Loss(loss) => loss,
            _ => f64::INFINITY,
        };
        let mut losses: Vec<f64> = self.runs.values().map(loss).collect();
        losses.sort_by(f64::total_cmp);
        losses[(losses.len() - 1) / 2]
    }

    fn mean(&self) -> Option<f64> {
        self.loss().map(|loss| loss.mean)
    }

    /// Returns the losses of the seeds that finished in both, by ascending seed.
    pub fn pairs(&self, other: &Self) -> impl Iterator<Item = (f64, f64)> {
        self.finished()
            .filter_map(|(seed, loss)| match other.runs.get(&seed) {
                Some(&Outcome::Loss(theirs)) => Some((loss, theirs)),
                _ => None,
            })
    }

    fn summary(&self) -> LearningRateSummary {
        LearningRateSummary {
            lr: self.lr,
            finished: self.finished().count() as u64,
            diverged: self.diverged() as u64,
            lost: self.diverged() as u64,
            not_learned: self.not_learned() as u64,
            eliminated: self.eliminated() as u64,
            loss: self.loss(),
        }
    }
}

impl<'a> Sweep<'a> {
    /// Returns one sweep per placement, in order of first appearance.
    pub fn group_by_placement(runs: &'a [RunOutcome], diverged_above_best: f64) -> Vec<Self> {
        let mut groups: Vec<(&str, Vec<&RunOutcome>)> = Vec::new();
        for run in runs {
            match groups.iter_mut().find(|(name, _)| *name == run.placement) {
                Some((_, group)) => group.push(run),
                None => groups.push((&run.placement, vec![run])),
            }
        }
        let sweep = |(name, runs)| Self::of(name, runs, diverged_above_best);
        groups.into_iter().map(sweep).collect()
    }

    fn of(name: &'a str, runs: Vec<&'a RunOutcome>, diverged_above_best: f64) -> Self {
        let mut learning_rates: Vec<LearningRateRuns> = Vec::new();
        for run in &runs {
            let outcome = match run.outcome {
                Outcome::Loss(loss) | Outcome::NotLearned(loss) if !loss.is_finite() => {
                    Outcome::Diverged
                }
                other => other,
            };
            let index = match learning_rates
                .iter()
                .position(|lr_runs| lr_runs.lr == run.lr)
            {
                Some(index) => index,
                None => {
                    learning_rates.push(LearningRateRuns {
                        lr: run.lr,
                        runs: BTreeMap::new(),
                    });
                    learning_rates.len() - 1
                }
            };
            learning_rates[index].runs.insert(run.seed, outcome);
        }
        learning_rates.sort_by(|a, b| a.lr.total_cmp(&b.lr));
        mark_diverged(&mut learning_rates, diverged_above_best);
        let candidates = candidates(&learning_rates);
        let mean = |index: &usize| learning_rates[*index].mean().unwrap_or(f64::INFINITY);
        let best = (candidates.iter().copied()).min_by(|a, b| mean(a).total_cmp(&mean(b)));
        Self {
            name,
            runs,
            learning_rates,
            candidates,
            best,
        }
    }

    /// Returns the outcome of a run.
    pub fn outcome(&self, lr: f64, seed: u64) -> Option<Outcome> {
        let lr_runs = self
            .learning_rates
            .iter()
            .find(|lr_runs| lr_runs.lr == lr)?;
        lr_runs.runs.get(&seed).copied()
    }

    /// Returns the runs at the best learning rate.
    pub fn best(&self) -> Option<&LearningRateRuns> {
        self.best.map(|index| &self.learning_rates[index])
    }

    /// Returns the reason why there is no best learning rate.
    pub fn no_best_reason(&self) -> &'static str {
        let learned = |lr_runs: &LearningRateRuns| lr_runs.not_learned() < lr_runs.runs.len();
        match self.learning_rates.iter().any(learned) {
            true => "no learning rate at which every seed finished",
            false => "not learned yet at any learning rate: the study's budget is too short",
        }
    }

    /// Returns the edge of the grid at which the best learning rate lies, if any.
    pub fn edge(&self) -> Option<Edge> {
        self.edge_at(self.best?)
    }

    /// Returns the edge of the grid at which a learning rate lies, if any.
    fn edge_at(&self, index: usize) -> Option<Edge> {
        match index {
            _ if self.learning_rates.len() == 1 => Some(Edge::Only),
            0 => Some(Edge::Lowest),
            index if index + 1 == self.learning_rates.len() => Some(Edge::Highest),
            _ => None,
        }
    }

    /// Returns an edge of the grid whose mean loss is within `margin` of the best, and its learning rate. Such a
    /// difference is not relevant, so the best learning rate may lie beyond that edge.
    pub fn edge_within(&self, margin: f64) -> Option<(Edge, f64)> {
        let best = self.best?;
        let limit = self.learning_rates[best].mean()? + margin;
        let reaches = |index: &usize| {
            self.candidates.contains(index)
                && self.learning_rates[*index]
                    .mean()
                    .is_some_and(|mean| mean <= limit)
        };
        let mut ends = [best, self.learning_rates.len() - 1, 0]
            .into_iter()
            .filter(reaches);
        ends.find_map(|index| Some((self.edge_at(index)?, self.learning_rates[index].lr)))
    }

    /// Returns a learning rate at which some seeds failed and the mean loss of the remaining ones is below that
    /// of the same seeds at the best learning rate.
    pub fn lower_loss_with_failed_seeds(&self) -> Option<f64> {
        let best = self.best()?;
        let is_better = |lr_runs: &&LearningRateRuns| {
            let differences: Vec<f64> = lr_runs
                .pairs(best)
                .map(|(ours, best)| ours - best)
                .collect();
            let failed = lr_runs.diverged() + lr_runs.not_learned() > 0;
            failed && differences.iter().sum::<f64>() < 0.0
        };
        self.learning_rates
            .iter()
            .find(is_better)
            .map(|lr_runs| lr_runs.lr)
    }

    /// Returns the mean loss at each learning rate that has one.
    pub fn mean_losses(&self) -> impl Iterator<Item = f64> {
        self.learning_rates
            .iter()
            .filter_map(LearningRateRuns::mean)
    }

    /// Returns the number of statistically tied learning rates; see [`Best::n_statistically_tied`].
    ///
    /// The noise is the interaction of learning rates and seeds in the better half of the learning rates: a
    /// common seed effect does not influence the choice, and bad learning rates are often noisier.
    pub fn n_statistically_tied(&self) -> usize {
        let eliminated = self
            .learning_rates
            .iter()
            .filter(|lr_runs| lr_runs.eliminated() > 0)
            .count();
        let mut rows: Vec<(f64, Vec<f64>)> = (self.candidates.iter())
            .filter_map(|&index| {
                Some((
                    self.learning_rates[index].mean()?,
                    self.learning_rates[index].losses(),
                ))
            })
            .collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let better = &rows[..(rows.len() / 2 + 1).min(rows.len())];
        match least_significant_difference(better) {
            None => rows.len() + eliminated,
            Some(limit) => {
                let is_tied = |row: &&(f64, Vec<f64>)| row.0 - rows[0].0 <= limit;
                rows.iter().filter(is_tied).count() + eliminated
            }
        }
    }

    /// Returns the summary without the comparison.
    pub fn summary(&self, rules: &AnalysisRules, loss_cap: Option<f64>) -> PlacementSummary {
        let throughputs: Vec<f64> = (self.runs.iter())
            .map(|run| run.tokens_per_second)
            .filter(|throughput| throughput.is_finite() && *throughput > 0.0)
            .collect();
        let spikes = self.runs.iter().map(|run| run.spikes);
        PlacementSummary {
            placement: self.name.to_owned(),
            learning_rates: self
                .learning_rates
                .iter()
                .map(LearningRateRuns::summary)
                .collect(),
            best: self.best_summary(),
            largest_stable_lr: (self.learning_rates.iter())
                .take_while(|lr_runs| lr_runs.diverged() == 0)
                // If all runs were eliminated, they might have diverged later.
                .filter(|lr_runs| lr_runs.eliminated() < lr_runs.runs.len())
                .last()
                .map(|lr_runs| lr_runs.lr),
            lr_tolerance: self.lr_tolerance(rules.tolerance),
            lr_sensitivity: loss_cap.and_then(|cap| self.lr_sensitivity(cap)),
            spikes: spikes.clone().sum(),
            spiked_runs: spikes.filter(|&count| count > 0).count() as u64,
            tokens_per_second: stats::median(&throughputs),
            comparison: None,
            no_comparison_reason: None,
        }
    }

    fn best_summary(&self) -> Option<Best> {
        let index = self.best?;
        Some(Best {
            lr: self.learning_rates[index].lr,
            loss: self.learning_rates[index].loss()?,
            at_edge: self.edge(),
            n_statistically_tied: self.n_statistically_tied(),
        })
    }

    fn lr_tolerance(&self, tolerance: f64) -> Option<LrRange> {
        let best = self.best?;
        let limit = self.learning_rates[best].mean()? + tolerance;
        let within = |index: &usize| {
            let mean = self.learning_rates[*index].mean();
            self.candidates.contains(index) && mean.is_some_and(|mean| mean <= limit)
        };
        let low = (0..best).rev().take_while(within).last().unwrap_or(best);
        let high = (best + 1..self.learning_rates.len())
            .take_while(within)
            .last()
            .unwrap_or(best);
        let lr = |index: usize| self.learning_rates.get(index).map(|lr_runs| lr_runs.lr);
        let (next_below, next_above) = (low.checked_sub(1).and_then(lr), lr(high + 1));
        let (low, high) = (self.learning_rates[low].lr, self.learning_rates[high].lr);
        Some(LrRange {
            low,
            high,
            factor: high / low,
            next_below,
            next_above,
        })
    }

    fn lr_sensitivity(&self, cap: f64) -> Option<f64> {
        if self
            .learning_rates
            .iter()
            .any(|lr_runs| lr_runs.eliminated() > 0)
        {
            return None;
        }
        let best = self.best()?.mean()?.min(cap);
        let regret = |lr_runs: &LearningRateRuns| {
            let losses = lr_runs.runs.values().map(|outcome| match outcome {
                Outcome::Loss(loss) | Outcome::NotLearned(loss) => loss.min(cap),
                Outcome::Diverged | Outcome::Eliminated => cap,
            });
            losses.sum::<f64>() / lr_runs.runs.len() as f64 - best
        };
        Some(self.learning_rates.iter().map(regret).sum::<f64>() / self.learning_rates.len() as f64)
    }
}

/// Marks runs as diverged whose final loss is far above the best median, at its learning rate or a larger one:
/// see [`AnalysisRules::diverged_above_best`]. At smaller learning rates, a high loss means slow training.
fn mark_diverged(learning_rates: &mut [LearningRateRuns], diverged_above_best: f64) {
    let medians = learning_rates
        .iter()
        .map(LearningRateRuns::median)
        .enumerate();
    let Some((first, best)) = medians.min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return;
    };
    for outcome in learning_rates[first..]
        .iter_mut()
        .flat_map(|lr_runs| lr_runs.runs.values_mut())
    {
        if let Outcome::Loss(loss) | Outcome::NotLearned(loss) = *outcome
            && loss > best + diverged_above_best
        {
            *outcome = Outcome::Diverged;
        }
    }
}

/// Returns the indices of the learning rates compared on equal seeds: every seed finished, and the set of seeds
/// is the largest; of equally large sets, the most frequent one.
fn candidates(learning_rates: &[LearningRateRuns]) -> Vec<usize> {
    let complete: Vec<usize> = (0..learning_rates.len())
        .filter(|&index| {
            learning_rates[index].finished().count() == learning_rates[index].runs.len()
        })
        .collect();
    let same = |a: usize, b: usize| {
        learning_rates[a]
            .runs
            .keys()
            .eq(learning_rates[b].runs.keys())
    };
    let sharing = |a: usize| -> Vec<usize> {
        let others = complete.iter().copied();
        others.filter(|&b| same(a, b)).collect()
    };
    // `max_by_key` takes the last maximum: reversed, that is the smallest learning rate.
    let largest =
        (complete.iter().rev()).max_by_key(|&&a| (learning_rates[a].runs.len(), sharing(a).len()));
    largest.map(|&index| sharing(index)).unwrap_or_default()
}

/// Returns the least significant difference of two means; `None` if the noise cannot be estimated.
/// Rows are learning rates with their mean, columns are seeds.
fn least_significant_difference(rows: &[(f64, Vec<f64>)]) -> Option<f64> {
    let seeds = rows.first()?.1.len();
    let degrees_of_freedom = (rows.len() - 1) * seeds.saturating_sub(1);
    let critical = stats::t_critical(TIE_ALPHA, degrees_of_freedom)?;
    let mut squares = 0.0;
    for seed in 0..seeds {
        let above = |(mean, losses): &(f64, Vec<f64>)| losses[seed] - mean;
        let shared = rows.iter().map(above).sum::<f64>() / rows.len() as f64;
        squares += rows
            .iter()
            .map(|row| (above(row) - shared).powi(2))
            .sum::<f64>();
    }
    let noise = (squares / degrees_of_freedom as f64).sqrt();
    Some(critical * noise * (2.0 / seeds as f64).sqrt())
}
