//! Prepared folders: writing, the split, verification, and corruption of every kind.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use hybridnorm::Result;
use hybridnorm::data::{
    Dtype, Manifest, PrepareOptions, PreparedFolder, SourceOptions, Tokenizer, TokenizerSpec,
    inspect, prepare, quiet,
};
use proptest::prelude::*;

fn inputs(of: &[&str]) -> Vec<String> {
    of.iter().map(|&input| input.to_owned()).collect()
}

fn prepare_inputs(
    input: &str,
    spec: &str,
    out: &Path,
    options: &PrepareOptions,
) -> Result<Manifest> {
    let spec: TokenizerSpec = spec.parse().unwrap();
    prepare(&inputs(&[input]), &spec, out, options, &mut quiet)
}

fn options(validation_fraction: f64) -> PrepareOptions {
    PrepareOptions::default().with_validation_fraction(validation_fraction)
}

fn documents(folder: &PreparedFolder, validation: bool) -> Vec<String> {
    let stream = match validation {
        true => folder.validation(),
        false => folder.train(),
    };
    let mut tokens = Vec::new();
    stream
        .unwrap()
        .for_each(|token| tokens.push(token))
        .unwrap();
    let tokenizer = folder.tokenizer().unwrap();
    tokens
        .split(|&token| token == tokenizer.eos_id())
        .map(|document| tokenizer.decode(document))
        .filter(|text| !text.is_empty())
        .collect()
}

#[test]
fn every_document_is_in_one_split() {
    let folder = tempfile::tempdir().unwrap();
    for (i, spec) in ["bytes", "bpe:400", "r50k", "cl100k"].iter().enumerate() {
        let out = folder.path().join(i.to_string());
        let small = options(0.2).with_shard_tokens(5000);
        let manifest = prepare_inputs("stories:60:3", spec, &out, &small).unwrap();
        let prepared = PreparedFolder::open(&out).unwrap();
        prepared.verify().unwrap();
        assert_eq!(prepared.manifest(), &manifest);
        let (train, validation) = (documents(&prepared, false), documents(&prepared, true));
        let expected: HashSet<String> = (0..60).map(|j| hybridnorm::data::story(3, j)).collect();
        let found: HashSet<String> = train.iter().chain(&validation).cloned().collect();
        assert_eq!(found, expected);
        assert_eq!(train.len() + validation.len(), 60);
        assert_eq!(manifest.train.documents, train.len() as u64);
        assert!((3..30).contains(&validation.len()), "{}", validation.len());
        assert!(manifest.train.shards.len() > 1);
        assert!(manifest.train.shards[0].tokens >= 5000);
        assert_eq!(manifest.sources[0].documents, 60);
        let bytes: usize = expected.iter().map(String::len).sum();
        assert_eq!(manifest.sources[0].text_bytes, bytes as u64);
        let dtype = if *spec == "cl100k" {
            Dtype::U32
        } else {
            Dtype::U16
        };
        assert_eq!(manifest.dtype, dtype);
    }
}

#[test]
fn preparation_is_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    prepare_inputs("stories:40", "bpe:500", &a, &options(0.1).with_threads(1)).unwrap();
    prepare_inputs("stories:40", "bpe:500", &b, &options(0.1).with_threads(3)).unwrap();
    let mut names: Vec<_> = fs::read_dir(&a)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names.len(), 6, "{names:?}");
    for name in names {
        assert_eq!(
            fs::read(a.join(&name)).unwrap(),
            fs::read(b.join(&name)).unwrap(),
            "{name:?}"
        );
    }
    let other = folder.path().join("c");
    prepare_inputs("stories:40", "bpe:500", &other, &options(0.1).with_seed(1)).unwrap();
    let validation_documents = |path: &Path| documents(&PreparedFolder::open(path).unwrap(), true);
    assert_ne!(validation_documents(&a), validation_documents(&other));
}

#[test]
fn neither_split_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("two.jsonl");
    let count = |n: usize, same: bool, fraction: f64, seed: u64| {
        let line = |i| format!("{{\"text\": \"document {}\"}}\n", if same { 0 } else { i });
        fs::write(&text, (0..n).map(line).collect::<String>()).unwrap();
        let out = folder.path().join(format!("{n}{same}{fraction}{seed}"));
        let with_seed = options(fraction).with_seed(seed);
        let manifest = prepare_inputs(text.to_str().unwrap(), "bytes", &out, &with_seed).unwrap();
        (manifest.train.documents, manifest.validation.documents)
    };
    for seed in 0..5 {
        assert_eq!(count(2, false, 0.000_001, seed), (1, 1));
        assert_eq!(count(2, false, 0.999_999, seed), (1, 1));
        assert_eq!(count(2, true, 0.5, seed), (1, 1));
        assert_eq!(count(1, false, 0.999_999, seed), (1, 0));
    }
    assert_eq!(count(5, false, 0.0, 0), (5, 0));
}

#[test]
fn separate_validation_text() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let named = PrepareOptions::default().with_validation_inputs(inputs(&["stories:5:9"]));
    let manifest = prepare_inputs("stories:20", "bytes", &out, &named).unwrap();
    assert_eq!(
        (manifest.train.documents, manifest.validation.documents),
        (20, 5)
    );
    assert_eq!(manifest.validation_fraction, None);
    assert!(manifest.sources[1].validation);
}

#[test]
fn long_books_are_split_for_validation() {
    let folder = tempfile::tempdir().unwrap();
    let book = folder.path().join("book.txt");
    let text: Vec<_> = (0..60).map(|i| hybridnorm::data::story(0, i)).collect();
    fs::write(&book, text.join("\n\n")).unwrap();
    let out = folder.path().join("out");
    let cut = options(0.1).with_source(SourceOptions::default().with_document_chars(2000));
    let manifest = prepare_inputs(book.to_str().unwrap(), "bytes", &out, &cut).unwrap();
    assert!(manifest.train.documents > 10);
    assert!(manifest.validation.documents >= 1);
}

#[test]
fn inspection() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    prepare_inputs("stories:200", "bpe:1000", &out, &options(0.1)).unwrap();
    let report = inspect(&out).unwrap();
    let validation = report.validation.unwrap();
    assert_eq!(report.train.documents + validation.documents, 200);
    assert!((2.0..6.0).contains(&report.train.bytes_per_token));
    assert!(report.train.vocab_used > 500 && report.train.vocab_used <= 1000);
    // Unigram frequencies predict validation text nearly as well as training text.
    assert!(
        (4.0..7.0).contains(&report.train.unigram_nats),
        "{}",
        report.train.unigram_nats
    );
    assert!((validation.unigram_nats - report.train.unigram_nats).abs() < 0.3);
    assert!(report.sample.len() > 300);
}

/// Returns the error message, which is one line.
fn message(result: Result<Manifest>) -> String {
    let error = result.unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn invalid_options_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for fraction in [-0.1, 1.0, f64::NAN] {
        let error = message(prepare_inputs(
            "stories:3",
            "bytes",
            &out,
            &options(fraction),
        ));
        assert!(error.contains("validation_fraction"), "{error}");
    }
    let zero = options(0.1).with_shard_tokens(0);
    assert!(message(prepare_inputs("stories:3", "bytes", &out, &zero)).contains("shard_tokens"));
    let none = folder.path().join("none.txt");
    let error = message(prepare_inputs(
        none.to_str().unwrap(),
        "bytes",
        &out,
        &options(0.1),
    ));
    assert!(error.contains("no such file"), "{error}");
    assert!(!out.exists());
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "  \n").unwrap();
    assert!(
        message(prepare_inputs(
            empty.to_str().unwrap(),
            "bytes",
            &out,
            &options(0.1)
        ))
        .contains("no text")
    );
    assert!(
        message(prepare_inputs(
            "stories:3",
            "/no/such/tokenizer",
            &out,
            &options(0.1)
        ))
        .contains("no such")
    );
    assert!(
        message(prepare_inputs("stories:3", "bytes", &empty, &options(0.1))).contains("empty.txt")
    );
}

#[test]
fn folders_are_overwritten_on_request_if_they_hold_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    prepare_inputs("stories:3", "bytes", &out, &options(0.1)).unwrap();
    let error = message(prepare_inputs("stories:3", "bytes", &out, &options(0.1)));
    assert!(error.contains("already holds prepared data"), "{error}");
    let again = options(0.0).with_overwrite(true);
    prepare_inputs("stories:4", "bytes", &out, &again).unwrap();
    assert!(!out.join("validation-00000.bin").exists());
    fs::write(out.join("thesis.tex"), "x").unwrap();
    let error = message(prepare_inputs("stories:4", "bytes", &out, &again));
    assert!(
        error.contains("contains other files (thesis.tex)"),
        "{error}"
    );
}

/// Prepares a folder with two shards, to be corrupted.
fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let small = options(0.2).with_shard_tokens(1000);
    prepare_inputs("stories:6", "bytes", &folder.path().join("d"), &small).unwrap();
    folder
}

fn error_of(folder: &Path) -> String {
    let error = PreparedFolder::open(folder)
        .and_then(|prepared| prepared.verify())
        .unwrap_err()
        .to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn corrupt_shards_are_rejected() {
    let folder = prepared();
    let at = |name: &str| folder.path().join("d").join(name);
    let shard = fs::read(at("train-00000.bin")).unwrap();

    fs::write(at("train-00000.bin"), &shard[..shard.len() - 1]).unwrap();
    assert!(
        error_of(&at("")).contains("train-00000.bin: ") && error_of(&at("")).contains("truncated")
    );
    fs::write(at("train-00000.bin"), [&shard[..], b"xx"].concat()).unwrap();
    assert!(error_of(&at("")).contains("too long"));
    let mut flipped = shard.clone();
    flipped[77] ^= 4;
    fs::write(at("train-00000.bin"), &flipped).unwrap();
    assert!(error_of(&at("")).contains("the shard is corrupt"));
    fs::remove_file(at("train-00000.bin")).unwrap();
    assert!(error_of(&at("")).ends_with("train-00000.bin: no such file or folder"));
}

#[test]
fn changed_manifests_are_rejected() {
    let folder = prepared();
    let at = |name: &str| folder.path().join("d").join(name);
    let manifest = fs::read_to_string(at("manifest.json")).unwrap();
    let changed = manifest.replacen("\"seed\": 0", "\"seed\": 1", 1);
    assert_ne!(changed, manifest);
    fs::write(at("manifest.json"), changed).unwrap();
    assert!(error_of(&at("")).contains("manifest.json: its content does not match its checksum"));
    fs::remove_file(at("manifest.json")).unwrap();
    assert!(error_of(&at("")).ends_with("manifest.json: no such file or folder"));
    assert!(error_of(&at("none")).ends_with("none: no such file or folder"));
}

fn without_checksum(manifest: &str) -> serde_json::Value {
    let mut value: serde_json::Value = serde_json::from_str(manifest).unwrap();
    assert!(value.as_object_mut().unwrap().remove("sha256").is_some());
    value
}

#[test]
fn inconsistent_manifests_are_rejected() {
    let folder = prepared();
    let at = |name: &str| folder.path().join("d").join(name);
    let manifest = fs::read_to_string(at("manifest.json")).unwrap();
    // Manifests of earlier versions have no checksum, but must still be consistent.
    let value = without_checksum(&manifest);
    let manifest = serde_json::to_string_pretty(&value).unwrap();
    let [documents, bytes] = ["documents", "text_bytes"].map(|name| {
        let count = value["train"][name].as_u64().unwrap();
        [count, count + 1].map(|count| format!("\"{name}\": {count}"))
    });
    for (from, to, why) in [
        (
            &*documents[0],
            &*documents[1],
            "documents in total, but the shards contain",
        ),
        (
            &bytes[0],
            &bytes[1],
            "bytes of text in total, but the shards contain",
        ),
        ("\"version\": 1", "\"version\": 2", "manifest version 2"),
        (
            "\"version\": 1",
            "\"versoin\": 1",
            "manifest version missing",
        ),
        (
            "hybridnorm-tokens",
            "something",
            "not the manifest of a prepared folder",
        ),
        ("\"u16\"", "\"u32\"", "dtype u32, expected u16"),
        (
            "\"vocab_size\": 257",
            "\"vocab_size\": 0",
            "vocab_size is 0",
        ),
        (
            "\"vocab_size\": 257",
            "\"vocab_size\": 4000000000",
            "vocab_size is 4000000000",
        ),
        ("\"eos_id\": 256", "\"eos_id\": 257", "eos_id 257"),
        (
            "train-00000.bin",
            "../train-00000.bin",
            "is not the name of a shard",
        ),
        ("\"seed\": 0", "\"seed\": \"x\"", "expected"),
        ("}", "", "at line"),
    ] {
        assert!(manifest.contains(from), "{from}");
        fs::write(at("manifest.json"), manifest.replacen(from, to, 1)).unwrap();
        let error = error_of(&at(""));
        assert!(
            error.contains("manifest.json: ") && error.contains(why),
            "{error}"
        );
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_rejected() {
    let folder = prepared();
    let path = folder.path().join("d/train-00000.bin");
    let mut shard = fs::read(&path).unwrap();
    shard[200..202].copy_from_slice(&999_u16.to_le_bytes());
    fs::write(&path, shard).unwrap();
    let stream = PreparedFolder::open(folder.path().join("d"))
        .unwrap()
        .train()
        .unwrap();
    let error = stream.check().unwrap_err().to_string();
    assert!(
        error.ends_with(
            "train-00000.bin: token 999 at position 100 is not below the vocabulary size 257"
        ),
        "{error}"
    );
    let mut few = [0; 50];
    stream.read(0, &mut few).unwrap();
    stream.read(60, &mut few).unwrap_err();
    stream.read(stream.len(), &mut few).unwrap_err();
    stream.read(u64::MAX, &mut few).unwrap_err();
    stream.read(stream.len(), &mut []).unwrap();
}

#[test]
fn changed_tokenizer_is_rejected() {
    let folder = prepared();
    let out = folder.path().join("d");
    Tokenizer::r50k().save(&out).unwrap();
    let error = PreparedFolder::open(&out)
        .unwrap()
        .tokenizer()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("not the one that its tokens were encoded with"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn corrupt_manifests_never_panic(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        thread_local!(static FOLDER: tempfile::TempDir = prepared());
        FOLDER.with(|folder| {
            let out = folder.path().join("d");
            let path = out.join("manifest.json");
            let whole = fs::read(&path).unwrap();
            let mut json = whole.clone();
            let at = at.index(json.len());
            json[at] = byte;
            json.truncate(if cut { at } else { json.len() });
            fs::write(&path, &json).unwrap();
            if let Ok(prepared) = PreparedFolder::open(&out) {
                let _ = prepared.verify();
                let _ = inspect(&out);
                for stream in [prepared.train(), prepared.validation()].into_iter().flatten() {
                    let _ = stream.check();
                }
            }
            fs::write(&path, whole).unwrap();
        });
    }

    #[test]
    fn flipped_bits_are_detected(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        thread_local!(static FOLDER: tempfile::TempDir = prepared());
        FOLDER.with(|folder| {
            let path = folder.path().join("d/train-00000.bin");
            let whole = fs::read(&path).unwrap();
            let mut shard = whole.clone();
            shard[at.index(whole.len())] ^= 1 << bit;
            fs::write(&path, shard).unwrap();
            let error = error_of(&folder.path().join("d"));
            assert!(error.contains("corrupt"));
            fs::write(&path, whole).unwrap();
        });
    }
}

#[test]
fn options_are_one_flat_table() {
    let parse = |json: &str| serde_json::from_str::<PrepareOptions>(json);
    assert_eq!(parse("{}").unwrap(), PrepareOptions::default());
    let some = r#"{"text_field": "body", "invalid_utf8": "replace", "validation_fraction": 0.5}"#;
    let some = parse(some).unwrap();
    assert_eq!(some.source.text_field, "body");
    assert_eq!(some.validation_fraction, 0.5);
    let json = serde_json::to_string(&some).unwrap();
    assert_eq!(parse(&json).unwrap(), some);
    let error = parse(r#"{"validation_fractoin": 0.5}"#).unwrap_err();
    assert!(error.to_string().contains("validation_fractoin"), "{error}");
}
