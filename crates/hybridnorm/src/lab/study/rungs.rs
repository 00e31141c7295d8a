//! Decisions of successive halving: `halving.json` of a study.

use serde::{Deserialize, Serialize};

use super::folder::StudyFolder;
use super::history::missing_checksum;
use super::plan::Study;
use super::records::RECORD_LIMIT;
use crate::error::{Error, Result};
use crate::files::{self, checksummed};

pub(super) const HALVING: &str = "halving.json";

/// Decision of successive halving after one fraction of the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rung {
    /// Ids of the ranked runs.
    #[serde(rename = "of")]
    pub ranked: Vec<String>,
    /// Ids of the runs that continue.
    #[serde(rename = "on")]
    pub kept: Vec<String>,
}

impl StudyFolder {
    /// Reads the decisions of successive halving so far.
    pub(super) fn rungs(&self) -> Result<Vec<Rung>> {
        let path = self.path().join(HALVING);
        if !files::exists(&path)? {
            return Ok(Vec::new());
        }
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        let may_lack_checksum = self
            .history()?
            .is_none_or(|history| history.may_lack_checksum(HALVING));
        read(&bytes, may_lack_checksum).map_err(|problem| Error::format(path, problem))
    }

    pub(super) fn write_rungs(&self, rungs: &[Rung]) -> Result<()> {
        let path = self.path().join(HALVING);
        let text = checksummed::to_json_list_with_checksums(rungs)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, text.as_bytes()).map(drop)
    }

    /// Rejects a study with halving if earlier decisions ranked other runs.
    pub(super) fn check_halving(&self, study: &Study) -> Result<()> {
        if study.config.study.halving.is_none() {
            return Ok(());
        }
        match self.rungs()?.first() {
            Some(rung) if !rung.ranked.iter().eq(study.runs.iter().map(|run| &run.id)) => {
                Err(self.halving_mismatch())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn halving_mismatch(&self) -> Error {
        Error::conflict(
            ["study", "study.halving"],
            format!(
                "{}: successive halving has already ranked other runs; a study with halving cannot change: start \
                 a new one in another folder",
                self.path().display()
            ),
        )
    }
}

fn read(bytes: &[u8], may_lack_checksum: bool) -> Result<Vec<Rung>, String> {
    let parsed = checksummed::parse_list(bytes)?;
    match parsed.iter().all(|rung| rung.checksum.is_some()) || may_lack_checksum {
        true => Ok(parsed.into_iter().map(|rung| rung.content).collect()),
        false => Err(missing_checksum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_flips_are_detected() {
        let rungs = [["a", "b", "c"], ["b", "c", "d"]].map(|ids| Rung {
            ranked: ids.map(str::to_owned).to_vec(),
            kept: vec![ids[0].to_owned()],
        });
        let whole = checksummed::to_json_list_with_checksums(&rungs).unwrap();
        assert_eq!(read(whole.as_bytes(), false).unwrap(), rungs);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = read(&bytes, false) {
                assert_eq!(read, rungs, "bit {bit}");
            }
        }
        // Rungs without checksums, from an earlier version; then rungs in another order.
        let old = serde_json::to_vec(&rungs).unwrap();
        assert_eq!(read(&old, true).unwrap(), rungs);
        assert!(read(&old, false).unwrap_err().contains("no checksum"));
        let mut values: Vec<serde_json::Value> = serde_json::from_str(&whole).unwrap();
        values.swap(0, 1);
        assert!(read(&serde_json::to_vec(&values).unwrap(), false).is_err());
    }
}
