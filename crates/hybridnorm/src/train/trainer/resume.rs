//! Resuming a run: the changes that are allowed, and the notes about them.

use std::path::Path;

use super::super::checkpoint::Checkpoint;
use super::super::config::Config;
use super::super::history;
use super::super::run_directory::CONFIG;
use super::super::segments::{self, Change, Segment};
use super::super::sources::TrainingData;
use super::Event;
use crate::error::{Error, Result};

/// Keys and sections that determine weight shapes or the order of batches.
const IMMUTABLE_KEYS: [&str; 5] = ["seed", "model", "init", "data.order", "train.seq_len"];

/// Checks that no key of [`IMMUTABLE_KEYS`] changed. Data are compared by content once they are open.
pub(super) fn check_same_run(old: &Config, config: &Config, run: &Path) -> Result<()> {
    let is_fixed = |key: &str| {
        let below = |fixed: &str| key.strip_prefix(fixed)?.chars().next();
        IMMUTABLE_KEYS
            .iter()
            .any(|fixed| key == *fixed || below(fixed) == Some('.'))
    };
    let mut changed = history::diff(old, config);
    if changed.iter().any(|change| change.key == "init.from") && has_same_weights(config, run)? {
        changed.retain(|change| change.key != "init.from");
    }
    match changed.iter().find(|change| is_fixed(&change.key)) {
        Some(change) => Err(Error::conflict(
            [change.key.as_str()],
            format!(
                "{}; a resumed run must keep it as in {}",
                history::describe_change(change),
                run.join(CONFIG).display()
            ),
        )),
        None => Ok(()),
    }
}

/// True if `[init] from` is the checkpoint that the run started from, under another path.
fn has_same_weights(config: &Config, run: &Path) -> Result<bool> {
    let first = segments::read(run)?.into_iter().next();
    Ok(
        match (&config.init, first.and_then(|first| first.weights)) {
            (Some(init), Some(weights)) => Checkpoint::open(&init.from)?.fingerprint() == weights,
            _ => false,
        },
    )
}

/// Checks that training data and tokenizer are those of the checkpoint, whatever their paths.
pub(super) fn check_same_data(
    checkpoint: &Checkpoint,
    recorded: &str,
    data: &TrainingData,
) -> Result<()> {
    let found = data.train.fingerprint();
    if recorded != found {
        return Err(Error::conflict(
            ["data.train"],
            format!(
                "the training data differ from those of {} (expected fingerprint {recorded}, found {found})",
                checkpoint.path().display(),
            ),
        ));
    }
    let Some(in_checkpoint) = checkpoint.tokenizer()? else {
        return Ok(());
    };
    match &data.tokenizer {
        Some(found) if found.fingerprint() == in_checkpoint.fingerprint() => Ok(()),
        found => Err(Error::conflict(
            ["data.tokenizer"],
            format!(
                "the tokenizer is not that of {} (data.tokenizer: expected {}, found {})",
                checkpoint.path().display(),
                in_checkpoint.name(),
                found.as_ref().map_or("none", |found| found.name())
            ),
        )),
    }
}

/// Notes changes since the last segment outside the configuration: of the validation data, by content rather than path,
/// and of the unit on which results in bfloat16 depend.
pub(super) fn report_changes(
    last: Option<&Segment>,
    next: &Segment,
    on_event: &mut dyn FnMut(Event<'_>),
) {
    let unit = last.and_then(|last| last.bf16_unit.as_ref());
    if let (Some(before), Some(unit)) = (unit, &next.bf16_unit)
        && before != unit
    {
        on_event(Event::Note(format!(
            "in bfloat16 results depend on the unit of the matmuls: that of steps up to {} was {before}, that of the \
             next ones is {unit}",
            next.after_step
        )));
    }
    let recorded = last.and_then(|last| last.validation.as_deref());
    let found = next.validation.as_deref().unwrap_or_default();
    if let Some(recorded) = recorded.filter(|recorded| *recorded != found) {
        on_event(Event::Note(format!(
            "the validation data changed (expected fingerprint {recorded}, found {found}): validation losses from \
             step {} on are not comparable with earlier ones",
            next.after_step + 1
        )));
    }
}

/// Reports that a run is resumed, with changes of its configuration, or that it is already finished.
pub(super) fn report_resume(
    (before, config): (&Config, &Config),
    changed: &[Change],
    step: u64,
    missing_records: u64,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let mut note = |text: String| on_event(Event::Note(text));
    let steps = config.train.steps as u64;
    if step >= steps {
        note(format!(
            "the run is finished: {step} steps completed, train.steps = {steps}; the run directory is unchanged"
        ));
        for change in changed {
            note(format!("ignored: {}", history::describe_change(change)));
        }
        return Ok(());
    }
    note(format!("resuming after step {step}"));
    for change in changed {
        note(format!(
            "from step {} on: {}",
            step + 1,
            history::describe_change(change)
        ));
    }
    if let Some(text) = history::learning_rate_note(before, config, changed, step + 1)? {
        note(text);
    }
    if missing_records > 0 {
        note(format!(
            "metrics.jsonl lacks records of {missing_records} of the {step} completed steps"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_unit_is_noted_in_bfloat16() {
        let segment = |unit: Option<&str>| Segment {
            bf16_unit: unit.map(str::to_owned),
            ..Segment::of_test(7)
        };
        let notes = |before: Option<&str>, next: Option<&str>| {
            let mut notes = Vec::new();
            report_changes(Some(&segment(before)), &segment(next), &mut |event| {
                if let Event::Note(text) = event {
                    notes.push(text);
                }
            });
            notes
        };
        let (amx, avx512) = (Some("AMX"), Some("AVX-512 BF16"));
        assert_eq!(notes(avx512, avx512), [""; 0]);
        assert_eq!(notes(None, avx512), [""; 0]);
        assert_eq!(notes(amx, None), [""; 0]);
        let [note] = &notes(amx, avx512)[..] else {
            panic!("one note")
        };
        assert!(note.contains("that of steps up to 7 was AMX"), "{note}");
    }
}
