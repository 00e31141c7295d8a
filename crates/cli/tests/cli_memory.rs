//! Memory: peaks of readers against the documented bounds, rejection of work that does not fit, and the estimate
//! of `inspect`.
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{TestDir, numpy};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Room for one chunk of text, for which a tokenizer from a file takes up to 200 bytes per byte.
const LARGE_CHUNK: u64 = 256 * MIB;
/// The idle program, 16 MiB of a reader, and 8 MiB of text tokenized at once with its tokens.
const CONSTANT: u64 = 160 * MIB;

/// Runs the program and returns its peak resident memory in bytes.
fn peak(dir: &TestDir, args: &[&str]) -> u64 {
    let mut command = dir.command(args);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        // The process may have ended since `try_wait`.
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
    assert!(peak > 10 * MIB, "{peak}");
    peak
}

fn prepare<'a>(input: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "--threads",
        "1",
        "--quiet",
        "data",
        "prepare",
        input,
        "--tokenizer",
        "bytes",
    ];
    args.extend(["--out", "out"]);
    args.extend(more);
    args
}

/// Many small records: memory does not grow with the file.
#[test]
fn memory_for_many_records_is_constant() {
    let dir = TestDir::new();
    let mut file = File::create(dir.path("many.jsonl")).unwrap();
    let record = format!("{{\"text\": \"{}\"}}\n", "some words ".repeat(6000));
    for _ in 0..1500 {
        file.write_all(record.as_bytes()).unwrap();
    }
    let found = peak(&dir, &prepare("many.jsonl", &[]));
    assert!(found < CONSTANT, "{} MiB for a file of 94 MiB", found / MIB);
}

/// Compressed files of many small records: the decompressed size takes no memory.
#[test]
fn memory_for_compressed_text_is_constant() {
    let dir = TestDir::new();
    let record = format!("{{\"text\": \"{}\"}}\n", "some words ".repeat(6000));
    let text = record.repeat(1500);
    let gzip = {
        let level = flate2::Compression::fast();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), level);
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    dir.write("many.jsonl.gz", gzip);
    dir.write(
        "many.jsonl.zst",
        zstd::encode_all(text.as_bytes(), 3).unwrap(),
    );
    for input in ["many.jsonl.gz", "many.jsonl.zst"] {
        let found = peak(&dir, &prepare(input, &["--overwrite"]));
        let (found, of) = (found / MIB, text.len() as u64 / MIB);
        assert!(
            found < CONSTANT / MIB,
            "{found} MiB for {input}, {of} MiB unpacked"
        );
    }
}

/// Short texts take more memory than their bytes.
#[test]
fn memory_for_many_short_documents_is_constant() {
    let dir = TestDir::new();
    let record = b"{\"text\": \"a\"}\n".repeat(2_000_000);
    dir.write("short.jsonl.zst", zstd::encode_all(&record[..], 3).unwrap());
    let found = peak(&dir, &prepare("short.jsonl.zst", &[])) / MIB;
    assert!(found < CONSTANT / MIB, "{found} MiB");
}

/// Maximum numbers of Unigram trie nodes and of bytes of added tokens: 50 times the file, 256 MiB, and 750 bytes per
/// node.
#[test]
fn memory_for_tokenizers_at_their_limits_is_as_documented() {
    let dir = TestDir::new();
    dir.write("t.txt", "some words ".repeat(300));
    let mut state = 1_u64;
    let mut word = |letters: usize| -> String {
        let mut letter = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b'a' + (state >> 33) as u8 % 26)
        };
        (0..letters).map(|_| letter()).collect()
    };
    let (tokens, letters) = (20_000, 21);
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["</s>", 0.0])];
    vocab.extend((0..tokens).map(|_| json!([word(letters), -9.0])));
    let added: Vec<Value> = (0..550)
        .map(|index| json!({"id": tokens + 2 + index, "content": word(900), "special": false, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}))
        .collect();
    let file = json!({"version": "1.0", "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}});
    let file = file.to_string();
    dir.write("limits.json", &file);
    let args = [
        "--quiet",
        "data",
        "prepare",
        "t.txt",
        "--tokenizer",
        "limits.json",
        "--out",
        "out",
    ];
    let found = peak(&dir, &args);
    let nodes = (tokens * letters) as u64;
    let most = 50 * file.len() as u64 + LARGE_CHUNK + 750 * nodes;
    assert!(
        found < most,
        "{} MiB, documented bound {}",
        found / MIB,
        most / MIB
    );
}

/// One large record: reading takes at most four times its size, and its tokens nothing, since they are written as
/// they are produced.
#[test]
fn memory_for_one_record_is_a_multiple_of_its_size() {
    let dir = TestDir::new();
    let text = "some words ".repeat(3 << 20);
    let bytes = text.len() as u64;
    dir.write("one.jsonl", format!("{{\"text\": \"{text}\"}}\n"));
    dir.write("one.txt", &text);
    for (input, more) in [
        ("one.jsonl", vec![]),
        ("one.txt", vec!["--document-chars", "0", "--overwrite"]),
    ] {
        let found = peak(&dir, &prepare(input, &more));
        let most = 4 * bytes + CONSTANT;
        assert!(
            found < most,
            "{input}: {} MiB for {} MiB",
            found / MIB,
            bytes / MIB
        );
    }
}

/// Tokenizers from files take much more memory than the text they encode, so it is split into chunks.
#[test]
fn memory_for_tokenizer_files_is_constant() {
    let dir = TestDir::new();
    let mark = "\u{2581}";
    let mut vocab = json!({"<unk>": 0, "</s>": 1});
    for (id, token) in (2..).zip(["o", "w", "l", "s", mark, "ow", "owl"]) {
        vocab[token] = id.into();
    }
    let names = vocab.as_object().unwrap().keys();
    let pieces: Vec<_> = names.map(|name| json!([name, -2.0])).collect();
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": mark},
        {"type": "Replace", "pattern": {"String": " "}, "content": mark}]});
    let words = json!({"type": "Metaspace", "replacement": mark, "prepend_scheme": "always"});
    for (name, normalizer, pre_tokenizer, model) in [
        (
            "llama.json",
            normalizer,
            Value::Null,
            json!({"type": "BPE", "unk_token": "<unk>", "vocab": vocab,
                "merges": ["o w", "ow l"]}),
        ),
        (
            "unigram.json",
            Value::Null,
            words,
            json!({"type": "Unigram", "unk_id": 0, "vocab": pieces}),
        ),
    ] {
        let file = json!({"version": "1.0", "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model});
        dir.write(name, file.to_string());
    }
    for text in ["owls owl ".repeat(700_000), "owls".repeat(1_500_000)] {
        let bytes = text.len() as u64;
        let has_spaces = text.contains(' ');
        dir.write("one.jsonl", format!("{{\"text\": \"{text}\"}}\n"));
        for tokenizer in ["llama.json", "unigram.json"] {
            let mut args = prepare("one.jsonl", &["--overwrite", "--validation-fraction", "0"]);
            args[7] = tokenizer;
            let found = peak(&dir, &args);
            let room = if has_spaces { 0 } else { LARGE_CHUNK };
            assert!(
                found < 4 * bytes + CONSTANT + room,
                "{tokenizer}: {} MiB for {} MiB",
                found / MIB,
                bytes / MIB
            );
        }
    }
}

/// Runs the program with `kib` KiB of address space.
fn limited(dir: &TestDir, kib: u64, args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {kib}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_hybridnorm")]);
    command.args(args);
    dir.in_test_env(command).output().unwrap()
}

/// A line that does not fit in memory is refused with one message, without aborting.
#[test]
fn lines_that_exceed_memory_are_rejected() {
    let dir = TestDir::new();
    dir.write("one.txt", "word ".repeat(8 << 20));
    let output = limited(&dir, 150_000, &prepare("one.txt", &[]));
    let stderr = common::stderr(&output);
    assert_eq!(common::code(&output), 1, "{stderr}");
    assert!(stderr.contains("one.txt: line 1, longer than"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// Token files are memory-mapped: their pages count at most once.
#[test]
fn memory_for_pretokenized_files_is_at_most_their_size() {
    let dir = TestDir::new();
    let tokens: Vec<u16> = (0..24 << 20)
        .map(|index| (index * 7 % 200) as u16)
        .collect();
    let bytes = 2 * tokens.len() as u64;
    dir.write(
        "tokens.npy",
        numpy(&format!("({},)", tokens.len()), &tokens),
    );
    let train = [
        "--threads",
        "1",
        "--quiet",
        "train",
        "tiny.toml",
        "--run",
        "pretokenized",
        "--set",
        "train.steps=5",
        "--set",
        "data.train=[\"tokens.npy\"]",
        "--set",
        "model.vocab_size=257",
        "--set",
        "train.eval_every=0",
    ];
    let found = peak(&dir, &train);
    assert!(
        found < bytes + CONSTANT,
        "{} MiB for {} MiB",
        found / MIB,
        bytes / MIB
    );
}

/// Records of a run are read one by one; the part that is kept is smaller than the record.
#[test]
fn memory_for_reports_is_a_multiple_of_the_records() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=6"]);
    let rows = String::from_utf8(dir.read("run/metrics.jsonl")).unwrap();
    let last = rows.lines().last().unwrap().to_owned();
    let many: String = (1..=60_000)
        .map(|step| last.replacen("\"step\":6", &format!("\"step\":{step}"), 1) + "\n")
        .collect();
    let bytes = many.len() as u64;
    dir.write("run/metrics.jsonl", &many);
    let report = [
        "--quiet",
        "report",
        "run",
        "--format",
        "markdown",
        "--out",
        "report.md",
    ];
    let found = peak(&dir, &report);
    assert!(
        found < 4 * bytes + CONSTANT,
        "{} MiB for {} MiB",
        found / MIB,
        bytes / MIB
    );
}

/// Settings of a training step that takes 385 MiB.
const STEP_OF_385_MIB: [&str; 11] = [
    "model.d_model=384",
    "model.n_layers=6",
    "model.n_heads=6",
    "model.n_kv_heads=6",
    "model.d_ff=1024",
    "model.vocab_size=257",
    "train.batch_size=8",
    "train.seq_len=256",
    "train.steps=2",
    "schedule.warmup_steps=0",
    "train.eval_every=0",
];

/// Returns the arguments of a command on one thread with settings.
fn on_one_thread<'a>(command: &[&'a str], settings: &[&'a str]) -> Vec<&'a str> {
    let mut args = [&["--threads", "1", "--quiet"], command].concat();
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    args
}

const TRAIN: [&str; 4] = ["train", "tiny.toml", "--run", "run"];

/// Asserts that a command was rejected in one line because its memory is not available.
fn assert_rejected(output: &Output) {
    let stderr = common::stderr(output);
    assert_eq!(common::code(output), 2, "{stderr}");
    assert!(
        stderr.contains("MiB of memory, but") && stderr.contains("are available to this process"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// Training and its benchmark are rejected at the start if they do not fit into memory.
#[test]
fn runs_that_exceed_memory_are_rejected() {
    let dir = TestDir::new();
    let bench = ["bench", "step", "--config", "tiny.toml"];
    for command in [TRAIN, bench] {
        assert_rejected(&limited(
            &dir,
            400_000,
            &on_one_thread(&command, &STEP_OF_385_MIB),
        ));
        assert!(!dir.path("run").exists());
    }
}

/// A run fits into little more than its memory: allocators reserve no address space where that is limited.
#[test]
fn runs_that_fit_in_memory_are_accepted() {
    let dir = TestDir::new();
    let output = limited(&dir, 600_000, &on_one_thread(&TRAIN, &STEP_OF_385_MIB));
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
}

/// Saving a checkpoint and checking it for NaN does not copy a whole parameter, here 256 MB.
#[test]
fn checkpoints_are_written_without_copies_of_parameters() {
    let dir = TestDir::new();
    let settings = [
        "model.tie_embeddings=true",
        "model.vocab_size=1000000",
        "model.d_model=64",
        "train.batch_size=2",
        "train.seq_len=4",
        "train.steps=1",
        "schedule.warmup_steps=0",
        "train.eval_every=0",
        "train.eval_sequences=2",
    ];
    let output = limited(&dir, 1_200_000, &on_one_thread(&TRAIN, &settings));
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
    assert!(dir.path("run/checkpoints/step-00000001").is_dir());
    // Loading one copies no parameter either: a copy of the moments would be another 512 MB.
    let resume = [&TRAIN[..], &["--resume"]].concat();
    let longer = [&settings[..], &["train.steps=2"]].concat();
    let output = limited(&dir, 1_200_000, &on_one_thread(&resume, &longer));
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
    assert!(dir.path("run/checkpoints/step-00000002").is_dir());
}

/// A run that fits is not rejected because of allocator reservations.
#[test]
fn any_sufficient_address_space_is_accepted() {
    let dir = TestDir::new();
    dir.write("text.txt", "some words of a text ".repeat(5000));
    for mib in [120, 180, 260, 400] {
        let run = format!("run-{mib}");
        let command = ["train", "tiny.toml", "--run", &run, "--threads", "2"];
        let output = limited(&dir, mib << 10, &command);
        assert_eq!(
            common::code(&output),
            0,
            "{mib} MiB: {}",
            common::stderr(&output)
        );
    }
}

/// An evaluation whose batch does not fit, of a model whose training does.
#[test]
fn evaluations_that_exceed_memory_are_rejected() {
    let dir = TestDir::new();
    dir.write("long.txt", "some words of a text ".repeat(5000));
    let settings = [&STEP_OF_385_MIB[..], &["model.n_layers=1", "train.steps=1"]].concat();
    dir.ok(&on_one_thread(&TRAIN, &settings));
    let eval = |batch| {
        let command = ["eval", "run", "--data", "long.txt", "--batch-size", batch];
        limited(&dir, 700_000, &on_one_thread(&command, &[]))
    };
    assert_rejected(&eval("1000"));
    let output = eval("8");
    assert_eq!(common::code(&output), 0, "{}", common::stderr(&output));
}

const DENSE: &str = "[model]\nd_model = 768\nn_layers = 6\nn_heads = 12\nd_ff = 2048\n";
const MIXTURE: &str = "[model]\nd_model = 512\nn_layers = 6\nn_heads = 8\n\
    [model.moe]\nn_experts = 8\ntop_k = 2\nd_expert = 704\n";
const LATENT: &str = "[model]\nd_model = 768\nn_layers = 6\nn_heads = 12\nd_ff = 2048\n\
    [model.mla]\nq_rank = 256\nkv_rank = 128\nnope_dim = 64\nrope_dim = 32\nv_dim = 64\n";

/// Blocks so narrow that the plan takes more memory than the planned buffers.
const DEEP: &str = "[model]\nd_model = 32\nn_layers = 300\nn_heads = 2\nd_ff = 88\n";

/// Compares the memory that `inspect` prints with the peak of a few steps.
#[test]
#[ignore = "takes minutes; run by .ci/run"]
fn inspect_predicts_peak_memory() {
    let dir = TestDir::new();
    for (name, model, allowed) in [
        ("dense", DENSE, 0.03),
        ("mixture", MIXTURE, 0.03),
        ("latent", LATENT, 0.03),
        ("deep", DEEP, 0.1),
    ] {
        for (precision, recompute) in [("f32", "none"), ("f32", "block"), ("bf16", "none")] {
            let train = format!(
                "[train]\nbatch_size = 2\nseq_len = 256\nrecompute = \"{recompute}\"\n\
                 precision = \"{precision}\"\n"
            );
            dir.write(
                "model.toml",
                model.replacen(
                    "\n",
                    "\nvocab_size = 16384\nplacement = \"hybridnorm\"\n",
                    1,
                ) + &train,
            );
            let threads = ["--threads", "2", "--json"];
            let inspect = [&["inspect", "model.toml"], &threads[..]].concat();
            let planned = dir.json(&inspect)["memory_total_bytes"].as_f64().unwrap();
            let bench = ["bench", "step", "--config", "model.toml", "--seconds", "0"];
            let measured = &dir.json(&[&bench, &threads[..]].concat())["peak_rss_bytes"];
            let error = measured.as_f64().unwrap() / planned - 1.0;
            assert!(
                error.abs() < allowed,
                "{name}, {precision}, {recompute}: {:+.1} % of {} MiB",
                100.0 * error,
                planned as u64 / MIB
            );
        }
    }
}
