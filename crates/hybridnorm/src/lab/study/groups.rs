//! Groups of the runs of a study, as input to the statistics.

use serde::{Deserialize, Serialize};

use super::record::{Cell, Ending, RunRecord};
use crate::lab::analysis::{self, Analysis, Outcome, Point, Rules};

/// Prefix of the reason of a run whose loss never fell below the unigram loss, in records of version 0.1.0.
const NOT_LEARNED_PREFIX: &str = "stuck at ";

/// Runs that are compared with each other: one initialization and one depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Group {
    /// Initialization and depth as text; empty if there is one of each.
    pub name: String,
    /// Initialization in the cells of its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Depth in the cells of its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Analysis of the runs.
    pub analysis: Analysis,
    /// Summary of the analysis in three sentences.
    pub verdict: Vec<String>,
    /// One sentence per placement.
    pub sentences: Vec<String>,
    /// Number of records without a checksum, from earlier versions.
    #[serde(default)]
    pub without_checksum: usize,
    /// Limitations of the reliability of the runs, one sentence each.
    #[serde(rename = "remarks", default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// Analyses the recorded runs, separately for each initialization and depth.
pub fn analyze_groups<'a>(
    records: &'a [RunRecord],
    planned: impl Iterator<Item = &'a Cell> + Clone,
    rules: &Rules,
) -> Vec<Group> {
    let key = |cell: &Cell| (cell.init.clone(), cell.depth);
    let mut keys = Vec::new();
    for cell in planned
        .clone()
        .chain(records.iter().map(|record| &record.cell))
    {
        if !keys.contains(&key(cell)) {
            keys.push(key(cell));
        }
    }
    let missing =
        (planned.clone().count()).saturating_sub(records.iter().filter_map(point).count());
    let group = |selected: (Option<String>, Option<usize>)| {
        let of_group = records
            .iter()
            .filter(|record| key(&record.cell) == selected);
        let points: Vec<Point> = of_group.filter_map(point).collect();
        let planned = planned
            .clone()
            .filter(|&cell| key(cell) == selected)
            .count();
        let elsewhere = missing.saturating_sub(planned.saturating_sub(points.len()));
        let analysis = analysis::analyze_planned(&points, planned, elsewhere, rules);
        let sentence = |placement| analysis::sentence(placement, &analysis);
        let (init, depth) = selected;
        Group {
            name: group_name(&init, depth),
            init,
            depth,
            verdict: analysis::verdict(&analysis),
            sentences: analysis.placements.iter().map(sentence).collect(),
            without_checksum: 0,
            remarks: Vec::new(),
            analysis,
        }
    };
    keys.into_iter().map(group).collect()
}

/// Returns the records with their status relative to the other runs of their placement: runs far above its best
/// have diverged, and those that never fell below the unigram loss have not learned yet. A recorded status
/// depends on the run alone.
pub fn judged(records: Vec<RunRecord>, rules: &Rules) -> Vec<RunRecord> {
    let key = |record: &RunRecord| (record.cell.init.clone(), record.cell.depth);
    let relative_status = |record: &RunRecord| {
        let group = records.iter().filter(|other| key(other) == key(record));
        let (ids, points): (Vec<&str>, Vec<Point>) = group
            .filter_map(|other| Some((other.id.as_str(), point(other)?)))
            .unzip();
        let outcomes = analysis::outcomes(&points, rules);
        let index = ids.iter().position(|id| *id == record.id)?;
        Some(match (&record.ending, outcomes[index]) {
            (Ending::Finished | Ending::NotLearned { .. }, Outcome::Diverged) => Ending::Diverged {
                step: record.steps,
                reason: format!(
                    "final loss more than {} nats above the best median of its placement",
                    rules.diverged_above_best
                ),
            },
            (Ending::Diverged { reason, .. }, Outcome::NotLearned(_)) => Ending::NotLearned {
                reason: reason.clone(),
            },
            (ending, _) => ending.clone(),
        })
    };
    let endings: Vec<Option<Ending>> = records.iter().map(relative_status).collect();
    let mut records = records;
    for (record, ending) in records.iter_mut().zip(endings) {
        record.ending = ending.unwrap_or_else(|| record.ending.clone());
    }
    records
}

/// Returns initialization and depth as text.
pub(crate) fn group_name(init: &Option<String>, depth: Option<usize>) -> String {
    let init = init.as_ref().map(|init| format!("initialization {init}"));
    let depth = depth.map(|depth| format!("{depth} blocks"));
    let parts: Vec<String> = [init, depth].into_iter().flatten().collect();
    parts.join(", ")
}

/// Converts a record to a point; `None` if the run is unfinished or has no validation loss. The training loss is
/// not a substitute, since it is measured on other text.
fn point(record: &RunRecord) -> Option<Point> {
    let result = match (&record.ending, record.validation_loss) {
        (Ending::Halved { .. }, _) => Outcome::Halved,
        (Ending::Finished, Some(loss)) => Outcome::Loss(loss),
        (Ending::NotLearned { .. }, Some(loss)) => Outcome::NotLearned(loss),
        // Format of older versions.
        (Ending::Diverged { reason, .. }, Some(loss)) if reason.starts_with(NOT_LEARNED_PREFIX) => {
            Outcome::NotLearned(loss)
        }
        (Ending::Diverged { .. }, _) => Outcome::Diverged,
        (Ending::Unfinished { .. } | Ending::Finished | Ending::NotLearned { .. }, _) => {
            return None;
        }
    };
    Some(Point {
        placement: record.cell.placement.clone(),
        lr: record.cell.lr,
        seed: record.cell.seed,
        result,
        tokens_per_second: record.cost.tokens_per_second,
        spikes: record.spikes.loss,
    })
}
