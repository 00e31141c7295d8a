//! Token ids of contexts and continuations.

use std::collections::HashMap;

use serde::Serialize;

use crate::data::{StartToken, TextStart, Tokenizer};
use crate::error::Result;
use crate::score::Request;

/// Tokenization of a context and its continuation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Tokenization {
    /// The two texts are encoded together, and the continuation starts after as many tokens as the context alone has;
    /// white space at the end of the context belongs to the continuation. As in lm-evaluation-harness.
    #[default]
    Joint,
    /// The two texts are encoded separately, as in the evaluations that OLMo runs during training.
    Separate,
}

/// Encoder of the requests of a task.
#[derive(Debug)]
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    tokenization: Tokenization,
    /// Tokens before contexts.
    pub(super) start: TextStart,
}

/// A context and continuation as text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'t> {
    pub(super) context: &'t str,
    pub(super) continuation: &'t str,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        tokenization: Tokenization,
        start: StartToken,
    ) -> Self {
        Self {
            tokenizer,
            tokenization,
            start: TextStart::new(tokenizer, start),
        }
    }

    /// Encodes requests. Texts are encoded on all threads; each context once.
    ///
    /// # Errors
    /// If the tokenizer cannot encode a text.
    pub(super) fn encode(&self, requests: &[Texts<'_>]) -> Result<Vec<Request>> {
        let split: Vec<(&str, String)> = requests.iter().map(|texts| self.split(texts)).collect();
        let mut contexts: HashMap<&str, usize> = HashMap::new();
        let mut texts: Vec<&str> = Vec::new();
        for (context, _) in &split {
            contexts.entry(context).or_insert_with(|| {
                texts.push(context);
                texts.len() - 1
            });
        }
        let n_contexts = texts.len();
        texts.extend(split.iter().map(|(_, continuation)| continuation.as_str()));
        let encoded = self.tokenizer.encode_batch(&texts, 0)?;
        let (context_ids, continuation_ids) = encoded.split_at(n_contexts);
        let requests = split
            .iter()
            .zip(continuation_ids)
            .map(|((context, _), ids)| {
                let context_ids = &context_ids[contexts[context]];
                let continuation = match self.tokenization {
                    Tokenization::Joint => ids.get(context_ids.len()..).unwrap_or_default(),
                    Tokenization::Separate => ids,
                };
                Request {
                    context: self.start.before(context_ids),
                    continuation: continuation.to_vec(),
                }
            });
        Ok(requests.collect())
    }

    /// Returns the context to encode, and the text whose ids after those of the context are the continuation.
    fn split<'t>(&self, texts: &Texts<'t>) -> (&'t str, String) {
        let Texts {
            context,
            continuation,
        } = *texts;
        match self.tokenization {
            Tokenization::Separate => (context, continuation.to_owned()),
            Tokenization::Joint => (
                context.trim_end_matches(is_space),
                format!("{context}{continuation}"),
            ),
        }
    }
}

/// True for white space as in Python's `str.rstrip`, which lm-evaluation-harness calls.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::quiet;

    fn encode(
        tokenization: Tokenization,
        start: StartToken,
        context: &str,
        continuation: &str,
    ) -> Request {
        let tokenizer =
            Tokenizer::train_bpe(&[&"a cat sat. a cat sat. ".repeat(9)], 300, &mut quiet).unwrap();
        let encoder = Encoder::new(&tokenizer, tokenization, start);
        let texts = Texts {
            context,
            continuation,
        };
        let mut request = encoder.encode(&[texts]).unwrap();
        request.remove(0)
    }

    #[test]
    fn white_space_at_the_end_of_a_context_belongs_to_the_continuation() {
        let moved = encode(Tokenization::Joint, StartToken::None, "a ", "cat");
        let usual = encode(Tokenization::Joint, StartToken::None, "a", " cat");
        assert_eq!(moved, usual);
        let separate = encode(Tokenization::Separate, StartToken::None, "a ", "cat");
        assert_ne!(separate, usual);
    }

    #[test]
    fn an_empty_context_is_the_start_token() {
        let eos = 0x100;
        for start in [StartToken::None, StartToken::Tokenizer, StartToken::Eos] {
            let request = encode(Tokenization::Joint, start, "", "a cat");
            assert_eq!(request.context, [eos], "{start:?}");
            let with_context = encode(Tokenization::Joint, start, "a", " cat");
            assert_eq!(
                with_context.context.contains(&eos),
                start == StartToken::Eos,
                "{start:?}"
            );
        }
    }
}
