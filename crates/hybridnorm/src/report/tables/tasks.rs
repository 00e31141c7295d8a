//! Table of downstream tasks: scores of each placement, and paired differences from the baseline.

use std::collections::{BTreeMap, BTreeSet};

use super::placement;
use crate::lab::stats::{PairedTest, Summary, paired_t_test, paired_t_test_of_multiples};
use crate::report::format::{NONE, mean_sd, or_none, probability};
use crate::report::palette::PlacementStyles;
use crate::report::run::ReportedRun;
use crate::report::table::Table;
use crate::report::view::View;
use crate::tasks::Metric;

/// Level of the confidence intervals of paired differences.
const LEVEL: f64 = 0.95;

/// Scores of a placement's runs on a task, by seed.
type BySeed = BTreeMap<u64, f64>;

/// Builds the table of the main metric of each task; `None` if no run has tasks. Runs are those at the best learning rate
/// of a placement; differences pair the runs of equal seeds, which share initial weights and batches.
pub(in crate::report) fn tasks(view: &View, styles: &PlacementStyles) -> Option<Table> {
    let tasks: BTreeSet<(&str, &str)> = view
        .runs
        .iter()
        .flat_map(|run| &run.tasks)
        .map(|(task, scores)| (task.as_str(), scores.main.as_str()))
        .collect();
    if tasks.is_empty() {
        return None;
    }
    let baseline = view
        .group
        .map(|group| group.analysis.rules.baseline.as_str());
    let baseline = baseline.or_else(|| view.placements.first().copied())?;
    let mut table = Table::new(format!(
        "Downstream tasks after the last step, at each placement's best learning rate: mean ± standard deviation over \
         seeds; difference from {baseline} over the same seeds, with its {:.0} % confidence interval and the p value of \
         a paired t-test, not corrected for the number of tasks and placements. Accuracies on few documents are \
         coarse: the test assumes at least the variance of their rounding. The documents are the same for all runs: it says \
         nothing about others",
        100.0 * LEVEL
    ))
    .text("task")
    .text("metric")
    .number("documents")
    .text("placement")
    .number("runs")
    .number("score")
    .number("difference")
    .number("interval")
    .number("p");
    for (task, metric) in tasks {
        let of_baseline = scores(&runs(view, baseline), task, metric);
        for &name in &view.placements {
            let found = scores(&runs(view, name), task, metric);
            let values: Vec<f64> = found.values().copied().collect();
            let Some(summary) = Summary::of(&values) else {
                continue;
            };
            let paired = found
                .iter()
                .filter_map(|(seed, score)| Some(score - of_baseline.get(seed)?));
            let differences: Vec<f64> = paired.collect();
            let documents = documents(view, task);
            let test = test(&differences, metric, documents).filter(|_| name != baseline);
            let mean = Summary::of(&differences).filter(|_| name != baseline);
            table.row(vec![
                task.into(),
                with_direction(metric).into(),
                documents.to_string().into(),
                placement(styles, name),
                summary.n.to_string().into(),
                mean_sd(&summary).into(),
                or_none(mean, |mean| format!("{:+.4}", mean.mean)).into(),
                or_none(test, |test| {
                    format!("{:+.4} to {:+.4}", test.low, test.high)
                })
                .into(),
                test.map_or_else(|| NONE.to_owned(), |test| probability(test.p))
                    .into(),
            ]);
        }
    }
    Some(table)
}

/// Tests the differences of a metric on this number of documents.
fn test(differences: &[f64], metric: &str, documents: u64) -> Option<PairedTest> {
    match Metric::named(metric).is_some_and(Metric::is_accuracy) {
        true => paired_t_test_of_multiples(differences, LEVEL, 1.0 / documents.max(1) as f64),
        false => paired_t_test(differences, LEVEL),
    }
}

/// Returns the name of a metric with an arrow towards better values.
fn with_direction(metric: &str) -> String {
    match Metric::named(metric).map(Metric::is_higher_better) {
        Some(true) => format!("{metric} ↑"),
        Some(false) => format!("{metric} ↓"),
        None => metric.to_owned(),
    }
}

/// Returns the number of documents of a task.
fn documents(view: &View, task: &str) -> u64 {
    let of_runs = view
        .runs
        .iter()
        .filter_map(|run| Some(run.tasks.get(task)?.documents));
    of_runs.min().unwrap_or(0)
}

/// Returns the finished runs at the best learning rate, or all runs if there is none.
fn runs<'a>(view: &View<'a>, name: &str) -> Vec<&'a ReportedRun> {
    match view.best_runs(name) {
        runs if runs.is_empty() => view.runs_of(name).collect(),
        runs => runs,
    }
}

fn scores(runs: &[&ReportedRun], task: &str, metric: &str) -> BySeed {
    let score = |run: &&ReportedRun| {
        Some((
            run.grid_point.seed,
            *run.tasks.get(task)?.values.get(metric)?,
        ))
    };
    runs.iter().filter_map(score).collect()
}
