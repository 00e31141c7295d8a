//! `hybridnorm study`.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hybridnorm::format_number::{difference, percent, probability, ratio};
use hybridnorm::lab::analysis::{Analysis, LearningRateSummary, PlacementSummary, Verdict};
use hybridnorm::lab::study::{self, Group, Options, Study, StudyEvent, StudyFolder};
use hybridnorm::omissions::Omissions;
use hybridnorm::train::{DataCoverage, Event};
use hybridnorm::{Device, Error};
use serde::Serialize;

use super::{Outcome, default_directory, note_precision, resume_command, with_flags};
use crate::args::{MergeArgs, OutputArgs, StudyArgs, StudyCommand};
use crate::console::Console;
use crate::progress::StudyDisplay;
use crate::signals::Signals;
use crate::table::{Table, numeric_table, with_thousands_separators};

/// Cell without a value.
const MISSING: &str = "-";

pub fn run(args: StudyArgs, console: &Console) -> Result<Outcome, Error> {
    match &args.command {
        Some(StudyCommand::Merge(args)) => merge(args, console),
        None => train(&args, console),
    }
}

fn merge(args: &MergeArgs, console: &Console) -> Result<Outcome, Error> {
    let merged = study::merge(&args.from, &args.out, args.lock.mode())?;
    let folder = StudyFolder::new(&args.out);
    let study = folder.study()?;
    print_results(&folder, &study, &[], &args.output)?;
    console.note(&format!(
        "{} of {} runs have records in {}",
        merged.runs,
        study.runs.len(),
        args.out.display()
    ));
    if merged.without_checksum > 0 {
        console.note(&format!(
            "{} of {} records have no checksum (written by earlier versions)",
            merged.without_checksum, merged.runs
        ));
    }
    Ok(Outcome::Completed)
}

fn train(args: &StudyArgs, console: &Console) -> Result<Outcome, Error> {
    let path = args.study.as_deref().unwrap_or(Path::new(""));
    let study = Study::load(path, &args.overrides.settings)?;
    if let Some(run) = study.runs.first() {
        note_precision(run.config.train.program_precision(), console);
    }
    let out = args.out.clone().unwrap_or_else(|| default_directory(path));
    let folder = StudyFolder::new(&out);
    let mut options = Options::default()
        .with_jobs(args.jobs)
        .with_resume(args.resume)
        .with_locking(args.lock.mode());
    options.shard = args.shard;
    let signals = Signals::install()?;
    let observer = Observer {
        signals: &signals,
        display: Mutex::new(StudyDisplay::new(console)),
        data: Mutex::default(),
    };
    let records = study::run(
        &study,
        &folder,
        &options,
        Device::Cpu,
        signals.flag(),
        &|event| observer.event(&event),
    );
    let data = observer.finish();
    let records = records.map_err(|error| with_flags(error, "--resume and --out"))?;
    if records.is_none() {
        console.note(&format!("interrupted; resume with: {}", resume_command()));
        return Ok(Outcome::Interrupted);
    }
    print_results(&folder, &study, &data, &args.output)?;
    console.note(&format!("study folder: {}", out.display()));
    Ok(Outcome::Completed)
}

/// Receiver of the events of concurrent runs.
struct Observer<'a> {
    signals: &'a Signals,
    display: Mutex<StudyDisplay<'a>>,
    /// Distinct data of the runs that this process trains.
    data: Mutex<Vec<DataCoverage>>,
}

impl Observer<'_> {
    fn event(&self, event: &StudyEvent<'_>) {
        if let StudyEvent::Run { event, .. } = event {
            self.signals.defer_from_first_step(event);
            if let Event::Data(used) = event {
                let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
                if !data.contains(*used) {
                    data.push(DataCoverage::clone(used));
                }
            }
        }
        let mut display = self.display.lock().unwrap_or_else(PoisonError::into_inner);
        display.show_event(event);
    }

    /// Removes the progress display and returns the data.
    fn finish(self) -> Vec<DataCoverage> {
        if let Ok(display) = self.display.into_inner() {
            display.finish();
        }
        self.data.into_inner().unwrap_or_default()
    }
}

/// Group with the data of the runs that this process trained.
#[derive(Serialize)]
struct GroupReport<'a> {
    #[serde(flatten)]
    group: &'a Group,
    /// Used and omitted tokens of the data; empty if no run remained to be trained.
    data: &'a [DataCoverage],
    /// Omitted data, by reason.
    #[serde(rename = "left_out")]
    omissions: Omissions,
}

fn print_results(
    folder: &StudyFolder,
    study: &Study,
    data: &[DataCoverage],
    output: &OutputArgs,
) -> Result<(), Error> {
    let groups = study::analyze_folder(folder, study)?.groups;
    let mut omissions = Omissions::default();
    data.iter()
        .for_each(|data| omissions.extend(&data.omissions()));
    let report = |group| GroupReport {
        group,
        data,
        omissions: omissions.clone(),
    };
    let reports: Vec<GroupReport<'_>> = groups.iter().map(report).collect();
    output.print(&reports, |_| {
        let texts: Vec<String> = groups.iter().map(|group| text(group, study)).collect();
        texts.join("\n")
    })
}

fn text(group: &Group, study: &Study) -> String {
    let heading = match group.name.as_str() {
        "" => String::new(),
        name => format!("{name}\n"),
    };
    let losses = losses(&group.analysis, &study.config.study.lr);
    let comparison = comparison(&group.analysis);
    let sentences: Vec<&str> = (group.summary.iter().chain(&group.caveats))
        .map(String::as_str)
        .collect();
    format!(
        "{heading}{losses}\n\n{comparison}\n\n{}\n",
        sentences.join("\n")
    )
}

/// Tabulates the mean validation loss of each placement at each learning rate.
fn losses(analysis: &Analysis, learning_rates: &[f64]) -> Table {
    let names: Vec<String> = learning_rates.iter().map(f64::to_string).collect();
    let header: Vec<&str> = ["validation loss at lr"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    let mut table = numeric_table(&header);
    for placement in &analysis.placements {
        let cell = |lr: &f64| {
            let found = placement.learning_rates.iter().find(|rate| rate.lr == *lr);
            found.map_or(MISSING.to_owned(), loss_cell)
        };
        let row = [placement.placement.clone()];
        table.add_row(row.into_iter().chain(learning_rates.iter().map(cell)));
    }
    table
}

/// Formats the mean loss at a learning rate, and the number of runs that it does not cover.
fn loss_cell(rate: &LearningRateSummary) -> String {
    let notes: Vec<String> = [
        (rate.diverged, "diverged"),
        (rate.not_learned, "not learned yet"),
        (rate.eliminated, "eliminated"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, status)| format!("{count} {status}"))
    .collect();
    match (&rate.loss, notes.join(", ")) {
        (Some(loss), notes) if notes.is_empty() => format!("{:.4}", loss.mean),
        (Some(loss), notes) => format!("{:.4} ({notes})", loss.mean),
        (None, notes) => notes,
    }
}

/// Tabulates each placement at its best learning rate, compared with the baseline.
fn comparison(analysis: &Analysis) -> Table {
    let level = percent(1.0 - analysis.rules.alpha);
    let mut table = numeric_table(&[
        "placement",
        "best lr",
        "loss",
        &format!("difference from {}", analysis.rules.baseline),
        &match analysis.n_planned_comparisons() {
            0 | 1 => format!("{level} CI"),
            _ => format!("{level} CI, simultaneous"),
        },
        "p (adjusted)",
        "verdict",
        "compute gain",
        "effective speed-up",
        "spikes",
        "tokens/s",
    ]);
    for placement in &analysis.placements {
        table.add_row(comparison_row(placement, analysis));
    }
    table
}

fn comparison_row(placement: &PlacementSummary, analysis: &Analysis) -> Vec<String> {
    let missing = || MISSING.to_owned();
    let mut row = vec![placement.placement.clone()];
    match &placement.best {
        Some(best) => row.extend([best.lr.to_string(), format!("{:.4}", best.loss.mean)]),
        None => row.extend([missing(), missing()]),
    }
    match &placement.comparison {
        Some(against) => row.extend([
            difference(against.difference.mean),
            format!(
                "{} to {}",
                difference(against.difference.low),
                difference(against.difference.high)
            ),
            probability(against.p_adjusted),
            verdict_name(against.verdict).to_owned(),
            against.compute_gain.map_or_else(missing, ratio),
            against.effective_speedup.map_or_else(missing, ratio),
        ]),
        None => {
            row.extend(std::iter::repeat_n(missing(), 3));
            let verdict = no_comparison(placement, analysis).to_owned();
            row.extend([verdict, missing(), missing()]);
        }
    }
    row.push(placement.spikes.to_string());
    let speed = placement.tokens_per_second;
    row.push(speed.map_or_else(missing, |speed| with_thousands_separators(speed as u64)));
    row
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Equivalent => "equivalent",
        Verdict::NotSignificant => "not significant",
    }
}

/// Returns the text shown instead of a verdict for a placement without a comparison.
fn no_comparison(placement: &PlacementSummary, analysis: &Analysis) -> &'static str {
    match &placement.no_comparison_reason {
        Some(_) if !analysis.complete => "incomplete",
        Some(reason) if reason.starts_with("undecided") => "undecided",
        Some(_) => "not compared",
        None if placement.placement == analysis.rules.baseline => "the baseline",
        None => MISSING,
    }
}
