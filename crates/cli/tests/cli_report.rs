//! Reports, as files and in a browser.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{TestDir, files_below};
use serde_json::Value;

const STUDY: &str = r#"
[study]
placements = ["pre-norm", "hybridnorm", { name = "<b>odd</b> & \"quoted\"", base = "post-norm" }]
lr = [1e-2, 3e-2, 1e38]
seeds = [1, 2, 3]
[model]
d_model = 16
n_layers = 3
n_heads = 2
d_ff = 32
[data]
train = ["stories:60"]
tokenizer = "bytes"
[schedule]
kind = "constant"
[optimizer]
clip_grad_norm = 0
[train]
steps = 90
batch_size = 4
seq_len = 16
eval_every = 10
eval_sequences = 0
checkpoint_every = 0
[log]
layers_every = 5
"#;

/// Report of the study and of the probe.
const REPORT: [&str; 6] = [
    "report",
    "out",
    "probe.json",
    "--out",
    "report.html",
    "--quiet",
];

/// Creates a folder with a study in `out` and a probe result in `probe.json`.
fn test_dir() -> TestDir {
    let dir = TestDir::new();
    dir.write("study.toml", STUDY);
    dir.ok(&["study", "study.toml", "--quiet", "--out", "out"]);
    let placements = "--placements=pre-norm,hybridnorm";
    let probe = [
        "probe",
        "tiny.toml",
        "--quiet",
        "--steps",
        "3",
        placements,
        "--out",
        "probe.json",
    ];
    dir.ok(&probe);
    dir
}

#[test]
fn reports_agree_in_every_format() {
    let dir = test_dir();
    let document = dir.json(&["report", "out", "probe.json", "--format", "json"]);
    assert_eq!(document["runs"].as_array().unwrap().len(), 27);
    assert_eq!(document["title"], "out, probe");
    let verdict = document["groups"][0]["verdict"].as_array().unwrap();
    assert_eq!(verdict.len(), 3);
    let markdown = dir.ok(&["report", "out", "--format", "markdown"]);
    dir.ok(&REPORT);
    let html = String::from_utf8(dir.read("report.html")).unwrap();
    for placement in document["groups"][0]["analysis"]["placements"]
        .as_array()
        .unwrap()
    {
        let Some(loss) = placement["best"]["loss"]["mean"].as_f64() else {
            panic!("{placement}");
        };
        let loss = format!("{loss:.4}");
        assert!(markdown.contains(&loss) && html.contains(&loss), "{loss}");
    }
    assert!(!html.contains("<b>odd"), "names are data");
    assert_eq!(
        files_below(&dir.path("out")).len(),
        27 + 3,
        "a report changes nothing"
    );
}

#[test]
fn unfinished_runs_are_reported() {
    let dir = TestDir::new();
    dir.train("done", &[]);
    dir.train("other", &["--set", "model.placement=pre-norm"]);
    let jump = [
        "--set",
        "optimizer.lr=1e30",
        "--set",
        "optimizer.clip_grad_norm=0",
    ];
    dir.train_fails(1, "died", &jump, &["step 2"]);
    let document = dir.json(&["report", "done", "other", "died", "--format", "json"]);
    let runs = document["runs"].as_array().unwrap();
    let kinds: Vec<&str> = runs
        .iter()
        .map(|run| run["ending"]["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["finished", "finished", "diverged"]);
    assert_eq!(runs[0]["cell"]["placement"], "hybridnorm-star");
    assert_eq!(
        runs[0]["validation_loss"],
        dir.metrics("done")[19]["validation_loss"]
    );
    assert_eq!(runs[2]["ending"]["step"], 2);
    dir.ok(&["report", "done", "other", "died", "--out", "runs.html"]);
}

#[test]
fn invalid_report_sources_are_rejected() {
    let dir = TestDir::new();
    dir.expect_error(
        1,
        &["report", "none", "--format", "json"],
        &["none: no such file"],
    );
    dir.write("folder/note.txt", "nothing");
    dir.expect_error(
        1,
        &["report", "folder", "--format", "json"],
        &["folder: neither a study"],
    );
    dir.write("garbage.json", "[1]");
    let garbage = ["report", "garbage.json", "--format", "json"];
    dir.expect_error(1, &garbage, &["garbage.json: not a probe report"]);
    dir.train("run", &[]);
    dir.expect_error(2, &["report", "run"], &["--out is missing"]);
}

/// Loads a page in Chromium without network and returns the facts it reports.
fn in_chromium(dir: &TestDir, page: &str, more: &[&str]) -> Value {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let script = |name: &str| {
        let text = fs::read_to_string(tests.join(name)).unwrap();
        format!("<script>{text}</script>")
    };
    let html = String::from_utf8(dir.read(page)).unwrap();
    let at = html.find("<head>").unwrap() + "<head>".len();
    let (head, rest) = html.split_at(at);
    let under_test = [
        head,
        &script("report_facts_begin.js"),
        rest,
        &script("report_facts_end.js"),
    ];
    dir.write("under-test.html", under_test.concat());
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into());
    let output = Command::new(chromium)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--proxy-server=127.0.0.1:9",
        ])
        .args([
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .args(["--window-size=1300,2000"])
        .args(more)
        .arg(format!("file://{}", dir.path("under-test.html").display()))
        .output()
        .expect("chromium, or the program named in CHROMIUM");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("CONSOLE"), "{stderr}");
    let dom = String::from_utf8_lossy(&output.stdout);
    let facts = dom
        .split("<pre id=\"facts\">")
        .nth(1)
        .unwrap_or_else(|| panic!("{stderr}"));
    serde_json::from_str(facts.split("</pre>").next().unwrap()).unwrap()
}

/// Asserts that the loss table of the page equals that of the JSON document.
fn assert_loss_table_equals(facts: &Value, document: &Value) {
    let rows = facts["tables"]["g0-losses-table"].as_array().unwrap();
    let placements = document["groups"][0]["analysis"]["placements"]
        .as_array()
        .unwrap();
    assert_eq!(rows.len(), placements.len() + 1);
    for (row, placement) in rows[1..].iter().zip(placements) {
        assert_eq!(row[0], placement["placement"]);
        for (cell, rate) in row.as_array().unwrap()[1..]
            .iter()
            .zip(placement["rates"].as_array().unwrap())
        {
            let cell = cell.as_str().unwrap();
            match rate["loss"]["mean"].as_f64() {
                Some(mean) => assert!(cell.starts_with(&format!("{mean:.4}")), "{cell} {rate}"),
                None => assert!(cell.contains("diverged"), "{cell} {rate}"),
            }
        }
    }
}

/// Asserts that one download is the document itself, and another has one row per run.
fn assert_downloads_equal(facts: &Value, document: &Value) {
    let downloads: Vec<&str> = facts["downloads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect();
    let is_document = |text: &&&str| {
        serde_json::from_str::<Value>(text).is_ok_and(|found| found["runs"] == document["runs"])
    };
    assert_eq!(downloads.iter().filter(is_document).count(), 1);
    assert!(
        downloads
            .iter()
            .any(|text| text.trim_end().lines().count() == 27 + 1),
        "{}",
        downloads.len()
    );
}

#[test]
#[ignore = "needs Chromium"]
fn a_report_works_in_a_browser_without_a_network() {
    let dir = test_dir();
    dir.ok(&REPORT);
    let document = dir.json(&["report", "out", "probe.json", "--format", "json"]);
    let facts = in_chromium(&dir, "report.html", &[]);
    assert_eq!(facts["errors"], Value::Array(vec![]));
    assert_eq!(facts["requests"], Value::Array(vec![]));
    let charts = facts["charts"].as_array().unwrap();
    assert!(charts.len() >= 12, "{charts:?}");
    for chart in charts.iter().filter(|chart| chart["hidden"] == false) {
        assert!(chart["marks"].as_u64().unwrap() > 0, "{chart}");
        assert!(!chart["label"].as_str().unwrap().is_empty(), "{chart}");
    }
    assert_loss_table_equals(&facts, &document);
    for select in facts["selects"].as_array().unwrap() {
        assert_eq!(select["focused"], true);
        assert!(select["options"].as_u64().unwrap() > 1);
    }
    assert_downloads_equal(&facts, &document);
    // The dark colour scheme has another background.
    let dark = in_chromium(
        &dir,
        "report.html",
        &["--blink-settings=preferredColorScheme=0"],
    );
    assert_eq!(dark["errors"], Value::Array(vec![]));
    assert_ne!(dark["background"], facts["background"]);
}

#[test]
#[ignore = "needs Chromium"]
fn reports_of_runs_and_of_a_probe_alone_work_in_a_browser() {
    let dir = test_dir();
    dir.train("done", &[]);
    for (name, paths) in [("runs", &["done"][..]), ("probe", &["probe.json"])] {
        let page = format!("{name}.html");
        dir.ok(&[&["report", "--quiet", "--out", &page][..], paths].concat());
        let facts = in_chromium(&dir, &page, &[]);
        assert_eq!(facts["errors"], Value::Array(vec![]), "{name}");
        let charts = facts["charts"].as_array().unwrap();
        let drawn = charts
            .iter()
            .filter(|chart| chart["marks"].as_u64().unwrap() > 0);
        assert!(drawn.count() >= 3, "{name}: {charts:?}");
    }
}
