//! Configurations of the replayed steps, which may change during a run.

use std::path::Path;

use super::Options;
use crate::error::{Error, Result};
use crate::train::segments::{self, Change, Segment};
use crate::train::{Config, history, run_directory};

/// Consecutive steps with one configuration.
pub(super) struct ReplaySegment {
    /// Step after which they begin.
    pub(super) after: u64,
    /// Configuration of the run, with the changes of the replay on top.
    pub(super) config: Config,
    /// Differences from the previous segment.
    pub(super) changed: Vec<Change>,
    /// True if the changes include the weights to start from.
    pub(super) changes_weights: bool,
}

/// Returns the segments after step `from`, and the last step to replay.
///
/// # Errors
/// If a configuration cannot be read, or a change is not allowed.
pub(super) fn plan_segments(
    run: &Path,
    history: &[Segment],
    options: &Options,
    from: u64,
) -> Result<(Vec<ReplaySegment>, u64)> {
    let newest = Config::load(run.join(run_directory::CONFIG), &[])?;
    // The newest data section holds for all steps, since data may have moved or be read in another way.
    let at = |step| match history::config_at_step(&newest, history, step) {
        Ok(config) => Ok(Config {
            data: newest.data.clone(),
            ..config
        }),
        Err(error) => Err(Error::format(run.join(segments::FILE), error.to_string())),
    };
    let requested = options.step.saturating_add(options.steps_after);
    let bounds = history.iter().map(|segment| segment.after_step);
    let bounds = bounds.filter(|after| (from + 1..requested).contains(after));
    // The same `[log]` section for all segments, since logging does not affect results.
    let mut log = apply_changes(run, &at(options.step)?, options, from)?.log;
    if !options
        .settings
        .iter()
        .any(|setting| setting.starts_with("log."))
    {
        log.layers_every = 1;
    }
    let mut segments: Vec<ReplaySegment> = Vec::new();
    for after in std::iter::once(from).chain(bounds) {
        let old = at(after + 1)?;
        let mut config = apply_changes(run, &old, options, from)?;
        config.log = log.clone();
        let changed = match segments.last() {
            None => Vec::new(),
            // An overridden `train.steps` may end before the run's configuration changed.
            Some(_) if config.train.steps as u64 <= after => break,
            Some(before) => history::diff(&before.config, &config),
        };
        if segments.is_empty() || !changed.is_empty() {
            segments.push(ReplaySegment {
                after,
                changes_weights: old.init != config.init,
                config,
                changed,
            });
        }
    }
    let steps = segments
        .last()
        .map_or(0, |segment| segment.config.train.steps) as u64;
    if options.step > steps {
        return Err(Error::conflict(
            ["train.steps", "step"],
            format!("train.steps = {steps} ends before step {}", options.step),
        ));
    }
    Ok((segments, requested.min(steps)))
}

/// Returns a configuration of the run with the changes of the replay.
fn apply_changes(run: &Path, old: &Config, options: &Options, from: u64) -> Result<Config> {
    let path = run.join(run_directory::CONFIG);
    if options.placement.is_some() && old.model.is_none() {
        return Err(Error::conflict(
            ["placement", "init.from"],
            format!(
                "{}: its model comes from a checkpoint, whose placement cannot change",
                run.display()
            ),
        ));
    }
    let changes = options.changes()?;
    let config = match changes.as_slice() {
        [] => old.clone(),
        changes => Config {
            origin: old.origin.clone(),
            // The configuration of the run is valid, so that an error is about the changes.
            ..Config::parse(&old.to_toml(), changes)?
        },
    };
    let fixed = [
        ("seed", old.seed == config.seed),
        ("[data]", old.data == config.data),
        ("train.seq_len", old.train.seq_len == config.train.seq_len),
    ];
    if let Some((key, _)) = fixed.iter().find(|(_, same)| !same) {
        return Err(Error::conflict(
            [*key],
            format!(
                "{key} determines the batches and must be unchanged from {}",
                path.display()
            ),
        ));
    }
    if from > 0 && old.init != config.init {
        return Err(Error::no_effect(
            "init.from",
            format!(": this replay resumes from the run's own checkpoint of step {from}"),
        ));
    }
    Ok(config)
}
