//! Stand-in for tokenizers in builds without the feature `data`.

use std::path::Path;

use crate::error::{Error, Result};

/// Tokenizer; uninhabited without the feature `data`, where models can only be trained on pre-tokenized data.
#[derive(Debug, Clone)]
pub enum Tokenizer {}

impl Tokenizer {
    /// Always fails: tokenizers need the feature `data`.
    ///
    /// # Errors
    /// Always.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Err(Error::format(
            path,
            "tokenizers need the feature `data` of the crate",
        ))
    }

    /// Saves the tokenizer.
    ///
    /// # Errors
    /// Never.
    pub fn save(&self, _folder: impl AsRef<Path>) -> Result<()> {
        match *self {}
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        match *self {}
    }

    /// Returns the hash of everything that determines its tokens.
    pub fn fingerprint(&self) -> &str {
        match *self {}
    }

    /// Returns the vocabulary size.
    pub fn vocab_size(&self) -> usize {
        match *self {}
    }
}
