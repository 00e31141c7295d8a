//! Changes of the configuration between the segments of a run, and the configuration of a given step.

use serde::Serialize;
use toml::{Table, Value};

use super::config::Config;
use super::segments::{Change, Segment};
use crate::error::{Error, Result};

/// Keys with paths of data and initial weights. Their contents are identified by fingerprints, so that the
/// paths may change.
const PATH_KEYS: [&str; 4] = [
    "data.train",
    "data.validation",
    "data.tokenizer",
    "init.from",
];

/// Returns the keys whose values differ in two configurations.
pub fn diff<T: Serialize>(old: &T, new: &T) -> Vec<Change> {
    let (old, new) = (leaves(&table(old)), leaves(&table(new)));
    let find = |leaves: &[(String, String)], key: &str| {
        let found = leaves.iter().find(|(leaf_key, _)| leaf_key == key);
        found.map(|(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|key| Change {
            key: key.clone(),
            from: find(&old, key),
            to: find(&new, key),
        })
        .filter(|change| change.from != change.to)
        .collect()
}

/// Undoes changes of a configuration, which are given newest first.
///
/// # Errors
/// If a change does not match the configuration.
pub fn revert_changes<'a>(
    config: &Config,
    changed: impl IntoIterator<Item = &'a [Change]>,
) -> Result<Config> {
    let mut table = table(config);
    let mut is_same = true;
    for changed in changed {
        // A key may have become a section or vice versa: added keys are removed first.
        for change in changed.iter().filter(|change| change.from.is_none()) {
            remove(&mut table, &change.key);
        }
        for change in changed {
            if let Some(from) = &change.from {
                insert(&mut table, &change.key, from)?;
            }
        }
        is_same &= changed.is_empty();
    }
    if is_same {
        return Ok(config.clone());
    }
    let config = Config {
        origin: config.origin.clone(),
        ..table
            .try_into()
            .map_err(|error: toml::de::Error| Error::invalid_value("config", error.message()))?
    };
    config.check()?;
    Ok(config)
}

/// Returns the configuration at a step of a run, from its newest one and its segments, with the current paths
/// of the data.
///
/// # Errors
/// If the changes of the segments do not match the configuration.
pub fn config_at_step(newest: &Config, segments: &[Segment], step: u64) -> Result<Config> {
    let later = segments.iter().rev().filter(|one| one.after_step >= step);
    let mut kept: Vec<Vec<Change>> = later.map(|one| one.changed.clone()).collect();
    for changed in &mut kept {
        changed.retain(|change| !PATH_KEYS.contains(&change.key.as_str()));
    }
    revert_changes(newest, kept.iter().map(Vec::as_slice))
}

/// Returns the remaining segments of a run that resumes after `step`, and the configuration of the last of
/// them. Segments of which no step remains are dropped, since their steps will be run again.
///
/// # Errors
/// If the changes of dropped segments do not match the configuration.
pub fn truncate_segments(
    mut segments: Vec<Segment>,
    newest: &Config,
    step: u64,
) -> Result<(Vec<Segment>, Config)> {
    let left = segments.iter().take_while(|one| one.after_step < step);
    let removed = segments.split_off(left.count());
    if let Some(last) = segments.last_mut() {
        last.last_step = Some(step);
    }
    let before = revert_changes(
        newest,
        removed.iter().rev().map(|one| one.changed.as_slice()),
    )?;
    Ok((segments, before))
}

/// Returns the value of a key that configuration files omit if it has its default.
pub fn omitted_default(key: &str) -> Option<&'static str> {
    matches!(key, "train.precision" | "train.residual_precision").then_some("\"f32\"")
}

/// Formats a change for messages.
pub fn describe_change(change: &Change) -> String {
    let Change { key, from, to } = change;
    let default = omitted_default(key);
    match [from, to].map(|value| value.as_deref().or(default)) {
        [Some(from), Some(to)] => format!("{key} changed from {from} to {to}"),
        [None, Some(to)] => format!("{key} was not set and is now {to}"),
        [Some(from), None] => format!("{key} was {from} and is no longer set"),
        [None, None] => key.clone(),
    }
}

/// Returns a note if changes of the configuration alter the learning rate, with the first such step and the
/// keys that cause it.
///
/// # Errors
/// If a schedule is not valid.
pub fn learning_rate_note(
    before: &Config,
    config: &Config,
    changed: &[Change],
    step: u64,
) -> Result<Option<String>> {
    let (old, new) = (before.resolved_schedule()?, config.resolved_schedule()?);
    // The first step of the segment may have the same learning rate by coincidence.
    let first = step as usize;
    let last = before.train.steps.min(config.train.steps);
    let mut steps: Vec<usize> = [old.breakpoints(), new.breakpoints()].concat();
    steps.retain(|step| (first..=last).contains(step));
    steps.push(first);
    steps.sort_unstable();
    let Some(step) = steps.into_iter().find(|&step| old.lr(step) != new.lr(step)) else {
        return Ok(None);
    };
    let rate = |config: &Config| Ok::<_, Error>(config.resolved_schedule()?.lr(step));
    let (from, to) = (old.lr(step), new.lr(step));
    // Keys whose reversal alone changes the learning rate; if there are none, all keys that can affect it.
    let without = |change: &Change| {
        let before = revert_changes(config, [std::slice::from_ref(change)]);
        before.and_then(|before| rate(&before))
    };
    let affects_lr = |change: &&Change| {
        let key = change.key.as_str();
        key.starts_with("schedule.")
            || ["optimizer.lr", "train.steps", "train.batch_size"].contains(&key)
    };
    let lr_changes: Vec<&Change> = changed.iter().filter(affects_lr).collect();
    let mut causes = lr_changes.clone();
    causes.retain(|change| without(change).map_or(true, |without| without != to));
    if causes.is_empty() {
        causes = lr_changes;
    }
    let reasons: Vec<String> = causes.into_iter().map(describe_change).collect();
    Ok(Some(format!(
        "the learning rate at step {step} changes from {} to {} because {}",
        rounded(from),
        rounded(to),
        reasons.join(", ")
    )))
}

/// Rounds a number to three significant digits.
fn rounded(number: f64) -> f64 {
    format!("{number:.2e}").parse().unwrap_or(number)
}

fn table<T: Serialize>(config: &T) -> Table {
    Table::try_from(config).expect("a configuration is plain data")
}

/// Returns the values by their full keys.
fn leaves(table: &Table) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                let inner = leaves(inner).into_iter();
                found.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => found.push((key.clone(), value.to_string())),
        }
    }
    found
}

fn remove(table: &mut Table, key: &str) {
    match key.split_once('.') {
        None => drop(table.remove(key)),
        Some((section, rest)) => {
            let Some(Value::Table(inner)) = table.get_mut(section) else {
                return;
            };
            remove(inner, rest);
            if inner.is_empty() {
                table.remove(section);
            }
        }
    }
}

fn insert(table: &mut Table, key: &str, value: &str) -> Result<()> {
    if let Some((section, rest)) = key.split_once('.') {
        let inner = table
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        return match inner {
            Value::Table(inner) => insert(inner, rest, value),
            _ => Err(Error::invalid_value(
                key,
                format!("{key}: {section} is not a section"),
            )),
        };
    }
    let parsed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .ok_or_else(|| Error::invalid_value(key, format!("{key}: {value} is not a TOML value")))?;
    table.insert(key.to_owned(), parsed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[&str]) -> Config {
        let settings: Vec<String> = settings.iter().map(|one| (*one).to_owned()).collect();
        let text = "[model]\nd_model = 8\nn_layers = 1\nn_heads = 2\nd_ff = 8\nvocab_size = 9\n";
        Config::parse(text, &settings).unwrap()
    }

    fn segment(after_step: u64, changed: Vec<Change>) -> Segment {
        Segment {
            changed,
            ..Segment::of_test(after_step)
        }
    }

    #[test]
    fn changes_can_be_reverted() {
        let old = config(&["optimizer.lr=0.5", "schedule.warmup_steps=7"]);
        let new = config(&["optimizer.lr=0.25", "data.tokenizer=bytes", "seed=4"]);
        let changed = diff(&old, &new);
        let words: Vec<String> = changed.iter().map(describe_change).collect();
        assert_eq!(
            words,
            [
                "data.tokenizer was not set and is now \"bytes\"",
                "optimizer.lr changed from 0.5 to 0.25",
                "schedule.warmup_steps was 7 and is no longer set",
                "seed changed from 0 to 4",
            ]
        );
        assert_eq!(revert_changes(&new, [changed.as_slice()]).unwrap(), old);
        assert!(diff(&old, &old).is_empty());
    }

    #[test]
    fn precisions_that_are_omitted_have_a_name() {
        let mixed = |residual: &str| {
            let residual = format!("train.residual_precision={residual}");
            config(&["train.precision=bf16", &residual])
        };
        let lines = |from: Config, to: Config| -> Vec<String> {
            diff(&from, &to).iter().map(describe_change).collect()
        };
        assert_eq!(
            lines(config(&[]), mixed("bf16")),
            [
                "train.precision changed from \"f32\" to \"bf16\"",
                "train.residual_precision changed from \"f32\" to \"bf16\"",
            ]
        );
        let unset = config(&["train.precision=bf16"]);
        assert_eq!(lines(unset, mixed("f32")), [""; 0]);
    }

    #[test]
    fn a_value_may_become_a_section() {
        let named = config(&["model.placement=pre-norm"]);
        let table = config(&["model.placement={base = 'pre-norm', norm = {kind = 'layernorm'}}"]);
        for (old, new) in [(&named, &table), (&table, &named)] {
            let changed = diff(old, new);
            assert_eq!(revert_changes(new, [changed.as_slice()]).unwrap(), *old);
        }
    }

    #[test]
    fn segments_without_steps_are_dropped_with_their_changes() {
        let rates = [
            "optimizer.lr=0.5",
            "optimizer.lr=0.25",
            "optimizer.lr=0.125",
        ];
        let [first, second, third] = rates.map(|rate| config(&[rate]));
        let all = vec![
            segment(0, Vec::new()),
            segment(10, diff(&first, &second)),
            segment(20, diff(&second, &third)),
        ];
        for (step, left, before) in [(25, 3, &third), (20, 2, &second), (10, 1, &first)] {
            let (kept, found) = truncate_segments(all.clone(), &third, step).unwrap();
            assert_eq!((kept.len(), &found), (left, before), "{step}");
            assert_eq!(kept.last().unwrap().last_step, Some(step));
        }
        for (step, expected) in [(1, &first), (10, &first), (11, &second), (21, &third)] {
            let found = config_at_step(&third, &all, step).unwrap();
            assert_eq!(found, *expected, "{step}");
        }
    }

    #[test]
    fn learning_rate_change_note_names_its_cause() {
        let old = config(&["optimizer.lr=1.0", "train.steps=40"]);
        let new = config(&["optimizer.lr=1.0", "train.steps=80", "log.dumps=3"]);
        let changed = diff(&old, &new);
        let note = |step| learning_rate_note(&old, &new, &changed, step).unwrap();
        assert_eq!(
            note(41).unwrap(),
            "the learning rate at step 41 changes from 0.1 to 0.532 because train.steps changed from 40 to 80"
        );
        let constant = |steps| config(&["schedule.kind=constant", steps]);
        let (old, new) = (constant("train.steps=40"), constant("train.steps=80"));
        let found = learning_rate_note(&old, &new, &diff(&old, &new), 41);
        assert_eq!(found.unwrap(), None);
        // The first step has the same learning rate by coincidence.
        let warm = ["schedule.warmup_steps=10", "train.steps=20"];
        let (old, new) = (config(&warm), config(&[warm[0], "train.steps=40"]));
        let found = learning_rate_note(&old, &new, &diff(&old, &new), 6);
        let found = found.unwrap().unwrap();
        assert!(
            found.starts_with("the learning rate at step 11 changes from"),
            "{found}"
        );
    }

    #[test]
    fn learning_rate_note_lists_only_keys_that_affect_it() {
        let note = |old: &[&str], new: &[&str], step| {
            let (old, new) = (config(old), config(new));
            let changed = diff(&old, &new);
            learning_rate_note(&old, &new, &changed, step).unwrap()
        };
        let flat = "schedule.kind=constant";
        let found = note(
            &[flat, "optimizer.lr=0.5", "train.steps=40"],
            &[flat, "optimizer.lr=0.25", "train.steps=80"],
            41,
        );
        assert_eq!(
            found.unwrap(),
            "the learning rate at step 41 changes from 0.5 to 0.25 because optimizer.lr changed from 0.5 to 0.25"
        );
        // Warm-up in steps does not depend on the batch size, warm-up in tokens does.
        let warm = "schedule.warmup_tokens=16384";
        let found = note(
            &[
                flat,
                warm,
                "train.batch_size=16",
                "optimizer.weight_decay=0.1",
            ],
            &[
                flat,
                warm,
                "train.batch_size=8",
                "optimizer.weight_decay=0.2",
            ],
            2,
        );
        let found = found.unwrap();
        assert!(
            found.ends_with("because train.batch_size changed from 16 to 8"),
            "{found}"
        );
        // A kind and a key that needs it are valid only together.
        let found = note(
            &["train.steps=40", "schedule.min_lr_ratio=0.5"],
            &["train.steps=40", flat],
            30,
        );
        let found = found.unwrap();
        for key in ["schedule.kind", "schedule.min_lr_ratio"] {
            assert!(found.contains(key), "{found}");
        }
    }
}
