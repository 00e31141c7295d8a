//! The steps around one of a run, done again from the nearest checkpoint with something changed.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::Device;
use crate::error::{Error, Result};
use crate::files::Locking;
use crate::omissions::LeftOut;
use crate::train::metrics::Metrics;
use crate::train::{
    Config, DataUse, Event, OpenOptions, Start, Trainer, checkpoint, history, rows, run_directory,
    segments,
};

/// What to do again.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The step of interest.
    pub step: u64,
    /// Steps to go beyond it.
    pub after: u64,
    /// Another placement.
    pub placement: Option<String>,
    /// `section.key=value` settings on top of the run's configuration.
    pub settings: Vec<String>,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// Whether to lock it.
    pub locking: Locking,
}

impl Options {
    /// What a killed replay leaves, so that the same one can begin anew in its place.
    fn purpose(&self, run: &Path) -> String {
        format!(
            "an unfinished replay of step {} and {} more of {}, with {:?} {:?}\n",
            self.step,
            self.after,
            run.display(),
            self.placement,
            self.settings
        )
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// The run.
    pub run: PathBuf,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// The checkpoint's step; 0 where it began anew.
    pub from: u64,
    /// What was changed.
    pub changed: Vec<String>,
    /// Parameters that the checkpoint does not have, and which begin with their initial values.
    pub new_parameters: Vec<String>,
    /// Steps done again, side by side.
    pub steps: Vec<Pair>,
    /// Why it ended early, if it did.
    pub ended: Option<String>,
    /// How much of the data takes part.
    pub data: DataUse,
    /// What is left out of them, by reason.
    pub left_out: LeftOut,
}

/// One step in the run and in the replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// The step, counted from 1.
    pub step: u64,
    /// In the run; `None` where it did not come so far.
    pub run: Option<Metrics>,
    /// In the replay.
    pub replay: Metrics,
}

/// Does it; `None` when it was asked to stop.
///
/// The configuration is the one that held at the step. With nothing changed, the numbers of the run
/// come out again to the bit, provided that it held for all steps that are done again; a note names what
/// differed. Of the directory's earlier content, only what the same replay left when it was killed is
/// replaced.
///
/// # Errors
/// If the run has no such step, or a changed key does not allow to go on from its checkpoint.
pub fn run(
    run: &Path,
    options: &Options,
    device: &Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Replay>> {
    let originals: Vec<Metrics> = rows::read(run)?;
    let newest = originals.last().map_or(0, |row| row.step);
    // A run that diverged has no row of the step at which it did.
    if options.step == 0 || options.step > newest + 1 {
        return Err(Error::config(format!(
            "{}: no step {}, it did {newest}",
            run.display(),
            options.step
        )));
    }
    let mut changed = options.settings.clone();
    if let Some(placement) = &options.placement {
        changed.push(format!("model.placement=\"{placement}\""));
    }
    let path = run.join(run_directory::CONFIG);
    let old = history::configuration_at(run, options.step)?;
    if options.placement.is_some() && old.model.is_none() {
        return Err(Error::config(format!(
            "{}: its model comes from a checkpoint and cannot have another placement",
            run.display()
        )));
    }
    let mut config = match changed.as_slice() {
        [] => old.clone(),
        changed => Config {
            origin: old.origin.clone(),
            ..Config::parse(&old.to_toml(), changed).map_err(|error| old.origin.name(error))?
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
    let steps = config.train.steps as u64;
    if options.step > steps {
        return Err(Error::config(format!(
            "train.steps = {steps} end before step {}",
            options.step
        )));
    }
    if !options
        .settings
        .iter()
        .any(|setting| setting.starts_with("log."))
    {
        config.log.layers_every = 1;
    }
    let found = checkpoint::newest_before(run, options.step)?;
    for problem in &found.broken {
        on_event(Event::Note(run_directory::passed_over(problem)));
    }
    let start = match found.checkpoint {
        Some((_, checkpoint)) => Start::Branch(checkpoint),
        None => Start::Fresh,
    };
    let how = OpenOptions {
        locking: options.locking,
        unfinished: Some(options.purpose(run)),
    };
    let mut trainer = Trainer::open_with(config, &options.out, start, &how, device, on_event)?;
    let from = trainer.state().step;
    let last = options.step.saturating_add(options.after).min(steps);
    on_event(Event::Note(format!(
        "doing steps {} to {last} again; the newest checkpoint before step {} is of step {from}",
        from + 1,
        options.step
    )));
    for change in other_values(run, from, last, options.step)? {
        on_event(Event::Note(change));
    }
    let ended = trainer.run_to(last, stop, on_event);
    let ended = match ended {
        Ok(outcome) if outcome.step < options.step => return Ok(None),
        Ok(_) => None,
        Err(error @ Error::Diverged { .. }) => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    let replayed: Vec<Metrics> = rows::read(&options.out)?;
    trainer.finish()?;
    let pair = |replay: Metrics| Pair {
        step: replay.step,
        run: originals
            .iter()
            .find(|row| row.step == replay.step)
            .cloned(),
        replay,
    };
    Ok(Some(Replay {
        run: run.to_path_buf(),
        out: options.out.clone(),
        from,
        changed,
        new_parameters: trainer.new_parameters().to_vec(),
        steps: replayed.into_iter().map(pair).collect(),
        ended,
        left_out: trainer.data_use().left_out(),
        data: trainer.data_use().clone(),
    }))
}

/// What differed in the run at some of the steps after `from` up to `last` from what held at `step`.
fn other_values(run: &Path, from: u64, last: u64, step: u64) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for segment in segments::read(run)? {
        let at = segment.after_step;
        if at <= from || at >= last || segment.changed.is_empty() {
            continue;
        }
        let side = match at < step {
            true => format!("until step {at} the run had other values"),
            false => format!("after step {at} the run had other values"),
        };
        let changed: Vec<String> = segment.changed.iter().map(history::in_words).collect();
        notes.push(format!("{side}: {}", changed.join(", ")));
    }
    Ok(notes)
}
