//! Tokens that stand for no text.

use super::{END_OF_TEXT, Kind, Tokenizer};

impl Tokenizer {
    /// Spellings of its special tokens, none of which [`Tokenizer::encode`] makes of text, sorted.
    pub fn special_tokens(&self) -> Vec<String> {
        let mut special: Vec<String> = match &self.kind {
            Kind::Bytes => vec![END_OF_TEXT.into()],
            Kind::Tiktoken(core, _) => {
                let names = core.special_tokens().into_iter();
                names.map(str::to_owned).collect()
            }
            Kind::Json(json) => json.special_tokens(),
        };
        special.sort();
        special.dedup();
        special
    }
}
