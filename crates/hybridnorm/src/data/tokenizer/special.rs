//! Tokens that stand for no text.

use super::{END_NAMES, END_OF_TEXT, Kind, Tokenizer};

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

    /// Names of special tokens that text is encoded as plain characters of, where it spells them: its
    /// own, and well-known ends of texts that it does not know as tokens. These are mostly separators
    /// that were written for another tokenizer.
    pub(crate) fn spelled_names(&self) -> Vec<String> {
        let mut names = self.special_tokens();
        let is_plain = |name: &&str| {
            let ids = self.encode(name);
            // One that is a token of its own is not spelled out.
            ids.is_ok_and(|ids| ids.len() != 1 || Some(ids[0]) == self.unknown_id())
        };
        names.extend(
            END_NAMES
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
