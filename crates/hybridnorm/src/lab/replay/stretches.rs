//! Which configuration the steps are done with that are done again.

use std::path::Path;

use super::Options;
use crate::error::{Error, Result};
use crate::train::segments::{self, Change, Segment};
use crate::train::{Config, history, run_directory};

/// Steps in a row with one configuration.
pub(super) struct Stretch {
    /// They begin after this step.
    pub(super) after: u64,
    /// What they are done with: what held in the run, and on top of it what is to be changed.
    pub(super) config: Config,
    /// What differs from the stretch before.
    pub(super) changed: Vec<Change>,
    /// Whether weights to begin from are among what is to be changed.
    pub(super) other_weights: bool,
}

/// The stretches after the step `from`, and the last step to do.
///
/// # Errors
/// If a configuration cannot be read, or what is to be changed may not be.
pub(super) fn follow(
    run: &Path,
    history: &[Segment],
    options: &Options,
    from: u64,
) -> Result<(Vec<Stretch>, u64)> {
    let newest = Config::load(run.join(run_directory::CONFIG), &[])?;
    // Data that moved, or are read in another way, are the same for all steps.
    let at = |step| match history::configuration_at(&newest, history, step) {
        Ok(config) => Ok(Config {
            data: newest.data.clone(),
            ..config
        }),
        Err(error) => Err(Error::format(run.join(segments::FILE), error.to_string())),
    };
    let wanted = options.step.saturating_add(options.after);
    let bounds = history.iter().map(|segment| segment.after_step);
    let bounds = bounds.filter(|after| (from + 1..wanted).contains(after));
    // One for all, since what is written changes no number.
    let mut log = with_changes(run, &at(options.step)?, options, from)?.log;
    if !options.settings.iter().any(|one| one.starts_with("log.")) {
        log.layers_every = 1;
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    for after in std::iter::once(from).chain(bounds) {
        let old = at(after + 1)?;
        let mut config = with_changes(run, &old, options, from)?;
        config.log = log.clone();
        let changed = match stretches.last() {
            None => Vec::new(),
            // Where the number of steps was given, they may end before the run was changed.
            Some(_) if config.train.steps as u64 <= after => break,
            Some(before) => history::changes(&before.config, &config),
        };
        if stretches.is_empty() || !changed.is_empty() {
            stretches.push(Stretch {
                after,
                other_weights: old.init != config.init,
                config,
                changed,
            });
        }
    }
    let steps = stretches.last().map_or(0, |one| one.config.train.steps) as u64;
    if options.step > steps {
        return Err(Error::config(format!(
            "train.steps = {steps} end before step {}",
            options.step
        )));
    }
    Ok((stretches, wanted.min(steps)))
}

/// A configuration of the run with what is to be changed.
fn with_changes(run: &Path, old: &Config, options: &Options, from: u64) -> Result<Config> {
    let path = run.join(run_directory::CONFIG);
    if options.placement.is_some() && old.model.is_none() {
        return Err(Error::config(format!(
            "{}: its model comes from a checkpoint and cannot have another placement",
            run.display()
        )));
    }
    let changes = options.changes();
    let config = match changes.as_slice() {
        [] => old.clone(),
        changes => Config {
            origin: old.origin.clone(),
            ..Config::parse(&old.to_toml(), changes).map_err(|error| old.origin.name(error))?
        },
    };
    let kept = [
        ("seed", old.seed == config.seed),
        ("[data]", old.data == config.data),
        ("train.seq_len", old.train.seq_len == config.train.seq_len),
    ];
    if let Some((key, _)) = kept.iter().find(|(_, same)| !same) {
        return Err(Error::config(format!(
            "{key} decides the batches, and a replay must keep it as it is in {}",
            path.display()
        )));
    }
    if from > 0 && old.init != config.init {
        return Err(Error::config(format!(
            "init.from has no effect: this replay goes on from the run's own checkpoint of step {from}"
        )));
    }
    Ok(config)
}
