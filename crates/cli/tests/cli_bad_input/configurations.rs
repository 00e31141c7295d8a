//! Invalid configurations are rejected with the file, the key, the value and what was expected.

use std::fs;

use crate::common::{self, TestDir};

/// Asserts that training with each setting fails with a message that contains all of its fragments.
fn assert_rejected(cases: &[(&str, &[&str])]) {
    let dir = TestDir::new();
    for (setting, words) in cases {
        dir.train_fails(2, "run", &["--set", setting], words);
        let _ = fs::remove_dir_all(dir.path("run"));
    }
}

#[test]
fn invalid_training_settings_are_rejected() {
    assert_rejected(&[
        ("train.stepz=3", &["train.stepz=3", "did you mean `steps`?"]),
        (
            "train.steps=1e3",
            &["train.steps=1e3", "expected a non-negative integer"],
        ),
        (
            "train.steps=-1",
            &["train.steps=-1", "expected a non-negative integer"],
        ),
        (
            "train.steps=99999999999999999999",
            &["train.steps", "expected"],
        ),
        ("train.steps=0", &["train.steps = 0"]),
        ("train.batch_size=0", &["train.batch_size = 0"]),
        (
            "train.batch_size=1000000000000",
            &["train.batch_size", "tokens per step"],
        ),
        (
            "train.seq_len=9000000000000000000",
            &["train.seq_len", "tokens per step"],
        ),
        (
            "train.grad_accum_steps=3",
            &["does not divide train.batch_size = 4"],
        ),
        ("train.keep_checkpoints=0", &["train.keep_checkpoints = 0"]),
    ]);
}

#[test]
fn invalid_data_settings_are_rejected() {
    assert_rejected(&[
        (
            "data.train=stories:10",
            &["data.train=stories:10", "expected an array"],
        ),
        ("data.train=[]", &["data.train is missing"]),
        ("data.train=['']", &["data path is empty"]),
        ("data.order=seq", &["`shuffled` or `sequential`"]),
        ("data.tokenizer=bpe:5", &["vocabulary size of bpe = 5"]),
        ("data.tokenizer=nope.json", &["nope.json"]),
    ]);
}

#[test]
fn invalid_model_settings_are_rejected() {
    assert_rejected(&[
        (
            "model.n_heads=3",
            &["model.n_heads = 3 does not divide model.d_model = 16"],
        ),
        (
            "model.n_kv_heads=3",
            &["model.n_kv_heads = 3 does not divide model.n_heads = 2"],
        ),
        (
            "model.d_model=18",
            &["model.d_model / model.n_heads = 9, expected an even number"],
        ),
        (
            "model.d_model=1000000000000",
            &["model.d_model = 1000000000000, expected at most"],
        ),
        (
            "model.d_model=1000000",
            &["GiB of memory, but", "are available to this process"],
        ),
        (
            "model.n_layers=1000000",
            &["n_layers = 1000000, expected at most"],
        ),
        (
            "model.n_layers=0",
            &["model.n_layers = 0, expected at least 1"],
        ),
        (
            "model.max_seq_len=1000000000000",
            &["model.max_seq_len = 1000000000000, expected at most"],
        ),
        (
            "model.max_seq_len=8",
            &["model.max_seq_len = 8 is smaller than train.seq_len = 16"],
        ),
        (
            "model.d_ff=1000000000000000",
            &["model.d_ff = 1000000000000000, expected at most"],
        ),
        (
            "model.vocab_size=100",
            &["model.vocab_size = 100 is smaller", "257"],
        ),
        ("model.rope_theta=0", &["model.rope_theta = 0"]),
    ]);
}

#[test]
fn invalid_placement_and_norm_settings_are_rejected() {
    assert_rejected(&[
        (
            "model.placement=pre-nrom",
            &["unknown placement pre-nrom", "`pre-norm`"],
        ),
        ("model.placement={base='pre-norm', nrom={}}", &["nrom"]),
        (
            "model.placement=3",
            &["model.placement must be a name or a table"],
        ),
        ("model.norm={eps=nan}", &["nan and inf are not allowed"]),
        (
            "model.norm={alpha_init=nan}",
            &["nan and inf are not allowed"],
        ),
        (
            "model.placement={base='pre-norm', logits={softcap=inf}}",
            &["nan and inf are not allowed"],
        ),
        ("model.norm={eps=1e-300}", &["norm.eps = 1e-300"]),
    ]);
}

#[test]
fn invalid_optimizer_and_schedule_settings_are_rejected() {
    assert_rejected(&[
        ("optimizer.lr=nan", &["optimizer.lr"]),
        (
            "optimizer.lr=-1",
            &["optimizer.lr = -1, expected a number above 0"],
        ),
        ("optimizer.lr=1e-300", &["optimizer.lr = "]),
        (
            "optimizer.weight_decay=1e300",
            &["optimizer.weight_decay = 1e300, expected"],
        ),
        ("optimizer.clip_grad_norm=1e-300", &["optimizer.clip_grad"]),
        ("optimizer.eps=1e-300", &["optimizer.eps = "]),
        ("optimizer.eps=1e39", &["optimizer.eps = "]),
        (
            "optimizer.betas=[0.9]",
            &["optimizer.betas", "expected an array of length 2, found 1"],
        ),
        ("optimizer.kind=sgd", &["expected `adamw`"]),
        (
            "schedule.min_lr_ratio=1.5",
            &["schedule.min_lr_ratio = 1.5"],
        ),
        (
            "schedule.decay_steps=4",
            &["schedule.decay_steps has no effect without"],
        ),
        ("schedule.warmup_steps=21", &["warm-up of 21 steps"]),
        (
            "schedule.warmup_tokens=64",
            &["warmup_steps and schedule.warmup_tokens"],
        ),
    ]);
}

#[test]
fn invalid_other_settings_are_rejected() {
    assert_rejected(&[
        ("trian.steps=3", &["did you mean `train`?"]),
        ("seed=-1", &["seed=-1", "expected"]),
        (
            "seed=18446744073709551615",
            &["expected an integer of at most 9223372036854775807"],
        ),
        ("init.from=''", &["init.from is empty"]),
        (
            "study.lr=[1e-3]",
            &["a file with a [study] section describes a study; run it with `hybridnorm study`"],
        ),
        ("steps", &["expected section.key=value"]),
        ("=3", &["is not a key"]),
        ("train.=3", &["is not a key"]),
        ("seed.x=3", &["seed is not a section"]),
    ]);
}

#[test]
fn the_invalid_one_of_several_settings_is_named() {
    let dir = TestDir::new();
    dir.train_fails(
        2,
        "run",
        &[
            "--set",
            "seed=1",
            "--set",
            "train.stps=3",
            "--set",
            "seed=2",
        ],
        &["setting train.stps=3:", "tiny.toml"],
    );
}

#[test]
fn invalid_configuration_files_are_rejected_with_their_line() {
    let dir = TestDir::new();
    dir.write("broken.toml", "seed = 1\n[train]\nstepz = 3\n");
    dir.expect_error(
        2,
        &["train", "broken.toml"],
        &["broken.toml: line 3:", "`steps`"],
    );
    dir.write("broken.toml", "seed = 1\n[train\n");
    dir.expect_error(2, &["train", "broken.toml"], &["broken.toml: line 2:"]);
    dir.write("broken.toml", b"seed = 1 # \xff\n");
    dir.expect_error(
        2,
        &["train", "broken.toml"],
        &["broken.toml", "UTF-8 at byte 11"],
    );
    dir.expect_error(
        1,
        &["train", "absent.toml"],
        &["absent.toml", "no such file"],
    );
}

#[test]
fn invalid_thread_counts_are_rejected() {
    let dir = TestDir::new();
    dir.expect_error(
        2,
        &["train", "tiny.toml", "--threads", "0"],
        &["threads = 0"],
    );
    for (threads, words) in [
        ("1000000", "threads = 1000000, expected 1 to 1024"),
        ("many", "RAYON_NUM_THREADS is \"many\""),
    ] {
        let mut command = dir.command(&["train", "tiny.toml"]);
        let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert_eq!(common::code(&output), 2);
        assert!(common::stderr(&output).contains(words), "{output:?}");
    }
    let mut unset = dir.command(&["placement", "list"]);
    let output = unset.env("RAYON_NUM_THREADS", "").output().unwrap();
    assert_eq!(common::code(&output), 0);
    dir.expect_error(
        2,
        &["train", "tiny.toml", "--threads", "1000000"],
        &["threads = 1000000"],
    );
}
