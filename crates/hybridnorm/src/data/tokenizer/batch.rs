//! Encoding of texts to ids, chunk by chunk.

use crate::error::Result;

use super::chunks::{SOFT_LIMIT, SplitPoints, chunks};
use super::{Kind, Tokenizer, in_parallel};

/// Text encoded per group, in bytes. Its tokens take up to four times as much.
const GROUP: usize = 8 << 20;

/// Part of a text that is encoded independently.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'t> {
    pub(super) text: &'t str,
    /// True for the first chunk of its text.
    pub(super) is_first: bool,
}

/// A chunk of one of several texts.
struct Job<'t> {
    text: usize,
    chunk: Chunk<'t>,
    is_last: bool,
}

impl Tokenizer {
    /// Encodes a text without special tokens. Long texts are encoded in chunks that end at positions that no token
    /// spans; after 1 MiB without such a position the text is split anyway, which can change the two adjacent tokens.
    ///
    /// # Errors
    /// If a `tokenizer.json` cannot encode it, for example because it has no unknown token, its normalizer would expand
    /// the text too much, or a text of more than 1 MiB cannot be split.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for chunk in self.chunks(text) {
            ids.extend(self.encode_chunk(chunk)?);
        }
        Ok(ids)
    }

    /// Encodes several texts on `threads` threads (0: one per core). The result does not depend on the
    /// number of threads.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], threads: usize) -> Result<Vec<Vec<u32>>> {
        let mut all = vec![Vec::new(); texts.len()];
        self.encode_each(texts, threads, |text, ids, _| {
            all[text].extend_from_slice(ids);
            Ok(())
        })?;
        Ok(all)
    }

    /// Calls `take` with the token ids of several texts, in order and chunk by chunk: the index of the text,
    /// the ids, and true if the text ends with them.
    pub(in crate::data) fn encode_each(
        &self,
        texts: &[&str],
        threads: usize,
        mut take: impl FnMut(usize, &[u32], bool) -> Result<()>,
    ) -> Result<()> {
        let mut jobs = Vec::new();
        let mut bytes = 0;
        let mut encode = |jobs: &mut Vec<Job>| {
            let encoded = in_parallel(jobs, threads, |job| self.encode_chunk(job.chunk));
            for (ids, job) in encoded.into_iter().zip(jobs.iter()) {
                take(job.text, &ids?, job.is_last)?;
            }
            jobs.clear();
            Ok(())
        };
        for (index, text) in texts.iter().enumerate() {
            let mut rest = self.chunks(text);
            // A text without any chunk must be reported as ended, too.
            let mut next = rest.next().or(Some(Chunk {
                text: "",
                is_first: true,
            }));
            while let Some(chunk) = next {
                next = rest.next();
                bytes += chunk.text.len();
                jobs.push(Job {
                    text: index,
                    chunk,
                    is_last: next.is_none(),
                });
                if bytes >= GROUP {
                    encode(&mut jobs)?;
                    bytes = 0;
                }
            }
        }
        encode(&mut jobs)
    }

    fn chunks<'t>(&self, text: &'t str) -> impl Iterator<Item = Chunk<'t>> {
        let (points, soft) = match &self.kind {
            Kind::Json(json) => json.split_points(),
            _ => (SplitPoints::BeforeSpacesOrAtLimit, SOFT_LIMIT),
        };
        let with_place = |(index, text)| Chunk {
            text,
            is_first: index == 0,
        };
        chunks(text, points, soft).enumerate().map(with_place)
    }

    fn encode_chunk(&self, chunk: Chunk) -> Result<Vec<u32>> {
        Ok(match &self.kind {
            _ if chunk.text.is_empty() => Vec::new(),
            Kind::Bytes => chunk.text.bytes().map(u32::from).collect(),
            Kind::Tiktoken(bpe, _) => bpe.encode_ordinary(chunk.text),
            Kind::Json(json) => json
                .encode(chunk)
                .map_err(|problem| self.text_error(&problem))?,
        })
    }

    /// Returns the bytes of text of the first token of a text, even if tokens do not determine their bytes;
    /// `None` if it ends within a character.
    pub(in crate::data) fn first_token_bytes(&self, text: &str, id: u32) -> Option<u64> {
        match &self.kind {
            Kind::Json(json) if self.inexact_text_bytes_reason().is_some() => {
                json.first_token_bytes(self.chunks(text).next()?, id)
            }
            _ => self.token_text_bytes(id),
        }
    }
}
