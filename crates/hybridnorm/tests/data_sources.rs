//! Sources: kinds of files, documents, and invalid inputs of every kind.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use hybridnorm::data::{InvalidUtf8, SourceOptions, SourceStats, Sources, story};
use hybridnorm::omissions::Unit;
use hybridnorm::{Error, Result};
use proptest::prelude::*;

fn read_with(input: &Path, options: &SourceOptions) -> Result<(Vec<String>, SourceStats)> {
    let sources = Sources::resolve(&[input.to_str().unwrap().into()], options)?;
    let mut documents = sources.documents();
    let mut texts = Vec::new();
    for document in documents.by_ref() {
        texts.push(document?.text);
    }
    Ok((texts, documents.stats()))
}

fn read(input: impl AsRef<Path>) -> Result<Vec<String>> {
    read_with(input.as_ref(), &SourceOptions::default()).map(|(texts, _)| texts)
}

fn message(input: impl AsRef<Path>) -> String {
    let error = read(input).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const LINES: &str = "{\"text\": \"one\"}\n\n{\"id\": 1, \"text\": \"two\"}\n{\"text\": \"  \"}\n{\"text\": \"three\"}";

#[test]
fn every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a.txt"), "\u{feff}A book.\n").unwrap();
    fs::write(at("b.jsonl"), LINES).unwrap();
    let parts = [gzip(b"{\"text\": \"c1\"}\n"), gzip(b"{\"text\": \"c2\"}\n")];
    fs::write(at("c.jsonl.gz"), parts.concat()).unwrap();
    fs::write(
        at("d.jsonl.zst"),
        zstd::encode_all(LINES.as_bytes(), 1).unwrap(),
    )
    .unwrap();
    fs::write(at("ignored.csv"), "x").unwrap();
    fs::create_dir(at("below")).unwrap();
    fs::write(at("below/E.TXT"), "Last.").unwrap();
    fs::write(at("empty.txt"), "\n \n").unwrap();
    assert_eq!(read(at("a.txt")).unwrap(), ["A book."]);
    let (all, stats) = read_with(folder.path(), &SourceOptions::default()).unwrap();
    let expected = [
        "A book.", "one", "two", "three", "Last.", "c1", "c2", "one", "two", "three",
    ];
    assert_eq!(all, expected);
    assert_eq!((stats.files, stats.documents, stats.records), (5, 10, 10));
    // ignored.csv and empty.txt; a blank text in each of two files.
    assert_eq!(stats.omissions.count(Unit::Files), 2);
    assert_eq!(stats.omissions.count(Unit::Documents), 2);
    assert_eq!(read(at("*.jsonl*")).unwrap().len(), 8);
    assert!(message(at("*")).contains("ignored.csv: unknown kind"));
    assert!(message(at("*.md")).contains("no file matches"));
    assert!(message(at("ignored.csv")).contains("expected `.txt`"));
}

#[test]
fn long_texts_are_split_at_blank_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("book.txt");
    let paragraph = "x".repeat(60) + "\n\n";
    fs::write(&path, paragraph.repeat(10)).unwrap();
    let pieces = |document_chars| {
        let options = SourceOptions::default().with_document_chars(document_chars);
        read_with(&path, &options).unwrap().0
    };
    assert_eq!(pieces(0).len(), 1);
    assert_eq!(pieces(100).len(), 5);
    assert_eq!(pieces(100)[0], "x".repeat(60) + "\n\n" + &"x".repeat(60));
    assert_eq!(pieces(10_000).len(), 1);
    assert_eq!(pieces(100).join("\n\n"), pieces(0)[0]);
    // Without blank lines, split at line ends; without those, not split.
    fs::write(&path, "yyyyyyyyy\n".repeat(100)).unwrap();
    assert_eq!(pieces(50).len(), 5);
    fs::write(&path, "z".repeat(1000)).unwrap();
    assert_eq!(pieces(50).len(), 1);
}

#[test]
fn invalid_utf8_is_located_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    fs::write(&path, b"\xef\xbb\xbfgood\nbad \xe9 byte\n").unwrap();
    let error = message(&path);
    assert!(
        error.contains("invalid UTF-8 (0xe9) at byte 12, line 2"),
        "{error}"
    );
    let options = SourceOptions::default().with_invalid_utf8(InvalidUtf8::Replace);
    let (texts, stats) = read_with(&path, &options).unwrap();
    assert_eq!(texts, ["good\nbad \u{fffd} byte"]);
    assert_eq!(stats.replaced_lines, 1);
    let compressed = folder.path().join("b.jsonl.gz");
    fs::write(
        &compressed,
        gzip(b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"),
    )
    .unwrap();
    let error = message(&compressed);
    assert!(
        error.contains("byte 24 of the decompressed text, line 2"),
        "{error}"
    );
}

#[test]
fn errors_name_invalid_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    fs::write(&path, "{\"text\": \"a\"}\n{\"body\": \"b\"}\n").unwrap();
    assert!(message(&path).ends_with("a.jsonl: line 2: no field `text`; the fields are `body`"));
    fs::write(&path, "{\"text\": 4}\n").unwrap();
    assert!(message(&path).ends_with("line 1: field `text` is not a string but a number"));
    fs::write(&path, "{\"text\": \"a\"\n").unwrap();
    assert!(
        message(&path)
            .contains("line 2, column 1: not valid JSON: the record ends, expected `,` or `}`")
    );
    let options = SourceOptions::default().with_text_field("body");
    fs::write(&path, "{\"body\": \"b\"}\n").unwrap();
    assert_eq!(read_with(&path, &options).unwrap().0, ["b"]);
}

#[test]
fn inputs_without_text_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(message(at("none.txt")).ends_with("none.txt: no such file or folder"));
    assert!(message(folder.path()).contains("in this folder or below"));
    fs::write(at("empty.txt"), "").unwrap();
    assert!(message(at("empty.txt")).ends_with("empty.txt: contains no text"));
    fs::write(at("empty.jsonl"), "{\"text\": \"\"}\n").unwrap();
    assert!(message(at("empty.jsonl")).contains("contains no text"));
    assert!(Sources::resolve(&[], &SourceOptions::default()).is_err());
    assert!(message("").contains("path is empty"));
}

#[cfg(unix)]
#[test]
#[ignore = "must not run as root, which can read every folder"]
fn unreadable_folders_are_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::write(locked.join("a.txt"), "a").unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let message = message(folder.path());
    assert!(message.ends_with("locked: permission denied"), "{message}");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn corrupt_compressed_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl.gz");
    let whole = gzip(LINES.repeat(50).as_bytes());
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(message(&path).contains("damaged gzip data after"));
    fs::write(&path, b"not gzip").unwrap();
    assert!(message(&path).contains("damaged gzip data after 0 bytes"));
    let path = folder.path().join("a.jsonl.zst");
    fs::write(&path, b"not zstd").unwrap();
    assert!(message(&path).contains("damaged zstd data after 0 bytes"));
}

#[test]
fn stories_are_documents() {
    assert_eq!(read("stories:2:5").unwrap(), [story(5, 0), story(5, 1)]);
    assert!(message("stories:x").contains("`stories:x` is not"));
}

#[test]
fn fingerprints_follow_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    let inputs = [path.to_str().unwrap().to_owned(), "stories:5".to_owned()];
    let of = |options: &SourceOptions| {
        let sources = Sources::resolve(&inputs, options).unwrap();
        sources.fingerprint().unwrap()
    };
    let plain = SourceOptions::default();
    fs::write(&path, "a").unwrap();
    let first = of(&plain);
    assert_eq!(first, of(&plain));
    let other = SourceOptions::default().with_document_chars(5);
    assert_ne!(first, of(&other));
    fs::write(&path, "b").unwrap();
    assert_ne!(first, of(&plain));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0..4_usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"][kind]);
        fs::write(&path, &bytes).unwrap();
        match read(&path) {
            Ok(texts) => prop_assert!(texts.iter().all(|text| !text.trim().is_empty())),
            Err(Error::Format { .. } | Error::Corrupt { .. }) => {}
            Err(error) if error.is_user_error() => {}
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn records_of_a_json_file_may_share_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    for text in [
        "{\"text\":\"a\"} {\"text\":\"b\"}\n{\"text\":\"c\"}",
        "{\"text\":\"a\"}{\"text\":\"b\"}{\"text\":\"c\"}\n",
        "{\"text\":\"a\"} {\"text\":\n\"b\"}\n{\"text\":\"c\"}",
        "\"a\" \"b\"\n\"c\"",
    ] {
        fs::write(&path, text).unwrap();
        let (texts, stats) = read_with(&path, &SourceOptions::default()).unwrap();
        assert_eq!(texts, ["a", "b", "c"], "{text}");
        assert_eq!(stats.records, 3);
    }
}
