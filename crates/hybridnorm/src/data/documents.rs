//! Hashes of the documents of token streams.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use super::dataset::TokenDataset;
use crate::error::Result;

impl TokenDataset {
    /// Returns the number of tokens of every document, keyed by its hash. Documents end at the token `eos_id` and at
    /// the ends of streams and rows; duplicates count once.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn document_hashes(&self, eos_id: u32) -> Result<HashMap<u64, u64>> {
        let mut found = HashMap::new();
        for part in &self.parts {
            let stride = part.full.stream_stride;
            let (mut position, mut tokens) = (0_u64, 0_u64);
            let mut hasher = DefaultHasher::new();
            part.tokens.for_each(|token| {
                position += 1;
                let is_end = token == eos_id;
                if !is_end {
                    hasher.write_u32(token);
                    tokens += 1;
                }
                let is_last = position == part.tokens.len() || position.is_multiple_of(stride);
                if (is_end || is_last) && tokens > 0 {
                    let done = std::mem::replace(&mut hasher, DefaultHasher::new());
                    found.insert(done.finish(), std::mem::take(&mut tokens));
                }
            })?;
        }
        Ok(found)
    }
}
