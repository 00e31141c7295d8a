//! `hybridnorm study`.

use std::path::Path;
use std::sync::Mutex;

use hybridnorm::digits::{difference, percent, probability, times};
use hybridnorm::lab::analysis::Verdict;
use hybridnorm::lab::study::{self, Folder, Group, Options, Study, StudyEvent};
use hybridnorm::omissions::LeftOut;
use hybridnorm::train::{DataUse, Event};
use hybridnorm::{Device, Error};
use serde::Serialize;

use super::Ending;
use super::train::{default_run, shell_word};
use crate::args::{StudyArgs, StudyCommand};
use crate::console::{self, Console};
use crate::progress::StudyDisplay;
use crate::stop::Stop;
use crate::table::{grouped, numbers};

pub fn run(args: StudyArgs, console: &Console) -> Result<Ending, Error> {
    if let Some(StudyCommand::Merge {
        from,
        out,
        no_lock,
        json,
    }) = &args.command
    {
        let merged = study::merge(from, out, super::locking(*no_lock))?;
        let folder = Folder::new(out);
        show(&folder, &folder.study()?, &[], *json)?;
        let planned = folder.study()?.runs.len();
        console.note(&format!(
            "{} of {planned} runs are recorded in {}",
            merged.runs,
            out.display()
        ));
        if merged.without_checksum > 0 {
            console.note(&format!(
                "{} of {} records have no checksum, as those of earlier versions",
                merged.without_checksum, merged.runs
            ));
        }
        return Ok(Ending::Done);
    }
    let path = args.study.as_deref().unwrap_or(Path::new(""));
    let study = Study::load(path, &args.settings)?;
    let out = args.out.clone().unwrap_or_else(|| default_run(path));
    let folder = Folder::new(&out);
    let mut options = Options::default()
        .with_jobs(args.jobs)
        .with_resume(args.resume)
        .with_locking(super::locking(args.no_lock));
    options.shard = args.shard;
    let stop = Stop::listen()?;
    let display = Mutex::new(StudyDisplay::new(console));
    let data = Mutex::new(Vec::new());
    let records = study::run(
        &study,
        &folder,
        &options,
        Device::Cpu,
        stop.flag(),
        &|event| {
            if let StudyEvent::Run { event, .. } = &event {
                stop.hear(event);
                if let Event::Data(found) = event {
                    let mut data = data.lock().unwrap_or_else(|error| error.into_inner());
                    if !data.contains(*found) {
                        data.push(DataUse::clone(found));
                    }
                }
            }
            let mut display = display.lock().unwrap_or_else(|error| error.into_inner());
            display.event(&event);
        },
    );
    if let Ok(display) = display.into_inner() {
        display.finish();
    }
    if records?.is_none() {
        console.note(&format!(
            "interrupted; resume with: {}",
            again(path, &out, &args)
        ));
        return Ok(Ending::Interrupted);
    }
    let data = data.into_inner().unwrap_or_default();
    show(&folder, &study, &data, args.json)?;
    console.note(&format!("study folder: {}", out.display()));
    Ok(Ending::Done)
}

/// Returns the command that resumes the study.
fn again(path: &Path, out: &Path, args: &StudyArgs) -> String {
    let mut command = format!(
        "hybridnorm study {} --out {} --resume",
        shell_word(&path.to_string_lossy()),
        shell_word(&out.to_string_lossy())
    );
    if args.jobs > 1 {
        command += &format!(" --jobs {}", args.jobs);
    }
    if let Some(shard) = args.shard {
        command += &format!(" --shard {shard}");
    }
    if args.no_lock {
        command += " --no-lock";
    }
    for setting in &args.settings {
        command += &format!(" --set {}", shell_word(setting));
    }
    command
}

/// Group with the data of the runs that this process trained.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    group: &'a Group,
    /// Used and left-out tokens of the data; empty if no run was left to train.
    data: &'a [DataUse],
    /// Left-out data, by reason.
    left_out: LeftOut,
}

fn show(folder: &Folder, study: &Study, data: &[DataUse], json: bool) -> Result<(), Error> {
    let groups = study::assess(folder, study)?.groups;
    if json {
        let mut left_out = LeftOut::default();
        data.iter()
            .for_each(|data| left_out.extend(&data.left_out()));
        let shown = groups.iter().map(|group| Shown {
            group,
            data,
            left_out: left_out.clone(),
        });
        return console::print_json(&shown.collect::<Vec<_>>());
    }
    let texts: Vec<String> = groups.iter().map(|group| text(group, study)).collect();
    console::print(&texts.join("\n"))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Equivalent => "equivalent",
        Verdict::Indistinguishable => "not distinguishable",
    }
}

fn text(group: &Group, study: &Study) -> String {
    let rates = &study.file.study.lr;
    let analysis = &group.analysis;
    let rate_names: Vec<String> = rates.iter().map(f64::to_string).collect();
    let rate_names = rate_names.iter().map(String::as_str);
    let header: Vec<&str> = ["validation loss at lr"]
        .into_iter()
        .chain(rate_names)
        .collect();
    let mut losses = numbers(&header);
    for placement in &analysis.placements {
        let cell = |lr: &f64| {
            let found = placement.rates.iter().find(|rate| rate.lr == *lr);
            let Some(rate) = found else {
                return "-".to_owned();
            };
            let mut notes = Vec::new();
            for (count, word) in [
                (rate.diverged, "lost"),
                (rate.not_learned, "not learned yet"),
                (rate.halved, "left out"),
            ] {
                if count > 0 {
                    notes.push(format!("{count} {word}"));
                }
            }
            match (&rate.loss, notes.join(", ")) {
                (Some(loss), notes) if notes.is_empty() => format!("{:.4}", loss.mean),
                (Some(loss), notes) => format!("{:.4} ({notes})", loss.mean),
                (None, notes) => notes,
            }
        };
        let row = [placement.placement.clone()];
        losses.add_row(row.into_iter().chain(rates.iter().map(cell)));
    }
    let baseline = &analysis.rules.baseline;
    let level = percent(1.0 - analysis.rules.alpha);
    let mut compared = numbers(&[
        "placement",
        "best lr",
        "loss",
        &format!("difference to {baseline}"),
        &match analysis.comparisons() {
            0 | 1 => format!("{level} interval"),
            _ => format!("{level} interval for all"),
        },
        "p (corrected)",
        "verdict",
        "compute gain",
        "effective speed-up",
        "spikes",
        "tokens/s",
    ]);
    for placement in &analysis.placements {
        let dash = || "-".to_owned();
        let mut row = vec![placement.placement.clone()];
        match &placement.best {
            Some(best) => row.extend([best.lr.to_string(), format!("{:.4}", best.loss.mean)]),
            None => row.extend([dash(), dash()]),
        }
        match &placement.against {
            Some(against) => row.extend([
                difference(against.difference.mean),
                format!(
                    "{} to {}",
                    difference(against.difference.low),
                    difference(against.difference.high)
                ),
                probability(against.p_adjusted),
                word(against.verdict).to_owned(),
                against.compute_gain.map_or_else(dash, times),
                against.effective_speedup.map_or_else(dash, times),
            ]),
            None => {
                row.extend(std::iter::repeat_n(dash(), 3));
                let verdict = match &placement.why_not {
                    Some(_) if !analysis.complete => "incomplete".into(),
                    Some(why) if why.starts_with("undecided") => "undecided".into(),
                    Some(_) => "not compared".into(),
                    None if placement.placement == *baseline => "the baseline".into(),
                    None => dash(),
                };
                row.extend([verdict, dash(), dash()]);
            }
        }
        row.push(placement.spikes.to_string());
        let speed = placement.tokens_per_second;
        row.push(speed.map_or_else(dash, |speed| grouped(speed as u64)));
        compared.add_row(row);
    }
    let heading = match group.name.as_str() {
        "" => String::new(),
        name => format!("{name}\n"),
    };
    let words: Vec<&str> = (group.verdict.iter().chain(&group.remarks))
        .map(String::as_str)
        .collect();
    format!("{heading}{losses}\n\n{compared}\n\n{}\n", words.join("\n"))
}
