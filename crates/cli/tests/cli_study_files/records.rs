//! Invalid files of a study folder.

use super::*;

fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

/// Removes the checksum of a record, as earlier versions wrote it.
fn without_checksum(record: &[u8]) -> String {
    let mut value = parsed(record);
    value.as_object_mut().unwrap().remove("sha256");
    value.to_string()
}

/// Flips one bit of a record in its validation loss.
fn with_flipped_bit(whole: &str) -> Vec<u8> {
    let mut flipped = whole.as_bytes().to_vec();
    let at = whole.find("\"validation_loss\":").unwrap() + "\"validation_loss\":".len();
    flipped[at] ^= 1;
    flipped
}

/// Returns damaged and forged variants of a record, each with a fragment of the expected message; `other` is the record
/// of another run.
fn invalid_records(whole: &str, other: &Value) -> Vec<(Vec<u8>, &'static str)> {
    let changed = |change: &dyn Fn(&mut Value)| {
        // Recomputes the checksum, as a forger would.
        let mut value = parsed(whole.as_bytes());
        change(&mut value);
        update_checksum(&mut value);
        value.to_string()
    };
    vec![
        (with_flipped_bit(whole), "checksum"),
        (whole.as_bytes()[..whole.len() / 2].to_vec(), "EOF"),
        (
            changed(&|value| value["config"] = other["config"].clone()).into(),
            "expected",
        ),
        (
            changed(&|value| {
                let mut id = other.clone();
                id["id"] = value["id"].clone();
                *value = id;
            })
            .into(),
            "does not match run",
        ),
        (
            changed(&|value| value["placement_hash"] = "0011223344556677".into()).into(),
            "placement_hash 0011223344556677",
        ),
        (
            changed(&|value| value["steps"] = 5.into()).into(),
            "after 5 steps, expected 6",
        ),
        (
            changed(&|value| value["cell"]["seed"] = 6.into()).into(),
            "is labelled",
        ),
        (
            changed(&|value| value["id"] = other["id"].clone()).into(),
            "expected",
        ),
        (
            changed(&|value| value["validation_loss"] = 1.5.into()).into(),
            "validation loss of 1.5 nats, but the last",
        ),
        (
            changed(&|value| {
                value["ending"] = serde_json::json!({ "kind": "halved", "step": 6 });
            })
            .into(),
            "the study does not use it",
        ),
        (
            changed(&|value| value["train_loss"] = 0.5.into()).into(),
            "final training loss of 0.5 nats",
        ),
        (without_checksum(whole.as_bytes()).into(), "has no checksum"),
    ]
}

#[test]
fn invalid_records_are_rejected_and_preserved() {
    let dir = test_dir();
    dir.ok(&args(&[]));
    let ids = names(&dir, "out/runs");
    let (own, other) = (
        format!("out/runs/{}", ids[0]),
        format!("out/runs/{}", ids[1]),
    );
    let whole = String::from_utf8(dir.read(&own)).unwrap();
    let other = parsed(&dir.read(&other));
    for (bytes, words) in invalid_records(&whole, &other) {
        dir.write(&own, &bytes);
        let name = ids[0].as_str();
        dir.expect_error(1, &args(&["--resume"]), &[words, name]);
        dir.expect_error(1, &["report", "out", "--format", "json"], &[words, name]);
        dir.expect_error(
            1,
            &["study", "merge", "out", "--out", "merged"],
            &[words, name],
        );
        assert!(!dir.path("merged").exists());
        assert_eq!(dir.read(&own), bytes);
        assert_eq!(names(&dir, "out/kept").len(), 4);
    }
}

#[test]
fn records_of_earlier_versions_are_accepted_and_reported() {
    let dir = test_dir();
    dir.ok(&args(&[]));
    let own = format!("out/runs/{}", names(&dir, "out/runs")[0]);
    let whole = dir.read(&own);
    let history = dir.read("out/history.json");
    fs::remove_file(dir.path("out/history.json")).unwrap();
    dir.write(&own, without_checksum(&whole));
    let output = dir.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert_eq!(code(&output), 0);
    assert!(
        stderr(&output).contains("1 of 4 records have no checksum"),
        "{}",
        stderr(&output)
    );
    let words = "Not verified: 1 of 4 records have no checksum";
    dir.ok(&["study", "merge", "out", "--out", "joined"]);
    dir.ok(&["study", "merge", "out", "joined", "--out", "twice"]);
    for folder in ["out", "joined", "twice"] {
        for format in ["json", "markdown"] {
            let text = dir.ok(&["report", folder, "--format", format]);
            assert!(text.contains(words), "{folder} {format}: {text}");
        }
        assert!(dir.html_report(folder).contains(words), "{folder}");
    }
    let table = dir.ok(&args(&["--resume"]));
    assert!(table.contains(words), "{table}");
    assert!(table.contains("Unknown history: rules or plan may have changed"));
    let groups = dir.json(&args(&["--resume", "--json"]));
    assert_eq!(groups[0]["without_checksum"], 1, "{groups}");
    dir.write("out/history.json", history);
    // JSON formatting does not matter.
    dir.write(&own, serde_json::to_string_pretty(&parsed(&whole)).unwrap());
    let output = dir.run(&["study", "study.toml", "--out", "out", "--resume"]);
    assert!(
        !stderr(&output).contains("no checksum"),
        "{}",
        stderr(&output)
    );
}

#[cfg(unix)]
#[test]
fn pipes_and_huge_files_are_rejected_immediately() {
    let dir = test_dir();
    dir.ok(&args(&[]));
    let id = names(&dir, "out/runs").remove(0);
    for name in ["out/study.toml".to_owned(), format!("out/runs/{id}")] {
        let path = dir.path(&name);
        let whole = dir.read(&name);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        for command in [
            args(&["--resume"]),
            vec!["report", "out", "--format", "json"],
            vec!["study", "merge", "out", "--out", "m"],
        ] {
            dir.expect_error(
                1,
                &command,
                &[name.rsplit('/').next().unwrap(), "is a pipe"],
            );
        }
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 33).unwrap();
        dir.expect_error(
            1,
            &args(&["--resume"]),
            &["8589934592 bytes, expected at most"],
        );
        fs::remove_file(&path).unwrap();
        dir.write(&name, whole);
    }
    dir.ok(&args(&["--resume"]));
}
