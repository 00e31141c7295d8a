//! Reading and analysis of a study folder.

use std::collections::BTreeSet;

use super::folder::Folder;
use super::groups::{Group, groups};
use super::plan::Study;
use super::record::RunRecord;
use super::records::{Records, name};
use crate::digits::grouped;
use crate::error::Result;
use crate::placement::Init;

/// Finished runs of a study and their analysis.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessed {
    /// Records in the order of the plan.
    pub records: Vec<RunRecord>,
    /// One entry per initialization and depth.
    pub groups: Vec<Group>,
}

/// Reads the finished runs of a study in a folder and analyses them, with remarks on their reliability.
///
/// # Errors
/// As [`Folder::read`].
pub fn assess(folder: &Folder, study: &Study) -> Result<Assessed> {
    let Records {
        records,
        without_checksum,
    } = folder.read(&study.runs)?;
    let changes = folder.changes(study)?;
    let names = folder.record_names()?;
    let own: BTreeSet<String> = study.runs.iter().map(|run| name(&run.id)).collect();
    let others = names.iter().filter(|name| !own.contains(*name)).count();
    let planned = study.runs.iter().map(|run| &run.cell);
    let mut groups = groups(&records, planned, &study.file.study.rules);
    for group in &mut groups {
        let of_group = |record: &&RunRecord| {
            (&record.cell.init, record.cell.depth) == (&group.init, group.depth)
        };
        let ids = records.iter().filter(of_group).map(|record| &record.id);
        let count = ids
            .clone()
            .filter(|id| without_checksum.contains(id))
            .count();
        group.without_checksum = count;
        let remarks = [
            unchecked(count, ids.count()),
            left_out(others, names.len()),
            unknown(changes.unknown).filter(|_| !records.is_empty()),
            changed(&changes.known).filter(|_| !records.is_empty()),
            initializations(study, group).filter(|_| !records.is_empty()),
        ];
        group.remarks = remarks.into_iter().flatten().collect();
    }
    Ok(Assessed { records, groups })
}

/// Returns a remark on records without a checksum.
fn unchecked(count: usize, of: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "Not checked: {} of {} records have no checksum, as those of earlier versions; whether they \
             are as they were written is not known.",
            grouped(count as u64),
            grouped(of as u64)
        )
    })
}

/// Returns a remark on records of runs outside the study.
fn left_out(count: usize, of: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "Left out: {} of {} records in this folder are of runs that the study does not consist of.",
            grouped(count as u64),
            grouped(of as u64)
        )
    })
}

/// Returns a remark on placements that differ in initialization, which their verdicts then compare, too.
fn initializations(study: &Study, group: &Group) -> Option<String> {
    let cells = study
        .runs
        .iter()
        .filter(|run| (&run.cell.init, run.cell.depth) == (&group.init, group.depth));
    let mut of: Vec<(&str, Init)> = Vec::new();
    for run in cells {
        let name = run.cell.placement.as_str();
        if !of.iter().any(|(known, _)| *known == name) {
            of.push((name, run.config.model_config().ok()?.placement.init));
        }
    }
    let (_, first) = of.first()?;
    if of.iter().all(|(_, init)| init == first) {
        return None;
    }
    let words: Vec<String> = (of.iter())
        .map(|(name, init)| format!("{name} ({})", init.words()))
        .collect();
    Some(format!(
        "Compared with initial weights of their own: {}. `init` in [model] gives one initialization to all.",
        words.join(", ")
    ))
}

/// Returns a remark on records older than the history.
fn unknown(records: usize) -> Option<String> {
    (records > 0).then(|| {
        format!(
            "Not known: whether rules or plan were changed before {} of the records were there; the folder \
             had no history.json then, as those of earlier versions, or it was removed.",
            grouped(records as u64)
        )
    })
}

/// Returns a remark on rules and plans that changed after runs had ended.
fn changed(changes: &[String]) -> Option<String> {
    (!changes.is_empty()).then(|| {
        format!(
            "Changed when results were there: {}. Intervals and p values do not allow for that.",
            changes.join("; ")
        )
    })
}
