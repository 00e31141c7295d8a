//! Pre-tokenized data, data sets and the batch stream.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use hybridnorm::Result;
use hybridnorm::data::{Batch, BatchStream, Cursor, Order, PretokenizedFile, TokenDataset};
use proptest::prelude::*;

fn counting(n: u16) -> Vec<u8> {
    (0..n).flat_map(u16::to_le_bytes).collect()
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((text.len() as u16).to_le_bytes());
    file.extend(text.as_bytes());
    file.extend(data);
    file
}

fn dataset(folder: &Path, n: u16, seq_len: usize) -> TokenDataset {
    let path = folder.join("t.u16");
    fs::write(&path, counting(n)).unwrap();
    let mut dataset = TokenDataset::new(seq_len).unwrap();
    let file = PretokenizedFile::open(path.to_str().unwrap(), 65_536).unwrap();
    dataset.push_pretokenized(file).unwrap();
    dataset
}

fn batches(stream: &mut BatchStream, sizes: &[usize]) -> Vec<Batch> {
    sizes
        .iter()
        .map(|&n| stream.next_batch(n).unwrap())
        .collect()
}

fn ids(batches: &[Batch]) -> Vec<u64> {
    batches
        .iter()
        .flat_map(|batch| batch.instance_ids.clone())
        .collect()
}

#[test]
fn windows_share_one_token() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 14, 4);
    assert_eq!((data.len(), data.tokens()), (3, 14));
    assert_eq!(data.instance(0).unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(data.instance(2).unwrap(), [8, 9, 10, 11, 12]);
    assert!(data.instance(3).is_err());
    let mut stream = BatchStream::new(data, Order::Sequential, Cursor::default()).unwrap();
    let batch = stream.next_batch(2).unwrap();
    assert_eq!(batch.inputs, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(batch.targets, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        (batch.instance_ids.clone(), batch.epoch, batch.len()),
        (vec![0, 1], 0, 2)
    );
    let batch = stream.next_batch(2).unwrap();
    assert_eq!((batch.instance_ids, batch.epoch), (vec![2, 0], 0));
    assert_eq!(
        stream.cursor(),
        Cursor {
            epoch: 1,
            position: 1
        }
    );
    assert!(stream.next_batch(0).is_err());
    assert_eq!(dataset(folder.path(), 5, 4).len(), 1);
    assert_eq!(dataset(folder.path(), 4, 4).len(), 0);
}

#[test]
fn every_instance_once_per_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let order = Order::Shuffled { seed: 3 };
    let stream =
        |order| BatchStream::new(dataset(folder.path(), 401, 4), order, Cursor::default()).unwrap();
    let mut shuffled = stream(order);
    let epochs: Vec<_> = (0..3)
        .map(|_| ids(&batches(&mut shuffled, &[60, 40])))
        .collect();
    for epoch in &epochs {
        assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 100);
        assert_ne!(epoch, &(0..100).collect::<Vec<_>>());
    }
    assert_ne!(epochs[0], epochs[1]);
    assert_eq!(epochs[0], ids(&batches(&mut stream(order), &[1; 100])));
    assert_ne!(
        epochs[0],
        ids(&batches(&mut stream(Order::Shuffled { seed: 4 }), &[100]))
    );
    // Golden values: the order of a seed must not change.
    assert_eq!(epochs[0][..8], [44, 20, 71, 84, 47, 93, 89, 77]);
}

#[test]
fn invalid_streams_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let error = |data, cursor| {
        BatchStream::new(data, Order::Sequential, cursor)
            .unwrap_err()
            .to_string()
    };
    let short = error(dataset(folder.path(), 4, 4), Cursor::default());
    assert!(
        short.contains("4 tokens are not enough for one sequence of 4"),
        "{short}"
    );
    let beyond = Cursor {
        epoch: 0,
        position: 99,
    };
    assert!(error(dataset(folder.path(), 40, 4), beyond).contains("the data has changed"));
    assert!(TokenDataset::new(0).is_err());
}

#[test]
fn invalid_tokens_are_rejected_and_skip_moves_the_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.u16");
    fs::write(&path, counting(41)).unwrap();
    let mut data = TokenDataset::new(4).unwrap();
    let file = PretokenizedFile::open(path.to_str().unwrap(), 30);
    // The fingerprint of a file hashes its first and last tokens, so invalid ones among them are detected on opening.
    let error = data
        .push_pretokenized(file.unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("token 30 at position 30 is not below"),
        "{error}"
    );
    let file = PretokenizedFile::open(path.to_str().unwrap(), 41).unwrap();
    data.push_pretokenized(file).unwrap();
    let mut stream = BatchStream::new(data, Order::Sequential, Cursor::default()).unwrap();
    stream.skip(23);
    assert_eq!(
        stream.cursor(),
        Cursor {
            epoch: 2,
            position: 3
        }
    );
}

#[test]
fn validation_is_sequential_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 41, 4);
    let sizes = |n, limit| -> Vec<usize> {
        data.sequential(n, limit)
            .map(|batch| batch.unwrap().len())
            .collect()
    };
    assert_eq!(sizes(4, None), [4, 4, 2]);
    assert_eq!(sizes(4, Some(6)), [4, 2]);
    assert_eq!(sizes(100, Some(1000)), [10]);
    assert_eq!(sizes(4, Some(0)), [0; 0]);
    let all: Vec<_> = data.sequential(3, None).collect::<Result<_>>().unwrap();
    assert_eq!(ids(&all), (0..10).collect::<Vec<_>>());
}

/// Folder for token files.
struct TokenFiles(tempfile::TempDir);

impl TokenFiles {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file and returns its path.
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Returns the tokens 0 to 5 as little-endian integers of `width` bytes.
fn le(width: usize) -> Vec<u8> {
    (0..6_u64)
        .flat_map(|i| i.to_le_bytes()[..width].to_vec())
        .collect()
}

/// Returns the tokens 0 to 5 as an llm.c file.
fn llm_c() -> Vec<u8> {
    let mut file: Vec<u8> = [20_240_520_u32, 1, 6]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    file.resize(1024, 0);
    file.extend(le(2));
    file
}

#[test]
fn pretokenized_formats() {
    let files = TokenFiles::new();
    let write = |name: &str, bytes: &[u8]| files.write(name, bytes);
    for name in [
        write("a.npy", &npy("|u1", "(6,)", &le(1))),
        write("b.npy", &npy("<u2", "(6,)", &le(2))),
        write("c.npy", &npy("<u4", "(6,)", &le(4))),
        write("d.npy", &npy("<i4", "(6,)", &le(4))),
        write("e.npy", &npy("<i8", "(6,)", &le(8))),
        write("f.bin", &le(2)),
        write("g.u16", &le(2)),
        write("h.u32", &le(4)),
        write("i.bin", &llm_c()),
        write("olmo.npy", &le(2)) + ":u16",
        write("raw.data", &le(8)) + ":i64",
    ] {
        let file = PretokenizedFile::open(&name, 100).unwrap();
        let mut tokens = Vec::new();
        file.tokens().for_each(|token| tokens.push(token)).unwrap();
        assert_eq!(
            (tokens, file.row_width()),
            (vec![0, 1, 2, 3, 4, 5], None),
            "{name}"
        );
    }
    let large = PretokenizedFile::open(&write("j.bin", &le(4)), 70_000).unwrap();
    assert_eq!(large.tokens().len(), 6);
}

#[test]
fn tokens_in_memory_are_a_stream() {
    let tokens: Vec<u32> = (0..9).collect();
    let data = TokenDataset::from_tokens(&tokens, 4, 9).unwrap();
    assert_eq!(data.instance(1).unwrap(), [4, 5, 6, 7, 8]);
    let same = TokenDataset::from_tokens(&tokens, 4, 9).unwrap();
    assert_eq!(data.fingerprint(), same.fingerprint());
    let other = TokenDataset::from_tokens(&tokens[1..], 4, 9).unwrap();
    assert_ne!(data.fingerprint(), other.fingerprint());
    let error = TokenDataset::from_tokens(&tokens, 4, 8).unwrap_err();
    assert_eq!(
        error.to_string(),
        "token at position 8 = 8, expected below the vocabulary size 8"
    );
}

#[test]
fn rows_of_arrays_are_instances() {
    let files = TokenFiles::new();
    let rows = files.write("rows.npy", &npy("<u2", "(2, 3)", &le(2)));
    let mut data = TokenDataset::new(2).unwrap();
    data.push_pretokenized(PretokenizedFile::open(&rows, 100).unwrap())
        .unwrap();
    assert_eq!(data.instance(1).unwrap(), [3, 4, 5]);
    assert_eq!(data.len(), 2);
    let mut data = TokenDataset::new(3).unwrap();
    let error = data
        .push_pretokenized(PretokenizedFile::open(&rows, 100).unwrap())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("rows of 3 tokens; a sequence length of 3 needs 4"),
        "{error}"
    );
}

#[test]
fn invalid_token_files_are_rejected() {
    let files = TokenFiles::new();
    let folder = files.0.path();
    let write = |name: &str, bytes: &[u8]| files.write(name, bytes);
    for (name, why) in [
        (write("k.bin", b"abc"), "not a multiple of 2"),
        (write("l.bin", b""), "contains no tokens"),
        (
            write("m.npy", &npy("<u2", "(0,)", b"")),
            "contains no tokens",
        ),
        (write("n.npy", b"raw tokens, no header"), ".npy:u16`"),
        (
            write("o.npy", &npy("<f4", "(1,)", b"abcd")),
            "numbers of type",
        ),
        (write("p.npy", &npy("<u2", "(7,)", b"ab")), "needs"),
        (
            write("q.bin", &llm_c()[..1030]),
            "the header declares 6 tokens",
        ),
        (write("r.csv", b"1"), "not a token file"),
        (
            folder.join("none.bin").to_str().unwrap().to_owned(),
            "no such file",
        ),
        (
            folder.to_str().unwrap().to_owned() + ":u16",
            "is a folder, expected a regular file",
        ),
    ] {
        let error = PretokenizedFile::open(&name, 100).unwrap_err().to_string();
        assert!(error.contains(why) && error.lines().count() == 1, "{error}");
    }
    let negative = write("s.npy", &npy("<i8", "(1,)", &(-5_i64).to_le_bytes()));
    let error = PretokenizedFile::open(&negative, 100)
        .unwrap()
        .tokens()
        .check()
        .unwrap_err();
    assert!(
        error.to_string().contains("token -5 at position 0"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A stream resumed from a cursor returns the same instances, wherever it stopped and for any batch sizes.
    #[test]
    fn resuming_continues_the_stream(
        n in 5..300_u16, seed in any::<u64>(), shuffled in any::<bool>(),
        before in prop::collection::vec(1..40_usize, 0..6),
        after in prop::collection::vec(1..40_usize, 1..6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let order = if shuffled { Order::Shuffled { seed } } else { Order::Sequential };
        let stream = |cursor| BatchStream::new(dataset(folder.path(), n, 4), order, cursor).unwrap();
        let mut whole = stream(Cursor::default());
        batches(&mut whole, &before);
        let json = serde_json::to_string(&whole.cursor()).unwrap();
        let cursor: Cursor = serde_json::from_str(&json).unwrap();
        let mut resumed = stream(cursor);
        let rest = batches(&mut whole, &after);
        prop_assert_eq!(&rest, &batches(&mut resumed, &after));
        let mut skipped = stream(Cursor::default());
        skipped.skip(before.iter().sum::<usize>() as u64);
        prop_assert_eq!(skipped.cursor(), cursor);
        let total = after.iter().sum::<usize>();
        prop_assert_eq!(ids(&rest), ids(&batches(&mut stream(cursor), &[total])));
    }

    #[test]
    fn pretokenized_files_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..5_usize) {
        let folder = tempfile::tempdir().unwrap();
        let name = ["a.npy", "a.bin", "a.u32", "a.npy:i64", "b.npy"][kind];
        let path = folder.path().join(name.split(':').next().unwrap());
        let bytes = if kind == 4 { npy("<i4", "(10, 5)", &bytes) } else { bytes };
        fs::write(&path, bytes).unwrap();
        let full = folder.path().join(name);
        if let Ok(file) = PretokenizedFile::open(full.to_str().unwrap(), 50_000) {
            let _ = file.tokens().check();
            let _ = TokenDataset::new(4).unwrap().push_pretokenized(file);
        }
    }
}
