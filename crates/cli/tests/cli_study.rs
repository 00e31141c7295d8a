//! Studies: planning, running, kills, shards, merging, verdicts.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{Lab, code, files_below, signal, stderr};
use serde_json::Value;

const STUDY: &str = r#"
[study]
placements = ["pre-norm", "hybridnorm", { name = "mine", base = "hybridnorm", block = { ffn = { skip = "raw" } } }]
lr = [1e-3, 1e-2]
seeds = [1, 2]
[model]
d_model = 16
n_layers = 2
n_heads = 2
d_ff = 32
init = { scheme = "megatron" }
[data]
train = ["stories:60"]
tokenizer = "bytes"
[schedule]
kind = "constant"
[train]
steps = 40
batch_size = 4
seq_len = 16
eval_every = 0
eval_sequences = 0
checkpoint_every = 5
keep_checkpoints = 1
[log]
layers_every = 8
"#;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("study.toml", STUDY);
    lab
}

fn args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["study", "study.toml", "--quiet", "--out", out];
    args.extend(more);
    args
}

/// Returns every file of a study folder; records without their cost.
fn content(lab: &Lab, out: &str) -> BTreeMap<String, Value> {
    let folder = lab.path(out);
    let files = files_below(&folder).into_iter().map(|file| {
        let name = file.strip_prefix(&folder).unwrap();
        let value = match name.starts_with("runs") {
            true => record(&file),
            false => Value::String(fs::read_to_string(&file).unwrap()),
        };
        (name.to_str().unwrap().to_owned(), value)
    });
    files.collect()
}

fn records(lab: &Lab, out: &str) -> Vec<Value> {
    let files = files_below(&lab.path(out).join("runs"));
    files.iter().map(|file| record(file)).collect()
}

/// Reads a record without its cost.
fn record(file: &Path) -> Value {
    let mut record: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let cost = record.as_object_mut().unwrap().remove("cost").unwrap();
    // The checksum covers the cost, too.
    let sum = record.as_object_mut().unwrap().remove("sha256").unwrap();
    assert_eq!(sum.as_str().unwrap().len(), 64);
    assert!(cost["threads"].as_u64().unwrap() > 0, "{cost}");
    record
}

#[test]
fn a_study_killed_ten_times_ends_with_the_same_files() {
    let lab = lab();
    let long = ["--set", "train.steps=120"];
    lab.ok(&args("whole", &long));
    let whole = content(&lab, "whole");
    // Records, study file, history, lock.
    assert_eq!(whole.len(), 12 + 3, "{:?}", whole.keys());
    for round in 0..10u64 {
        let mut more = long.to_vec();
        more.extend([
            "--threads",
            "2",
            "--jobs",
            if round % 2 == 0 { "1" } else { "2" },
        ]);
        if round > 0 {
            more.push("--resume");
        }
        let mut child = lab.start(&args("killed", &more));
        std::thread::sleep(Duration::from_millis(20 + 23 * (round * round % 7)));
        assert!(
            child.try_wait().unwrap().is_none(),
            "through before it was killed"
        );
        signal(&child, if round % 3 == 2 { "TERM" } else { "KILL" });
        child.wait_with_output().unwrap();
    }
    let mut rest = long.to_vec();
    rest.push("--resume");
    lab.ok(&args("killed", &rest));
    assert_eq!(whole, content(&lab, "killed"));
}

#[test]
fn finished_runs_are_never_repeated() {
    let lab = lab();
    lab.ok(&args("out", &[]));
    let stamp = |name: &str| fs::metadata(lab.path(name)).unwrap().modified().unwrap();
    let record = content(&lab, "out")
        .into_keys()
        .find(|name| name.starts_with("runs"));
    let record = format!("out/{}", record.unwrap());
    let before = stamp(&record);
    lab.fails(2, &args("out", &[]), &["already holds a study", "--resume"]);
    let output = lab.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert!(stderr(&output).contains("12 runs of 40 steps, 12 of them finished"));
    assert_eq!(before, stamp(&record));
    // A study file with equal content keeps its comments.
    lab.write("out/study.toml", format!("# Mine.\n{STUDY}"));
    lab.ok(&args("out", &["--resume"]));
    assert!(lab.read("out/study.toml").starts_with(b"# Mine."));
    // Another seed: only its runs are new.
    let more = ["--resume", "--set", "study.seeds=[1,2,3]"];
    lab.ok(&args("out", &more));
    assert_eq!(before, stamp(&record));
    assert_eq!(content(&lab, "out").len(), 18 + 3);
}

#[test]
fn shards_joined_are_the_whole_study() {
    let lab = lab();
    lab.ok(&args("whole", &[]));
    for shard in ["1/3", "2/3", "3/3"] {
        let out = format!("part {}", &shard[..1]);
        lab.ok(&args(&out, &["--shard", shard]));
        assert_eq!(content(&lab, &out).len(), 4 + 2);
    }
    let merge = [
        "study", "merge", "part 1", "part 2", "part 3", "--out", "joined", "--json",
    ];
    let merged = lab.json(&merge);
    fs::remove_file(lab.path("whole/lock")).unwrap();
    assert_eq!(content(&lab, "whole"), content(&lab, "joined"));
    let placements = merged[0]["analysis"]["placements"].as_array().unwrap();
    let names: Vec<_> = placements
        .iter()
        .map(|found| found["placement"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["pre-norm", "hybridnorm", "mine"]);
    // Contradictory records, and another study.
    let record = files_below(&lab.path("part 1/runs")).remove(0);
    let text = fs::read_to_string(&record).unwrap();
    let at = text.find("\"validation_loss\":").unwrap() + "\"validation_loss\":".len();
    let changed = format!("{}9{}", &text[..at], &text[at + 1..]);
    let contradiction = ["study", "merge", "part 1", "--out", "joined"];
    fs::write(&record, &changed).unwrap();
    lab.fails(1, &contradiction, &["checksum"]);
    let mut value: Value = serde_json::from_str(&changed).unwrap();
    value.as_object_mut().unwrap().remove("sha256").unwrap();
    fs::write(&record, value.to_string()).unwrap();
    lab.fails(1, &contradiction, &["has no checksum"]);
    // As a version without checksums would have written it.
    fs::remove_file(lab.path("part 1/history.json")).unwrap();
    lab.fails(1, &contradiction, &["the last one during training"]);
    let last = value["validation"].as_array().unwrap().len() - 1;
    value["validation"][last]["loss"] = value["validation_loss"].clone();
    fs::write(&record, value.to_string()).unwrap();
    lab.fails(
        1,
        &contradiction,
        &["has different results in another folder"],
    );
    lab.ok(&args(
        "other",
        &["--shard", "1/12", "--set", "train.steps=5"],
    ));
    let other = ["study", "merge", "other", "--out", "joined"];
    lab.fails(
        2,
        &other,
        &["other and joined hold different studies: train.steps from 5 to "],
    );
}

#[test]
fn data_that_changed_are_told_before_a_run_is_trained() {
    let lab = lab();
    let text = |word: &str| format!("{word} walked to the river. ").repeat(40);
    lab.write("train/a.txt", text("Ana"));
    lab.write("held/a.txt", text("Bela"));
    let begun = |out, more: &[&'static str]| {
        let data = [
            "--set",
            r#"data.train=["train"]"#,
            "--set",
            r#"data.validation=["held"]"#,
        ];
        args(out, &[&data[..], more].concat())
    };
    lab.ok(&begun("out", &["--shard", "1/12"]));
    for (file, kind) in [("train/a.txt", "training"), ("held/a.txt", "validation")] {
        let before = lab.read(file);
        lab.write(file, text("Cai"));
        let words = format!("has {kind} data with fingerprint ");
        let remedy = "restore the original data";
        // Other shards in this folder belong to the study, too.
        for more in [&["--resume"][..], &["--shard", "2/12"]] {
            lab.fails(2, &begun("out", more), &[&words, remedy]);
            assert_eq!(records(&lab, "out").len(), 1);
            assert!(files_below(&lab.path("out/work")).is_empty());
        }
        // Parts of a study with different data cannot be merged.
        let other = format!("other {kind}");
        lab.ok(&begun("other", &["--shard", "2/12"]));
        lab.fails(
            2,
            &["study", "merge", "out", "other", "--out", &other],
            &[&words, "runs on different data cannot be compared"],
        );
        fs::remove_dir_all(lab.path("other")).unwrap();
        lab.write(file, before);
    }
    lab.ok(&begun("out", &["--resume", "--shard", "2/12"]));
    assert_eq!(records(&lab, "out").len(), 2);
}

#[test]
fn a_half_done_run_does_not_go_on_with_other_validation_data() {
    let lab = lab();
    let text = |word: &str| format!("{word} walked to the river. ").repeat(40);
    lab.write("held/a.txt", text("Bela"));
    let more = [
        "--set",
        r#"data.validation=["held"]"#,
        "--set",
        "train.steps=2000",
    ];
    let mut args = args("out", &more);
    let mut child = lab.start(&args);
    args.push("--resume");
    common::wait_until("a checkpoint", || {
        let runs = fs::read_dir(lab.path("out/work")).into_iter().flatten();
        let mut runs = runs.map(|run| run.unwrap().file_name().into_string().unwrap());
        runs.any(|run| {
            let checkpoints = lab.checkpoints_or_none(&format!("out/work/{run}"));
            (checkpoints.iter()).any(|name| !name.contains(".partial"))
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    lab.write("held/a.txt", text("Cai"));
    let words = [
        "validation data changed since its earlier steps",
        "fingerprint",
        "restore the original data",
    ];
    lab.fails(2, &args, &words);
}

#[test]
fn a_study_that_is_not_there_is_not_gone_on_with() {
    let lab = lab();
    let words = ["typo: folder not found", "start one without --resume"];
    lab.fails(1, &args("typo", &["--resume"]), &words);
    assert!(!lab.path("typo").exists());
    // A missing study file is restored.
    let short = ["--set", "train.steps=2", "--shard", "1/12"];
    lab.ok(&args("out", &short));
    fs::remove_file(lab.path("out/study.toml")).unwrap();
    lab.ok(&args("out", &short));
    assert!(lab.path("out/study.toml").exists());
}

#[test]
fn what_was_stated_before_there_was_a_history_stays_unknown() {
    let lab = lab();
    let short = ["--set", "train.steps=2", "--resume"];
    lab.ok(&args("out", &short[..2]));
    fs::remove_file(lab.path("out/history.json")).unwrap();
    let unknown = |out: &str, records: usize| {
        let text = lab.ok(&["report", out, "--format", "markdown"]);
        let words = format!("changed before {records} of the records were written");
        assert!(text.contains(&words), "{text}");
    };
    unknown("out", 12);
    lab.ok(&["study", "merge", "out", "--out", "joined"]);
    unknown("joined", 12);
    for (shard, out) in [("1/2", "sa"), ("2/2", "sb")] {
        lab.ok(&args(out, &["--set", "train.steps=2", "--shard", shard]));
        fs::remove_file(lab.path(out).join("history.json")).unwrap();
    }
    for _ in 0..2 {
        lab.ok(&["study", "merge", "sa", "sb", "--out", "sj"]);
        unknown("sj", 12);
    }
    // One run is trained again, which starts a history.
    fs::remove_file(files_below(&lab.path("out/runs")).remove(0)).unwrap();
    lab.ok(&args("out", &short));
    assert!(lab.path("out/history.json").exists());
    unknown("out", 11);
}

#[test]
fn placements_start_from_the_same_values_and_see_the_same_batches() {
    let lab = lab();
    let more = ["--set", "study.lr=[1e-30]", "--set", "study.keep_runs=true"];
    lab.ok(&args("out", &more));
    // With a negligible learning rate, a loss is that of the initial weights on the step's batch.
    let losses = |placement: &str, seed: u64| {
        let mut found = records(&lab, "out").into_iter().filter(|record| {
            record["cell"]["placement"] == placement && record["cell"]["seed"] == seed
        });
        let id = found.next().unwrap()["id"].as_str().unwrap().to_owned();
        lab.column(&format!("out/kept/{id}"), "loss")
    };
    // `mine` differs from hybridnorm only in a skip connection, which has no parameters.
    let (one, other) = (losses("hybridnorm", 1), losses("mine", 1));
    assert_ne!(one, other);
    let correlation = |x: &[f64], y: &[f64]| {
        let centred = |x: &[f64]| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            x.iter().map(|x| x - mean).collect()
        };
        let (x, y) = (centred(x), centred(y));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
    };
    let same_batches = correlation(&one, &other);
    let other_batches = correlation(&one, &losses("hybridnorm", 2));
    assert!(same_batches > 0.7, "{same_batches}");
    assert!(other_batches < 0.5, "{other_batches}");
}

#[test]
fn divergence_is_a_result_with_its_step() {
    let lab = lab();
    let more = [
        "--set",
        "study.lr=[1e-3,1e38]",
        "--set",
        "optimizer.clip_grad_norm=0",
        "--json",
    ];
    let groups = lab.json(&args("out", &more));
    let placements = groups[0]["analysis"]["placements"].as_array().unwrap();
    for placement in placements {
        assert_eq!(placement["rates"][1]["diverged"], 2, "{placement}");
        // Forty steps at this learning rate are too few to learn anything.
        assert_eq!(placement["rates"][0]["not_learned"], 2, "{placement}");
        assert_eq!(placement["largest_stable_lr"], 1e-3);
    }
    let records = records(&lab, "out");
    let diverged = records
        .iter()
        .filter(|record| record["ending"]["kind"] == "diverged");
    let steps: Vec<u64> = diverged
        .map(|record| record["ending"]["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps.len(), 6);
    assert!(steps.iter().all(|&step| step <= 3), "{steps:?}");
}

#[test]
fn halving_leaves_the_worse_rates_out_and_is_the_same_when_interrupted() {
    let lab = lab();
    let halving = "study.halving={at=[0.25,0.5],keep=0.5}";
    let more = ["--set", "study.lr=[1e-3,3e-3,1e-2,1e-5]", "--set", halving];
    lab.ok(&args("whole", &more));
    let whole = content_with_halving(&lab, "whole");
    let endings = |step: u64| {
        let halved = whole.values().filter(|record| {
            record["ending"]["kind"] == "halved" && record["ending"]["step"] == step
        });
        halved.count()
    };
    // Four learning rates, then two, then one, for three placements and two seeds.
    assert_eq!((endings(10), endings(20)), (12, 6));
    let smallest = whole.values().filter(|record| record["cell"]["lr"] == 1e-5);
    assert!(smallest.clone().count() == 6);
    assert!(
        smallest
            .into_iter()
            .all(|record| record["ending"]["kind"] == "halved")
    );
    let mut resumed = more.to_vec();
    for round in 0..4u64 {
        let mut child = lab.start(&args("killed", &resumed));
        std::thread::sleep(Duration::from_millis(60 + 50 * round));
        let _ = child.kill();
        child.wait().unwrap();
        if round == 0 {
            resumed.push("--resume");
        }
    }
    lab.ok(&args("killed", &resumed));
    let decided = lab.read("killed/halving.json");
    assert_eq!(whole, content_with_halving(&lab, "killed"));
    let mut grown = more.to_vec();
    grown.extend(["--resume", "--set", "study.seeds=[1,2,3]"]);
    lab.write("whole/halving.json", &decided);
    let stated = lab.read("whole/study.toml");
    lab.fails(
        2,
        &args("whole", &grown),
        &["halving has already ranked other runs"],
    );
    assert_eq!(lab.read("whole/study.toml"), stated);
    // Halving decisions must have checksums.
    let mut rungs: Value = serde_json::from_slice(&decided).unwrap();
    for rung in rungs.as_array_mut().unwrap() {
        rung.as_object_mut().unwrap().remove("sha256").unwrap();
    }
    lab.write("whole/halving.json", rungs.to_string());
    let mut again = more.to_vec();
    again.push("--resume");
    lab.fails(
        1,
        &args("whole", &again),
        &["halving.json", "has no checksum"],
    );
    let mut sharded = more.to_vec();
    sharded.extend(["--shard", "1/2"]);
    lab.fails(2, &args("no", &sharded), &["shard 1/2", "cannot be split"]);
}

fn content_with_halving(lab: &Lab, out: &str) -> BTreeMap<String, Value> {
    let decided = lab.path(out).join("halving.json");
    let rungs: Vec<Value> = serde_json::from_slice(&fs::read(&decided).unwrap()).unwrap();
    let sizes = |key: &str| -> Vec<usize> {
        rungs
            .iter()
            .map(|rung| rung[key].as_array().unwrap().len())
            .collect()
    };
    assert_eq!((sizes("of"), sizes("on")), (vec![24, 12], vec![12, 6]));
    fs::remove_file(decided).unwrap();
    content(lab, out)
}

#[test]
fn initializations_and_depths_are_compared_apart() {
    let lab = Lab::new();
    let text = STUDY.replace("init = { scheme = \"megatron\" }\n", "").replace(
        "seeds = [1, 2]",
        "seeds = [1, 2]\ndepths = [1, 4]\ninits = [{ name = \"a\", scheme = \"megatron\" }, { name = \"b\", std = 0.05 }]",
    );
    lab.write(
        "study.toml",
        text.replace("d_model = 16", "d_model = 32")
            .replace("n_heads = 2", "n_heads = 4"),
    );
    let more = [
        "--set",
        "study.lr=[1e-3]",
        "--set",
        "train.steps=6",
        "--json",
    ];
    let groups = lab.json(&args("out", &more));
    let names: Vec<_> = groups
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["name"].as_str().unwrap())
        .collect();
    let expected = ["a, 1", "b, 1", "a, 4", "b, 4"];
    assert_eq!(names.len(), 4);
    for (name, expected) in names.iter().zip(expected) {
        let (init, depth) = expected.split_once(", ").unwrap();
        assert_eq!(*name, format!("initialization {init}, {depth} blocks"));
    }
    let records = records(&lab, "out");
    let of_depth = |depth: u64| {
        let found = records
            .iter()
            .filter(move |record| record["cell"]["depth"] == depth);
        let parameters = found.map(|record| record["parameters"].as_u64().unwrap());
        parameters.max().unwrap() as f64
    };
    // The embedding and head of 257 tokens change with the width; the blocks do not.
    let ratio = of_depth(1) / of_depth(4);
    assert!((0.9..1.8).contains(&ratio), "{ratio}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let lab = lab();
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--set", "study.lr=[]"], &["study.lr is empty"]),
        (
            &["--set", "study.lr=[1e-3,1e-3]"],
            &["study.lr has a duplicate"],
        ),
        (
            &["--set", "study.placements=[\"pre-nrom\"]"],
            &["entry 1", "pre-norm"],
        ),
        (
            &["--set", "study.placements=[\"hybridnorm\"]"],
            &["study.rules.baseline = \"pre-norm\" (the default) is not in study.placements"],
        ),
        (&["--set", "study.rules.alpha=2"], &["study.rules.alpha"]),
        (
            &["--set", "optimizer.lr=1e-3"],
            &["optimizer.lr has no effect", "study.lr"],
        ),
        (
            &["--set", "model.placement=\"pre-norm\""],
            &["model.placement has no effect"],
        ),
        (
            &["--set", "study.halving={at=[1.5],keep=0.5}"],
            &["study.halving.at"],
        ),
        (
            &["--set", "study.halving={at=[0.01,0.5],keep=0.5}"],
            &["0.01 falls on step 1"],
        ),
        (
            &["--set", "study.halving={at=[0.499,0.5],keep=0.5}"],
            &["0.5 falls on the same step"],
        ),
        (
            &["--jobs", "99", "--threads", "2"],
            &["jobs = 99, expected 1 to 2", "--threads"],
        ),
    ];
    for (more, words) in cases {
        lab.fails(2, &args("no", more), words);
        assert!(!lab.path("no").exists(), "{more:?}");
    }
    let output = lab.run(&["study", "study.toml", "--shard", "4/3"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("expected I/N"));
    lab.write("bad.toml", STUDY.replace("lr = [", "lrs = ["));
    lab.fails(
        2,
        &["study", "bad.toml"],
        &["bad.toml: line 4", "did you mean `lr`"],
    );
    lab.fails(1, &["study", "none.toml"], &["none.toml: no such file"]);
    lab.fails(
        1,
        &["study", "merge", "nowhere", "--out", "x"],
        &["nowhere", "no such file"],
    );
}
