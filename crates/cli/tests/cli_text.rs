//! Reading text: every kind of file, and counts of everything omitted.
#![cfg(unix)]

mod common;

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::Command;

use common::TestDir;
use serde_json::Value;

fn gzip(bytes: &str) -> Vec<u8> {
    // One gzip member, followed by zero padding as on tapes.
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(bytes.as_bytes())
        .unwrap();
    let mut packed = child.wait_with_output().unwrap().stdout;
    packed.extend([0; 100]);
    packed
}

fn prepare_args<'a>(input: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "data",
        "prepare",
        input,
        "--tokenizer",
        "bytes",
        "--out",
        out,
        "--validation-fraction",
        "0",
    ];
    fixed.iter().chain(more).copied().collect()
}

fn omitted(json: &Value, unit: &str) -> u64 {
    let all = json["left_out"].as_array().unwrap().iter();
    all.filter(|omission| omission["unit"] == unit)
        .map(|omission| omission["count"].as_u64().unwrap())
        .sum()
}

/// Creates a folder `c` with texts of every format, symbolic links, and files that are omitted.
fn mixed_folder() -> TestDir {
    let dir = TestDir::new();
    dir.write("c/one.text", "plain one");
    dir.write("c/two.md", "# two");
    dir.write("c/three.txt.gz", gzip("three\n"));
    dir.write(
        "c/four.json",
        "[{\"text\": \"array\"},\n \"string\", {\"text\": \" \"},\n{\"text\": null}]\n",
    );
    dir.write(
        "c/five.json",
        "{\n  \"text\": \"pretty\",\n  \"x\": [1]\n}\n",
    );
    dir.write(
        "c/six.ndjson",
        "{\"text\": \"l1\", \"score\": NaN}\n\n{\"text\": \"\\ud83d!\"}\n",
    );
    dir.write("c/table.csv", "x");
    dir.write("c/.hidden/a.txt", "x");
    dir.write("c/blank.txt", "\n \n");
    dir.write("c/drafts/x.txt", "draft");
    dir.write("elsewhere/seven.txt", "seven");
    symlink("../elsewhere", dir.path("c/link")).unwrap();
    symlink(".", dir.path("c/circle")).unwrap();
    symlink("one.text", dir.path("c/again.txt")).unwrap();
    symlink("nowhere", dir.path("c/broken.txt")).unwrap();
    let made = Command::new("mkfifo")
        .arg(dir.path("c/pipe.txt"))
        .status()
        .unwrap();
    assert!(made.success());
    dir
}

#[test]
fn counts_of_read_and_omitted_text_add_up() {
    let dir = mixed_folder();
    let json = dir.json(&prepare_args(
        "c",
        "out",
        &["--exclude", "drafts", "--json"],
    ));
    let source = &json["sources"][0];
    // one two three four five six seven | csv hidden blank draft circle again broken pipe
    assert_eq!(source["files"], 7);
    assert_eq!(omitted(&json, "files"), 8, "{json:#}");
    // Four in the array, one spanning lines, two on lines.
    assert_eq!(
        source["records"].as_u64().unwrap() + omitted(&json, "records"),
        7
    );
    assert_eq!(omitted(&json, "records"), 1);
    let plain = 4;
    let all = source["records"].as_u64().unwrap() + plain;
    assert_eq!(
        source["documents"].as_u64().unwrap() + omitted(&json, "documents"),
        all
    );
    assert_eq!(json["train"]["documents"], source["documents"]);
    assert_eq!(source["replaced_surrogates"], 1);
    let table = dir.ok(&prepare_args("c", "out2", &["--exclude", "drafts"]));
    for words in [
        "omitted 1 file: hidden",
        "unknown kind (c/table.csv)",
        "a broken link",
        "not a regular file",
        "duplicate file",
        "duplicate folder",
        "not selected",
        "contains no text",
        "omitted 1 record: field `text` is null",
        "omitted 1 document: blank",
        "unpaired surrogates",
    ] {
        assert!(table.contains(words), "{words}\n{table}");
    }
}

#[test]
fn files_are_selected_by_include_and_exclude() {
    let dir = mixed_folder();
    dir.expect_error(
        2,
        &prepare_args("c", "o3", &["--exclude", "*.none"]),
        &["exclude `*.none`: matches no"],
    );
    dir.expect_error(
        1,
        &prepare_args("c", "o3", &["--include", "zzz/**"]),
        &["c: no `.txt`", "not selected by include/exclude"],
    );
    let some = dir.json(&prepare_args(
        "c",
        "o4",
        &["--include", "*.md", "--include", "link/*", "--json"],
    ));
    assert_eq!(some["sources"][0]["files"], 2);
}

#[test]
fn documents_end_at_separators() {
    let dir = TestDir::new();
    dir.write(
        "t.txt",
        "One.\n\nMore.\n<|endoftext|>\nTwo.\n<|endoftext|>\n \n<|endoftext|>Three.<|endoftext|>\n",
    );
    let table = dir.ok(&prepare_args("t.txt", "a", &[]));
    assert!(
        table.contains("special token `<|endoftext|>` appears literally 4 times"),
        "{table}"
    );
    let json = dir.json(&prepare_args(
        "t.txt",
        "b",
        &["--separator", "<|endoftext|>", "--json"],
    ));
    assert_eq!(json["train"]["documents"], 3);
    assert_eq!(json["spelled_special_tokens"].as_array().unwrap().len(), 0);
    assert_eq!(omitted(&json, "documents"), 1);
    let lines = dir.json(&prepare_args(
        "t.txt",
        "c",
        &["--separator", "\nMore.\n", "--json"],
    ));
    assert_eq!(lines["train"]["documents"], 2);
    dir.expect_error(
        2,
        &prepare_args("t.txt", "d", &["--separator", "###"]),
        &["`###` does not occur in any"],
    );
    dir.write("j.jsonl", "{\"text\":\"a\"}\n");
    dir.expect_error(
        2,
        &prepare_args("j.jsonl", "d", &["--separator", "#"]),
        &["separator has no effect"],
    );
    assert!(!dir.path("d").exists());
}

#[test]
fn training_reports_omitted_text_with_and_without_the_cache() {
    let dir = TestDir::new();
    let stories: Vec<String> = (0..400)
        .map(|i| format!("Story {i} of many.\n\n"))
        .collect();
    dir.write("long.txt", stories.concat().repeat(6));
    dir.write("sep.txt", stories.join("<|endoftext|>\n"));
    for run in ["r1", "r2"] {
        let output = dir.run(&[
            "train",
            "tiny.toml",
            "--run",
            run,
            "--set",
            "data.train=[\"long.txt\"]",
            "--set",
            "train.steps=5",
        ]);
        let stderr = common::stderr(&output);
        assert!(
            stderr.contains(
                "data: 1 plain text file was split into 3 documents at blank lines after 20000"
            ),
            "{stderr}"
        );
    }
    let with = |train: &'static str, run: &'static str| {
        [
            "train",
            "tiny.toml",
            "--run",
            run,
            "--set",
            train,
            "--set",
            "data.text={separator=\"<|endoftext|>\"}",
            "--set",
            "train.steps=5",
        ]
    };
    dir.ok(&with("data.train=[\"sep.txt\"]", "r3"));
    dir.expect_error(
        2,
        &with("data.train=[\"long.txt\"]", "r4"),
        &["does not occur in any plain text input"],
    );
}

#[test]
fn invalid_records_are_errors_or_skipped_and_counted() {
    let dir = TestDir::new();
    dir.write(
        "b.jsonl",
        b"{\"text\": \"ok\"}\n{\"text\": 5}\n{\"body\": 1}\n{\"text\": \"a\" \"b\": 1}\n{\"text\": \"\xff\"}\n{\"text\": \"end\"}\n",
    );
    dir.expect_error(
        1,
        &prepare_args("b.jsonl", "o", &[]),
        &["b.jsonl: line 2: field `text` is not a string but a number"],
    );
    let json = dir.json(&prepare_args("b.jsonl", "o", &["--skip-bad", "--json"]));
    assert_eq!(json["train"]["documents"], 2);
    assert_eq!(omitted(&json, "records"), 4);
    assert_eq!(json["left_out"][0]["examples"][0], "b.jsonl:2");
    dir.write("e.json", "[{\"text\": \"a\"},\n {\"text\": \"b\" \"c\"}]");
    dir.expect_error(
        1,
        &prepare_args("e.json", "p", &[]),
        &["line 2, character 14 of the record: not valid JSON"],
    );
    dir.write("f.json", "[{\"text\": \"a\"}");
    dir.expect_error(
        1,
        &prepare_args("f.json", "p", &[]),
        &["the file ends after 1 record of an array"],
    );
    dir.write("u.txt", b"\xff\xfeh\0i\0");
    dir.expect_error(
        1,
        &prepare_args("u.txt", "p", &[]),
        &["UTF-16 text", "iconv"],
    );
    dir.write("g.txt", gzip("x"));
    dir.expect_error(1, &prepare_args("g.txt", "p", &[]), &["gzip data", "`.gz`"]);
    dir.write(
        "h.jsonl",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    );
    dir.expect_error(1, &prepare_args("h.jsonl", "p", &[]), &["Git LFS pointer"]);
    dir.write("bad.parquet", b"PAR1 not PAR1");
    dir.expect_error(
        1,
        &prepare_args("bad.parquet", "p", &[]),
        &["bad.parquet: damaged Parquet file"],
    );
    dir.expect_error(
        2,
        &prepare_args("stories:3", "p", &["--skip-bad"]),
        &["skip_bad has no effect"],
    );
}

#[test]
fn damaged_compressed_files_are_skipped_only_on_request() {
    let dir = TestDir::new();
    let lines: String = (0..4000)
        .map(|line| {
            format!(
                "{{\"text\": \"line {line} of it, {}\"}}\n",
                line * 7919 % 1009
            )
        })
        .collect();
    let whole = gzip(&lines);
    dir.write("d/cut.jsonl.gz", &whole[..whole.len() / 2]);
    dir.write("d/head.jsonl.gz", &whole[..5]);
    dir.write("d/tail.jsonl.gz", [&gzip(&lines)[..], b"more"].concat());
    dir.write("d/empty.txt.zst", "");
    dir.write("d/whole.jsonl.gz", &whole);
    dir.expect_error(
        1,
        &prepare_args("d", "o", &[]),
        &["d/cut.jsonl.gz: damaged gzip"],
    );
    let json = dir.json(&prepare_args("d", "o", &["--skip-bad", "--json"]));
    let source = &json["sources"][0];
    let read = source["records"].as_u64().unwrap();
    assert!((8000 + 1..12_000).contains(&read), "{json}");
    assert_eq!(source["files"], 3);
    assert_eq!(omitted(&json, "files"), 2);
    assert_eq!(omitted(&json, "records"), 2);
    let text = json["left_out"].to_string();
    for words in [
        "after the damaged part of a file",
        "trailing bytes after the last gzip member",
        "d/head.jsonl.gz: damaged gzip data after 0 bytes of text",
    ] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn separators_before_damage_are_counted() {
    let dir = TestDir::new();
    let text = "One two three.\n".repeat(20) + "<END>\n";
    let packed = gzip(&(text.repeat(3000) + "end"));
    dir.write("cut.txt.gz", &packed[..packed.len() / 2]);
    let args = ["--skip-bad", "--json", "--separator", "<END>"];
    let json = dir.json(&prepare_args("cut.txt.gz", "s", &args));
    let separators = &json["sources"][0]["separators"];
    assert!(separators.as_u64().unwrap() > 100, "{json}");
}

#[test]
fn skip_bad_omits_binary_files() {
    let dir = TestDir::new();
    dir.write("odd/a.txt", "Some text.");
    dir.write("odd/b.txt", b"\x89PNG\r\n\x1a\n\x00\xff\xfe");
    dir.write("odd/c.txt", b"\xff\xfeh\0i\0");
    let json = dir.json(&prepare_args("odd", "n", &["--skip-bad", "--json"]));
    assert_eq!(
        (
            json["sources"][0]["files"].as_u64(),
            omitted(&json, "files")
        ),
        (Some(1), 2)
    );
    // The option is accepted for undamaged files, too.
    dir.write("e.txt.gz", gzip("Some text."));
    dir.ok(&prepare_args("e.txt.gz", "p", &["--skip-bad"]));
}

#[test]
fn validation_fraction_conflicts_with_validation_inputs() {
    let dir = TestDir::new();
    dir.write("e.txt.gz", gzip("Some text."));
    dir.expect_error(
        2,
        &[
            "data",
            "prepare",
            "e.txt.gz",
            "--tokenizer",
            "bytes",
            "--out",
            "q",
            "--validation",
            "stories:3",
            "--validation-fraction",
            "0.5",
        ],
        &["--validation-fraction 0.5 has no effect with --validation"],
    );
}

#[test]
fn concurrent_preparations_of_one_folder_are_exclusive() {
    let dir = TestDir::new();
    for more in [&[][..], &["--overwrite"]] {
        for round in 0..5 {
            let out = format!("both{}{round}", more.len());
            let args = [
                &[
                    "data",
                    "prepare",
                    "stories:40",
                    "--tokenizer",
                    "bytes",
                    "--out",
                    &out,
                    "-q",
                ][..],
                more,
            ]
            .concat();
            let children = [dir.start(&args), dir.start(&args)];
            let ended = children.map(|child| child.wait_with_output().unwrap());
            assert!(ended.iter().any(|output| output.status.success()));
            for output in &ended {
                assert!(common::stderr(output).lines().count() <= 1);
            }
            dir.ok(&["data", "inspect", &out]);
        }
    }
    let left = std::fs::read_dir(dir.path("")).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let partial: Vec<String> = names
        .filter(|name| name.contains(".partial") || name.contains(".replaced"))
        .collect();
    assert!(partial.is_empty(), "{partial:?}");
}

#[test]
fn prepared_folders_are_not_read_as_text() {
    let dir = TestDir::new();
    dir.write("texts/a.txt", "Some text of mine.");
    for _ in 0..2 {
        let manifest = dir.json(&[
            "--quiet",
            "data",
            "prepare",
            "texts",
            "--tokenizer",
            "bytes",
            "--validation-fraction",
            "0",
            "--out",
            "texts/prepared",
            "--overwrite",
            "--json",
        ]);
        assert_eq!(manifest["train"]["documents"], 1, "{manifest}");
    }
    let omitted = dir
        .json(&["data", "inspect", "texts/prepared", "--json"])
        .to_string();
    assert!(
        omitted.contains("prepared data folder within a text input"),
        "{omitted}"
    );
}
