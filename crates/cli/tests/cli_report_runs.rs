//! Reports of runs reflect the runs: equal and different settings, and recorded facts.

mod common;

use std::fs;

use common::{TestDir, copy_folder};
use serde_json::{Value, json};

fn report(dir: &TestDir, runs: &[&str]) -> Value {
    dir.json(&[&["report", "--format", "json"], runs].concat())
}

fn markdown(dir: &TestDir, runs: &[&str]) -> String {
    dir.ok(&[&["report", "--format", "markdown"], runs].concat())
}

fn labels(document: &Value) -> Vec<&str> {
    let runs = document["runs"].as_array().unwrap();
    (runs.iter())
        .map(|run| run["directory"]["label"].as_str().unwrap())
        .collect()
}

/// True if a loss is a mean of several.
fn is_averaged(text: &str) -> bool {
    let mut after = text.split("± ").skip(1);
    after.any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Removes the history, which older versions did not write.
fn remove_history(dir: &TestDir, run: &str) {
    let _ = fs::remove_file(dir.path(run).join("segments.json"));
}

fn segment(after: u64, lr: Option<(&str, &str)>, threads: u64, machine: &str) -> Value {
    let mut segment = json!({
        "after_step": after, "last_step": after + 10, "started": "2026-11-25T01:02:03Z",
        "threads": threads, "machine": machine, "version": "0.0.7", "data": "d",
        "peak_memory_bytes": (10 + after) << 20,
    });
    if let Some((from, to)) = lr {
        segment["changed"] = json!([{"key": "optimizer.lr", "from": from, "to": to}]);
    }
    segment
}

fn write_history(dir: &TestDir, run: &str, segments: &[Value]) {
    let text = serde_json::to_vec(segments).unwrap();
    dir.write(&format!("{run}/segments.json"), text);
}

#[test]
fn only_runs_that_differ_in_the_seed_alone_are_averaged() {
    let dir = TestDir::new();
    dir.train("a", &["--set", "optimizer.weight_decay=0.1"]);
    dir.train(
        "b",
        &["--set", "optimizer.weight_decay=0.4", "--set", "seed=4"],
    );
    let document = report(&dir, &["a", "b"]);
    assert_eq!(
        labels(&document),
        [
            "hybridnorm-star, weight_decay 0.1",
            "hybridnorm-star, weight_decay 0.4"
        ]
    );
    let text = markdown(&dir, &["a", "b"]);
    assert!(!is_averaged(&text), "{text}");
    // The seed and options without effect on results do not matter.
    let same = ["--set", "optimizer.weight_decay=0.1", "--set", "seed=5"];
    let without_effect = ["--set", "train.checkpoint_every=4", "--set", "log.dumps=2"];
    dir.train("c", &[&same[..], &without_effect].concat());
    let document = report(&dir, &["a", "c"]);
    assert_eq!(labels(&document), ["hybridnorm-star", "hybridnorm-star"]);
    assert!(is_averaged(&markdown(&dir, &["a", "c"])));
    // A copy is not a second seed.
    copy_folder(&dir.path("a"), &dir.path("copy"));
    let document = report(&dir, &["a", "copy"]);
    assert_eq!(
        labels(&document),
        ["hybridnorm-star, a", "hybridnorm-star, copy"]
    );
    assert!(!is_averaged(&markdown(&dir, &["a", "copy"])));
    dir.expect_error(
        2,
        &["report", "a", "./a", "--format", "json"],
        &["the same run"],
    );
}

#[test]
fn data_are_compared_by_content_not_by_path() {
    let dir = TestDir::new();
    let text = "Once there was a fox who counted to seven and slept. ".repeat(60);
    for path in ["here.txt", "there/moved.txt"] {
        dir.write(path, &text);
    }
    dir.train("a", &["--set", "data.train=[\"here.txt\"]"]);
    dir.train(
        "b",
        &[
            "--set",
            "data.train=[\"there/moved.txt\"]",
            "--set",
            "seed=9",
        ],
    );
    let document = report(&dir, &["a", "b"]);
    assert_eq!(document["sets"].as_array().unwrap().len(), 1);
    assert_eq!(labels(&document), ["hybridnorm-star", "hybridnorm-star"]);
}

#[test]
fn different_data_and_tokenizers_are_reported_separately() {
    let dir = TestDir::new();
    dir.train("a", &[]);
    dir.train("b", &["--set", "data.train=[\"stories:70\"]"]);
    dir.train("c", &["--set", "data.tokenizer=bpe:280"]);
    dir.train("d", &["--set", "train.eval_sequences=3"]);
    let runs = ["a", "b", "c", "d"];
    let document = report(&dir, &runs);
    assert_eq!(document["sets"].as_array().unwrap().len(), 4);
    let loss = |at: usize| {
        format!(
            "{:.4}",
            document["runs"][at]["validation_loss"].as_f64().unwrap()
        )
    };
    let text = markdown(&dir, &runs);
    assert!(
        text.contains("Losses of different groups are not comparable"),
        "{text}"
    );
    let parts: Vec<&str> = text.split("\n## Group ").skip(1).collect();
    assert_eq!(parts.len(), 4);
    for (at, part) in parts.iter().enumerate() {
        for other in 0..4 {
            let is_there = part.contains(&loss(other));
            assert_eq!(
                is_there,
                at == other || loss(at) == loss(other),
                "{at} {other}"
            );
        }
    }
    dir.ok(&[
        "report",
        "a",
        "b",
        "c",
        "d",
        "--quiet",
        "--out",
        "apart.html",
    ]);
    let page = String::from_utf8(dir.read("apart.html")).unwrap();
    assert!(page.contains("id=\"g3-losses-table\"") && page.contains("id=\"g3-runs-table\""));
}

#[test]
fn reported_facts_are_those_of_the_run() {
    let dir = TestDir::new();
    dir.train("old", &[]);
    remove_history(&dir, "old");
    let cost = &report(&dir, &["old"])["runs"][0]["cost"];
    for fact in ["machine", "threads", "version", "peak_memory_bytes"] {
        assert_eq!(cost[fact], Value::Null, "{fact}");
    }
    let text = markdown(&dir, &["old"]);
    assert!(
        text.contains("The hardware of these runs was not recorded"),
        "{text}"
    );
    write_history(
        &dir,
        "old",
        &[
            segment(0, None, 7, "Elsewhere"),
            segment(10, None, 3, "Here"),
        ],
    );
    let cost = &report(&dir, &["old"])["runs"][0]["cost"];
    assert_eq!(cost["machine"], "Here");
    assert_eq!(
        (&cost["threads"], &cost["version"]),
        (&json!(3), &json!("0.0.7"))
    );
    assert_eq!(cost["peak_memory_bytes"], 20 << 20);
    let text = markdown(&dir, &["old"]);
    assert!(
        text.contains("Elsewhere, 7 threads, hybridnorm 0.0.7; Here, 3 threads"),
        "{text}"
    );
}

#[test]
fn changed_learning_rates_are_reported_by_segment() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let changed = segment(10, Some(("0.02", "0.003")), 1, "m");
    write_history(&dir, "run", &[segment(0, None, 1, "m"), changed]);
    let run = &report(&dir, &["run"])["runs"][0];
    assert_eq!(
        run["directory"]["rates"],
        json!([{"after_step": 0, "lr": 0.02}, {"after_step": 10, "lr": 0.003}])
    );
    assert_eq!(run["cell"]["lr"], 0.02);
    assert_eq!(
        run["directory"]["segments"][1]["changed"][0]["from"],
        "0.02"
    );
    let text = markdown(&dir, &["run"]);
    assert!(text.contains("| 1–10 | 2e-2 | – |"), "{text}");
    assert!(
        text.contains("| 11–20 | 3e-3 | optimizer.lr changed from 0.02 to 0.003 |"),
        "{text}"
    );
    assert!(text.contains("2e-2, 3e-3 after step 10"), "{text}");
    dir.ok(&["report", "run", "--quiet", "--out", "run.html"]);
}

#[test]
fn modified_configurations_are_not_trusted() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    remove_history(&dir, "run");
    let config = String::from_utf8(dir.read("run/config.toml")).unwrap();
    assert!(config.contains("lr = 0.003"), "{config}");
    dir.write("run/config.toml", config.replace("lr = 0.003", "lr = 0.1"));
    let document = report(&dir, &["run"]);
    assert_eq!(document["runs"][0]["directory"]["rates"], json!([]));
    assert!(labels(&document)[0].contains("learning rate changed during training"));
}

#[test]
fn missing_and_repeated_steps_are_reported() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let text = String::from_utf8(dir.read("run/metrics.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let kept: Vec<&str> = [&lines[..4], &lines[7..12], &lines[11..12]].concat();
    dir.write("run/metrics.jsonl", kept.join("\n") + "\n");
    let run = &report(&dir, &["run"])["runs"][0];
    assert_eq!(
        run["directory"]["rows"],
        json!({"found": 9, "missing": 3, "first_missing": 5, "repeated": 1})
    );
    assert_eq!(
        (&run["steps"], &run["ending"]["kind"]),
        (&json!(12), &json!("unfinished"))
    );
    assert_eq!(run["validation_loss"], Value::Null);
    // A record of an earlier step discards the later steps before it.
    let swapped = [&lines[..1], &lines[2..4], &lines[1..2]].concat();
    dir.write("swapped/metrics.jsonl", swapped.join("\n") + "\n");
    dir.write("swapped/config.toml", dir.read("run/config.toml"));
    dir.write("swapped/segments.json", dir.read("run/segments.json"));
    let swapped = &report(&dir, &["swapped"])["runs"][0]["directory"]["rows"];
    assert_eq!(
        *swapped,
        json!({"found": 4, "missing": 2, "first_missing": 3, "repeated": 0})
    );
    let text = markdown(&dir, &["run"]);
    for word in [
        "3 steps have no record in metrics.jsonl (the first such step is 5)",
        "1 record repeats a step",
        "unfinished: step 12 of 20",
        "1 run: 0 finished, 1 unfinished",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
}

#[test]
#[cfg(unix)]
fn pipes_and_huge_files_are_rejected_immediately() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let pipe = |path: &str| {
        let _ = fs::remove_file(dir.path(path));
        let made = std::process::Command::new("mkfifo")
            .arg(dir.path(path))
            .status();
        assert!(made.unwrap().success());
    };
    let assert_rejected = |of: &str, words: &[&str]| {
        dir.expect_error(1, &["report", of, "--format", "json"], words);
    };
    pipe("probe.json");
    assert_rejected("probe.json", &["probe.json: is a pipe"]);
    let huge = |path: &str| {
        let file = fs::File::create(dir.path(path)).unwrap();
        file.set_len(3 << 30).unwrap();
    };
    huge("probe2.json");
    assert_rejected("probe2.json", &["probe2.json", "expected at most"]);
    copy_folder(&dir.path("run"), &dir.path("large"));
    huge("large/metrics.jsonl");
    assert_rejected("large", &["metrics.jsonl", "expected at most"]);
    for name in ["metrics.jsonl", "layers.jsonl", "segments.json"] {
        let copy = format!("run-{name}");
        copy_folder(&dir.path("run"), &dir.path(&copy));
        pipe(&format!("{copy}/{name}"));
        assert_rejected(&copy, &[name, "is a pipe"]);
    }
}

const NAMES: &str = r#"
[study]
placements = ["pre-norm", { name = "[t](http://e.example) @someone \u202e #7", base = "post-norm" }]
lr = [1e-3, 3e-3]
seeds = [1, 2]
[model]
d_model = 16
n_layers = 2
n_heads = 2
d_ff = 32
[data]
train = ["stories:60"]
tokenizer = "bytes"
[train]
steps = 4
batch_size = 4
seq_len = 16
eval_every = 0
eval_sequences = 4
checkpoint_every = 0
"#;

#[test]
fn names_are_escaped_in_tables_and_markdown() {
    let dir = TestDir::new();
    dir.write("study.toml", NAMES);
    let output = dir.run(&["study", "study.toml", "--out", "out"]);
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains('\u{202e}'), "{text}");
        assert!(text.contains("@someone"), "{text}");
    }
    let text = dir.ok(&["report", "out", "--format", "json"]);
    assert!(!text.contains('\u{202e}'));
    let document: Value = serde_json::from_str(&text).unwrap();
    let name = document["runs"][7]["cell"]["placement"].as_str().unwrap();
    assert!(name.contains('\u{202e}'), "{name:?}");
    let text = markdown(&dir, &["out"]);
    let outside: String = text.split("```").step_by(2).collect();
    let outside = outside.replace("\\]", "");
    for wrong in ["](http", "@someone", "#7", "://", "\u{202e}"] {
        assert!(!outside.contains(wrong), "{wrong}\n{outside}");
    }
}

#[test]
fn a_study_with_a_missing_run_is_incomplete() {
    let dir = TestDir::new();
    dir.write("study.toml", NAMES);
    dir.ok(&["study", "study.toml", "--quiet", "--out", "out"]);
    assert!(!markdown(&dir, &["out"]).contains("Incomplete"));
    let gone = fs::read_dir(dir.path("out/runs")).unwrap().next().unwrap();
    fs::remove_file(gone.unwrap().path()).unwrap();
    let text = markdown(&dir, &["out"]);
    assert!(
        text.contains("**Incomplete: 1 of 8 runs of this study are missing."),
        "{text}"
    );
    let is_bold =
        |cell: &str| cell.starts_with("**") && cell[2..].starts_with(|c: char| c.is_ascii_digit());
    assert!(!text.split("| ").any(is_bold), "{text}");
    dir.ok(&["report", "out", "--quiet", "--out", "report.html"]);
    let page = String::from_utf8(dir.read("report.html")).unwrap();
    assert!(page.contains("Incomplete: 1 of 8 runs"));
    assert!(page.contains("incomplete: 1 of 8 runs are missing"));
    assert!(!page.contains("id=\"g0-forest\""));
}

#[test]
fn a_report_replaces_its_file_atomically() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.write("pages/report.md", "old");
    dir.write("pages/.report.md.partial", "left by something else");
    let to = [
        "report",
        "run",
        "--format",
        "markdown",
        "--quiet",
        "--out",
        "pages/report.md",
    ];
    dir.ok(&to);
    dir.ok(&to);
    assert!(dir.read("pages/report.md").starts_with(b"# run"));
    assert_eq!(
        dir.read("pages/.report.md.partial"),
        b"left by something else"
    );
    assert_eq!(fs::read_dir(dir.path("pages")).unwrap().count(), 2);
}

#[test]
fn a_configuration_modified_outside_the_run_is_rejected() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    let whole = String::from_utf8(dir.read("run/config.toml")).unwrap();
    let report = ["report", "run", "--format", "json"];
    let with = |key: &str, value: &str| {
        let changed: String = (whole.lines())
            .map(|line| match line.starts_with(&format!("{key} = ")) {
                true => format!("{key} = {value}\n"),
                false => format!("{line}\n"),
            })
            .collect();
        assert_ne!(changed, whole);
        dir.write("run/config.toml", changed);
    };
    with("placement", "\"post-norm\"");
    let words = "run/config.toml: placement differs from that of the run's checkpoint";
    dir.expect_error(1, &report, &[words]);
    // Steps are not assigned a learning rate that they did not have.
    with("lr", "0.02");
    let text = dir.ok(&["report", "run", "--format", "markdown"]);
    assert!(!text.contains("2e-2") && !text.contains("0.02"), "{text}");
    assert!(
        text.contains("learning rate changed during training"),
        "{text}"
    );
    dir.write("run/config.toml", whole);
    dir.ok(&report);
}

#[test]
fn a_report_does_not_overwrite_its_sources() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    for part in [
        "config.toml",
        "metrics.jsonl",
        "segments.json",
        "checkpoints/step-00000020/state.json",
    ] {
        let out = format!("run/{part}");
        let before = dir.read(&out);
        let report = ["report", "run", "--format", "json", "--out", &out];
        dir.expect_error(2, &report, &["is a part of the input run"]);
        assert_eq!(dir.read(&out), before, "{part}");
    }
    // Files of a run that do not exist yet are protected, too.
    for part in ["unfinished.txt", "flight", "kept"] {
        let out = format!("run/{part}");
        let report = ["report", "run", "--format", "json", "--out", &out];
        dir.expect_error(2, &report, &["is a part of the input run"]);
        assert!(!dir.path(&out).exists(), "{part}");
    }
    dir.ok(&[
        "report",
        "run",
        "--format",
        "json",
        "--out",
        "run/report.json",
    ]);
    dir.ok(&[
        "report",
        "run",
        "--format",
        "json",
        "--out",
        "run/report.json",
    ]);
}
