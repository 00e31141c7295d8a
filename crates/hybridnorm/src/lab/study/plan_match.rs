//! Check that a record belongs to its planned run.

use super::consistency;
use super::difference;
use super::plan::PlannedRun;
use super::record::RunRecord;
use crate::placement::canonical_hash;
use crate::train::{Config, LogSection, history};

/// Returns the first difference between a record and its plan; `None` if they match.
///
/// A record holds the configuration of its run, which determines everything that affects its results. The
/// `[log]` section is ignored.
pub(super) fn mismatch(record: &RunRecord, planned: &PlannedRun) -> Option<String> {
    if record.id != planned.id {
        return Some(format!("holds run {}, expected {}", record.id, planned.id));
    }
    let config = match Config::parse(&record.config, &[]) {
        Ok(config) => without_log(&config),
        Err(error) => return Some(format!("has an invalid configuration: {error}")),
    };
    let plan = without_log(&planned.config);
    if canonical_hash(&config) != canonical_hash(&plan) {
        let difference = match history::diff(&config, &plan).first() {
            Some(change) => {
                let [found, expected] = difference::values(change);
                format!("{} is {found}, expected {expected}", change.key)
            }
            None => "its configuration differs".into(),
        };
        return Some(format!(
            "does not match run {} of this study: {difference}",
            planned.grid_point.label()
        ));
    }
    let grid_point = &record.grid_point;
    if (grid_point.lr, grid_point.seed) != (plan.optimizer.lr, plan.seed) {
        return Some(format!(
            "is labelled {}, but its configuration has optimizer.lr = {} and seed = {}",
            grid_point.label(),
            plan.optimizer.lr,
            plan.seed
        ));
    }
    let placement = plan.model.as_ref().map(|model| {
        // The placement does not depend on the vocabulary size, which may be known only from the data.
        model.resolve(plan.train.seq_len, Some(1))
    });
    if let Some(Ok(model)) = placement
        && model.placement.hash() != record.placement_hash
    {
        return Some(format!(
            "has placement_hash {}, expected {} from its configuration",
            record.placement_hash,
            model.placement.hash()
        ));
    }
    consistency::problem(record, planned)
}

fn without_log(config: &Config) -> Config {
    Config {
        log: LogSection::default(),
        ..config.clone()
    }
}
