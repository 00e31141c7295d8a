//! One placement's runs over learning rates and seeds.

use std::collections::BTreeMap;

use super::super::stats::{self, Summary};
use super::{Best, Edge, Outcome, PlacementSummary, Point, RateSummary, Rules, Span};

/// Probability with which a rate that is as good as the best is taken for worse. Smaller than any
/// usual α, so that the mistake hardly adds to that of the comparison.
const MISSED: f64 = 0.01;

/// All runs of a placement.
pub(super) struct Sweep<'a> {
    pub name: &'a str,
    points: Vec<&'a Point>,
    /// Ascending.
    rates: Vec<Rate>,
    /// Indices of the rates that are judged on equal seeds.
    candidates: Vec<usize>,
    best: Option<usize>,
}

/// All runs of a placement at one learning rate.
pub(super) struct Rate {
    lr: f64,
    /// By seed.
    runs: BTreeMap<u64, Outcome>,
}

impl Rate {
    fn count(&self, wanted: impl Fn(Outcome) -> bool) -> usize {
        self.runs
            .values()
            .filter(|&&outcome| wanted(outcome))
            .count()
    }

    fn diverged(&self) -> usize {
        self.count(|outcome| outcome == Outcome::Diverged)
    }

    fn halved(&self) -> usize {
        self.count(|outcome| outcome == Outcome::Halved)
    }

    fn finished(&self) -> impl Iterator<Item = (u64, f64)> {
        self.runs
            .iter()
            .filter_map(|(&seed, &outcome)| match outcome {
                Outcome::Loss(loss) => Some((seed, loss)),
                Outcome::Diverged | Outcome::Halved => None,
            })
    }

    /// Losses of the finished runs, by ascending seed.
    fn losses(&self) -> Vec<f64> {
        self.finished().map(|(_, loss)| loss).collect()
    }

    fn loss(&self) -> Option<Summary> {
        Summary::of(&self.losses())
    }

    fn mean(&self) -> Option<f64> {
        self.loss().map(|loss| loss.mean)
    }

    /// Losses of the seeds that both finished, in the same order every time.
    pub fn pairs(&self, other: &Self) -> impl Iterator<Item = (f64, f64)> {
        self.finished()
            .filter_map(|(seed, loss)| match other.runs.get(&seed) {
                Some(&Outcome::Loss(theirs)) => Some((loss, theirs)),
                _ => None,
            })
    }

    fn summary(&self) -> RateSummary {
        RateSummary {
            lr: self.lr,
            finished: self.finished().count() as u64,
            diverged: self.diverged() as u64,
            halved: self.halved() as u64,
            loss: self.loss(),
        }
    }
}

impl<'a> Sweep<'a> {
    /// One a placement, in the order of first appearance.
    pub fn all(points: &'a [Point]) -> Vec<Self> {
        let mut groups: Vec<(&str, Vec<&Point>)> = Vec::new();
        for point in points {
            match groups.iter_mut().find(|(name, _)| *name == point.placement) {
                Some((_, group)) => group.push(point),
                None => groups.push((&point.placement, vec![point])),
            }
        }
        let sweep = |(name, points)| Self::of(name, points);
        groups.into_iter().map(sweep).collect()
    }

    fn of(name: &'a str, points: Vec<&'a Point>) -> Self {
        let mut rates: Vec<Rate> = Vec::new();
        for point in &points {
            let outcome = match point.result {
                Outcome::Loss(loss) if !loss.is_finite() => Outcome::Diverged,
                other => other,
            };
            let index = match rates.iter().position(|rate| rate.lr == point.lr) {
                Some(index) => index,
                None => {
                    rates.push(Rate {
                        lr: point.lr,
                        runs: BTreeMap::new(),
                    });
                    rates.len() - 1
                }
            };
            rates[index].runs.insert(point.seed, outcome);
        }
        rates.sort_by(|a, b| a.lr.total_cmp(&b.lr));
        let candidates = candidates(&rates);
        let mean = |index: &usize| rates[*index].mean().unwrap_or(f64::INFINITY);
        let best = (candidates.iter().copied()).min_by(|a, b| mean(a).total_cmp(&mean(b)));
        Self {
            name,
            points,
            rates,
            candidates,
            best,
        }
    }

    /// The best rate.
    pub fn best(&self) -> Option<&Rate> {
        self.best.map(|index| &self.rates[index])
    }

    /// Mean loss at each rate that has one.
    pub fn mean_losses(&self) -> impl Iterator<Item = f64> {
        self.rates.iter().filter_map(Rate::mean)
    }

    /// See [`Best::contenders`].
    ///
    /// The noise is the interaction of rates and seeds in the better half of the rates: what all
    /// rates share with a seed does not matter for the choice, and bad rates are often noisier.
    pub fn contenders(&self) -> usize {
        let halved = self.rates.iter().filter(|rate| rate.halved() > 0).count();
        let mut rows: Vec<(f64, Vec<f64>)> = (self.candidates.iter())
            .filter_map(|&index| Some((self.rates[index].mean()?, self.rates[index].losses())))
            .collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let better = &rows[..(rows.len() / 2 + 1).min(rows.len())];
        match distance_by_luck(better) {
            None => rows.len() + halved,
            Some(distance) => {
                let contending = |row: &&(f64, Vec<f64>)| row.0 - rows[0].0 <= distance;
                rows.iter().filter(contending).count() + halved
            }
        }
    }

    /// Everything but the comparison.
    pub fn summary(&self, rules: &Rules, loss_cap: Option<f64>) -> PlacementSummary {
        let speeds: Vec<f64> = (self.points.iter())
            .map(|point| point.tokens_per_second)
            .filter(|speed| speed.is_finite() && *speed > 0.0)
            .collect();
        let spikes = self.points.iter().map(|point| point.spikes);
        PlacementSummary {
            placement: self.name.to_owned(),
            rates: self.rates.iter().map(Rate::summary).collect(),
            best: self.best_summary(),
            largest_stable_lr: (self.rates.iter())
                .take_while(|rate| rate.diverged() == 0)
                .last()
                .map(|rate| rate.lr),
            tolerance: self.tolerance(rules.tolerance),
            lr_sensitivity: loss_cap.and_then(|cap| self.lr_sensitivity(cap)),
            spikes: spikes.clone().sum(),
            spiked_runs: spikes.filter(|&count| count > 0).count() as u64,
            tokens_per_second: stats::median(&speeds),
            against: None,
            why_not: None,
        }
    }

    fn best_summary(&self) -> Option<Best> {
        let index = self.best?;
        let at_edge = match index {
            _ if self.rates.len() == 1 => None,
            0 => Some(Edge::Lowest),
            _ if index + 1 == self.rates.len() => Some(Edge::Highest),
            _ => None,
        };
        Some(Best {
            lr: self.rates[index].lr,
            loss: self.rates[index].loss()?,
            at_edge,
            contenders: self.contenders(),
        })
    }

    fn tolerance(&self, tolerance: f64) -> Option<Span> {
        let best = self.best?;
        let limit = self.rates[best].mean()? + tolerance;
        let within = |index: &usize| {
            let mean = self.rates[*index].mean();
            self.candidates.contains(index) && mean.is_some_and(|mean| mean <= limit)
        };
        let low = (0..best).rev().take_while(within).last().unwrap_or(best);
        let high = (best + 1..self.rates.len())
            .take_while(within)
            .last()
            .unwrap_or(best);
        let (low, high) = (self.rates[low].lr, self.rates[high].lr);
        Some(Span {
            low,
            high,
            factor: high / low,
        })
    }

    fn lr_sensitivity(&self, cap: f64) -> Option<f64> {
        if self.rates.iter().any(|rate| rate.halved() > 0) {
            return None;
        }
        let best = self.best()?.mean()?.min(cap);
        let regret = |rate: &Rate| {
            let losses = rate.runs.values().map(|outcome| match outcome {
                Outcome::Loss(loss) => loss.min(cap),
                Outcome::Diverged | Outcome::Halved => cap,
            });
            losses.sum::<f64>() / rate.runs.len() as f64 - best
        };
        Some(self.rates.iter().map(regret).sum::<f64>() / self.rates.len() as f64)
    }
}

/// Indices of the rates that are judged on equal seeds: no seed diverged or was left out, and the
/// seeds are those of the best covered rates; of equally large sets, those that most rates have.
fn candidates(rates: &[Rate]) -> Vec<usize> {
    let clean: Vec<usize> = (0..rates.len())
        .filter(|&index| rates[index].diverged() + rates[index].halved() == 0)
        .collect();
    let same = |a: usize, b: usize| rates[a].runs.keys().eq(rates[b].runs.keys());
    let sharing = |a: usize| -> Vec<usize> {
        let others = clean.iter().copied();
        others.filter(|&b| same(a, b)).collect()
    };
    // `max_by_key` takes the last of equals: reversed, that is the smallest rate.
    let widest = (clean.iter().rev()).max_by_key(|&&a| (rates[a].runs.len(), sharing(a).len()));
    widest.map(|&index| sharing(index)).unwrap_or_default()
}

/// How far apart the means of two rates that are equally good may be; `None` if nothing is known
/// about the noise. Rows are rates with their mean, columns are seeds.
fn distance_by_luck(rows: &[(f64, Vec<f64>)]) -> Option<f64> {
    let seeds = rows.first()?.1.len();
    let freedom = (rows.len() - 1) * seeds.saturating_sub(1);
    let critical = stats::t_critical(MISSED, freedom)?;
    let mut squares = 0.0;
    for seed in 0..seeds {
        let above = |(mean, losses): &(f64, Vec<f64>)| losses[seed] - mean;
        let shared = rows.iter().map(above).sum::<f64>() / rows.len() as f64;
        squares += rows
            .iter()
            .map(|row| (above(row) - shared).powi(2))
            .sum::<f64>();
    }
    let noise = (squares / freedom as f64).sqrt();
    Some(critical * noise * (2.0 / seeds as f64).sqrt())
}
