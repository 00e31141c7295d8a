//! Resuming a run: the changes that are allowed, and the notes about them.

use std::path::Path;

use super::super::checkpoint::Checkpoint;
use super::super::config::Config;
use super::super::history;
use super::super::run_directory::CONFIG;
use super::super::segments::{self, Change, Segment};
use super::super::sources::Sources;
use super::Event;
use crate::error::{Error, Result};

/// Keys and sections that determine weight shapes or the order of batches.
const FIXED: [&str; 5] = ["seed", "model", "init", "data.order", "train.seq_len"];

/// Checks that no key of [`FIXED`] changed. Data are compared by content once they are open.
pub(super) fn check_same_run(old: &Config, config: &Config, run: &Path) -> Result<()> {
    let is_fixed = |key: &str| {
        let below = |fixed: &str| key.strip_prefix(fixed)?.chars().next();
        FIXED
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
    sources: &Sources,
) -> Result<()> {
    let found = sources.train.fingerprint();
    if recorded != found {
        return Err(Error::conflict(
            ["data.train"],
            format!(
                "the training data are not those of {} (fingerprint {recorded}, now {found})",
                checkpoint.path().display(),
            ),
        ));
    }
    let Some(theirs) = checkpoint.tokenizer()? else {
        return Ok(());
    };
    match &sources.tokenizer {
        Some(ours) if ours.fingerprint() == theirs.fingerprint() => Ok(()),
        ours => Err(Error::conflict(
            ["data.tokenizer"],
            format!(
                "the tokenizer is not that of {} (data.tokenizer: expected {}, found {})",
                checkpoint.path().display(),
                theirs.name(),
                ours.as_ref().map_or("none", |ours| ours.name())
            ),
        )),
    }
}

/// Notes that the validation data differ from those of the last segment, by content rather than path.
pub(super) fn tell_of_validation(
    last: Option<&Segment>,
    next: &Segment,
    on_event: &mut dyn FnMut(Event<'_>),
) {
    let recorded = last.and_then(|last| last.validation.as_deref());
    let found = next.validation.as_deref().unwrap_or_default();
    if let Some(recorded) = recorded.filter(|recorded| *recorded != found) {
        on_event(Event::Note(format!(
            "the validation data are not those of the steps before (fingerprint {recorded}, now {found}): \
             validation losses from step {} on cannot be compared with earlier ones",
            next.after_step + 1
        )));
    }
}

/// Reports that a run is resumed, with changes of its configuration, or that it is already finished.
pub(super) fn tell(
    (before, config): (&Config, &Config),
    changed: &[Change],
    step: u64,
    missing_rows: u64,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let mut note = |text: String| on_event(Event::Note(text));
    let steps = config.train.steps as u64;
    if step >= steps {
        note(format!(
            "nothing left to train: {step} steps are done, and train.steps = {steps}; nothing in the \
             run directory is changed"
        ));
        for change in changed {
            note(format!(
                "without effect: {}",
                history::describe_change(change)
            ));
        }
        return Ok(());
    }
    note(format!("going on after step {step}"));
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
    if missing_rows > 0 {
        note(format!(
            "metrics.jsonl has no rows of {missing_rows} of the {step} steps that are done"
        ));
    }
    Ok(())
}
