//! Studies with synthetic records, through the binary: no unsupported claims are made.

mod common;

use std::fs;

use common::{TestDir, files_below, update_checksum};
use serde_json::Value;

const STUDY: &str = r#"
[study]
placements = ["pre-norm", "hybridnorm"]
lr = [1e-3, 3e-3, 1e-2]
seeds = [1, 2, 3]
[model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
[data]
train = ["stories:60"]
tokenizer = "bytes"
[train]
steps = 4
batch_size = 4
seq_len = 16
eval_sequences = 4
checkpoint_every = 0
"#;

/// Runs the study and replaces its losses by placement, learning rate and seed.
fn study_with_losses(loss: fn(&str, f64, u64) -> Option<f64>) -> TestDir {
    study_file_with_losses(STUDY, loss)
}

fn study_file_with_losses(study: &str, loss: fn(&str, f64, u64) -> Option<f64>) -> TestDir {
    let dir = TestDir::new();
    dir.write("study.toml", study);
    dir.ok(&[
        "--quiet",
        "--threads",
        "1",
        "study",
        "study.toml",
        "--out",
        "out",
    ]);
    for entry in fs::read_dir(dir.path("out/runs")).unwrap() {
        let path = entry.unwrap().path();
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let cell = &record["cell"];
        let (placement, lr, seed) = (
            cell["placement"].as_str().unwrap(),
            cell["lr"].as_f64().unwrap(),
            cell["seed"].as_u64().unwrap(),
        );
        let Some(loss) = loss(placement, lr, seed) else {
            continue;
        };
        record["validation_loss"] = loss.into();
        let last = record["validation"].as_array().unwrap().len() - 1;
        record["validation"][last]["loss"] = loss.into();
        record["ending"] = serde_json::json!({ "kind": "finished" });
        update_checksum(&mut record);
        fs::write(&path, record.to_string()).unwrap();
    }
    dir
}

/// Returns the entry of `hybridnorm` in the analysis, and the report text.
fn analysis_and_report(dir: &TestDir) -> (Value, String) {
    let command = [
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "out",
        "--resume",
        "--json",
    ];
    let groups = dir.json(&command);
    let entries = groups[0]["analysis"]["placements"].as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["placement"] == "hybridnorm");
    let report = dir.ok(&["report", "out", "--format", "markdown"]);
    (entry.unwrap().clone(), format!("{groups}\n{report}"))
}

fn claims_a_difference(text: &str) -> bool {
    [
        "hybridnorm is better",
        "hybridnorm is worse",
        "better than",
        "worse than",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// Returns a loss with its minimum at the middle learning rate.
fn loss_with_minimum(lr: f64, seed: u64) -> f64 {
    2.0 + 0.001 * seed as f64 + if lr == 3e-3 { 0.0 } else { 0.1 }
}

#[test]
fn a_clear_difference_is_found() {
    let dir = study_with_losses(|placement, lr, seed| {
        let less = if placement == "hybridnorm" { 0.2 } else { 0.0 };
        Some(loss_with_minimum(lr, seed) - less + 0.0001 * (seed % 2) as f64)
    });
    let (entry, text) = analysis_and_report(&dir);
    assert_eq!(entry["against"]["verdict"], "better", "{entry}");
    assert!(
        text.contains("hybridnorm is better than pre-norm"),
        "{text}"
    );
}

#[test]
fn a_missing_run_makes_the_verdict_undecided() {
    let dir = study_with_losses(|placement, lr, seed| {
        let less = if placement == "hybridnorm" { 0.2 } else { 0.0 };
        Some(loss_with_minimum(lr, seed) - less + 0.0001 * (seed % 2) as f64)
    });
    let first = fs::read_dir(dir.path("out/runs")).unwrap().next().unwrap();
    fs::remove_file(first.unwrap().path()).unwrap();
    let json = dir.json(&["report", "out", "--format", "json"]);
    let analysis = &json["groups"][0]["analysis"];
    assert_eq!(
        (&analysis["complete"], &analysis["missing"]),
        (&false.into(), &1.into())
    );
    let text = dir.ok(&["report", "out", "--format", "markdown"]);
    assert!(text.contains("Incomplete: 1 of 18 runs"), "{text}");
    assert!(!claims_a_difference(&text), "{text}");
    dir.ok(&["study", "merge", "out", "--out", "joined", "--quiet"]);
    let joined = dir.ok(&["report", "joined", "--format", "markdown"]);
    assert!(joined.contains("Incomplete: 1 of 18 runs"), "{joined}");
}

#[test]
fn a_single_shard_has_no_verdict() {
    let dir = TestDir::new();
    dir.write("study.toml", STUDY);
    let text = dir.ok(&[
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "out",
        "--shard",
        "1/2",
    ]);
    assert!(text.contains("Incomplete: 9 of 18 runs"), "{text}");
    assert!(!claims_a_difference(&text), "{text}");
}

#[test]
fn an_optimum_at_the_edge_of_the_grid_is_undecided() {
    let dir = study_with_losses(|placement, lr, seed| match placement {
        // Decreases up to the largest learning rate.
        "hybridnorm" => Some(2.5 - 10.0 * lr + 0.001 * seed as f64),
        _ => Some(loss_with_minimum(lr, seed) + 0.0001 * (seed % 2) as f64),
    });
    let (entry, text) = analysis_and_report(&dir);
    assert_eq!(entry["against"], Value::Null, "{entry}");
    assert!(
        text.contains("undecided: its best learning rate is at the edge"),
        "{text}"
    );
    assert!(!text.contains("hybridnorm is worse"), "{text}");
}

#[test]
fn differences_within_the_margin_are_not_claimed() {
    let dir = study_with_losses(|placement, lr, seed| {
        let less = if placement == "hybridnorm" { 1e-5 } else { 0.0 };
        Some(loss_with_minimum(lr, seed) - less)
    });
    let (entry, text) = analysis_and_report(&dir);
    assert_eq!(entry["against"]["verdict"], "equivalent", "{entry}");
    assert!(
        text.contains("hybridnorm is equivalent to pre-norm within the margin of 0.01 nats"),
        "{text}"
    );
    assert!(!claims_a_difference(&text), "{text}");
}

#[test]
fn runs_that_have_not_learned_yet_do_not_count_as_diverged() {
    let dir = study_with_losses(|_, _, _| None);
    let (entry, text) = analysis_and_report(&dir);
    for rate in entry["rates"].as_array().unwrap() {
        assert_eq!(
            (&rate["not_learned"], &rate["diverged"]),
            (&3.into(), &0.into()),
            "{rate}"
        );
    }
    assert!(text.contains("had not learned yet"), "{text}");
    assert!(text.contains("no run diverged"), "{text}");
    assert!(!text.contains("hybridnorm is better") && !text.contains("hybridnorm is worse"));
}

#[test]
fn a_diverged_seed_does_not_make_a_placement_worse() {
    // Far better at the middle learning rate, except for one diverged seed.
    let dir = study_with_losses(|placement, lr, seed| match (placement, lr == 3e-3, seed) {
        ("hybridnorm", true, 3) => Some(5.9),
        ("hybridnorm", true, _) => Some(1.5 + 0.001 * seed as f64),
        ("hybridnorm", false, _) => Some(2.15 + 0.0013 * (seed % 2) as f64),
        _ => Some(loss_with_minimum(lr, seed)),
    });
    let (entry, text) = analysis_and_report(&dir);
    assert_eq!(entry["against"], Value::Null, "{entry}");
    assert!(!text.contains("hybridnorm is worse"), "{text}");
}

#[test]
fn a_single_learning_rate_is_undecided() {
    let study = STUDY.replace("lr = [1e-3, 3e-3, 1e-2]", "lr = [3e-3]");
    for less in [0.2, -0.2] {
        let loss: fn(&str, f64, u64) -> Option<f64> = match less > 0.0 {
            true => |placement, _, seed| {
                let less = if placement == "hybridnorm" { 0.2 } else { 0.0 };
                Some(2.0 - less + 0.001 * seed as f64)
            },
            false => |placement, _, seed| {
                let more = if placement == "hybridnorm" { 0.2 } else { 0.0 };
                Some(2.0 + more + 0.001 * seed as f64)
            },
        };
        let dir = study_file_with_losses(&study, loss);
        let (entry, text) = analysis_and_report(&dir);
        assert_eq!(entry["against"], Value::Null, "{entry}");
        assert_eq!(entry["best"]["at_edge"], "only", "{entry}");
        assert!(
            text.contains("undecided: only one learning rate was tried, and the comparison holds at that one only"),
            "{text}"
        );
        assert!(!claims_a_difference(&text), "{text}");
    }
    // Nor does it show equivalence.
    let dir = study_file_with_losses(&study, |_, _, seed| Some(2.0 + 0.001 * seed as f64));
    let (entry, text) = analysis_and_report(&dir);
    assert_eq!(entry["against"]["verdict"], "indistinguishable", "{entry}");
    assert!(
        text.contains("this holds at learning rate 0.003 only, since no other was tried"),
        "{text}"
    );
}

/// The three run statuses have the same names in every output.
#[test]
fn run_statuses_are_consistent_across_outputs() {
    let dir = study_with_losses(|placement, lr, seed| match (placement, lr) {
        ("hybridnorm", 1e-2) => Some(5.9),
        // These had not learned yet.
        ("hybridnorm", 1e-3) => None,
        _ => Some(loss_with_minimum(lr, seed)),
    });
    let table = dir.ok(&["--quiet", "study", "study.toml", "--out", "out", "--resume"]);
    assert!(
        table.contains("3 diverged") && table.contains("3 not learned yet"),
        "{table}"
    );
    let markdown = dir.ok(&["report", "out", "--format", "markdown"]);
    assert!(
        markdown.contains("placement | runs | finished | diverged | not learned yet | eliminated"),
        "{markdown}"
    );
    assert!(markdown.contains("| 9 | 3 | 3 | 3 | 0 |"), "{markdown}");
    assert!(markdown.contains("3 of 3 diverged") && markdown.contains("3 of 3 not learned yet"));
    let html = dir.html_report("out");
    let body = &html[html.find("<body").unwrap()..html.find("<script").unwrap_or(html.len())];
    for text in [table.as_str(), &markdown, body] {
        assert!(!text.contains("lost"), "{text}");
        assert!(text.contains("diverged runs: hybridnorm 3 of 9"), "{text}");
    }
    // A range is known only to one step of the grid.
    assert!(
        !markdown.contains("| span |") && markdown.contains("is outside"),
        "{markdown}"
    );
    assert!(
        markdown.contains("runs: 12 finished, 3 diverged, 3 not learned yet"),
        "{markdown}"
    );
    let json = dir.json(&["report", "out", "--format", "json"]);
    let rate = &json["groups"][0]["analysis"]["placements"][1]["rates"][2];
    assert_eq!((&rate["diverged"], &rate["lost"]), (&3.into(), &3.into()));
}

#[test]
fn table_and_report_show_the_same_digits_and_correct_plurals() {
    let dir = study_with_losses(|placement, lr, seed| {
        let more = if placement == "hybridnorm" { 4.0 } else { 0.0 };
        Some(loss_with_minimum(lr, seed) + more + 0.0001 * (seed % 2) as f64)
    });
    let table = dir.ok(&["--quiet", "study", "study.toml", "--out", "out", "--resume"]);
    let markdown = dir.ok(&["report", "out", "--format", "markdown"]);
    assert!(
        !markdown.contains("all 1 ") && !markdown.contains("1 comparisons"),
        "{markdown}"
    );
    let json = dir.json(&["report", "out", "--format", "json"]);
    let against = &json["groups"][0]["analysis"]["placements"][1]["against"];
    let gain = hybridnorm::format_number::ratio(against["compute_gain"].as_f64().unwrap());
    assert!(gain.contains("e-"), "{gain}");
    for text in [&table, &markdown] {
        assert!(
            text.contains("<0.001") || text.contains("&lt;0.001"),
            "{text}"
        );
        assert!(
            text.contains(&gain) && !text.contains("0.00x"),
            "{gain}: {text}"
        );
    }
}

#[test]
fn records_without_their_checksum_are_rejected() {
    let dir = study_with_losses(|_, lr, seed| Some(loss_with_minimum(lr, seed)));
    for path in files_below(&dir.path("out/runs")) {
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["validation_loss"] = 1.0.into();
        record.as_object_mut().unwrap().remove("sha256");
        fs::write(&path, record.to_string()).unwrap();
    }
    let words = ["has no checksum"];
    dir.expect_error(1, &["report", "out", "--format", "markdown"], &words);
    let study = ["--quiet", "study", "study.toml", "--out", "out", "--resume"];
    dir.expect_error(1, &study, &words);
    dir.expect_error(1, &["study", "merge", "out", "--out", "joined"], &words);
    // Without the mark of this version as well, the records still contradict themselves.
    fs::remove_file(dir.path("out/history.json")).unwrap();
    dir.expect_error(1, &study, &["validation loss of 1 nats, but the last"]);
}

/// Change of the margin as it is reported.
const MARGIN: &str = "study.rules.margin from 0.01 to 0.5";

/// Runs or resumes the study in `out`, and returns the table and the notes.
fn run_study(dir: &TestDir, more: &[&str]) -> (String, String) {
    let base = ["--threads", "1", "study", "study.toml", "--out", "out"];
    let output = dir.run(&[&base[..], more].concat());
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    (table, common::stderr(&output))
}

/// Runs a study of eight runs in `out`.
fn finished_small_study() -> TestDir {
    let dir = TestDir::new();
    let small = STUDY.replace("seeds = [1, 2, 3]", "seeds = [1, 2]");
    dir.write(
        "study.toml",
        small.replace("lr = [1e-3, 3e-3, 1e-2]", "lr = [1e-3, 3e-3]"),
    );
    run_study(&dir, &[]);
    dir
}

/// A changed study file is not written if nothing trains; otherwise the change is reported.
#[test]
fn a_changed_study_is_written_only_when_its_runs_start() {
    let dir = finished_small_study();
    let study = |more: &[&str]| run_study(&dir, more);
    let stated = dir.read("out/study.toml");
    let margin = MARGIN;
    // All runs are finished: the stored margin is kept, and the output reports the one it uses instead.
    let (table, notes) = study(&["--resume", "--set", "study.rules.margin=0.5"]);
    assert!(
        notes.contains("nothing left to train") && notes.contains(margin),
        "{notes}"
    );
    let expected_note = format!("{margin} after 8 of 8 runs had ended");
    assert!(table.contains(&expected_note), "{table}");
    let json = study(&["--resume", "--json", "--set", "study.rules.margin=0.5"]).0;
    assert!(json.contains(&expected_note), "{json}");
    assert_eq!(dir.read("out/study.toml"), stated);
    let report = |folder: &str| dir.ok(&["report", folder, "--format", "markdown"]);
    assert!(!report("out").contains("Changed after results"));
    // A longer study trains; its file stays, even if the shorter study is requested again.
    study(&["--resume", "--set", "train.steps=5"]);
    let longer = dir.read("out/study.toml");
    assert_ne!(longer, stated);
    let (_, notes) = study(&["--resume"]);
    assert!(notes.contains("is unchanged"), "{notes}");
    assert_eq!(dir.read("out/study.toml"), longer);
    let text = report("out");
    assert!(
        text.contains("train.steps from 4 to 5 after 8 of 8 runs had ended"),
        "{text}"
    );
    assert!(text.contains("Ignored: 8 of 16 records"), "{text}");
    assert!(!text.contains("Incomplete"), "{text}");
}

#[test]
fn changed_rules_are_reported_once_missing_runs_are_trained() {
    let dir = finished_small_study();
    let (stated, history) = (dir.read("out/study.toml"), dir.read("out/history.json"));
    let report = |folder: &str| dir.ok(&["report", folder, "--format", "markdown"]);
    run_study(&dir, &["--resume", "--set", "train.steps=5"]);
    dir.write("out/study.toml", &stated);
    dir.write("out/history.json", &history);
    let shorter = files_below(&dir.path("out/runs"))
        .into_iter()
        .filter(|path| {
            let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            record["steps"] == 4
        });
    for path in shorter.take(3) {
        fs::remove_file(path).unwrap();
    }
    run_study(&dir, &["--resume", "--set", "study.rules.margin=0.5"]);
    dir.ok(&["study", "merge", "out", "--out", "joined"]);
    let expected_note = format!("{MARGIN} after 5 of 8 runs had ended");
    for folder in ["out", "joined"] {
        assert!(
            report(folder).contains(&expected_note),
            "{}",
            report(folder)
        );
    }
    // Also for changes by hand.
    dir.write("out/study.toml", &stated);
    let text = report("out");
    assert!(
        text.contains("study.rules.margin from 0.5 to 0.01 after 8 of 8 runs had ended"),
        "{text}"
    );
}

/// A plan without results does not block the one that has results.
#[test]
fn a_change_without_started_runs_can_be_reverted() {
    let dir = study_with_losses(|_, lr, seed| Some(loss_with_minimum(lr, seed)));
    let stated = dir.read("out/study.toml");
    let resume = ["--quiet", "study", "study.toml", "--out", "out", "--resume"];
    let missing = [&resume[..], &["--set", "data.train=[\"nowhere\"]"]].concat();
    dir.expect_error(1, &missing, &["nowhere"]);
    dir.ok(&resume);
    assert_eq!(dir.read("out/study.toml"), stated);
    let text = dir.ok(&["report", "out", "--format", "markdown"]);
    assert!(
        !text.contains("Incomplete") && !text.contains("Changed after results"),
        "{text}"
    );
}
