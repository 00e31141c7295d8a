//! Whether a record is that of the run it is taken for.

use super::plan::Planned;
use super::record::{Ending, RunRecord};
use crate::placement::canonical_hash;
use crate::train::{Config, LogSection};

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
        let difference = difference(&config, &plan);
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
    let steps = plan.train.steps as u64;
    match record.ending {
        Ending::Unfinished { .. } => Some("is that of a run that is not finished".into()),
        Ending::Finished | Ending::NotLearned { .. } if record.validation_loss.is_none() => {
            Some("has no validation loss, which every run of a study ends with".into())
        }
        Ending::Finished | Ending::NotLearned { .. } if record.steps != steps => Some(format!(
            "is said to be finished after {} steps, the plan has {steps}",
            record.steps
        )),
        _ if record.steps > steps => {
            Some(format!("has {} steps, the plan has {steps}", record.steps))
        }
        _ => None,
    }
}

fn decisive(config: &Config) -> Config {
    Config {
        log: LogSection::default(),
        ..config.clone()
    }
}

/// The first key in which two configurations differ.
fn difference(found: &Config, expected: &Config) -> String {
    let flat = |config: &Config| {
        let mut keys = Vec::new();
        if let Ok(table) = toml::Table::try_from(config) {
            flatten("", &table, &mut keys);
        }
        keys
    };
    let (found, expected) = (flat(found), flat(expected));
    let value = |of: &[(String, String)], key: &str| {
        let found = of.iter().find(|(other, _)| other == key);
        found.map_or_else(|| "nothing".to_owned(), |(_, value)| value.clone())
    };
    let keys = found.iter().chain(&expected).map(|(key, _)| key);
    keys.map(|key| (key, value(&found, key), value(&expected, key)))
        .find(|(_, found, expected)| found != expected)
        .map_or_else(
            || "its configuration differs".into(),
            |(key, found, expected)| format!("{key} is {found}, expected {expected}"),
        )
}

fn flatten(prefix: &str, table: &toml::Table, keys: &mut Vec<(String, String)>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, keys),
            other => keys.push((format!("{prefix}{key}"), other.to_string())),
        }
    }
}
