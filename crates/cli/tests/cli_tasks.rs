//! `eval --tasks`, tasks during training and of studies, and overlapping windows.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{STUDY_KEEPING_RUNS, TestDir, code, files_below};
use serde_json::Value;

/// Two documents with choices; the second context is longer than the model's 16 positions.
const PAIRS: &str = r#"{"context": "The cat", "choices": ["sat.", "zq"], "gold": 0}
{"query": "A very long question about a small river", "choices": ["flows", "x"], "gold": 1}
"#;
const ENDINGS: &str = r#"{"doc_id": 0, "idx": 0, "label": ["sun"], "doc": {}, "request": {"context": "the", "continuation": " sun"}}
{"doc_id": 1, "idx": 0, "label": ["sea"], "doc": {}, "request": {"context": "the", "continuation": " sea"}}
"#;

/// Returns a folder with a trained run and two tasks.
fn trained() -> TestDir {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.write("pairs.jsonl", PAIRS);
    dir.write("endings.jsonl", ENDINGS);
    dir
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn results_have_the_schema_of_the_harness() {
    let dir = trained();
    let args = [
        "eval",
        "run",
        "--tasks",
        "pairs.jsonl,endings.jsonl",
        "--out",
        "results",
        "--json",
    ];
    let found = dir.json(&args);
    let pairs = &found["results"]["pairs"];
    for metric in [
        "acc",
        "acc_norm",
        "len_norm",
        "acc_bytes",
        "acc_per_token",
        "exact_match",
        "bpb",
    ] {
        assert!(number(&pairs[format!("{metric},none")]) >= 0.0);
        assert!(number(&pairs[format!("{metric}_stderr,none")]) >= 0.0);
    }
    let endings = &found["results"]["endings"];
    assert!(number(&endings["perplexity,none"]) > 1.0);
    assert_eq!(found["n-samples"]["pairs"]["effective"], 2);
    assert_eq!(found["configs"]["endings"]["output_type"], "loglikelihood");
    assert_eq!(found["configs"]["pairs"]["tokenization"], "joint");
    assert_eq!(
        found["configs"]["pairs"]["left_out"]["requests_with_cut_context"],
        2
    );
    for key in [
        "versions",
        "n-shot",
        "higher_is_better",
        "config",
        "max_length",
    ] {
        assert!(!found[key].is_null(), "{key}");
    }
    let names = std::fs::read_dir(dir.path("results")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    let written: Value =
        serde_json::from_slice(&dir.read(format!("results/{}", names[0]))).unwrap();
    assert_eq!(written["results"], found["results"]);
    let samples = String::from_utf8(dir.read(format!("results/{}", names[2]))).unwrap();
    assert!(names[2].starts_with("samples_pairs_") && samples.lines().count() == 2);
    let accuracy: f64 = samples
        .lines()
        .map(|line| number(&serde_json::from_str::<Value>(line).unwrap()["acc"]))
        .sum();
    assert_eq!(accuracy / 2.0, number(&pairs["acc,none"]));
}

#[test]
fn what_is_left_out_and_the_start_token_are_printed() {
    let dir = trained();
    let text = dir.ok(&["eval", "run", "--tasks", "pairs.jsonl", "--limit", "1"]);
    assert!(
        text.contains("pairs: omitted 1 documents: beyond --limit"),
        "{text}"
    );
    assert!(
        text.contains("no start token (the tokenizer adds none)"),
        "{text}"
    );
    let text = dir.ok(&[
        "eval",
        "run",
        "--tasks",
        "pairs.jsonl",
        "--start-token",
        "eos",
    ]);
    assert!(
        text.contains("start token of every context: <|endoftext|>"),
        "{text}"
    );
    assert!(text.contains("tokens at the start of 2 contexts"), "{text}");
    let with = PAIRS.replacen("{", r#"{"unconditional_context": "Answer:", "#, 1);
    dir.write("half.jsonl", with);
    let text = dir.ok(&["eval", "run", "--tasks", "half.jsonl"]);
    let note = "half: omitted acc_pmi: 1 of 2 documents have no unconditional request";
    assert!(
        text.contains(note) && text.matches("acc_pmi").count() == 1,
        "{text}"
    );
}

#[test]
fn a_failed_request_fails_the_task() {
    let dir = trained();
    let long =
        r#"{"context": "a", "choices": ["a continuation of more than sixteen bytes"], "gold": 0}"#;
    dir.write("long.jsonl", long);
    let words = ["task long", "document 0", "at most max_seq_len = 16"];
    dir.expect_error(2, &["eval", "run", "--tasks", "long.jsonl"], &words);
    // The results of other tasks are not lost.
    let args = ["eval", "run", "--tasks", "long.jsonl,sums=pairs.jsonl"];
    let output = dir.run(&args);
    assert_eq!(code(&output), 2);
    let [printed, error] =
        [&output.stdout, &output.stderr].map(|x| String::from_utf8_lossy(x).into_owned());
    assert!(
        printed.contains("sums") && !printed.contains(" long "),
        "{printed}"
    );
    assert!(error.contains("error: task long"), "{error}");
    dir.write("mixed.jsonl", format!("{PAIRS}{long}\n"));
    dir.expect_error(
        1,
        &["eval", "run", "--tasks", "mixed.jsonl"],
        &["mixed.jsonl: document 2 has one choice, others have several"],
    );
    dir.write("bad.jsonl", format!("{PAIRS}{{\"context\": 3}}\n"));
    dir.expect_error(
        1,
        &["eval", "run", "--tasks", "bad.jsonl"],
        &["bad.jsonl: line 3"],
    );
    dir.expect_any_error(
        &["eval", "run", "--tasks", "hellaswagg"],
        &["did you mean hellaswag?"],
    );
    dir.expect_any_error(
        &["eval", "run", "--tasks", "pairs.jsonl,pairs.jsonl"],
        &["two tasks are named pairs"],
    );
}

/// Otherwise an evaluation of hours could end without results.
#[test]
fn a_folder_that_cannot_be_written_is_found_before_the_evaluation() {
    let dir = trained();
    dir.write("file", "x");
    let long =
        r#"{"context": "a", "choices": ["a continuation of more than sixteen bytes"], "gold": 0}"#;
    dir.write("long.jsonl", long);
    let args = ["eval", "run", "--tasks", "long.jsonl", "--out", "file"];
    dir.expect_error(1, &args, &["file", "expected a folder"]);
}

#[test]
fn options_without_effect_are_rejected() {
    let dir = trained();
    for args in [
        &["eval", "run", "--data", "stories:3", "--limit", "3"][..],
        &["eval", "run", "--data", "stories:3", "--start-token", "eos"],
        &["eval", "run", "--tasks", "pairs.jsonl", "--stride", "4"],
        &[
            "eval",
            "run",
            "--tasks",
            "pairs.jsonl",
            "--data",
            "stories:3",
        ],
        &["eval", "run", "--tasks", "pairs.jsonl", "--text-field", "x"],
        &["eval", "run"],
    ] {
        assert_eq!(code(&dir.run(args)), 2, "{args:?}");
    }
}

#[test]
fn training_records_tasks() {
    let dir = trained();
    let more = [
        "--set",
        "eval.tasks=['pairs.jsonl']",
        "--set",
        "eval.every=10",
        "--set",
        "eval.limit=1",
        "--set",
        "log.tensorboard=true",
    ];
    dir.train("with_tasks", &more);
    let files = files_below(&dir.path("with_tasks"));
    let is_events = |file: &&PathBuf| file.to_string_lossy().contains("tfevents");
    let events = fs::read(files.iter().find(is_events).unwrap()).unwrap();
    let tag = b"tasks/pairs/acc";
    assert!(events.windows(tag.len()).any(|bytes| bytes == tag));
    let lines = String::from_utf8(dir.read("with_tasks/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let with_tasks = lines.iter().filter(|line| !line["tasks"].is_null());
    let steps: Vec<u64> = with_tasks
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [10, 20]);
    let last = &lines[19]["tasks"]["pairs"];
    assert_eq!(
        (&last["documents"], &last["main"]),
        (&1.into(), &"acc".into())
    );
    // The final checkpoint has the same scores.
    let args = [
        "eval",
        "with_tasks",
        "--tasks",
        "pairs.jsonl",
        "--limit",
        "1",
        "--json",
    ];
    let found = dir.json(&args);
    assert_eq!(found["results"]["pairs"]["bpb,none"], last["values"]["bpb"]);
    // Evaluation does not change training.
    let without = String::from_utf8(dir.read("run/metrics.jsonl")).unwrap();
    let loss = |line: &Value| number(&line["loss"]);
    let plain: Vec<f64> = without
        .lines()
        .map(|line| loss(&serde_json::from_str(line).unwrap()))
        .collect();
    assert_eq!(lines.iter().map(loss).collect::<Vec<f64>>(), plain);
    dir.train_fails(
        1,
        "absent",
        &["--set", "eval.tasks=['absent.jsonl']"],
        &["absent.jsonl"],
    );
    dir.train_fails(2, "none", &["--set", "eval.every=3"], &["eval.tasks"]);
}

#[test]
fn tasks_that_cannot_be_evaluated_fail_before_the_first_step() {
    let dir = trained();
    let long = "x".repeat(30);
    let line = format!(r#"{{"context": "a", "choices": ["b", "{long}"], "gold": 0}}"#);
    dir.write("long.jsonl", line);
    let words = [
        "task long: document 0: tokens of a continuation = 31",
        "at most max_seq_len = 16",
    ];
    dir.train_fails(2, "long", &["--set", "eval.tasks=['long.jsonl']"], &words);
    assert!(!dir.path("long/metrics.jsonl").exists());
}

#[test]
fn studies_report_tasks_with_paired_differences() {
    let dir = trained();
    dir.prepare("stories:60", "bytes", "data");
    let study = STUDY_KEEPING_RUNS.replace("seeds = [1]", "seeds = [1, 2]");
    dir.write(
        "study.toml",
        format!("{study}\n[eval]\ntasks = [\"pairs.jsonl\"]\n"),
    );
    let study = ["study", "study.toml", "--quiet", "--out", "study"];
    // Nothing is left of a study whose inputs are wrong.
    for (set, code, words) in [
        (
            "eval.tasks=['hellaswagg']",
            2,
            &["study.toml: task `hellaswagg`"][..],
        ),
        (
            "eval.tasks=['absent.jsonl']",
            1,
            &["absent.jsonl: no such file"],
        ),
        ("data.train=['absent']", 1, &["absent: no such file"]),
        ("data.validation=['short.txt']", 1, &["short.txt"]),
    ] {
        dir.expect_error(code, &[&study[..], &["--set", set]].concat(), words);
        assert!(!dir.path("study").exists(), "{set}");
    }
    dir.ok(&study);
    let page = dir.html_report("study");
    assert!(
        page.contains("Downstream tasks") && page.contains("pairs"),
        "no task table"
    );
    let text = dir.ok(&["report", "study", "--format", "markdown"]);
    assert!(text.contains("Downstream tasks"), "{text}");
    // Two documents cannot tell placements apart, even if two seeds agree.
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| pairs | acc ↑ | 2 |"));
    for row in rows.clone() {
        assert!(!row.contains("<0.001"), "{row}");
    }
    assert!(rows.count() >= 2, "{text}");
}

#[test]
fn overlapping_windows_count_every_token_once() {
    let dir = trained();
    let eval = |more: &[&str]| {
        dir.json(
            &[
                &["eval", "run", "--json", "--data", "tales=stories:20"][..],
                more,
            ]
            .concat(),
        )
    };
    let (plain, sliding) = (eval(&[]), eval(&["--stride", "4"]));
    assert_eq!(plain["sets"][0]["name"], "tales");
    assert_eq!(
        (&sliding["stride"], &sliding["tokens"]),
        (&4.into(), &plain["tokens"])
    );
    assert_eq!(sliding["text_bytes"], plain["text_bytes"]);
    assert_ne!(sliding["loss"], plain["loss"]);
    // Windows that do not overlap are those of the plain evaluation.
    let whole = number(&eval(&["--stride", "16"])["loss"]);
    assert!(
        (whole - number(&plain["loss"])).abs() < 1e-3,
        "{whole} {plain}"
    );
    dir.expect_any_error(
        &["eval", "run", "--data", "stories:3", "--stride", "17"],
        &["at most 16"],
    );
}

#[test]
fn short_rows_are_instances_of_validation() {
    let dir = TestDir::new();
    let ids: Vec<u16> = (0..60).map(|i| i * 7 % 250).collect();
    dir.write("rows.npy", common::numpy("(6, 10)", &ids));
    dir.train(
        "run",
        &[
            "--set",
            "data.validation=['rows.npy']",
            "--set",
            "train.eval_sequences=4",
        ],
    );
    let found = dir.json(&["eval", "run", "--data", "rows.npy", "--json"]);
    assert_eq!(found["tokens"], 6 * 9);
    let full = dir.json(&[
        "eval",
        "run",
        "--data",
        "rows.npy",
        "--windows",
        "full",
        "--json",
    ]);
    assert_eq!(
        (&full["tokens"], &full["loss"]),
        (&found["tokens"], &found["loss"])
    );
}
