//! Opening the data of a configuration.

use std::fs;
use std::path::Path;

use hybridnorm::Result;
use hybridnorm::data::{
    OpenOptions, OpenedData, PrepareOptions, PreparedFolder, Split, Tokenizer, TokenizerChoice,
    TokenizerSpec, open, prepare, quiet,
};

fn counting(n: u16) -> Vec<u8> {
    (0..n).flat_map(u16::to_le_bytes).collect()
}

struct TestFolder(tempfile::TempDir);

impl TestFolder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn options(&self, seq_len: usize) -> OpenOptions {
        OpenOptions::new(seq_len, Some(self.0.path().join("cache")))
    }

    fn prepared(&self, name: &str, spec: &str, seed: u64) -> String {
        let spec: TokenizerSpec = spec.parse().unwrap();
        let fraction = PrepareOptions::default().with_validation_fraction(0.2);
        let input = [format!("stories:20:{seed}")];
        let out = self.path(name);
        prepare(&input, &spec, Path::new(&out), &fraction, &mut quiet).unwrap();
        out
    }
}

fn opened(paths: &[&str], split: Split, options: &OpenOptions) -> Result<OpenedData> {
    let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
    open(&paths, split, options, &mut quiet)
}

fn spec(text: &str) -> TokenizerChoice {
    TokenizerChoice::Spec(text.parse().unwrap())
}

#[test]
fn opening_prepared_folders() {
    let folder = TestFolder::new();
    let (a, b) = (
        folder.prepared("a", "bytes", 1),
        folder.prepared("b", "bytes", 2),
    );
    let options = folder.options(32);
    let count = |paths: &[&str], split| opened(paths, split, &options).unwrap().dataset.len();
    let (train, validation) = (count(&[&a], Split::Train), count(&[&a], Split::Validation));
    assert!(train > validation && validation > 0);
    assert_eq!(count(&[&a], Split::All), train + validation);
    assert_eq!(
        count(&[&a, &b], Split::Train),
        train + count(&[&b], Split::Train)
    );
    let fingerprint = |paths: &[&str]| {
        opened(paths, Split::Train, &options)
            .unwrap()
            .dataset
            .fingerprint()
    };
    assert_eq!(fingerprint(&[&a, &b]), fingerprint(&[&a, &b]));
    assert_ne!(fingerprint(&[&a, &b]), fingerprint(&[&b, &a]));
    let found = opened(&[&a], Split::Train, &options).unwrap();
    assert_eq!(
        found.tokenizer.unwrap().fingerprint(),
        Tokenizer::bytes().fingerprint()
    );
    let long = folder.options(1_000_000);
    let error = opened(&[&a], Split::Train, &long).unwrap_err().to_string();
    assert!(
        error.contains("fewer than one sequence of 1000000"),
        "{error}"
    );
}

#[test]
fn tokenizers_must_agree() {
    let folder = TestFolder::new();
    let a = folder.prepared("a", "bytes", 1);
    let options = folder.options(32);
    let other = folder.prepared("c", "bpe:300", 1);
    let error = opened(&[&a, &other], Split::Train, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("tokenized with bpe:300"), "{error}");
    let requested = options.clone().with_tokenizer(spec("r50k"));
    let error = opened(&[&a], Split::Train, &requested)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("r50k (vocabulary of 50257 tokens) was requested"),
        "{error}"
    );
}

#[test]
fn shards_are_verified() {
    let folder = TestFolder::new();
    let a = folder.prepared("a", "bytes", 1);
    let options = folder.options(32);
    let shard = Path::new(&a).join("train-00000.bin");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[10] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let error = opened(&[&a], Split::Train, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the shard is corrupt"), "{error}");
    let unverified = options.with_verify(false);
    opened(&[&a], Split::Train, &unverified).unwrap();
}

#[test]
fn raw_text_is_tokenized_once() {
    let folder = TestFolder::new();
    let text = folder.path("t.txt");
    let stories: Vec<_> = (0..30).map(|i| hybridnorm::data::story(0, i)).collect();
    fs::write(&text, stories.join("\n\n")).unwrap();
    let mut options = folder.options(16);
    options.tokenizer = Some(spec("bpe:300"));
    options.prepare.source.document_chars = 1000;
    options.prepare.validation_fraction = 0.2;
    let mut progress_calls = 0;
    let paths = [text.clone(), "stories:5".to_owned()];
    let first = open(&paths, Split::Train, &options, &mut |_| progress_calls += 1).unwrap();
    assert!(progress_calls > 0);
    let prepared: &PreparedFolder = &first.folders[0];
    assert!(prepared.folder().starts_with(folder.path("cache")));
    progress_calls = 0;
    let second = open(&paths, Split::Train, &options, &mut |_| progress_calls += 1).unwrap();
    assert_eq!(progress_calls, 0);
    assert_eq!(first.dataset.fingerprint(), second.dataset.fingerprint());
    let held_out = opened(&[&text, "stories:5"], Split::Validation, &options).unwrap();
    assert_eq!(held_out.folders[0].folder(), prepared.folder());
    // Separate validation text, with the trained tokenizer.
    options.tokenizer = first.tokenizer.map(TokenizerChoice::Loaded);
    options.prepare.validation_fraction = 0.0;
    options.prepare.source = Default::default();
    let validation = opened(&["stories:5:77"], Split::All, &options).unwrap();
    assert_eq!(validation.tokenizer.unwrap().vocab_size(), 300);
    // Different content, different folder.
    fs::write(&text, "Something else entirely. ".repeat(20)).unwrap();
    let third = opened(&[&text], Split::Train, &options).unwrap();
    assert_ne!(third.folders[0].folder(), prepared.folder());
    let entries: Vec<_> = fs::read_dir(folder.path("cache"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "lock"))
        .collect();
    assert_eq!(entries.len(), 3, "{entries:?}");
}

#[test]
fn opening_pretokenized_files() {
    let folder = TestFolder::new();
    fs::write(folder.path("a.bin"), counting(100)).unwrap();
    fs::write(folder.path("b.bin"), counting(50)).unwrap();
    let mut options = folder.options(9);
    let error = opened(&[&folder.path("a.bin")], Split::Train, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("vocab_size is missing"), "{error}");
    options.vocab_size = Some(100);
    assert_eq!(
        opened(&[&folder.path("a.bin")], Split::Train, &options)
            .unwrap()
            .dataset
            .len(),
        11
    );
    assert_eq!(
        opened(&[&folder.path("*.bin")], Split::All, &options)
            .unwrap()
            .dataset
            .len(),
        16
    );
    assert_eq!(
        opened(&[&folder.path("b.bin:u16")], Split::All, &options)
            .unwrap()
            .dataset
            .len(),
        5
    );
    let error = opened(&[&folder.path("a.bin")], Split::Validation, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no validation split"), "{error}");
    options.vocab_size = Some(99);
    let error = opened(&[&folder.path("a.bin")], Split::Train, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("token 99 at position 99"), "{error}");
}

#[test]
fn opening_other_paths_fails() {
    let folder = TestFolder::new();
    let options = folder.options(9);
    fs::write(folder.path("a.pdf"), "x").unwrap();
    fs::create_dir(folder.path("empty")).unwrap();
    for (path, why) in [
        (folder.path("a.pdf"), "unknown kind of data"),
        (folder.path("none"), "no such file or folder"),
        (folder.path("none.npy"), "no such file or folder"),
        (folder.path("*.npy"), "no file matches"),
        (
            "stories:4".to_owned(),
            "tokenizer is missing, required for raw text",
        ),
    ] {
        let error = opened(&[&path], Split::Train, &options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(why) && error.lines().count() == 1, "{error}");
    }
    assert!(opened(&[], Split::Train, &options).is_err());
    let with = options.with_tokenizer(spec("bytes"));
    let error = opened(&[&folder.path("empty")], Split::Train, &with)
        .unwrap_err()
        .to_string();
    assert!(error.contains("in this folder or below"), "{error}");
    fs::write(folder.path("short.txt"), "hi").unwrap();
    let error = opened(&[&folder.path("short.txt")], Split::Train, &with)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 training tokens, fewer than one sequence of 9"),
        "{error}"
    );
    let error = opened(&[&folder.path("short.txt")], Split::Validation, &with)
        .unwrap_err()
        .to_string();
    assert!(error.contains("0 validation tokens"), "{error}");
}
