//! Parquet files of other writers, and corrupt ones.
//!
//! The files are written by PyArrow; `fixtures/parquet/make.py` describes their content.

use std::fs;
use std::path::{Path, PathBuf};

use hybridnorm::Result;
use hybridnorm::data::{SourceOptions, SourceStats, Sources};
use hybridnorm::omissions::Unit;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet")
}

/// Calls `each` with every text.
fn read(path: &Path, field: &str, mut each: impl FnMut(String)) -> Result<SourceStats> {
    let options = SourceOptions::default().with_text_field(field);
    let sources = Sources::resolve(&[path.to_str().unwrap().into()], &options)?;
    let mut documents = sources.documents();
    for document in documents.by_ref() {
        each(document?.text);
    }
    Ok(documents.stats())
}

#[test]
fn pyarrow_files_are_read_completely() {
    let expected: Vec<String> = (0..40)
        .filter(|row| ![5, 9, 11, 17].contains(row))
        .map(|row| format!("Row {row} of 40.{}", " wörd".repeat(row)))
        .collect();
    for (file, field) in [
        ("snappy.parquet", "text"),
        ("zstd-v2.parquet", "text"),
        ("gzip-plain.parquet", "content"),
        ("brotli-delta.parquet", "text"),
        ("lz4-dictionary.parquet", "text"),
        ("bytes.parquet", "text"),
        ("checksum.parquet", "text"),
    ] {
        let mut texts = Vec::new();
        let stats = read(&fixtures().join(file), field, |text| texts.push(text)).unwrap();
        assert_eq!(texts, expected, "{file}");
        let omissions = serde_json::to_value(&stats.omissions).unwrap();
        let count = |unit: &str| -> u64 {
            let all = omissions.as_array().unwrap().iter();
            let all = all.filter(|omission| omission["unit"] == unit);
            all.map(|omission| omission["count"].as_u64().unwrap())
                .sum()
        };
        // Two rows are null, two blank.
        assert_eq!((stats.documents, stats.records), (36, 38), "{file}");
        assert_eq!((count("records"), count("documents")), (2, 2), "{file}");
    }
}

#[test]
fn missing_column_error_lists_existing_ones() {
    for (field, words) in [
        (
            "content",
            "no column `content`; the columns are `id`, `text`",
        ),
        ("id", "`id`"),
    ] {
        let error = read(&fixtures().join("snappy.parquet"), field, drop).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("snappy.parquet"), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn corrupted_file_is_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["snappy", "zstd-v2", "brotli-delta", "lz4-dictionary"] {
        let whole = fs::read(fixtures().join(format!("{name}.parquet"))).unwrap();
        let path = folder.path().join("damaged.parquet");
        let cut = (0..whole.len())
            .step_by(97)
            .map(|end| whole[..end].to_vec());
        let flipped = (0..whole.len()).step_by(13).map(|offset| {
            let mut bytes = whole.clone();
            bytes[offset] ^= 0x15;
            bytes
        });
        for bytes in cut.filter(|bytes| bytes.len() >= 12).chain(flipped) {
            fs::write(&path, bytes).unwrap();
            // Damage that yields other text of the same length cannot be detected.
            if let Err(error) = read(&path, "text", drop) {
                let text = error.to_string();
                assert!(text.contains("damaged.parquet"), "{text}");
                assert_eq!(text.lines().count(), 1, "{text}");
            }
        }
    }
}

/// Rows and texts that contradict the metadata or the checksums are not read.
#[test]
fn all_rows_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.parquet");
    let whole = fs::read(fixtures().join("checksum.parquet")).unwrap();
    let offset = whole
        .windows(9)
        .position(|bytes| bytes == b"Row 30 of")
        .unwrap();
    let mut changed = whole;
    changed[offset] = b'r';
    fs::write(&path, changed).unwrap();
    let error = read(&path, "text", drop).unwrap_err().to_string();
    assert!(
        error.contains("damaged Parquet data in row group 0"),
        "{error}"
    );
    for name in ["snappy", "zstd-v2", "bytes"] {
        let whole = fs::read(fixtures().join(format!("{name}.parquet"))).unwrap();
        for bit in (0..8 * whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            let Ok(stats) = read(&path, "text", drop) else {
                continue;
            };
            let omissions = serde_json::to_value(&stats.omissions).unwrap();
            let nulls: u64 = omissions
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| one["unit"] == "records")
                .map(|one| one["count"].as_u64().unwrap())
                .sum();
            assert_eq!(stats.records + nulls, 40, "{name}: bit {bit}");
        }
    }
}

/// The type of a column is null if the writer saw no text in it.
#[test]
fn null_rows_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["null.parquet", "snappy.parquet"] {
        fs::copy(fixtures().join(name), folder.path().join(name)).unwrap();
    }
    let stats = read(folder.path(), "text", drop).unwrap();
    assert_eq!((stats.documents, stats.records), (36, 38));
    let omissions = serde_json::to_value(&stats.omissions).unwrap();
    let nulls = &omissions[0];
    assert_eq!(nulls["reason"], "field `text` is null", "{omissions}");
    assert_eq!(nulls["count"], 40 + 2);
}

#[test]
fn rows_after_corruption_are_omitted_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.parquet");
    let whole = fs::read(fixtures().join("snappy.parquet")).unwrap();
    let mut options = SourceOptions::default();
    options.skip_invalid = true;
    let mut damaged = 0;
    for offset in (4..whole.len() - 8).step_by(41) {
        let mut bytes = whole.clone();
        bytes[offset..offset + 4].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let Ok(sources) = Sources::resolve(&[path.to_str().unwrap().into()], &options) else {
            continue;
        };
        let mut documents = sources.documents();
        if documents.by_ref().any(|document| document.is_err()) {
            continue;
        }
        let stats = documents.stats();
        damaged += u64::from(
            serde_json::to_string(&stats.omissions)
                .unwrap()
                .contains("after the damaged part of a file"),
        );
        assert_eq!(stats.records + stats.omissions.count(Unit::Records), 40);
    }
    assert!(damaged > 5, "{damaged}");
}

#[test]
fn empty_table_has_no_text() {
    let stats = read(&fixtures(), "text", drop);
    // The folder contains a script, and one file with another column.
    let error = stats.unwrap_err().to_string();
    assert!(
        error.contains("gzip-plain.parquet: no column `text`"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    for name in ["empty.parquet", "snappy.parquet"] {
        fs::copy(fixtures().join(name), folder.path().join(name)).unwrap();
    }
    let stats = read(folder.path(), "text", drop).unwrap();
    assert_eq!((stats.documents, stats.records), (36, 38));
}
