//! Groups of the runs of a study, as input to the statistics.

use serde::{Deserialize, Serialize};

use super::record::{GridPoint, RunRecord, RunStatus};
use crate::lab::analysis::{self, Analysis, AnalysisRules, Outcome, RunOutcome};

/// Prefix of the reason of a run whose loss never fell below the unigram loss, in records of version 0.1.0.
const NOT_LEARNED_PREFIX: &str = "stuck at ";

/// Runs that are compared with each other: one initialization and one depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Group {
    /// Initialization and depth as text; empty if the study lists neither `inits` nor `depths`.
    pub name: String,
    /// Initialization of its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Depth of its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Analysis of the runs.
    pub analysis: Analysis,
    /// Summary of the analysis in three sentences.
    #[serde(rename = "verdict")]
    pub summary: Vec<String>,
    /// One sentence per placement.
    pub sentences: Vec<String>,
    /// Number of records without a checksum, from earlier versions.
    #[serde(default)]
    pub without_checksum: usize,
    /// Caveats on the reliability of the records, one sentence each.
    #[serde(rename = "remarks", default, skip_serializing_if = "Vec::is_empty")]
    pub caveats: Vec<String>,
}

/// Analyzes the recorded runs, separately for each initialization and depth.
pub fn analyze_groups<'a>(
    records: &'a [RunRecord],
    planned: impl Iterator<Item = &'a GridPoint> + Clone,
    rules: &AnalysisRules,
) -> Vec<Group> {
    let key = |grid_point: &GridPoint| (grid_point.init.clone(), grid_point.depth);
    let mut keys = Vec::new();
    for grid_point in planned
        .clone()
        .chain(records.iter().map(|record| &record.grid_point))
    {
        if !keys.contains(&key(grid_point)) {
            keys.push(key(grid_point));
        }
    }
    let missing =
        (planned.clone().count()).saturating_sub(records.iter().filter_map(run_outcome).count());
    let group = |selected: (Option<String>, Option<usize>)| {
        let of_group = records
            .iter()
            .filter(|record| key(&record.grid_point) == selected);
        let runs: Vec<RunOutcome> = of_group.filter_map(run_outcome).collect();
        let planned = planned
            .clone()
            .filter(|&grid_point| key(grid_point) == selected)
            .count();
        let missing_in_other_groups = missing.saturating_sub(planned.saturating_sub(runs.len()));
        let analysis = analysis::analyze_planned(&runs, planned, missing_in_other_groups, rules);
        let sentence = |placement| analysis::comparison_text(placement, &analysis);
        let (init, depth) = selected;
        Group {
            name: group_name(init.as_deref(), depth),
            init,
            depth,
            summary: analysis::summary_text(&analysis),
            sentences: analysis.placements.iter().map(sentence).collect(),
            without_checksum: 0,
            caveats: Vec::new(),
            analysis,
        }
    };
    keys.into_iter().map(group).collect()
}

/// Returns the records with their status relative to the other runs of their placement: runs whose final loss is far
/// above its best median have diverged; runs that records of version 0.1.0 describe as stuck have not learned yet. A
/// recorded status depends on the run alone.
pub fn with_relative_status(records: Vec<RunRecord>, rules: &AnalysisRules) -> Vec<RunRecord> {
    let key = |record: &RunRecord| (record.grid_point.init.clone(), record.grid_point.depth);
    let relative_status = |record: &RunRecord| {
        let group = records.iter().filter(|other| key(other) == key(record));
        let (ids, runs): (Vec<&str>, Vec<RunOutcome>) = group
            .filter_map(|other| Some((other.id.as_str(), run_outcome(other)?)))
            .unzip();
        let outcomes = analysis::outcomes(&runs, rules);
        let index = ids.iter().position(|id| *id == record.id)?;
        Some(match (&record.status, outcomes[index]) {
            (RunStatus::Finished | RunStatus::NotLearned { .. }, Outcome::Diverged) => {
                RunStatus::Diverged {
                    step: record.steps,
                    reason: format!(
                        "final loss more than {} nats above the best median of its placement",
                        rules.diverged_above_best
                    ),
                }
            }
            (RunStatus::Diverged { reason, .. }, Outcome::NotLearned(_)) => RunStatus::NotLearned {
                reason: reason.clone(),
            },
            (status, _) => status.clone(),
        })
    };
    let statuses: Vec<Option<RunStatus>> = records.iter().map(relative_status).collect();
    let mut records = records;
    for (record, status) in records.iter_mut().zip(statuses) {
        record.status = status.unwrap_or_else(|| record.status.clone());
    }
    records
}

/// Returns the name of a group of runs: initialization and depth, without those that are `None`.
pub fn group_name(init: Option<&str>, depth: Option<usize>) -> String {
    let init = init.map(|init| format!("initialization {init}"));
    let depth = depth.map(|depth| format!("{depth} blocks"));
    let parts: Vec<String> = [init, depth].into_iter().flatten().collect();
    parts.join(", ")
}

/// Converts a record to a run outcome; `None` if the run is unfinished or has no validation loss. The training loss is
/// not a substitute, since it is measured on different data.
fn run_outcome(record: &RunRecord) -> Option<RunOutcome> {
    let outcome = match (&record.status, record.validation_loss) {
        (RunStatus::Eliminated { .. }, _) => Outcome::Eliminated,
        (RunStatus::Finished, Some(loss)) => Outcome::Loss(loss),
        (RunStatus::NotLearned { .. }, Some(loss)) => Outcome::NotLearned(loss),
        // Format of older versions.
        (RunStatus::Diverged { reason, .. }, Some(loss))
            if reason.starts_with(NOT_LEARNED_PREFIX) =>
        {
            Outcome::NotLearned(loss)
        }
        (RunStatus::Diverged { .. }, _) => Outcome::Diverged,
        (RunStatus::Unfinished { .. } | RunStatus::Finished | RunStatus::NotLearned { .. }, _) => {
            return None;
        }
    };
    Some(RunOutcome {
        placement: record.grid_point.placement.clone(),
        lr: record.grid_point.lr,
        seed: record.grid_point.seed,
        outcome,
        tokens_per_second: record.cost.tokens_per_second,
        spikes: record.spikes.loss,
    })
}
