//! Reading and analysis of a study folder.

use std::collections::BTreeSet;

use super::folder::StudyFolder;
use super::groups::{Group, analyze_groups};
use super::plan::Study;
use super::record::RunRecord;
use super::records::{Records, record_file_name};
use crate::error::Result;
use crate::format_number::with_thousands_separators;
use crate::placement::Init;

/// Recorded runs of a study and their analysis.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StudyAnalysis {
    /// Records in the order of the plan.
    pub records: Vec<RunRecord>,
    /// One entry per initialization and depth.
    pub groups: Vec<Group>,
}

/// Reads the records of a study in a folder and analyzes them, with caveats on their reliability.
///
/// # Errors
/// As [`StudyFolder::read`].
pub fn analyze_folder(folder: &StudyFolder, study: &Study) -> Result<StudyAnalysis> {
    let Records {
        records,
        without_checksum,
    } = folder.read(&study.runs)?;
    let changes = folder.changes(study)?;
    let names = folder.record_names()?;
    let planned_names: BTreeSet<String> = study
        .runs
        .iter()
        .map(|run| record_file_name(&run.id))
        .collect();
    let others = names
        .iter()
        .filter(|name| !planned_names.contains(*name))
        .count();
    let planned = study.runs.iter().map(|run| &run.grid_point);
    let mut groups = analyze_groups(&records, planned, &study.config.study.rules);
    for group in &mut groups {
        let of_group = |record: &&RunRecord| {
            (&record.grid_point.init, record.grid_point.depth) == (&group.init, group.depth)
        };
        let ids = records.iter().filter(of_group).map(|record| &record.id);
        let count = ids
            .clone()
            .filter(|id| without_checksum.contains(id))
            .count();
        group.without_checksum = count;
        let caveats = [
            not_verified(count, ids.count()),
            outside_study(others, names.len()),
            unknown_history(changes.records_with_unknown_study).filter(|_| !records.is_empty()),
            changed_rules(&changes.known).filter(|_| !records.is_empty()),
            different_initializations(study, group).filter(|_| !records.is_empty()),
        ];
        group.caveats = caveats.into_iter().flatten().collect();
    }
    Ok(StudyAnalysis { records, groups })
}

/// Returns a caveat on records without a checksum.
fn not_verified(count: usize, of: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "Not verified: {} of {} records have no checksum (written by earlier versions).",
            with_thousands_separators(count as u64),
            with_thousands_separators(of as u64)
        )
    })
}

/// Returns a caveat on records of runs outside the study.
fn outside_study(count: usize, of: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "Ignored: {} of {} records in this folder belong to runs outside the study.",
            with_thousands_separators(count as u64),
            with_thousands_separators(of as u64)
        )
    })
}

/// Returns a caveat if placements differ in initialization, since their comparison is then also one of initializations.
fn different_initializations(study: &Study, group: &Group) -> Option<String> {
    let runs = study
        .runs
        .iter()
        .filter(|run| (&run.grid_point.init, run.grid_point.depth) == (&group.init, group.depth));
    let mut of: Vec<(&str, Init)> = Vec::new();
    for run in runs {
        let name = run.grid_point.placement.as_str();
        if !of.iter().any(|(known, _)| *known == name) {
            of.push((name, run.config.model_config().ok()?.placement.init));
        }
    }
    let (_, first) = of.first()?;
    if of.iter().all(|(_, init)| init == first) {
        return None;
    }
    let inits: Vec<String> = (of.iter())
        .map(|(name, init)| format!("{name} ({})", init.description()))
        .collect();
    Some(format!(
        "Placements differ in initialization: {}. Set `init` in [model] to use one for all.",
        inits.join(", ")
    ))
}

/// Returns a caveat on records older than the history.
fn unknown_history(records: usize) -> Option<String> {
    (records > 0).then(|| {
        format!(
            "Unknown history: rules or plan may have changed before {} of the records were written; the folder had no \
             history.json (earlier version, or removed).",
            with_thousands_separators(records as u64)
        )
    })
}

/// Returns a caveat on rules and plans that changed after runs had ended.
fn changed_rules(changes: &[String]) -> Option<String> {
    (!changes.is_empty()).then(|| {
        format!(
            "Changed after results existed: {}. Intervals and p values are not corrected for this.",
            changes.join("; ")
        )
    })
}
