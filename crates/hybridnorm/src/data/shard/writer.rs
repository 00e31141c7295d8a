//! Writing of token shards.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::data::manifest::{Dtype, ShardRecord, SplitRecord};
use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};

/// Writer of the shards of one split: `train-00000.bin`, `train-00001.bin`, ...
pub struct ShardWriter {
    folder: PathBuf,
    split: &'static str,
    dtype: Dtype,
    eos: u32,
    shard_tokens: u64,
    current: Option<(AtomicFile, ShardRecord)>,
    record: SplitRecord,
}

impl ShardWriter {
    /// Returns a writer for the shards of one split. A shard is closed after the document with which it reaches
    /// `shard_tokens`.
    pub fn new(
        folder: &Path,
        split: &'static str,
        dtype: Dtype,
        eos: u32,
        shard_tokens: u64,
    ) -> Self {
        Self {
            folder: folder.to_path_buf(),
            split,
            dtype,
            eos,
            shard_tokens,
            current: None,
            record: SplitRecord::default(),
        }
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.record.shards.is_empty()
    }

    /// Appends one document, encoded from `text_bytes` bytes of text, and the end-of-text token.
    ///
    /// # Errors
    /// If writing fails, or a token does not fit into the type.
    pub fn push(&mut self, tokens: &[u32], text_bytes: u64) -> Result<()> {
        self.append(tokens)?;
        self.end_document(text_bytes)
    }

    /// Appends tokens of the current document, which [`ShardWriter::end_document`] ends.
    ///
    /// # Errors
    /// As [`ShardWriter::push`].
    pub fn append(&mut self, tokens: &[u32]) -> Result<()> {
        let (file, shard) = match &mut self.current {
            Some(current) => current,
            None => {
                let name = format!("{}-{:05}.bin", self.split, self.record.shards.len());
                let file = AtomicFile::create(self.folder.join(&name))?;
                let shard = ShardRecord {
                    file: name,
                    tokens: 0,
                    documents: 0,
                    text_bytes: 0,
                    fingerprint: files::Fingerprint {
                        bytes: 0,
                        sha256: String::new(),
                    },
                };
                self.current.insert((file, shard))
            }
        };
        let path = self.folder.join(&shard.file);
        let mut bytes = Vec::with_capacity(tokens.len() * self.dtype.size());
        for &token in tokens {
            match (self.dtype, u16::try_from(token)) {
                (Dtype::U32, _) => bytes.extend(token.to_le_bytes()),
                (Dtype::U16, Ok(token)) => bytes.extend(token.to_le_bytes()),
                _ => {
                    return Err(Error::format(
                        &path,
                        format!("token {token} does not fit into {}", self.dtype.name()),
                    ));
                }
            }
        }
        file.write_all(&bytes).map_err(Error::io(&path))?;
        shard.tokens += tokens.len() as u64;
        Ok(())
    }

    /// Ends a document, encoded from `text_bytes` bytes of text, with the end-of-text token.
    ///
    /// # Errors
    /// As [`ShardWriter::push`].
    pub fn end_document(&mut self, text_bytes: u64) -> Result<()> {
        self.append(&[self.eos])?;
        if let Some((_, shard)) = &mut self.current {
            shard.documents += 1;
            shard.text_bytes += text_bytes;
            if shard.tokens >= self.shard_tokens {
                self.close()?;
            }
        }
        Ok(())
    }

    /// Closes the last shard and returns the record of the split.
    ///
    /// # Errors
    /// If the shard cannot be completed.
    pub fn finish(mut self) -> Result<SplitRecord> {
        self.close()?;
        Ok(self.record)
    }

    fn close(&mut self) -> Result<()> {
        if let Some((file, mut shard)) = self.current.take() {
            shard.fingerprint = file.commit()?;
            self.record.push(shard);
        }
        Ok(())
    }
}
