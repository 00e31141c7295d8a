//! Labels that distinguish runs.
//!
//! Only runs that differ in nothing but the seed are replicates of each other. Other runs get labels that
//! name the differences: `pre-norm, weight_decay 0.1` and `pre-norm, weight_decay 0.3`.

use std::collections::BTreeMap;

use super::format::count;
use crate::text::truncated_line;
use crate::train::history;

/// Maximum number of keys in a label; the remaining ones are only counted, and a table lists all.
const MAX_KEYS: usize = 4;
/// Maximum characters of a value in a label.
const VALUE_CHARS: usize = 40;

/// Properties of a run that its label depends on.
#[derive(Debug, Clone)]
pub(super) struct RunIdentity {
    /// Name of the placement.
    pub(super) placement: String,
    /// Hash of the placement.
    pub(super) hash: String,
    /// Peak learning rate, if it was the same for all steps.
    pub(super) lr: Option<f64>,
    /// Random seed.
    pub(super) seed: u64,
    /// Name of its directory.
    pub(super) directory: String,
    /// Configuration keys that affect results, with their values.
    pub(super) keys: BTreeMap<String, String>,
    /// Description of configuration changes during training; empty if there were none.
    pub(super) changes: String,
}

/// Labels of runs.
pub(super) struct Labels {
    /// Keys whose value is not the same in all runs.
    pub(super) differing: Vec<String>,
    /// One label per run, shared by runs that differ only in seed and learning rate.
    pub(super) labels: Vec<String>,
}

/// Returns the configuration keys and values that affect results, without the seed, the peak learning rate,
/// the placement and the data, which are reported separately.
///
/// # Errors
/// If the text is not valid TOML.
pub(super) fn result_keys(config: &str) -> Result<BTreeMap<String, String>, toml::de::Error> {
    let table: toml::Table = toml::from_str(config)?;
    let mut keys = BTreeMap::new();
    flatten("", table, &mut keys);
    keys.retain(|key, _| affects_results(key) && !is_reported_separately(key));
    Ok(keys)
}

/// True if a key affects the results of a run, not only what is logged or saved, its memory or its time.
pub(super) fn affects_results(key: &str) -> bool {
    let other_keys = [
        "train.bf16_weight_copies",
        "train.recompute",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.eval_every",
    ];
    // Data are identified by fingerprint, not by path.
    let paths = ["data.train", "data.validation", "data.tokenizer"];
    !key.starts_with("log.") && !other_keys.contains(&key) && !paths.contains(&key)
}

fn is_reported_separately(key: &str) -> bool {
    matches!(key, "seed" | "optimizer.lr" | "model.placement")
        || key.starts_with("model.placement.")
}

fn flatten(prefix: &str, table: toml::Table, keys: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let key = match prefix {
            "" => name,
            prefix => format!("{prefix}.{name}"),
        };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, keys),
            toml::Value::String(text) => drop(keys.insert(key, text)),
            other => drop(keys.insert(key, other.to_string())),
        }
    }
}

/// Labels runs that are shown together.
pub(super) fn label(runs: &[RunIdentity]) -> Labels {
    let differing = differing(runs);
    let mut labels: Vec<String> = runs.iter().map(|run| with_keys(run, &differing)).collect();
    // For runs that differ in keys not named in the label, or placements that share a name.
    number_ambiguous_labels(&mut labels, |at| {
        let values = differing.iter().map(|key| runs[at].keys.get(key).cloned());
        (values.collect::<Vec<_>>(), runs[at].hash.clone())
    });
    append_directories(&mut labels, runs);
    Labels { differing, labels }
}

fn differing(runs: &[RunIdentity]) -> Vec<String> {
    let mut keys: Vec<&String> = runs.iter().flat_map(|run| run.keys.keys()).collect();
    keys.sort();
    keys.dedup();
    let is_same = |key: &&String| {
        let mut values = runs.iter().map(|run| run.keys.get(*key));
        let first = values.next();
        values.all(|value| Some(value) == first)
    };
    (keys.into_iter())
        .filter(|key| !is_same(key))
        .cloned()
        .collect()
}

/// Returns the value of a key that is not set, for readers.
pub(super) fn unset(key: &str) -> &'static str {
    history::omitted_default(key).map_or("not set", |value| value.trim_matches('"'))
}

fn with_keys(run: &RunIdentity, differing: &[String]) -> String {
    let mut parts = vec![run.placement.clone()];
    for key in differing.iter().take(MAX_KEYS) {
        let name = short_name(key, differing);
        parts.push(match run.keys.get(key) {
            Some(value) => format!("{name} {}", truncated_line(value, VALUE_CHARS)),
            None => format!("{name} {}", unset(key)),
        });
    }
    if differing.len() > MAX_KEYS {
        let more = differing.len() - MAX_KEYS;
        parts.push(count(more, "more key", "more keys"));
    }
    if !run.changes.is_empty() {
        parts.push(run.changes.clone());
    }
    parts.join(", ")
}

/// Returns the last part of a key, or the full key if another one ends with the same part.
pub(super) fn short_name<'a>(key: &'a str, all: &[String]) -> &'a str {
    let last = |key: &'a str| key.rsplit('.').next().unwrap_or(key);
    let last_part = last(key);
    let same = all
        .iter()
        .filter(|other| other.rsplit('.').next() == Some(last_part));
    if same.count() > 1 { key } else { last_part }
}

/// Appends a number to equal labels of different runs.
fn number_ambiguous_labels<T: PartialEq>(labels: &mut [String], what: impl Fn(usize) -> T) {
    let before = labels.to_vec();
    for (at, label) in labels.iter_mut().enumerate() {
        let mut kinds: Vec<T> = Vec::new();
        for (other, known) in before.iter().enumerate() {
            let kind = what(other);
            if *known == before[at] && !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        if kinds.len() > 1 {
            let number = kinds.iter().position(|kind| *kind == what(at));
            *label += &format!(", variant {}", number.map_or(0, |number| number + 1));
        }
    }
}

/// Appends the directory to equal labels of runs with the same learning rate and seed, which are not replicates.
fn append_directories(labels: &mut [String], runs: &[RunIdentity]) {
    let before = labels.to_vec();
    let has_same_label_and_seed = |a: usize, b: usize| {
        before[a] == before[b] && runs[a].lr == runs[b].lr && runs[a].seed == runs[b].seed
    };
    for at in 0..runs.len() {
        if (0..runs.len()).any(|other| other != at && has_same_label_and_seed(at, other)) {
            labels[at] += &format!(", {}", runs[at].directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(placement: &str, seed: u64, config: &str) -> RunIdentity {
        RunIdentity {
            placement: placement.into(),
            hash: placement.into(),
            lr: Some(1e-3),
            seed,
            directory: format!("run{seed}"),
            keys: result_keys(config).unwrap(),
            changes: String::new(),
        }
    }

    #[test]
    fn runs_equal_but_for_the_seed_share_a_label() {
        let runs = [
            run(
                "a",
                1,
                "seed = 1\n[log]\ndumps = 1\n[data]\ntrain = [\"x\"]",
            ),
            run(
                "a",
                2,
                "seed = 2\n[log]\ndumps = 9\n[data]\ntrain = [\"y\"]",
            ),
            run("b", 1, "seed = 1\n[train]\ncheckpoint_every = 5"),
        ];
        let found = label(&runs);
        assert_eq!(found.labels, ["a", "a", "b"]);
        assert!(found.differing.is_empty());
    }

    #[test]
    fn labels_name_differing_keys() {
        let runs = [
            run("a", 1, "[optimizer]\nweight_decay = 0.1\nlr = 1"),
            run("a", 2, "[optimizer]\nweight_decay = 0.3\nlr = 2"),
            run("b", 1, "[optimizer]\nbeta = 2"),
        ];
        let found = label(&runs);
        assert_eq!(
            found.differing,
            ["optimizer.beta", "optimizer.weight_decay"]
        );
        assert_eq!(
            found.labels,
            [
                "a, beta not set, weight_decay 0.1",
                "a, beta not set, weight_decay 0.3",
                "b, beta 2, weight_decay not set"
            ]
        );
    }

    #[test]
    fn ambiguous_keys_are_written_in_full() {
        let runs = [
            run("a", 1, "[x]\nk = 1\n[y]\nk = 1"),
            run("a", 2, "[x]\nk = 2\n[y]\nk = 2"),
        ];
        assert_eq!(label(&runs).labels, ["a, x.k 1, y.k 1", "a, x.k 2, y.k 2"]);
    }

    #[test]
    fn ambiguous_labels_are_numbered() {
        let mut runs = [run("a", 1, ""), run("a", 2, ""), run("a", 3, "")];
        runs[2].hash = "other".into();
        assert_eq!(
            label(&runs).labels,
            ["a, variant 1", "a, variant 1", "a, variant 2"]
        );
    }

    #[test]
    fn labels_with_many_keys_are_distinct() {
        let config = |last: u64, rest: u64| {
            format!("a = {rest}\nb = {rest}\nc = {rest}\nd = {rest}\ne = {last}")
        };
        let runs = [
            run("p", 1, &config(1, 1)),
            run("p", 2, &config(2, 1)),
            run("p", 3, &config(3, 2)),
        ];
        assert_eq!(
            label(&runs).labels,
            [
                "p, a 1, b 1, c 1, d 1, 1 more key, variant 1",
                "p, a 1, b 1, c 1, d 1, 1 more key, variant 2",
                "p, a 2, b 2, c 2, d 2, 1 more key"
            ]
        );
    }

    #[test]
    fn runs_with_the_same_seed_get_distinct_labels() {
        let mut runs = [run("a", 1, ""), run("a", 1, ""), run("a", 2, "")];
        runs[1].directory = "copy".into();
        assert_eq!(label(&runs).labels, ["a, run1", "a, copy", "a"]);
    }
}
