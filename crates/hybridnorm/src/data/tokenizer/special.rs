//! Special tokens, which represent no text.

use super::{END_OF_TEXT, EOS_TOKEN_NAMES, Kind, Tokenizer};

impl Tokenizer {
    /// Returns the names of the special tokens, sorted; [`Tokenizer::encode`] returns none of them.
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

    /// Returns the names of special tokens that are encoded as plain characters when text contains them: its
    /// own, and well-known end-of-text tokens outside its vocabulary. The latter are mostly separators that
    /// were written for another tokenizer.
    pub(crate) fn literal_special_token_names(&self) -> Vec<String> {
        let mut names = self.special_tokens();
        let is_plain = |name: &&str| {
            let ids = self.encode(name);
            // A name that is a single token is not encoded as plain characters.
            ids.is_ok_and(|ids| ids.len() != 1 || Some(ids[0]) == self.unknown_id())
        };
        names.extend(
            EOS_TOKEN_NAMES
                .iter()
                .copied()
                .filter(is_plain)
                .map(str::to_owned),
        );
        names.sort();
        names.dedup();
        names
    }
}
