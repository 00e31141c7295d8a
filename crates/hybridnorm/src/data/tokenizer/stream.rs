//! Streaming decoder.

use super::Tokenizer;

/// Number of ids without a complete character after which the pending text is returned anyway.
const MAX_PENDING_IDS: usize = 8;
/// Number of context ids that are kept, more than any decoder depends on.
const MAX_CONTEXT_IDS: usize = 4096;

/// Decoder that converts ids to text one by one and holds back bytes until characters are complete.
///
/// The concatenated results of [`StreamDecoder::push`] and [`StreamDecoder::finish`] are the text that
/// [`Tokenizer::decode`] returns for all ids at once, after that of the context, which determines, for example, whether
/// a word begins with a space.
///
/// ```
/// use hybridnorm::data::Tokenizer;
///
/// let tokenizer = Tokenizer::bytes();
/// let mut decoder = tokenizer.stream_decoder();
/// let pieces: Vec<_> = "aé".bytes().map(|byte| decoder.push(byte.into())).collect();
/// assert_eq!(pieces, ["a", "", "é"]);
/// assert_eq!(decoder.finish(), "");
/// ```
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// Byte-level vocabularies: bytes of an unfinished character.
    bytes: Vec<u8>,
    /// Other vocabularies: the last ids; the text of those before `n_returned` was already returned.
    ids: Vec<u32>,
    n_returned: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, context: &[u32]) -> Self {
        let context = match tokenizer.is_byte_level() {
            true => &[],
            false => &context[context.len().saturating_sub(MAX_CONTEXT_IDS)..],
        };
        Self {
            tokenizer,
            bytes: Vec::new(),
            n_returned: context.len(),
            ids: context.to_vec(),
        }
    }

    /// Takes one id and returns the text that is complete now, often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_byte_level() {
            self.bytes.extend(&*self.tokenizer.token_bytes(id));
            return self.complete_characters();
        }
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.n_returned]);
        let all = self.tokenizer.decode(&self.ids);
        let n_pending = self.ids.len() - self.n_returned;
        if all.ends_with('\u{fffd}') && n_pending < MAX_PENDING_IDS {
            return String::new();
        }
        if all == before && n_pending < MAX_PENDING_IDS {
            return String::new();
        }
        let new = self.appended_text(&before, all);
        self.ids.drain(..self.n_returned);
        self.n_returned = self.ids.len();
        new
    }

    /// Returns the remaining text; an unfinished character becomes U+FFFD.
    pub fn finish(self) -> String {
        if self.tokenizer.is_byte_level() {
            return String::from_utf8_lossy(&self.bytes).into_owned();
        }
        if self.n_returned == self.ids.len() {
            return String::new();
        }
        let before = self.tokenizer.decode(&self.ids[..self.n_returned]);
        let all = self.tokenizer.decode(&self.ids);
        self.appended_text(&before, all)
    }

    /// Returns the text that `all` appends to `before`. If the new ids would change text that was already
    /// returned, as invalid bytes after a character do, returns only their own text.
    fn appended_text(&self, before: &str, mut all: String) -> String {
        match all.starts_with(before) {
            true => all.split_off(before.len()),
            false if before.starts_with(&all) => String::new(),
            false => self.tokenizer.decode(&self.ids[self.n_returned..]),
        }
    }

    fn complete_characters(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(invalid_len) = error.error_len() else {
                        break;
                    };
                    text.push('\u{fffd}');
                    rest = &rest[invalid_len..];
                }
            }
        }
        self.bytes = rest.to_vec();
        text
    }
}
