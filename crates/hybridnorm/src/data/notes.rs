//! Notes for users on how the text was read.

use super::manifest::{Manifest, SourceRecord};
use super::text_stats::LiteralSpecialToken;

impl Manifest {
    /// Returns a line for everything that was omitted, split, replaced or dropped, for unknown tokens, and for special
    /// tokens that appear literally in the text. Empty if all text was used unchanged.
    pub fn notes(&self) -> Vec<String> {
        let sum = |of: fn(&SourceRecord) -> u64| self.sources.iter().map(of).sum::<u64>();
        let mut notes = self.omissions.lines();
        let (texts, documents) = (sum(|s| s.split_texts), sum(|s| s.split_documents));
        if texts > 0 {
            let chars = match self.document_chars {
                Some(chars) => format!(" after {chars} characters"),
                None => String::new(),
            };
            notes.push(format!(
                "{} split into {documents} documents at blank lines{chars}; document_chars = 0 disables splitting",
                were(texts, "plain text file")
            ));
        }
        let lines = sum(|s| s.replaced_lines);
        if lines > 0 {
            let unit = match lines {
                1 => "line or record",
                _ => "lines or records",
            };
            notes.push(format!(
                "invalid UTF-8 was replaced by U+FFFD in {lines} {unit}"
            ));
        }
        let surrogates = sum(|s| s.replaced_surrogates);
        if surrogates > 0 {
            notes.push(format!(
                "unpaired surrogates (`\\ud800` to `\\udfff`) were replaced by U+FFFD in {}",
                number(surrogates, "text")
            ));
        }
        let unknown = sum(|s| s.unknown_tokens);
        if unknown > 0 {
            notes.push(format!(
                "{} of {} {} the unknown token of the vocabulary",
                unknown,
                number(self.train.tokens + self.validation.tokens, "token"),
                if unknown == 1 { "is" } else { "are" }
            ));
        }
        let dropped = sum(|s| s.dropped_chars);
        if dropped > 0 {
            notes.push(format!(
                "{} dropped, since no token represents {}",
                were(dropped, "character"),
                if dropped == 1 { "it" } else { "them" }
            ));
        }
        notes.extend(self.literal_special_tokens.iter().map(literal_token_note));
        notes
            .iter()
            .map(|note| crate::text::one_line(note).into_owned())
            .collect()
    }
}

/// Returns a note on a special token that appears literally in the text.
fn literal_token_note(literal: &LiteralSpecialToken) -> String {
    format!(
        "the special token `{}` appears literally {} in {}, where it is encoded as plain characters; if it \
                 separates documents, set separator to `{}`",
        literal.token,
        number(literal.count, "time"),
        number(literal.documents, "document"),
        literal.token
    )
}

fn number(count: u64, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

fn were(count: u64, unit: &str) -> String {
    format!(
        "{} {}",
        number(count, unit),
        if count == 1 { "was" } else { "were" }
    )
}
