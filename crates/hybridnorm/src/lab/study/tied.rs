//! Whether a record is that of the run it is taken for.

use super::consistent;
use super::difference;
use super::plan::Planned;
use super::record::RunRecord;
use crate::placement::canonical_hash;
use crate::train::{Config, LogSection, history};

/// Says what of a record is not what its plan says; `None` if all is.
///
/// A record holds the configuration that its run was trained with, from which follows everything that
/// decides its numbers. What is written about a run plays no part.
pub(super) fn problem(record: &RunRecord, planned: &Planned) -> Option<String> {
    if record.id != planned.id {
        return Some(format!("holds run {}, expected {}", record.id, planned.id));
    }
    let config = match Config::parse(&record.config, &[]) {
        Ok(config) => decisive(&config),
        Err(error) => return Some(format!("the configuration in it cannot be read: {error}")),
    };
    let plan = decisive(&planned.config);
    if canonical_hash(&config) != canonical_hash(&plan) {
        let difference = match history::changes(&config, &plan).first() {
            Some(change) => {
                let [found, expected] = difference::values(change);
                format!("{} is {found}, expected {expected}", change.key)
            }
            None => "its configuration differs".into(),
        };
        return Some(format!(
            "holds another run than {} of this study: {difference}",
            planned.cell.label()
        ));
    }
    let cell = &record.cell;
    if (cell.lr, cell.seed) != (plan.optimizer.lr, plan.seed) {
        return Some(format!(
            "is said to be {}, but its configuration has optimizer.lr = {} and seed = {}",
            cell.label(),
            plan.optimizer.lr,
            plan.seed
        ));
    }
    let placement = plan.model.as_ref().map(|model| {
        // The placement does not depend on the vocabulary, which only the data may know.
        model.settle(plan.train.seq_len, Some(1))
    });
    if let Some(Ok(model)) = placement
        && model.placement.hash() != record.placement_hash
    {
        return Some(format!(
            "has placement_hash {}, and its configuration gives {}",
            record.placement_hash,
            model.placement.hash()
        ));
    }
    consistent::problem(record, planned)
}

fn decisive(config: &Config) -> Config {
    Config {
        log: LogSection::default(),
        ..config.clone()
    }
}
