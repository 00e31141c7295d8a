//! Groups of runs with the same training data, validation data, tokenizer and sequence lengths. Losses are compared
//! only within a group.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::lab::study::RunRecord;
use crate::train::segments::{NO_VALIDATION, Segment};
use crate::train::{Checkpoint, Config};

/// Data, tokenizer and sequence lengths shared by runs whose losses are comparable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DataGroup {
    /// Differences from the other groups of the report; empty if there is only one group.
    pub name: String,
    /// Name of the training data in the first run.
    #[serde(rename = "named")]
    pub train_name: String,
    /// Fingerprint of the training data.
    pub data: String,
    /// Fingerprint of the validation data of the last steps, `none`, or the configured name if the run recorded no
    /// fingerprint.
    pub validation: String,
    /// Name of the validation data in the first run.
    #[serde(default)]
    #[serde(rename = "validation_named")]
    pub validation_name: String,
    /// Name and fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Vocabulary size (rows of the embedding matrix).
    pub vocabulary: usize,
    /// Sequence length, in tokens.
    pub seq_len: usize,
    /// Sequences per evaluation; 0: all.
    pub eval_sequences: usize,
}

impl DataGroup {
    /// Determines the group of a run from its own files.
    ///
    /// # Errors
    /// If its tokenizer or its model configuration cannot be read.
    pub(super) fn of(
        record: &RunRecord,
        config: &Config,
        checkpoint: Option<&Checkpoint>,
        segments: &[Segment],
    ) -> Result<Self> {
        let data = match checkpoint.is_some() || !segments.is_empty() {
            true => record.data.clone(),
            false => format!("not recorded: {}", config.data.train.join(", ")),
        };
        let tokenizer = checkpoint.map(Checkpoint::tokenizer).transpose()?.flatten();
        let spec = config.data.tokenizer.as_deref();
        let tokenizer = match tokenizer {
            Some(found) => format!("{} ({})", found.name(), short_hash(found.fingerprint())),
            None => format!("{}, not recorded", spec.unwrap_or("that of the data")),
        };
        let vocabulary = match checkpoint {
            Some(checkpoint) => checkpoint.config()?.vocab_size,
            None => config.model_config()?.vocab_size,
        };
        let validation_name = match config.data.validation.as_slice() {
            [] => "held out from the training data".to_owned(),
            paths => paths.join(", "),
        };
        let recorded = segments.last().and_then(|last| last.validation.clone());
        let validation = recorded.unwrap_or_else(|| format!("not recorded: {validation_name}"));
        Ok(Self {
            name: String::new(),
            train_name: config.data.train.join(", "),
            data,
            validation,
            validation_name,
            tokenizer,
            vocabulary,
            seq_len: config.train.seq_len,
            eval_sequences: config.train.eval_sequences,
        })
    }

    /// True if runs of both groups are comparable.
    pub(super) fn is_comparable(&self, other: &Self) -> bool {
        self.comparability_keys() == other.comparability_keys()
    }

    fn comparability_keys(&self) -> [(&'static str, String); 6] {
        let sequences = match self.eval_sequences {
            0 => "all".to_owned(),
            some => some.to_string(),
        };
        [
            ("training data", self.data.clone()),
            ("validation data", self.validation.clone()),
            ("tokenizer", self.tokenizer.clone()),
            ("vocabulary", self.vocabulary.to_string()),
            ("sequence length", self.seq_len.to_string()),
            ("validation sequences", sequences),
        ]
    }
}

/// Names each group by its differences from the others.
pub(super) fn name_groups(mut groups: Vec<DataGroup>) -> Vec<DataGroup> {
    let all: Vec<[(&str, String); 6]> = groups.iter().map(DataGroup::comparability_keys).collect();
    for (at, group) in groups.iter_mut().enumerate() {
        let differs = |key: &usize| all.iter().any(|other| other[*key] != all[at][*key]);
        let parts: Vec<String> = (0..all[at].len())
            .filter(differs)
            .map(|key| match all[at][key] {
                ("training data", _) => {
                    format!(
                        "training data {} ({})",
                        group.train_name,
                        short_hash(&group.data)
                    )
                }
                ("validation data", ref found) if found == NO_VALIDATION => {
                    "no validation data".to_owned()
                }
                ("validation data", ref found) => format!(
                    "validation data {} ({})",
                    group.validation_name,
                    short_hash(found)
                ),
                (name, ref value) => format!("{name} {value}"),
            })
            .collect();
        if !parts.is_empty() {
            group.name = format!("Group {}: {}", at + 1, parts.join(", "));
        }
    }
    groups
}

/// Returns a note that losses are not comparable across groups; `None` if there is only one group.
pub(super) fn incomparable_note(groups: &[DataGroup]) -> Option<String> {
    (groups.len() > 1).then(|| {
        format!(
            "These runs form {} groups with different training data, validation data, tokenizer or sequence length. \
             Losses of different groups are not comparable and are shown separately.",
            groups.len()
        )
    })
}

/// Returns a prefix of a hash that is long enough to identify it.
pub(super) fn short_hash(hash: &str) -> &str {
    match hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => hash.get(..12).unwrap_or(hash),
        false => hash.split(':').next().unwrap_or(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_by_their_differences() {
        let one = DataGroup {
            name: String::new(),
            train_name: "a.txt".into(),
            data: "d1".into(),
            validation: "e1".into(),
            validation_name: "held out from the training data".into(),
            tokenizer: "bytes".into(),
            vocabulary: 257,
            seq_len: 16,
            eval_sequences: 0,
        };
        let other = DataGroup {
            data: "d2".into(),
            eval_sequences: 8,
            ..one.clone()
        };
        let names: Vec<String> = name_groups(vec![one.clone(), other])
            .into_iter()
            .map(|group| group.name)
            .collect();
        assert_eq!(
            names,
            [
                "Group 1: training data a.txt (d1), validation sequences all",
                "Group 2: training data a.txt (d2), validation sequences 8"
            ]
        );
        assert_eq!(name_groups(vec![one.clone()])[0].name, "");
        let old = DataGroup {
            validation: "not recorded: v.txt".into(),
            validation_name: "v.txt".into(),
            ..one.clone()
        };
        let none = DataGroup {
            validation: "none".into(),
            ..one.clone()
        };
        let names: Vec<String> = name_groups(vec![one.clone(), old, none])
            .into_iter()
            .map(|group| group.name)
            .collect();
        assert_eq!(
            names,
            [
                "Group 1: validation data held out from the training data (e1)",
                "Group 2: validation data v.txt (not recorded)",
                "Group 3: no validation data"
            ]
        );
        assert_eq!(incomparable_note(&[one]), None);
    }
}
