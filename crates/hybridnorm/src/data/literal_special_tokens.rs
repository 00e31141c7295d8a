//! Special tokens that appear literally in text.
//!
//! A tokenizer encodes such a string as plain characters. Usually it is a document separator that was
//! written as text, so it is reported.

use super::text_stats::LiteralSpecialToken;

/// Counts special tokens in texts.
pub(crate) struct LiteralSpecialTokenCounter {
    /// Tokens grouped by first byte.
    groups: Vec<Group>,
    /// Group index by first byte.
    group_by_first_byte: [Option<u8>; 256],
}

struct Group {
    /// Common prefix of the tokens.
    prefix: String,
    /// Counts of the tokens, and true for those that occur in the current document.
    tokens: Vec<(LiteralSpecialToken, bool)>,
}

impl LiteralSpecialTokenCounter {
    pub(crate) fn new(special: Vec<String>) -> Self {
        let mut new = Self {
            groups: Vec::new(),
            group_by_first_byte: [None; 256],
        };
        for token in special {
            let Some(&first) = token.as_bytes().first() else {
                continue;
            };
            let index = *new.group_by_first_byte[usize::from(first)].get_or_insert_with(|| {
                new.groups.push(Group {
                    prefix: token.clone(),
                    tokens: Vec::new(),
                });
                (new.groups.len() - 1) as u8
            });
            let group = &mut new.groups[usize::from(index)];
            let common = group.prefix.char_indices().zip(token.chars());
            let differs = common.filter(|((_, a), b)| a != b).map(|((at, _), _)| at);
            let length = differs.min().unwrap_or(group.prefix.len().min(token.len()));
            group.prefix.truncate(length);
            let literal = LiteralSpecialToken {
                token,
                count: 0,
                documents: 0,
            };
            group.tokens.push((literal, false));
        }
        // The longest token that matches at a position is counted.
        for group in &mut new.groups {
            group
                .tokens
                .sort_by_key(|(literal, _)| std::cmp::Reverse(literal.token.len()));
        }
        new
    }

    /// Counts the special tokens in the text of a document.
    pub(crate) fn count(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut at = 0;
        let mut any = false;
        while at < bytes.len() {
            let found = self.group_by_first_byte[usize::from(bytes[at])].and_then(|group| {
                let group = &mut self.groups[usize::from(group)];
                let rest = &bytes[at..];
                let tokens = group.tokens.iter_mut();
                rest.starts_with(group.prefix.as_bytes())
                    .then_some(tokens)?
                    .find(|(literal, _)| rest.starts_with(literal.token.as_bytes()))
            });
            match found {
                None => at += 1,
                Some((literal, is_in_document)) => {
                    literal.count += 1;
                    *is_in_document = true;
                    any = true;
                    at += literal.token.len();
                }
            }
        }
        if any {
            for (literal, is_in_document) in
                self.groups.iter_mut().flat_map(|group| &mut group.tokens)
            {
                literal.documents += u64::from(std::mem::take(is_in_document));
            }
        }
    }

    /// Returns the tokens that occurred, most frequent first.
    pub(crate) fn finish(self) -> Vec<LiteralSpecialToken> {
        let all = self.groups.into_iter().flat_map(|group| group.tokens);
        let mut found: Vec<_> = all
            .map(|(literal, _)| literal)
            .filter(|literal| literal.count > 0)
            .collect();
        found.sort_by(|a, b| (b.count, &a.token).cmp(&(a.count, &b.token)));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_token_counts() {
        let special = ["<|a|>", "<|a|>b", "</s>", "[X]", ""];
        let mut tokens = LiteralSpecialTokenCounter::new(special.map(str::to_owned).to_vec());
        tokens.count("<|a|><|a|>b é[X]<|a|");
        tokens.count("nothing < here [");
        tokens.count("<|a|>");
        let found: Vec<_> = tokens
            .finish()
            .into_iter()
            .map(|literal| (literal.token, literal.count, literal.documents))
            .collect();
        let expected = [("<|a|>", 2, 2), ("<|a|>b", 1, 1), ("[X]", 1, 1)];
        assert_eq!(
            found,
            expected.map(|(token, count, documents)| (token.to_owned(), count, documents))
        );
    }
}
