//! Streaming generation of text from a text prompt.

use serde::Serialize;

use super::generate::{Generator, Sampling};
use crate::data::{
    LiteralSpecialToken, LiteralSpecialTokenCounter, StartToken, StreamDecoder, TextStart,
    Tokenizer,
};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::omissions::Omissions;
use crate::text::one_line;

/// Coverage of a prompt: parts of its text that its tokens do not represent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PromptCoverage {
    /// Number of unknown tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub unknown_tokens: u64,
    /// Number of characters, except white space, that no token represents.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped_chars: u64,
    /// Special tokens that the prompt spells out, which are encoded as plain characters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spelled_special_tokens: Vec<LiteralSpecialToken>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl PromptCoverage {
    fn of(tokenizer: &Tokenizer, prompt: &str, ids: &[u32]) -> Result<Self> {
        let unknown = tokenizer.unknown_id();
        let unknown = ids.iter().filter(|&&id| Some(id) == unknown).count();
        let mut spelled = LiteralSpecialTokenCounter::new(tokenizer.literal_special_token_names());
        spelled.count(prompt);
        Ok(Self {
            unknown_tokens: unknown as u64,
            dropped_chars: tokenizer.dropped_chars(&[prompt], 1)?.into_iter().sum(),
            spelled_special_tokens: spelled.finish(),
        })
    }

    /// Returns a line for each count that is not 0, and for each special token that is spelled out.
    pub fn lines(&self) -> Vec<String> {
        let counts = [
            (
                self.unknown_tokens,
                "unknown tokens, which carry no information about the text",
            ),
            (
                self.dropped_chars,
                "characters omitted, since they are not in the vocabulary",
            ),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let counts = counts.map(|(count, what)| format!("prompt: {count} {what}"));
        let spelled = self.spelled_special_tokens.iter().map(|spelled| {
            format!(
                "prompt: the special token `{}` is spelled out, and encoded as plain characters",
                spelled.token
            )
        });
        let lines = counts.chain(spelled);
        lines.map(|line| one_line(&line).into_owned()).collect()
    }
}

/// Streaming text generator.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::data::{StartToken, Tokenizer};
/// use hybridnorm::eval::{Sampling, TextGenerator};
/// use hybridnorm::model::Model;
/// # use hybridnorm::model::ModelConfig;
///
/// let tokenizer = Tokenizer::bytes();
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(tokenizer.vocab_size())
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let sampling = Sampling::default().with_temperature(0.0);
/// let mut generator = TextGenerator::new(&mut model, &tokenizer, "One", StartToken::None, sampling)?;
/// assert_eq!(generator.prompt_tokens(), 3);
/// let mut text = String::new();
/// for _ in 0..4 {
///     match generator.next_piece()? {
///         // Empty while a character is incomplete.
///         Some(piece) => text.push_str(&piece),
///         None => break,
///     }
/// }
/// text.push_str(&generator.finish());
/// println!("One{text}");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub struct TextGenerator<'a> {
    prompt: PromptCoverage,
    generator: Generator<'a>,
    decoder: StreamDecoder,
    /// Tokens that end the text.
    ends: Vec<u32>,
    /// Token before those of the prompt.
    start_id: Option<u32>,
    prompt_tokens: usize,
    /// White space at the end of the prompt that its tokens do not represent; the first piece continues after
    /// it.
    spaces: usize,
}

impl<'a> TextGenerator<'a> {
    /// Creates a generator for a prompt, which follows a start token.
    ///
    /// # Errors
    /// If the tokenizer's vocabulary is larger than the model's, or a setting is out of range.
    pub fn new(
        model: &'a mut Model,
        tokenizer: &Tokenizer,
        prompt: &str,
        start: StartToken,
        sampling: Sampling,
    ) -> Result<Self> {
        let vocab = model.config().vocab_size;
        if tokenizer.vocab_size() > vocab {
            return Err(Error::conflict(
                ["tokenizer"],
                format!(
                    "the tokenizer has {} tokens, the model only {vocab}",
                    tokenizer.vocab_size()
                ),
            ));
        }
        let encoded = tokenizer.encode(prompt)?;
        let start = TextStart::new(tokenizer, start);
        let ids: Vec<i32> = start.before(&encoded).iter().map(|&id| id as i32).collect();
        Ok(Self {
            prompt: PromptCoverage::of(tokenizer, prompt, &encoded)?,
            generator: Generator::new(model, &ids, sampling)?
                .with_vocab_size(tokenizer.vocab_size()),
            decoder: tokenizer.stream_decoder_with_context(&encoded),
            ends: tokenizer.end_ids().to_vec(),
            start_id: (ids.len() > encoded.len()).then_some(ids[0] as u32),
            prompt_tokens: encoded.len(),
            spaces: trailing_spaces(prompt)
                .saturating_sub(trailing_spaces(&tokenizer.decode(&encoded))),
        })
    }

    /// Samples a token and returns the text that it completes, empty while a character is incomplete; `None` at a
    /// token that ends the text ([`Tokenizer::end_ids`]).
    ///
    /// # Errors
    /// See [`Generator::next_token`].
    pub fn next_piece(&mut self) -> Result<Option<String>> {
        let token = self.generator.next_token()? as u32;
        if self.ends.contains(&token) {
            return Ok(None);
        }
        let piece = self.decoder.push(token);
        Ok(Some(strip_repeated_spaces(piece, &mut self.spaces)))
    }

    /// Returns the coverage of the prompt.
    pub fn prompt(&self) -> &PromptCoverage {
        &self.prompt
    }

    /// Returns the token before those of the prompt, if there is one.
    pub fn start_id(&self) -> Option<u32> {
        self.start_id
    }

    /// Returns the number of prompt tokens, without the start token.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Returns the tokens omitted; see [`Generator::omissions`].
    pub fn omissions(&self) -> Omissions {
        self.generator.omissions()
    }

    /// Returns the buffered text of an incomplete UTF-8 character at the end.
    pub fn finish(mut self) -> String {
        strip_repeated_spaces(self.decoder.finish(), &mut self.spaces)
    }
}

fn trailing_spaces(text: &str) -> usize {
    let is_space = |c: &char| c.is_whitespace();
    text.chars().rev().take_while(is_space).count()
}

/// Removes the leading spaces of a piece that the prompt already ends with.
fn strip_repeated_spaces(piece: String, spaces: &mut usize) -> String {
    if *spaces == 0 || piece.is_empty() {
        return piece;
    }
    let known = piece
        .chars()
        .take_while(|&c| c == ' ')
        .take(*spaces)
        .count();
    *spaces = if known == piece.len() {
        *spaces - known
    } else {
        0
    };
    piece[known..].to_owned()
}

/// Generates up to `max_tokens` tokens after a prompt with the tokenizer's start token; returns their text without the
/// prompt.
///
/// # Errors
/// See [`TextGenerator::new`] and [`TextGenerator::next_piece`].
pub fn generate_text(
    model: &mut Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    sampling: Sampling,
) -> Result<String> {
    let start = StartToken::default();
    let mut generator = TextGenerator::new(model, tokenizer, prompt, start, sampling)?;
    let mut text = String::new();
    for _ in 0..max_tokens {
        match generator.next_piece()? {
            Some(piece) => text.push_str(&piece),
            None => break,
        }
    }
    text.push_str(&generator.finish());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::model::ModelConfig;

    #[test]
    fn generation_ends_at_any_end_token() {
        let config = ModelConfig::default()
            .with_d_model(16)
            .with_n_layers(1)
            .with_n_heads(2)
            .with_n_kv_heads(2)
            .with_d_ff(32)
            .with_vocab_size(257)
            .with_max_seq_len(16)
            .with_placement(crate::placement::named("pre-norm").unwrap());
        let mut model = Model::new(&config, 0, Device::Cpu).unwrap();
        let greedy = || Sampling::default().with_temperature(0.0);
        let first = {
            let ids = [97, 98];
            let mut generator = Generator::new(&mut model, &ids, greedy()).unwrap();
            generator.next_token().unwrap() as u32
        };
        for (ends, has_text) in [(vec![], true), (vec![first], false)] {
            let tokenizer = Tokenizer::bytes().with_end_ids(&ends);
            let start = StartToken::None;
            let mut generator =
                TextGenerator::new(&mut model, &tokenizer, "ab", start, greedy()).unwrap();
            assert_eq!(generator.next_piece().unwrap().is_some(), has_text);
        }
    }
}
