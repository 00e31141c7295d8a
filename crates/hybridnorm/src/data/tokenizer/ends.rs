//! Tokens that end generated text, and the named start token.

use super::{Kind, Tokenizer};

impl Tokenizer {
    /// Returns the ids of the tokens that end generated text, without repetition: the end-of-text token
    /// ([`Tokenizer::eos_id`]), which separates documents in training, and those that an imported model has in addition,
    /// such as the end of a turn in a chat.
    ///
    /// ```
    /// use hybridnorm::data::Tokenizer;
    ///
    /// let tokenizer = Tokenizer::bytes();
    /// assert_eq!(tokenizer.end_ids(), [256]);
    /// assert_eq!(tokenizer.with_end_ids(&[10, 256]).end_ids(), [256, 10]);
    /// ```
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the tokenizer with these tokens that end generated text besides the end-of-text token; ids outside the
    /// vocabulary are ignored.
    #[must_use]
    pub fn with_end_ids(mut self, ids: &[u32]) -> Self {
        self.ends = vec![self.eos];
        for &id in ids {
            if (id as usize) < self.vocab_size && !self.ends.contains(&id) {
                self.ends.push(id);
            }
        }
        self
    }

    /// Returns the id of the start token that the tokenizer's configuration names (`bos_token`), whether or not the
    /// tokenizer puts it before texts ([`Tokenizer::start_id`]).
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the tokenizer with another named start token, or without one; an id outside the vocabulary is ignored.
    #[must_use]
    pub fn with_bos_id(mut self, id: Option<u32>) -> Self {
        self.bos = id.filter(|id| (*id as usize) < self.vocab_size);
        self
    }

    /// Returns the id of a token of a `tokenizer.json` by its name.
    pub(super) fn id_of(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Json(json) => json.id_of(name),
            Kind::Bytes | Kind::Tiktoken(..) => self.special_token_id(name),
        }
    }

    /// Returns the name of a token as a `tokenizer.json` writes it.
    pub(super) fn name_of(&self, id: u32) -> String {
        match &self.kind {
            Kind::Json(json) => json.name_of(id).unwrap_or_default(),
            Kind::Bytes | Kind::Tiktoken(..) => self.decode(&[id]),
        }
    }
}
