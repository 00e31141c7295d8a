//! Joins what was done of one study in several folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder::{Folder, check_same_data};
use super::plan::Study;
use super::record::RunRecord;
use crate::error::{Error, Result};
use crate::files::Locking;

/// What stands in the folder where others were joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Finished runs.
    pub runs: usize,
    /// Records of earlier versions, which have no checksum.
    pub without_checksum: usize,
}

/// Joins the finished runs of folders of one study in another folder. The folders are read only.
///
/// # Errors
/// If the studies are not the same, two records of one run differ in more than their cost, a record is
/// not that of its run, or another process works in the folder where they are joined.
pub fn merge(from: &[PathBuf], into: &Path, locking: Locking) -> Result<Merged> {
    let Some(first) = from.first() else {
        return Err(Error::config("nothing to merge: name the folders"));
    };
    let study = Folder::new(first).study()?;
    if study.file.study.halving.is_some() {
        return Err(Error::config(
            "runs of a study with halving depend on each other and are all in one folder",
        ));
    }
    let mut found = Found::default();
    for path in from {
        found.add(&Folder::new(path), &study, first)?;
    }
    // Now nothing is wrong with what is to be joined; what stands there already is looked at when
    // nobody else can change it.
    let target = Folder::new(into);
    let hold = target.hold(locking)?;
    if target.holds_study()? {
        found.add(&target, &study, first)?;
    }
    check_same_data(found.records.values())?;
    target.set_up(&study)?;
    for record in found.records.values() {
        if !target.is_finished(&record.id)? {
            target.write_record(record)?;
        }
    }
    hold.leave_no_trace();
    Ok(Merged {
        runs: found.records.len(),
        without_checksum: found.without_checksum,
    })
}

#[derive(Default)]
struct Found {
    records: BTreeMap<String, RunRecord>,
    without_checksum: usize,
}

impl Found {
    fn add(&mut self, folder: &Folder, study: &Study, first: &Path) -> Result<()> {
        if folder.study()?.file != study.file {
            return Err(Error::config(format!(
                "{} holds another study than {}",
                folder.path().display(),
                first.display()
            )));
        }
        let read = folder.read(&study.runs)?;
        self.without_checksum += read.without_checksum;
        for record in read.records {
            match self.records.get(&record.id) {
                Some(other) if !other.is_same(&record) => {
                    return Err(Error::format(
                        folder.record_path(&record.id),
                        format!(
                            "{} has other numbers than in another folder",
                            record.cell.label()
                        ),
                    ));
                }
                Some(_) => {}
                None => drop(self.records.insert(record.id.clone(), record)),
            }
        }
        Ok(())
    }
}
