//! Generation from text to text, piece by piece.

use super::generate::{Generator, Sampling};
use crate::data::{StreamDecoder, Tokenizer};
use crate::error::{Error, Result};
use crate::model::Decoder;

/// Text drawn from a model as it comes.
pub struct TextGenerator {
    generator: Generator,
    decoder: StreamDecoder,
    end: i32,
}

impl TextGenerator {
    /// Starts from a prompt; an empty one stands for the beginning of a text.
    ///
    /// # Errors
    /// If the tokenizer's vocabulary is larger than the model's, or a setting is out of range.
    pub fn new(
        model: &Decoder,
        tokenizer: &Tokenizer,
        prompt: &str,
        sampling: Sampling,
    ) -> Result<Self> {
        let vocab = model.config().vocab_size;
        if tokenizer.vocab_size() > vocab {
            return Err(Error::config(format!(
                "the tokenizer has {} tokens, the model only {vocab}",
                tokenizer.vocab_size()
            )));
        }
        let end = tokenizer.eos_id() as i32;
        let mut ids: Vec<i32> = tokenizer
            .encode(prompt)?
            .into_iter()
            .map(|id| id as i32)
            .collect();
        if ids.is_empty() {
            // Texts follow each other with this token in between.
            ids.push(end);
        }
        Ok(Self {
            generator: Generator::new(model, &ids, sampling)?.below(tokenizer.vocab_size()),
            decoder: tokenizer.stream_decoder(),
            end,
        })
    }

    /// The text that the next token completes (perhaps none yet), or `None` at the end of the
    /// text.
    ///
    /// # Errors
    /// See [`Generator::next_token`].
    pub fn next_piece(&mut self) -> Result<Option<String>> {
        let token = self.generator.next_token()?;
        Ok((token != self.end).then(|| self.decoder.push(token as u32)))
    }

    /// What was held back for lack of a complete character.
    pub fn finish(self) -> String {
        self.decoder.finish()
    }
}

/// Up to `max_tokens` tokens of text after a prompt, which is not repeated.
///
/// # Errors
/// See [`TextGenerator::new`] and [`TextGenerator::next_piece`].
pub fn write(
    model: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    sampling: Sampling,
) -> Result<String> {
    let mut generator = TextGenerator::new(model, tokenizer, prompt, sampling)?;
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
