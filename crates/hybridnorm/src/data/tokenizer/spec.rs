//! Tokenizer specifications.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::data::bpe::BpeTrainer;
use crate::error::{Error, Result};

/// Tokenizer specification; written `bytes`, `r50k`, `cl100k`, `bpe:4096`, or a path.
///
/// ```
/// use hybridnorm::data::TokenizerSpec;
///
/// let spec: TokenizerSpec = "bpe:4096".parse()?;
/// assert_eq!(spec, TokenizerSpec::Bpe { vocab_size: 4096 });
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerSpec {
    /// One token per byte, and the end-of-text token; 257 in all.
    Bytes,
    /// GPT-2's vocabulary, 50,257 tokens.
    R50k,
    /// The vocabulary of GPT-4, 100,277 ids.
    Cl100k,
    /// Byte-level BPE to be trained on the text at hand.
    Bpe {
        /// Maximum vocabulary size.
        vocab_size: usize,
    },
    /// A `tokenizer.json`, or a folder that holds one; if the path does not exist, another common name of a
    /// vocabulary above, such as `gpt2`.
    Path(PathBuf),
}

impl TokenizerSpec {
    /// Returns the built-in tokenizer with this common name; `None` if there is none.
    pub(super) fn by_common_name(name: &str) -> Option<Self> {
        let plain = name.to_ascii_lowercase().replace(['-', '_', ' '], "");
        Some(match plain.as_str() {
            "byte" | "bytes" | "utf8" => Self::Bytes,
            "r50k" | "r50kbase" | "gpt2" => Self::R50k,
            "cl100k" | "cl100kbase" | "gpt4" | "gpt3.5" | "gpt3.5turbo" => Self::Cl100k,
            _ => return None,
        })
    }
}

impl FromStr for TokenizerSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |problem: String| Error::invalid_value("tokenizer", problem);
        Ok(match text {
            "bytes" => Self::Bytes,
            "r50k" => Self::R50k,
            "cl100k" => Self::Cl100k,
            "" => return Err(invalid("the tokenizer name is empty".into())),
            "bpe" => {
                return Err(invalid(
                    "`bpe` needs a vocabulary size, e.g. `bpe:4096`".into(),
                ));
            }
            _ => match text.strip_prefix("bpe:") {
                Some(size) => {
                    let vocab_size = size.parse().map_err(|_| {
                        invalid(format!(
                            "`{text}` is not a tokenizer: expected a number after `bpe:`, as in `bpe:4096`"
                        ))
                    })?;
                    BpeTrainer::new(vocab_size)?;
                    Self::Bpe { vocab_size }
                }
                None => Self::Path(text.into()),
            },
        })
    }
}

impl fmt::Display for TokenizerSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("bytes"),
            Self::R50k => f.write_str("r50k"),
            Self::Cl100k => f.write_str("cl100k"),
            Self::Bpe { vocab_size } => write!(f, "bpe:{vocab_size}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}
