//! Any invalid input ends with one line that locates the problem, and damages nothing.

#[path = "../common/mod.rs"]
mod common;
mod configurations;

use std::fs;
use std::path::Path;

use common::{DAMAGES, Damage, TestDir, copy_folder, damage, files_below, numpy, train_args};

#[test]
fn wrong_usage_exits_with_code_2() {
    let dir = TestDir::new();
    for args in [
        &["tarin"][..],
        &["train"],
        &["eval", "x"],
        &["train", "tiny.toml", "--steps"],
        &[],
    ] {
        assert_eq!(dir.run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn unusable_text_is_rejected() {
    let dir = TestDir::new();
    dir.train("run", &[]);
    dir.write("empty.txt", "");
    dir.write("blank.txt", " \n\n");
    dir.write("short.txt", "hi");
    dir.write("bytes.txt", b"abc\xff\xfe");
    dir.write("odd.pdf", "text");
    dir.write("lines.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
    for (file, code, words) in [
        ("empty.txt", 2, &["empty.txt", "no text"][..]),
        ("blank.txt", 2, &["blank.txt", "no text"]),
        ("short.txt", 2, &["short.txt: 3 ", "one sequence of 16"]),
        (
            "bytes.txt",
            1,
            &["bytes.txt", "invalid UTF-8 (0xff) at byte 3"],
        ),
        ("odd.pdf", 1, &["odd.pdf", "unknown kind"]),
        ("lines.jsonl", 1, &["lines.jsonl", "line 2"]),
        ("absent.txt", 1, &["absent.txt", "no such file"]),
        ("absent.npy", 1, &["absent.npy", "no such file"]),
        ("*.u16", 2, &["no file matches `*.u16`"]),
        ("stories:0", 2, &["stories:0"]),
    ] {
        let data = format!("data.train=['{file}']");
        dir.train_fails(code, "other", &["--set", &data], words);
        let _ = fs::remove_dir_all(dir.path("other"));
        if file != "short.txt" {
            dir.expect_error(code, &["eval", "run", "--json", "--data", file], words);
        }
        if !["short.txt", "absent.npy", "*.u16"].contains(&file) {
            let args = [
                "data",
                "prepare",
                file,
                "--tokenizer",
                "bytes",
                "--out",
                "p",
            ];
            dir.expect_error(code, &args, &words[..1]);
            dir.expect_error(1, &["data", "inspect", "p"], &["p"]);
        }
    }
    dir.expect_error(
        2,
        &["eval", "run", "--data", "short.txt", "--batch-size", "0"],
        &["--batch-size"],
    );
    dir.expect_error(
        2,
        &["eval", "run", "--data", "short.txt", "--seq-len", "17"],
        &["sequence length = 17", "16"],
    );
}

#[test]
fn damaged_prepared_folders_are_rejected() {
    let dir = TestDir::new();
    let out = [
        "data",
        "prepare",
        "stories:60",
        "--tokenizer",
        "bpe:300",
        "--out",
        "good",
    ];
    dir.ok(&out);
    let data = ["--set", "data.train=['p']", "--set", "data.tokenizer=p"];
    for file in files_below(&dir.path("good")) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        for how in DAMAGES {
            let _ = fs::remove_dir_all(dir.path("p"));
            copy_folder(&dir.path("good"), &dir.path("p"));
            damage(&dir.path("p").join(&name), how);
            // These two files do not affect the meaning of tokens, so damage to them may go unnoticed.
            let beside = ["tokenizer_config.json", "hybridnorm-tokenizer.json"].contains(&&*name);
            let inspected = dir.run(&["data", "inspect", "p"]);
            if beside && inspected.status.success() {
                continue;
            }
            if matches!(how, Damage::FlippedBit)
                && name == "manifest.json"
                && inspected.status.success()
            {
                continue;
            }
            dir.expect_error(1, &["data", "inspect", "p"], &["p"]);
            let output = dir.run(&train_args("run", &data));
            let stderr = common::stderr(&output);
            assert!(
                [1, 2].contains(&common::code(&output)),
                "{name} {how:?} {stderr}"
            );
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(!stderr.contains("internal error"), "{stderr}");
            let _ = fs::remove_dir_all(dir.path("run"));
        }
    }
}

#[test]
fn damaged_checkpoints_are_rejected() {
    let dir = TestDir::new();
    dir.train("run", &["--set", "train.steps=5"]);
    let good = dir.path("run/checkpoints/step-00000005");
    for file in files_below(&good) {
        let name = file.strip_prefix(&good).unwrap();
        for how in DAMAGES {
            let _ = fs::remove_dir_all(dir.path("c"));
            copy_folder(&good, &dir.path("c"));
            damage(&dir.path("c").join(name), how);
            let word = match name == Path::new("manifest.json") {
                true => "c",
                false => name.to_str().unwrap(),
            };
            dir.expect_error(1, &["eval", "c", "--json", "--data", "stories:9"], &[word]);
            dir.expect_error(1, &["generate", "c", "--prompt", "a"], &[word]);
            dir.expect_error(1, &["inspect", "c"], &[word]);
            let init = ["--set", "init.from=c"];
            dir.train_fails(1, "other", &init, &[word]);
            let _ = fs::remove_dir_all(dir.path("other"));
        }
    }
    dir.expect_error(
        1,
        &["eval", "run/checkpoints", "--data", "stories:9"],
        &["neither a checkpoint"],
    );
}

#[test]
fn tokens_outside_the_vocabulary_are_rejected() {
    let dir = TestDir::new();
    let mut tokens: Vec<u16> = (0..500).map(|i| i % 50).collect();
    tokens[321] = 50;
    dir.write("a.npy", numpy("(500,)", &tokens));
    dir.write(
        "a.bin",
        tokens
            .iter()
            .flat_map(|t| t.to_le_bytes())
            .collect::<Vec<u8>>(),
    );
    dir.write("cut.bin", [1, 2, 3]);
    dir.write("cut.npy", &numpy("(500,)", &tokens)[..900]);
    dir.write("rows.npy", numpy("(50, 10)", &tokens));
    let config = String::from_utf8(dir.read("tiny.toml")).unwrap();
    dir.write("tiny.toml", config.replace("tokenizer = \"bytes\"\n", ""));
    for (file, size, words) in [
        (
            "a.npy",
            "50",
            &["a.npy", "token 50 at position 321", "size 50"][..],
        ),
        ("a.bin", "50", &["a.bin", "token 50 at position 321"]),
        ("cut.bin", "51", &["cut.bin", "not a multiple of 2"]),
        ("cut.npy", "51", &["cut.npy", "needs"]),
        (
            "rows.npy",
            "51",
            &["rows.npy", "rows of 10 tokens", "needs 17"],
        ),
    ] {
        let data = format!("data.train=['{file}']");
        let size = format!("model.vocab_size={size}");
        dir.train_fails(1, "run", &["--set", &data, "--set", &size], words);
        let _ = fs::remove_dir_all(dir.path("run"));
    }
    dir.train_fails(
        2,
        "run",
        &["--set", "data.train=['a.npy']"],
        &["a.npy", "vocab_size"],
    );
    let _ = fs::remove_dir_all(dir.path("run"));
    dir.train(
        "run",
        &[
            "--set",
            "data.train=['a.npy']",
            "--set",
            "model.vocab_size=51",
        ],
    );
    dir.expect_error(
        2,
        &["generate", "run", "--prompt", "a"],
        &["has no tokenizer"],
    );
    for command in [
        &["eval", "run", "--data", "stories:9"][..],
        &["eval", "run", "--tasks", "absent.jsonl"],
        &["serve", "run", "--port", "0"],
    ] {
        let words = [
            "run/checkpoints/step-00000020: has no tokenizer",
            "--tokenizer",
        ];
        dir.expect_error(2, command, &words);
    }
    dir.write("high.npy", numpy("(4,)", &[1, 2, 3, 51]));
    let message = dir.expect_error(
        1,
        &["eval", "run", "--data", "high.npy"],
        &["token 51 at position 3", "u16, as its header states"],
    );
    assert!(!message.contains("append"), "{message}");
}

#[test]
fn directories_with_other_files_are_rejected() {
    let dir = TestDir::new();
    dir.write("file", "mine");
    dir.train_fails(1, "file", &[], &["file: is a file, expected a folder"]);
    assert_eq!(dir.read("file"), b"mine");
    dir.write("mine/a.txt", "mine");
    let args = [
        "data",
        "prepare",
        "stories:9",
        "--tokenizer",
        "bytes",
        "--out",
        "mine",
    ];
    dir.expect_error(2, &args, &["mine: contains other files"]);
    assert_eq!(dir.read("mine/a.txt"), b"mine");
}

#[test]
fn non_finite_losses_are_errors_and_keep_the_last_good_checkpoint() {
    let dir = TestDir::new();
    let clip = "optimizer.clip_grad_norm=0";
    let huge = ["--set", "optimizer.lr=1e300", "--set", clip];
    let words = [
        "step 1: loss",
        "batch instances [",
        "there is no earlier checkpoint",
    ];
    dir.train_fails(1, "run", &huge, &words);
    // After ten normal steps a huge learning rate makes the weights non-finite, or leaves them finite with a
    // non-finite loss.
    for (lr, problem) in [("1e300", "step 11: loss"), ("1e30", "step 12: loss NaN")] {
        let run = format!("jump {lr}");
        dir.train(&run, &["--set", "train.steps=10"]);
        let lr = format!("optimizer.lr={lr}");
        let good = format!("last good checkpoint: {run}/checkpoints/step-00000010");
        let mut resumed = vec!["--resume"];
        for setting in [
            &lr,
            clip,
            "train.checkpoint_every=1",
            "train.keep_checkpoints=1",
            "train.eval_every=0",
        ] {
            resumed.extend(["--set", setting]);
        }
        dir.train_fails(1, &run, &resumed, &[problem, &good]);
        // The good checkpoint was not replaced by a useless one, and the run resumes from it.
        assert_eq!(dir.checkpoints(&run), ["step-00000010"]);
        dir.train(&run, &["--resume"]);
        assert_eq!(dir.column(&run, "step").len(), 20);
    }
}

#[test]
fn damaged_tokenizer_files_are_rejected() {
    let dir = TestDir::new();
    dir.prepare("stories:60", "bpe:300", "p");
    for how in [Damage::Truncated, Damage::FlippedBit] {
        fs::copy(dir.path("p/tokenizer.json"), dir.path("t.json")).unwrap();
        damage(&dir.path("t.json"), how);
        let output = dir.run(&train_args("run", &["--set", "data.tokenizer=t.json"]));
        let stderr = common::stderr(&output);
        // A flipped bit may leave a valid, though different, tokenizer.
        if matches!(how, Damage::Truncated) || !output.status.success() {
            assert!(
                stderr.contains("t.json") && stderr.lines().count() == 1,
                "{stderr}"
            );
            assert!(!stderr.contains("internal error"), "{stderr}");
        }
        let _ = fs::remove_dir_all(dir.path("run"));
    }
}
