//! Reads run directories for a report.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::data_groups::{self, DataGroup};
use super::labels::{self, RunIdentity, affects_results, label};
use super::run::{PeakLr, RecordCounts, ReportedRun, RunDirectoryData};
use crate::error::{Error, Result};
use crate::files;
use crate::lab::study;
use crate::train::layers::LayerRecord;
use crate::train::metrics::Metrics;
use crate::train::records::{self, Record};
use crate::train::segments::{self, Segment};
use crate::train::{Config, history, run_directory};

/// Maximum size of a file of records, in bytes; a larger one might not fit into memory once parsed.
const RECORDS_LIMIT: u64 = 1 << 30;
/// Relative tolerance: learning rates of the same schedule differ by rounding only.
const LR_TOLERANCE: f64 = 1e-6;

/// Reads the runs in these directories, groups them by data and labels them.
///
/// # Errors
/// If a file cannot be read, or a directory is given twice.
pub(super) fn read(paths: &[PathBuf]) -> Result<(Vec<ReportedRun>, Vec<DataGroup>)> {
    check_unique(paths)?;
    let mut all: Vec<DataGroup> = Vec::new();
    let mut found: Vec<(ReportedRun, RunIdentity)> = Vec::new();
    for path in paths {
        let (mut run, identity, group) = read_run(path)?;
        let position = all.iter().position(|known| known.is_comparable(&group));
        if let Some(directory) = &mut run.directory {
            directory.group = position.unwrap_or(all.len());
        }
        if position.is_none() {
            all.push(group);
        }
        found.push((run, identity));
    }
    for group in 0..all.len() {
        let members = || found.iter().filter(|(run, _)| run.data_group() == group);
        let identities: Vec<RunIdentity> =
            members().map(|(_, identity)| identity.clone()).collect();
        let names = label(&identities);
        let of_group = found
            .iter_mut()
            .filter(|(run, _)| run.data_group() == group);
        for ((run, identity), name) in of_group.zip(names.labels) {
            if let Some(directory) = &mut run.directory {
                directory.label = name;
                let value = |key: &String| Some((key.clone(), identity.keys.get(key)?.clone()));
                directory.differing = names.differing.iter().filter_map(value).collect();
            }
        }
    }
    let runs = found.into_iter().map(|(run, _)| run).collect();
    Ok((runs, data_groups::name_groups(all)))
}

fn check_unique(paths: &[PathBuf]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for path in paths {
        let absolute = path.canonicalize().map_err(Error::io(path))?;
        if let Some(first) = seen.insert(absolute, path) {
            return Err(Error::invalid_value(
                "paths",
                format!(
                    "{} and {} are the same run; give it once",
                    first.display(),
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

fn read_run(path: &Path) -> Result<(ReportedRun, RunIdentity, DataGroup)> {
    for name in [Metrics::FILE, LayerRecord::FILE] {
        check_records(&path.join(name))?;
    }
    let (mut record, checkpoint) = study::read_run_record_with_checkpoint(path)?;
    let config = Config::load(path.join(run_directory::CONFIG), &[])?;
    let segments = segments::read(path)?;
    let metrics: Vec<Metrics> = records::read(path)?;
    let peak_lrs = peak_lrs(&config, &segments, &metrics);
    if let Some(first) = peak_lrs.first() {
        record.grid_point.lr = first.lr;
    }
    let group = DataGroup::of(&record, &config, checkpoint.as_ref(), &segments)?;
    let mut keys = labels::result_keys(&record.config)
        .map_err(|error| Error::format(path, error.to_string()))?;
    if let Some((key, value)) = initial_weights(&segments) {
        // The content of the path may have changed since.
        keys.remove("init.from");
        keys.insert(key, value);
    }
    let absolute = path.canonicalize().map_err(Error::io(path))?;
    let name = absolute.file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let identity = RunIdentity {
        placement: record.grid_point.placement.clone(),
        hash: record.placement_hash.clone(),
        lr: (peak_lrs.len() == 1).then_some(record.grid_point.lr),
        seed: record.grid_point.seed,
        directory: name.clone(),
        keys,
        changes: match peak_lrs.is_empty() {
            true => "learning rate changed during training".to_owned(),
            false => describe_changes(&segments),
        },
    };
    let directory = RunDirectoryData {
        name,
        label: String::new(),
        differing: BTreeMap::new(),
        group: 0,
        planned_steps: config.train.steps as u64,
        not_recorded: path_only_inputs(&config, &segments),
        peak_lrs,
        segments,
        records: RecordCounts::of(steps(&path.join(Metrics::FILE))?.into_iter()),
    };
    let run = ReportedRun {
        record,
        directory: Some(directory),
    };
    Ok((run, identity, group))
}

/// Checks that a file of records is a regular file that fits into memory.
fn check_records(path: &Path) -> Result<()> {
    if !files::exists(path)? {
        return Ok(());
    }
    let length = files::open(path)?
        .metadata()
        .map_err(Error::io(path))?
        .len();
    match length > RECORDS_LIMIT {
        true => Err(Error::format(
            path,
            format!("{length} bytes of records, expected at most {RECORDS_LIMIT} for a report"),
        )),
        false => Ok(()),
    }
}

/// Returns the steps of all lines of a file of records, in file order and with repetitions.
fn steps(path: &Path) -> Result<Vec<u64>> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    if !files::exists(path)? {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for line in BufReader::new(files::open(path)?).split(b'\n') {
        let line = line.map_err(Error::io(path))?;
        // Invalid records were reported when the records were read.
        if let Ok(Step { step }) = serde_json::from_slice(&line) {
            steps.push(step);
        }
    }
    Ok(steps)
}

/// Returns the peak learning rates of a run: that of the configuration, and earlier ones from its history.
/// Empty if the learning rates recorded in the last segment do not follow the schedule of the configuration.
fn peak_lrs(config: &Config, segments: &[Segment], metrics: &[Metrics]) -> Vec<PeakLr> {
    let last = config.optimizer.lr;
    let last_segment_start = segments.last().map_or(0, |last| last.after_step);
    let of_last: Vec<&Metrics> = metrics
        .iter()
        .filter(|metrics| metrics.step > last_segment_start)
        .collect();
    if !follows_schedule(config, &of_last) {
        return Vec::new();
    }
    let mut peaks = Vec::new();
    let mut lr = last;
    for segment in segments.iter().rev() {
        let is_lr_change = |change: &&segments::Change| change.key == "optimizer.lr";
        let Some(change) = segment.changed.iter().find(is_lr_change) else {
            continue;
        };
        peaks.push(PeakLr {
            after_step: segment.after_step,
            lr,
        });
        let before = change.from.as_deref().and_then(|from| from.parse().ok());
        lr = before.unwrap_or(f64::NAN);
    }
    peaks.push(PeakLr { after_step: 0, lr });
    peaks.reverse();
    peaks
}

fn follows_schedule(config: &Config, metrics: &[&Metrics]) -> bool {
    let train = &config.train;
    let tokens = (train.batch_size * train.seq_len) as u64;
    let schedule = config
        .schedule
        .resolve(config.optimizer.lr, train.steps, tokens);
    let Ok(schedule) = schedule else {
        return true;
    };
    metrics.iter().all(|metrics| {
        let expected = schedule.lr(metrics.step as usize);
        (metrics.lr - expected).abs() <= LR_TOLERANCE * expected.abs()
    })
}

/// Describes configuration changes during training that affect results.
fn describe_changes(segments: &[Segment]) -> String {
    let mut descriptions = Vec::new();
    for segment in segments {
        // The path of the initial weights is irrelevant: a run resumes only with the same initial weights.
        let affects_results = |key: &str| affects_results(key) && key != "init.from";
        for change in segment
            .changed
            .iter()
            .filter(|change| affects_results(&change.key))
        {
            descriptions.push(format!(
                "{} after step {}",
                history::describe_change(change),
                segment.after_step
            ));
        }
    }
    descriptions.join(", ")
}

/// Returns the hash of the initial weights if they were loaded from another run, as a key and its value.
fn initial_weights(segments: &[Segment]) -> Option<(String, String)> {
    let first = segments.first()?;
    let weights = data_groups::short_hash(first.weights.as_deref()?);
    let value = match first.after_step {
        0 => weights.to_owned(),
        step => format!("{weights} after step {step}"),
    };
    Some(("init.weights".to_owned(), value))
}

/// Describes inputs for which a run of an older version recorded only the path, not a fingerprint of the content.
fn path_only_inputs(config: &Config, segments: &[Segment]) -> Vec<String> {
    let mut found = Vec::new();
    let weights = segments.first().and_then(|first| first.weights.as_ref());
    if let (Some(init), None) = (&config.init, weights) {
        found.push(format!(
            "content of the initial weights {}",
            init.from.display()
        ));
    }
    let validation = segments.last().and_then(|last| last.validation.as_ref());
    if let (None, false) = (validation, config.data.validation.is_empty()) {
        let paths = config.data.validation.join(", ");
        found.push(format!("content of the validation data {paths}"));
    }
    found
}
