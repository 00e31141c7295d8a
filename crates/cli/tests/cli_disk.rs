//! Full and read-only disks: small in-memory file systems, which only root may mount. Without root, run them in a user
//! namespace: `unshare -rm cargo test --release -p hybridnorm-cli --test cli_disk -- --ignored`.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{TestDir, code, stderr, train_args};

/// In-memory file system, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: &TestDir, name: &str, options: &str) -> Self {
        let path = dir.path(name);
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .status();
        assert!(mounted.unwrap().success());
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs permission to mount"]
fn full_disk_keeps_earlier_checkpoints_valid() {
    let dir = TestDir::new();
    dir.train("whole", &["--set", "train.checkpoint_every=1"]);
    for kib in [8, 200, 300, 420, 600, 777] {
        let disk = Disk::mount(&dir, "disk", &format!("size={kib}k"));
        let more = [
            "--set",
            "train.checkpoint_every=1",
            "--set",
            "train.keep_checkpoints=9",
        ];
        dir.train_fails(1, "disk/run", &more, &["disk/run", "the disk is full"]);
        let kept = match disk.0.join("run/checkpoints").is_dir() {
            true => dir.checkpoints("disk/run"),
            false => Vec::new(),
        };
        assert!(kib < 420 || !kept.is_empty(), "{kib}");
        for name in &kept {
            assert!(!name.ends_with(".partial"), "{name}");
            dir.ok(&["inspect", &format!("disk/run/checkpoints/{name}")]);
        }
        // With free space again, the run resumes and ends in the same state.
        let grown = Command::new("mount")
            .args(["-o", "remount,size=64m"])
            .arg(&disk.0)
            .status();
        assert!(grown.unwrap().success());
        let resume = match dir.path("disk/run").exists() {
            true => &["--resume"][..],
            false => &[],
        };
        dir.train("disk/run", &[&more[..], resume].concat());
        assert_eq!(
            dir.reproducible_metrics("whole"),
            dir.reproducible_metrics("disk/run")
        );
    }
}

#[test]
#[ignore = "needs permission to mount"]
fn full_disk_during_preparation_is_an_error() {
    let dir = TestDir::new();
    let disk = Disk::mount(&dir, "disk", "size=256k");
    let args = [
        "data",
        "prepare",
        "stories:2000",
        "--tokenizer",
        "bytes",
        "--out",
        "disk/p",
    ];
    dir.expect_error(1, &args, &["disk/p", "the disk is full"]);
    dir.expect_error(
        1,
        &["data", "inspect", "disk/p"],
        &["disk/p", "no such file"],
    );
    let small = [
        "data",
        "prepare",
        "stories:20",
        "--tokenizer",
        "bytes",
        "--out",
        "disk/p",
    ];
    dir.ok(&small);
    dir.ok(&["data", "inspect", "disk/p"]);
    drop(disk);

    let disk = Disk::mount(&dir, "cache", "size=256k");
    let more = ["--set", "data.train=['stories:2000']"];
    dir.train_fails(1, "run", &more, &["cache", "the disk is full"]);
    let left = common::files_below(&disk.0);
    assert!(
        left.iter()
            .all(|file| file.extension().is_some_and(|e| e == "lock")),
        "{left:?}"
    );
}

#[test]
#[ignore = "needs permission to mount"]
fn read_only_disk_is_an_error() {
    let dir = TestDir::new();
    let _disk = Disk::mount(&dir, "disk", "ro");
    let word = "the file system is read-only";
    dir.train_fails(1, "disk/run", &[], &["disk/run", word]);
    let args = [
        "data",
        "prepare",
        "stories:9",
        "--tokenizer",
        "bytes",
        "--out",
        "disk/p",
    ];
    dir.expect_error(1, &args, &["disk/p", word]);
    let args = [
        "quickstart",
        "--quiet",
        "--data",
        "stories:60",
        "--steps",
        "1",
        "--out",
        "disk/q",
    ];
    dir.expect_error(1, &args, &["disk/q", word]);
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "needs /dev/full")]
fn a_full_standard_output_is_an_error() {
    let dir = TestDir::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = dir
        .command(&["placement", "list"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("standard output: the disk is full"));
}

#[test]
fn closed_stdout_and_stderr_are_not_errors() {
    let dir = TestDir::new();
    let args = train_args("run", &[]);
    let mut verbose_args = args.clone();
    verbose_args.retain(|arg| *arg != "--quiet");
    let mut child = dir.start(&verbose_args);
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(dir.reproducible_metrics("run").len(), 20);
    let endless = [
        "generate",
        "run",
        "--prompt",
        "a",
        "--max-tokens",
        "1000000000",
    ];
    let mut child = dir.start(&endless);
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
