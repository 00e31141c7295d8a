//! Studies whose records are made up, through the program: what may not be said of them is not said.

mod common;

use std::fs;

use common::Lab;
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

/// The study as it ended, with losses by placement, learning rate and seed in place of its own.
fn made_up(loss: fn(&str, f64, u64) -> Option<f64>) -> Lab {
    let lab = Lab::new();
    lab.write("study.toml", STUDY);
    lab.ok(&[
        "--quiet",
        "--threads",
        "1",
        "study",
        "study.toml",
        "--out",
        "out",
    ]);
    for entry in fs::read_dir(lab.path("out/runs")).unwrap() {
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
        record["ending"] = serde_json::json!({ "kind": "finished" });
        // As a record of an earlier version, which has none.
        record.as_object_mut().unwrap().remove("sha256");
        fs::write(&path, record.to_string()).unwrap();
    }
    lab
}

/// The entry of `hybridnorm` in the analysis, and the report in words.
fn said(lab: &Lab) -> (Value, String) {
    let command = [
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "out",
        "--resume",
        "--json",
    ];
    let groups = lab.json(&command);
    let entries = groups[0]["analysis"]["placements"].as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["placement"] == "hybridnorm");
    let report = lab.ok(&["report", "out", "--format", "markdown"]);
    (entry.unwrap().clone(), format!("{groups}\n{report}"))
}

fn claims(text: &str) -> bool {
    [
        "hybridnorm is better",
        "hybridnorm is worse",
        "better than",
        "worse than",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// Best in the middle; the other placement differs by `0.2`.
fn valley(lr: f64, seed: u64) -> f64 {
    2.0 + 0.001 * seed as f64 + if lr == 3e-3 { 0.0 } else { 0.1 }
}

#[test]
fn a_clear_difference_is_found() {
    let lab = made_up(|placement, lr, seed| {
        let less = if placement == "hybridnorm" { 0.2 } else { 0.0 };
        Some(valley(lr, seed) - less + 0.0001 * (seed % 2) as f64)
    });
    let (entry, text) = said(&lab);
    assert_eq!(entry["against"]["verdict"], "better", "{entry}");
    assert!(
        text.contains("hybridnorm is better than pre-norm"),
        "{text}"
    );
}

#[test]
fn a_missing_run_takes_the_verdict_with_it() {
    let lab = made_up(|placement, lr, seed| {
        let less = if placement == "hybridnorm" { 0.2 } else { 0.0 };
        Some(valley(lr, seed) - less + 0.0001 * (seed % 2) as f64)
    });
    let first = fs::read_dir(lab.path("out/runs")).unwrap().next().unwrap();
    fs::remove_file(first.unwrap().path()).unwrap();
    let json = lab.json(&["report", "out", "--format", "json"]);
    let analysis = &json["groups"][0]["analysis"];
    assert_eq!(
        (&analysis["complete"], &analysis["missing"]),
        (&false.into(), &1.into())
    );
    let text = lab.ok(&["report", "out", "--format", "markdown"]);
    assert!(text.contains("Incomplete: 1 of 18 runs"), "{text}");
    assert!(!claims(&text), "{text}");
    lab.ok(&["study", "merge", "out", "--out", "joined", "--quiet"]);
    let joined = lab.ok(&["report", "joined", "--format", "markdown"]);
    assert!(joined.contains("Incomplete: 1 of 18 runs"), "{joined}");
}

#[test]
fn one_shard_of_a_study_gives_no_verdict() {
    let lab = Lab::new();
    lab.write("study.toml", STUDY);
    let text = lab.ok(&[
        "--quiet",
        "study",
        "study.toml",
        "--out",
        "out",
        "--shard",
        "1/2",
    ]);
    assert!(text.contains("Incomplete: 9 of 18 runs"), "{text}");
    assert!(!claims(&text), "{text}");
}

#[test]
fn an_optimum_at_the_edge_of_the_grid_is_undecided() {
    let lab = made_up(|placement, lr, seed| match placement {
        // Falls until the last rate.
        "hybridnorm" => Some(2.5 - 10.0 * lr + 0.001 * seed as f64),
        _ => Some(valley(lr, seed) + 0.0001 * (seed % 2) as f64),
    });
    let (entry, text) = said(&lab);
    assert_eq!(entry["against"], Value::Null, "{entry}");
    assert!(
        text.contains("undecided: its best rate is at the edge"),
        "{text}"
    );
    assert!(!text.contains("hybridnorm is worse"), "{text}");
}

#[test]
fn a_difference_within_the_margin_is_none() {
    let lab = made_up(|placement, lr, seed| {
        let less = if placement == "hybridnorm" { 1e-5 } else { 0.0 };
        Some(valley(lr, seed) - less)
    });
    let (entry, text) = said(&lab);
    assert_eq!(entry["against"]["verdict"], "indistinguishable", "{entry}");
    assert!(!text.contains("hybridnorm is better"), "{text}");
}

#[test]
fn runs_that_have_not_learned_yet_did_not_fail() {
    let lab = made_up(|_, _, _| None);
    let (entry, text) = said(&lab);
    for rate in entry["rates"].as_array().unwrap() {
        assert_eq!(
            (&rate["not_learned"], &rate["diverged"]),
            (&3.into(), &0.into()),
            "{rate}"
        );
    }
    assert!(text.contains("had not learned yet"), "{text}");
    assert!(text.contains("no run was lost"), "{text}");
    assert!(!text.contains("hybridnorm is better") && !text.contains("hybridnorm is worse"));
}

#[test]
fn one_lost_seed_makes_no_placement_worse() {
    // Better by far at the middle rate but for one torn seed.
    let lab = made_up(|placement, lr, seed| match (placement, lr == 3e-3, seed) {
        ("hybridnorm", true, 3) => Some(5.9),
        ("hybridnorm", true, _) => Some(1.5 + 0.001 * seed as f64),
        ("hybridnorm", false, _) => Some(2.15 + 0.0013 * (seed % 2) as f64),
        _ => Some(valley(lr, seed)),
    });
    let (entry, text) = said(&lab);
    assert_eq!(entry["against"], Value::Null, "{entry}");
    assert!(!text.contains("hybridnorm is worse"), "{text}");
}
