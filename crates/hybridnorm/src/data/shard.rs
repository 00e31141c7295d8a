//! Token shards, read as one memory-mapped stream.
//!
//! A shard contains only little-endian token ids, u16 for vocabularies of up to 65,536 tokens and u32 for larger ones,
//! so nanoGPT-style readers can use it directly. Every document is followed by the end-of-text token. The
//! [`Manifest`] next to the shards records their sizes and checksums.

mod writer;

use std::ops::Deref;
use std::path::{Path, PathBuf};

use hybridnorm_mapped::MappedFile;

use crate::error::{Error, Result};
use crate::files;

use super::manifest::{Dtype, Manifest, ShardRecord, SplitRecord};
#[cfg(feature = "data")]
use super::tokenizer::Tokenizer;

pub use writer::ShardWriter;

/// Token ids in memory, or in one or several files, read as one stream.
///
/// Files are mapped, not loaded; ids are checked against the vocabulary when read.
///
/// ```
/// use hybridnorm::data::TokenStream;
///
/// let stream = TokenStream::from_tokens(&[3, 1, 4, 1, 5], 10);
/// let mut tokens = [0; 2];
/// stream.read(2, &mut tokens)?;
/// assert_eq!(tokens, [4, 1]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct TokenStream {
    segments: Vec<Segment>,
    tokens: u64,
    vocab_size: usize,
}

/// Bytes of tokens.
#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    InMemory(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::InMemory(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Segment {
    /// Path of the file; empty for tokens in memory.
    path: PathBuf,
    bytes: Bytes,
    /// Byte offset of the first token in the file.
    offset: usize,
    dtype: Dtype,
    /// Position of its first token in the stream.
    start: u64,
    tokens: u64,
    /// True if a manifest records the type, so that the user cannot specify another.
    is_prepared: bool,
}

impl TokenStream {
    /// Returns an empty stream, whose tokens must be below `vocab_size` (and below 2^31 in any case).
    pub fn new(vocab_size: usize) -> Self {
        let vocab_size = vocab_size.min(1 << 31);
        Self {
            segments: Vec::new(),
            tokens: 0,
            vocab_size,
        }
    }

    /// Returns a stream of tokens in memory; they must be below `vocab_size`, which is checked when they are
    /// read.
    pub fn from_tokens(tokens: &[u32], vocab_size: usize) -> Self {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
        let mut stream = Self::new(vocab_size);
        stream.push_bytes(
            Path::new(""),
            Bytes::InMemory(bytes.collect()),
            0,
            Dtype::U32,
        );
        stream
    }

    /// Appends the tokens in `mapped` from byte `offset` on; an incomplete last token is ignored, so check
    /// the length before.
    pub(super) fn push(&mut self, path: &Path, mapped: MappedFile, offset: usize, dtype: Dtype) {
        self.push_bytes(path, Bytes::Mapped(mapped), offset, dtype);
    }

    fn push_bytes(&mut self, path: &Path, bytes: Bytes, offset: usize, dtype: Dtype) {
        let tokens = (bytes.len().saturating_sub(offset) / dtype.size()) as u64;
        self.segments.push(Segment {
            path: path.to_path_buf(),
            bytes,
            offset,
            dtype,
            start: self.tokens,
            tokens,
            is_prepared: false,
        });
        self.tokens += tokens;
    }

    /// Appends a shard as [`TokenStream::push`] does, with the type from its manifest.
    fn push_shard(&mut self, path: &Path, mapped: MappedFile, dtype: Dtype) {
        self.push(path, mapped, 0, dtype);
        if let Some(segment) = self.segments.last_mut() {
            segment.is_prepared = true;
        }
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> u64 {
        self.tokens
    }

    /// True if there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Returns the vocabulary size; all token ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Fills `out` with the tokens from position `start` on.
    ///
    /// # Errors
    /// If the range is not within the stream, or a token is not below the vocabulary's size.
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        let end = start.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.tokens) {
            return Err(Error::out_of_range(
                "position of tokens",
                format!("{start}..{}", start.saturating_add(out.len() as u64)),
                format!("a range within 0..{}", self.tokens),
            ));
        }
        let mut segment = self
            .segments
            .partition_point(|segment| segment.start + segment.tokens <= start);
        let mut done = 0;
        while done < out.len() {
            let from = &self.segments[segment];
            let first = start + done as u64 - from.start;
            let n = (from.tokens - first).min((out.len() - done) as u64) as usize;
            from.read(first as usize, &mut out[done..done + n], self.vocab_size)?;
            done += n;
            segment += 1;
        }
        Ok(())
    }

    /// Checks every token in one pass over the files.
    ///
    /// # Errors
    /// If a token is not below the vocabulary's size.
    pub fn check(&self) -> Result<()> {
        self.for_each(|_| {})
    }

    /// Calls `visit` with every token in order.
    ///
    /// # Errors
    /// As [`TokenStream::check`].
    pub fn for_each(&self, mut visit: impl FnMut(u32)) -> Result<()> {
        self.for_each_chunk(|tokens| tokens.iter().for_each(|&token| visit(token)))
    }

    /// Calls `visit` with all tokens in order, in chunks.
    ///
    /// # Errors
    /// As [`TokenStream::check`].
    pub fn for_each_chunk(&self, mut visit: impl FnMut(&[u32])) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        let mut position = 0;
        while position < self.tokens {
            let n = (self.tokens - position).min(buffer.len() as u64) as usize;
            self.read(position, &mut buffer[..n])?;
            visit(&buffer[..n]);
            position += n as u64;
        }
        Ok(())
    }
}

impl Segment {
    fn read(&self, first: usize, out: &mut [u32], vocab_size: usize) -> Result<()> {
        let size = self.dtype.size();
        let start = self.offset + first * size;
        let bytes = &self.bytes[start..start + out.len() * size];
        for (i, (bytes, slot)) in bytes.chunks_exact(size).zip(out).enumerate() {
            match self.dtype.decode_token(bytes) {
                Some(token) if (token as usize) < vocab_size => *slot = token,
                _ => return Err(self.invalid_token(first + i, bytes, vocab_size)),
            }
        }
        Ok(())
    }

    fn invalid_token(&self, position: usize, bytes: &[u8], vocab_size: usize) -> Error {
        let (found, dtype) = (self.dtype.decode_integer(bytes), self.dtype.name());
        if let Bytes::InMemory(_) = self.bytes {
            return Error::out_of_range(
                format!("token at position {position}"),
                found,
                format!("below the vocabulary size {vocab_size}"),
            );
        }
        let read_as = match (self.is_prepared, self.offset) {
            (true, _) => String::new(),
            (false, 0) => format!(
                " (read as {dtype}; append another type to the path as in `:u16` or `:u32`)"
            ),
            // After a header, which states the type.
            (false, _) => format!(" ({dtype}, as its header states)"),
        };
        Error::format(
            &self.path,
            format!(
                "token {found} at position {position} is not below the vocabulary size {vocab_size}\
                 {read_as}"
            ),
        )
    }
}

/// Folder of tokens that [`super::prepare()`] wrote.
///
/// ```
/// use hybridnorm::data::{PrepareOptions, PreparedFolder, TokenizerSpec, prepare, quiet};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path().join("tokens");
/// let inputs = ["stories:20".to_owned()];
/// let options = PrepareOptions::default().with_validation_fraction(0.2);
/// prepare(&inputs, &TokenizerSpec::Bytes, &out, &options, &mut quiet)?;
///
/// let prepared = PreparedFolder::open(&out)?;
/// prepared.verify()?;
/// let tokens = prepared.train()?;
/// let mut first = [0; 8];
/// tokens.read(0, &mut first)?;
/// println!("{:?}", prepared.tokenizer()?.decode(&first));
/// assert_eq!(tokens.len(), prepared.manifest().train.tokens);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PreparedFolder {
    folder: PathBuf,
    manifest: Manifest,
    has_checksum: bool,
}

impl PreparedFolder {
    /// Reads the manifest and checks that every shard is there with the recorded size.
    ///
    /// # Errors
    /// If the manifest or a shard is missing, damaged, or of another size.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        if !files::is_dir(&folder)? {
            // Returns the I/O error, such as `NotFound` or `NotADirectory`.
            std::fs::read_dir(&folder).map_err(Error::io(&folder))?;
        }
        let (manifest, has_checksum) = Manifest::read(&folder)?;
        let prepared = Self {
            folder,
            manifest,
            has_checksum,
        };
        for shard in prepared.shards() {
            let path = prepared.folder.join(&shard.file);
            let found = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
            prepared.check_size(shard, found)?;
        }
        Ok(prepared)
    }

    /// Returns true if `folder` holds a manifest.
    ///
    /// # Errors
    /// If the file system cannot be queried.
    pub fn is_prepared(folder: impl AsRef<Path>) -> Result<bool> {
        files::exists(folder.as_ref().join(super::manifest::MANIFEST_NAME))
    }

    /// True if its manifest has a checksum; those of earlier versions have none.
    pub fn has_checksum(&self) -> bool {
        self.has_checksum
    }

    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Loads the tokenizer of the folder.
    ///
    /// # Errors
    /// If it cannot be read or is not the one that the manifest records.
    #[cfg(feature = "data")]
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::load(&self.folder)?;
        let expected = &self.manifest.tokenizer;
        if tokenizer.fingerprint() != expected.fingerprint {
            return Err(Error::format(
                &self.folder,
                "the tokenizer in this folder is not the one that its tokens were encoded with; prepare the data again",
            ));
        }
        Ok(tokenizer.with_name(&expected.name))
    }

    /// Compares the checksum of every shard with the manifest.
    ///
    /// # Errors
    /// If a shard differs.
    pub fn verify(&self) -> Result<()> {
        for shard in self.shards() {
            let path = self.folder.join(&shard.file);
            let found = files::fingerprint(&path)?;
            self.check_size(shard, found.bytes)?;
            if found.sha256 != shard.fingerprint.sha256 {
                return Err(Error::format(
                    &path,
                    format!(
                        "SHA-256 {}, expected {} (manifest): the shard is corrupt; prepare the data again",
                        found.sha256, shard.fingerprint.sha256
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Returns the training tokens.
    ///
    /// # Errors
    /// If a shard cannot be mapped or its size changed.
    pub fn train(&self) -> Result<TokenStream> {
        self.stream(&self.manifest.train)
    }

    /// Returns the validation tokens; an empty stream if none were held out.
    ///
    /// # Errors
    /// As [`PreparedFolder::train`].
    pub fn validation(&self) -> Result<TokenStream> {
        self.stream(&self.manifest.validation)
    }

    fn stream(&self, split: &SplitRecord) -> Result<TokenStream> {
        let mut stream = TokenStream::new(self.manifest.tokenizer.vocab_size);
        for shard in &split.shards {
            let path = self.folder.join(&shard.file);
            let file = files::open(&path)?;
            let mapped = hybridnorm_mapped::map(&file).map_err(Error::io(&path))?;
            self.check_size(shard, mapped.len() as u64)?;
            stream.push_shard(&path, mapped, self.manifest.dtype);
        }
        Ok(stream)
    }

    fn shards(&self) -> impl Iterator<Item = &ShardRecord> {
        let Manifest {
            train, validation, ..
        } = &self.manifest;
        train.shards.iter().chain(&validation.shards)
    }

    fn check_size(&self, shard: &ShardRecord, found: u64) -> Result<()> {
        if found == shard.fingerprint.bytes {
            return Ok(());
        }
        let what = if found < shard.fingerprint.bytes {
            "truncated"
        } else {
            "too long"
        };
        Err(Error::corrupt_at(
            self.folder.join(&shard.file),
            found.min(shard.fingerprint.bytes),
            format!(
                "{found} bytes, expected {} (manifest): the shard is {what}; prepare the data again",
                shard.fingerprint.bytes
            ),
        ))
    }
}
