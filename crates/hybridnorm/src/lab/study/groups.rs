//! The runs of a study as the statistics take them.

use serde::{Deserialize, Serialize};

use super::record::{Ending, RunRecord};
use crate::lab::analysis::{self, Analysis, Outcome, Point, Rules};

/// Runs that are compared with each other: one initialization and one depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Initialization and depth in words; empty where there is one of each.
    pub name: String,
    /// The initialization in the cells of its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The depth in the cells of its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// What the runs say.
    pub analysis: Analysis,
    /// That in three sentences.
    pub verdict: Vec<String>,
    /// One sentence for each placement.
    pub sentences: Vec<String>,
}

/// Analyses finished runs, each initialization and depth on its own.
pub fn groups(records: &[RunRecord], rules: &Rules) -> Vec<Group> {
    let key = |record: &RunRecord| (record.cell.init.clone(), record.cell.depth);
    let mut keys = Vec::new();
    for record in records {
        if !keys.contains(&key(record)) {
            keys.push(key(record));
        }
    }
    let group = |wanted: (Option<String>, Option<usize>)| {
        let of_group = records.iter().filter(|record| key(record) == wanted);
        let points: Vec<Point> = of_group.map(point).collect();
        let analysis = analysis::analyse(&points, rules);
        let sentence = |placement| analysis::sentence(placement, &analysis);
        let (init, depth) = wanted;
        Group {
            name: group_name(&init, depth),
            init,
            depth,
            verdict: analysis::verdict(&analysis),
            sentences: analysis.placements.iter().map(sentence).collect(),
            analysis,
        }
    };
    keys.into_iter().map(group).collect()
}

/// Initialization and depth in words.
pub(crate) fn group_name(init: &Option<String>, depth: Option<usize>) -> String {
    let init = init.as_ref().map(|init| format!("initialization {init}"));
    let depth = depth.map(|depth| format!("{depth} blocks"));
    let parts: Vec<String> = [init, depth].into_iter().flatten().collect();
    parts.join(", ")
}

fn point(record: &RunRecord) -> Point {
    let loss = record.validation_loss.or(record.train_loss);
    Point {
        placement: record.cell.placement.clone(),
        lr: record.cell.lr,
        seed: record.cell.seed,
        result: match (&record.ending, loss) {
            (Ending::Halved { .. } | Ending::Unfinished { .. }, _) => Outcome::Halved,
            (Ending::Finished, Some(loss)) => Outcome::Loss(loss),
            (Ending::Finished, None) | (Ending::Diverged { .. }, _) => Outcome::Diverged,
        },
        tokens_per_second: record.cost.tokens_per_second,
        spikes: record.spikes.loss,
    }
}
