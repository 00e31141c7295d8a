//! Detection of the integer type of a raw token file from its bytes.
//!
//! With a vocabulary of at most 65,536 tokens, every file of u32 tokens also reads as u16, with 0 at
//! every second position, and a file of u64 tokens reads as u32 in the same way. A file is read as the
//! wider type if so many numbers are non-zero while every second position is 0 that this cannot be chance.
//! If the bytes are ambiguous or contradict the vocabulary, the type must be specified.

use super::manifest::Dtype;

/// Number of non-zero integers, all at even positions, at which chance is ruled out (probability 2^-64).
const MIN_EVIDENCE: u64 = 64;
/// Bytes examined to distinguish text from tokens.
const SAMPLE: usize = 1 << 16;

/// Statistics from one pass over a file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Scan {
    bytes: u64,
    /// Largest 16-bit word and number of non-zero ones, by position modulo 4.
    largest: [u16; 4],
    nonzero: [u64; 4],
    /// Largest 32-bit number at even and at odd positions.
    largest_u32: [u32; 2],
}

impl Scan {
    fn new(bytes: &[u8]) -> Self {
        let mut scan = Self {
            bytes: bytes.len() as u64,
            ..Self::default()
        };
        let chunks = bytes.chunks_exact(8);
        let rest = chunks.remainder();
        for chunk in chunks {
            scan.add(chunk);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        scan.add(&last);
        scan
    }

    fn add(&mut self, chunk: &[u8]) {
        for i in 0..4 {
            let word = u16::from_le_bytes([chunk[2 * i], chunk[2 * i + 1]]);
            self.largest[i] = self.largest[i].max(word);
            self.nonzero[i] += u64::from(word != 0);
        }
        for i in 0..2 {
            let word = [0, 1, 2, 3].map(|byte| chunk[4 * i + byte]);
            self.largest_u32[i] = self.largest_u32[i].max(u32::from_le_bytes(word));
        }
    }

    fn largest(&self, dtype: Dtype) -> u64 {
        match dtype {
            Dtype::U16 => self.largest.iter().copied().max().unwrap_or(0).into(),
            Dtype::U32 => self.largest_u32[0].max(self.largest_u32[1]).into(),
            _ if self.largest_u32[1] > 0 => u64::MAX,
            _ => self.largest_u32[0].into(),
        }
    }

    fn fits_vocabulary(&self, dtype: Dtype, vocab_size: usize) -> bool {
        self.bytes.is_multiple_of(dtype.size() as u64) && self.largest(dtype) < vocab_size as u64
    }

    /// Counts the non-zero 16-bit words at even and at odd positions.
    fn nonzero_words(&self) -> [u64; 2] {
        [
            self.nonzero[0] + self.nonzero[2],
            self.nonzero[1] + self.nonzero[3],
        ]
    }

    /// Counts the non-zero numbers of `dtype` if all of them are at even positions; otherwise 0.
    fn nonzero_if_only_even(&self, dtype: Dtype) -> u64 {
        match (dtype, self.nonzero_words(), self.largest_u32) {
            (Dtype::U16, [even, 0], _) => even,
            (Dtype::U32, _, [_, 0]) => self.nonzero[0].max(self.nonzero[1]),
            _ => 0,
        }
    }

    /// True if nearly all 16-bit words at even, or at odd, positions are 0, but not the others.
    fn has_alternating_zeros(&self) -> bool {
        let pairs = self.bytes / 4;
        let [even, odd] = self.nonzero_words();
        let (most, least) = (even.max(odd), even.min(odd));
        pairs >= MIN_EVIDENCE && least * 10 <= pairs && most * 2 >= pairs
    }
}

/// Detects the type of a raw file for which none is specified; also returns a note on the choice, if needed.
pub(super) fn detect(
    file: &[u8],
    path: &str,
    vocab_size: usize,
) -> Result<(Dtype, Option<String>), String> {
    if let Some(kind) = other_format(file) {
        return Err(format!(
            "{kind}, not raw tokens; if it contains tokens nonetheless, specify their type: `{path}:u16` or \
             `{path}:u32`"
        ));
    }
    let scan = Scan::new(file);
    let fits = |dtype| scan.fits_vocabulary(dtype, vocab_size);
    let (wide, only_even) = match (fits(Dtype::U16), fits(Dtype::U32), fits(Dtype::U64)) {
        (_, _, true) => (Dtype::U64, scan.nonzero_if_only_even(Dtype::U32)),
        (_, true, false) => (Dtype::U32, scan.nonzero_if_only_even(Dtype::U16)),
        (true, false, false) => (Dtype::U16, 0),
        (false, false, false) => return Err(no_type_fits(file, path, vocab_size)),
    };
    let by_vocabulary = Dtype::for_vocab(vocab_size);
    let is_all_zero = scan.largest(Dtype::U32) == 0;
    check_plausible(&scan, path, vocab_size, wide)?;
    if wide == by_vocabulary && !is_all_zero {
        return Ok((wide, None));
    }
    let narrow = match wide {
        Dtype::U64 => Dtype::U32,
        _ => Dtype::U16,
    };
    if only_even < MIN_EVIDENCE || is_all_zero {
        return Err(format!(
            "ambiguous integer type: {} tokens of {}, or {} of {}, every second of which is 0; specify \
             it: {}",
            scan.bytes / wide.size() as u64,
            wide.name(),
            scan.bytes / narrow.size() as u64,
            narrow.name(),
            [Dtype::U16, Dtype::U32, Dtype::U64]
                .into_iter()
                .filter(|&dtype| fits(dtype))
                .map(|dtype| format!("`{path}:{}`", dtype.name()))
                .collect::<Vec<_>>()
                .join(" or ")
        ));
    }
    Ok((
        wide,
        Some(format!(
            "{path}: read as {}, since as {} every second token would be 0; use `{path}:{0}` to omit this note",
            wide.name(),
            narrow.name(),
        )),
    ))
}

/// Rejects files whose widest fitting type contradicts their length, the vocabulary or the pattern of zeros.
fn check_plausible(scan: &Scan, path: &str, vocab_size: usize, wide: Dtype) -> Result<(), String> {
    if wide == Dtype::U32 && scan.nonzero_if_only_even(Dtype::U32) >= MIN_EVIDENCE {
        return Err(format!(
            "every second 32-bit number is 0, as in u64 tokens, but {} bytes are not a multiple of 8: the file is \
             truncated; if it contains u32 tokens nonetheless, write `{path}:u32`",
            scan.bytes
        ));
    }
    if wide == Dtype::U16 && Dtype::for_vocab(vocab_size) == Dtype::U32 {
        return Err(format!(
            "the bytes are not u32 tokens below {vocab_size}, but u16 tokens up to {}, which cover only a part of a \
             vocabulary of {vocab_size}; if the vocabulary size is correct, write `{path}:u16`",
            scan.largest(Dtype::U16)
        ));
    }
    if wide == Dtype::U16 && scan.has_alternating_zeros() {
        return Err(format!(
            "nearly every second 16-bit number is 0, as in 32-bit tokens outside the vocabulary of {vocab_size} or in \
             another byte order; specify the type: `{path}:u16` or `{path}:u32`"
        ));
    }
    Ok(())
}

/// Returns a warning if the bytes contradict the specified type.
pub(super) fn type_warning(file: &[u8], path: &str, named: Dtype) -> Option<String> {
    let wider = match named {
        Dtype::U16 | Dtype::I16 => Dtype::U32,
        Dtype::U32 | Dtype::I32 => Dtype::U64,
        _ => return None,
    };
    let scan = Scan::new(file);
    let narrow = match wider {
        Dtype::U32 => Dtype::U16,
        _ => Dtype::U32,
    };
    let whole = scan.bytes.is_multiple_of(wider.size() as u64);
    (whole && scan.nonzero_if_only_even(narrow) >= MIN_EVIDENCE).then(|| {
        format!(
            "{path}: read as {}, as specified, but every second token is 0, as if it were {}",
            named.name(),
            wider.name()
        )
    })
}

fn no_type_fits(file: &[u8], path: &str, vocab_size: usize) -> String {
    let readings = [Dtype::U16, Dtype::U32]
        .map(|dtype| {
            let (name, size) = (dtype.name(), dtype.size());
            if !file.len().is_multiple_of(size) {
                let bytes = file.len();
                return format!("not {name}, since {bytes} bytes are not a multiple of {size}");
            }
            let mut tokens = file
                .chunks_exact(size)
                .map(|bytes| dtype.decode_integer(bytes));
            let beyond = tokens.position(|token| token >= vocab_size as i128);
            let position = beyond.unwrap_or_default();
            let token = dtype.decode_integer(&file[position * size..(position + 1) * size]);
            format!("as {name}: token {token} at position {position}")
        })
        .join(", ");
    format!(
        "no integer type fits the vocabulary size {vocab_size}: {readings}; correct the vocabulary size or the tokenizer, \
         or specify another type, as in `{path}:u8`"
    )
}

/// Returns the format of a file by its first bytes, for common formats.
fn other_format(file: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 17] = [
        (
            b"version https://git-lfs",
            "a Git LFS pointer (fetch the file with `git lfs pull`)",
        ),
        (b"\x1f\x8b\x08", "a gzip file (decompress it)"),
        (
            b"PK\x03\x04",
            "a zip file, as written by torch.save or numpy.savez",
        ),
        (b"\x28\xb5\x2f\xfd", "a zstd file (decompress it)"),
        (b"\xfd7zXZ\0", "an xz file (decompress it)"),
        (b"BZh91AY", "a bzip2 file (decompress it)"),
        (b"\x80\x02\x8a\x0a", "a pickle, such as torch.save writes"),
        (b"\x80\x03\x8a\x0a", "a pickle"),
        (b"\x80\x02c", "a pickle"),
        (b"\x80\x03c", "a pickle"),
        (b"\x80\x04\x95", "a pickle"),
        (b"\x80\x05\x95", "a pickle"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"PAR1", "a Parquet file"),
        (b"ARROW1", "an Arrow file"),
        (b"GGUF", "a GGUF file"),
        (
            b"MMIDIDX",
            "a Megatron index; its tokens are in the .bin file of the same name",
        ),
    ];
    if file.get(8..10) == Some(b"{\"") && file.get(6..8) == Some(&[0, 0]) {
        return Some("a safetensors file");
    }
    let known = KINDS.iter().find(|(magic, _)| file.starts_with(magic));
    known
        .map(|(_, kind)| *kind)
        .or_else(|| is_text(file).then_some("looks like text (rename it to end in `.txt`)"))
}

/// True if the start of the file is long enough and plain UTF-8, which 16-bit tokens are not.
fn is_text(file: &[u8]) -> bool {
    let sample = &file[..file.len().min(SAMPLE)];
    let valid = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // The sample ends within a character.
        Err(error) if error.error_len().is_none() && sample.len() < file.len() => {
            std::str::from_utf8(&sample[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    let printable = |char: char| !char.is_control() || "\t\n\r\x0c".contains(char);
    sample.len() as u64 >= MIN_EVIDENCE && valid.chars().all(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn le<const N: usize>(ids: impl Iterator<Item = u64>) -> Vec<u8> {
        ids.flat_map(|id| id.to_le_bytes()[..N].to_vec()).collect()
    }

    fn ids(n: u64, below: u64) -> impl Iterator<Item = u64> {
        (0..n).map(move |i| i * 7_919 % below)
    }

    fn detected_type(bytes: &[u8], vocab_size: usize) -> Result<Dtype, String> {
        detect(bytes, "f.bin", vocab_size).map(|(dtype, _)| dtype)
    }

    #[test]
    fn detects_type_from_bytes() {
        for vocab in [300, 5_000, 50_257, 65_536] {
            for n in [200, 201, 1_000] {
                assert_eq!(
                    detected_type(&le::<2>(ids(n, vocab)), vocab as usize),
                    Ok(Dtype::U16)
                );
                for (bytes, dtype) in [
                    (le::<4>(ids(n, vocab)), Dtype::U32),
                    (le::<8>(ids(n, vocab)), Dtype::U64),
                ] {
                    let (found, note) = detect(&bytes, "f.bin", vocab as usize).unwrap();
                    assert_eq!(found, dtype, "{vocab} {n}");
                    assert!(note.unwrap().contains(dtype.name()));
                    // Named with a narrower type.
                    let narrow = match dtype {
                        Dtype::U32 => Dtype::U16,
                        _ => Dtype::U32,
                    };
                    assert!(type_warning(&bytes, "f.bin", dtype).is_none());
                    assert!(type_warning(&bytes, "f.bin", narrow).is_some());
                }
            }
        }
        // Half of the last u64 token is missing.
        for vocab in [300, 70_000] {
            let cut = le::<8>(ids(500, 300));
            let error = detected_type(&cut[..cut.len() - 4], vocab).unwrap_err();
            assert!(
                error.contains("as in u64 tokens, but 3996 bytes"),
                "{error}"
            );
        }
        let large = le::<4>(ids(500, 100_277));
        assert_eq!(detect(&large, "f.bin", 100_277), Ok((Dtype::U32, None)));
        assert_eq!(
            detected_type(&le::<8>(ids(500, 100_277)), 100_277),
            Ok(Dtype::U64)
        );
        assert!(type_warning(&le::<2>(ids(500, 99)), "f.bin", Dtype::U16).is_none());
    }

    #[test]
    fn ambiguous_type_is_an_error() {
        let assert_rejected_with = |bytes: &[u8], vocab: usize, words: &[&str]| {
            let error = detected_type(bytes, vocab).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{error} / {word}");
            }
        };
        // Too short to decide, or all zeros.
        assert_rejected_with(
            &le::<4>(ids(9, 90)),
            90,
            &["`f.bin:u16` or `f.bin:u32`", "9 tokens of u32", "18 of u16"],
        );
        assert_rejected_with(&[0; 4096], 300, &["f.bin:u16", "f.bin:u32"]);
        assert_rejected_with(&[0; 4096], 100_277, &["f.bin:u16", "f.bin:u32"]);
        // A vocabulary that u16 cannot hold.
        assert_rejected_with(
            &le::<2>(ids(500, 60)),
            70_000,
            &["not u32 tokens below 70000", "f.bin:u16"],
        );
        // 32-bit tokens of which few are beyond 16 bits.
        let mut mixed: Vec<u64> = ids(500, 40_000).collect();
        mixed[7] = 65_540;
        assert_rejected_with(
            &le::<4>(mixed.into_iter()),
            50_257,
            &["every second", "f.bin:u32"],
        );
        // Big-endian.
        let swapped: Vec<u8> = (0..500_u32)
            .flat_map(|id| (id % 100).to_be_bytes())
            .collect();
        assert_rejected_with(&swapped, 50_257, &["byte order"]);
        assert_rejected_with(
            &le::<2>(ids(500, 900)),
            800,
            &[
                "fits the vocabulary size 800",
                "as u16: token 8",
                "as u32: token",
            ],
        );
        assert_rejected_with(b"abc", 800, &["3 bytes are not a multiple of 2"]);
    }

    #[test]
    fn other_formats_are_named() {
        for (bytes, word) in [
            (&b"\x1f\x8b\x08\0\0\0"[..], "gzip"),
            (b"PK\x03\x04....", "zip"),
            (b"\x80\x04\x95abc", "pickle"),
            (b"\x30\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
            (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
            (
                "Once upon a time, é. ".repeat(9).as_bytes(),
                "looks like text",
            ),
        ] {
            let error = detected_type(bytes, 50_257).unwrap_err();
            assert!(error.contains(word) && error.contains(":u16"), "{error}");
        }
        // A cut within a character is still text.
        let long = "é".repeat(SAMPLE);
        assert!(is_text(format!("a{long}").as_bytes()));
    }
}
