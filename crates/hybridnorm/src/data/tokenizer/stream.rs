//! Decoding id by id.

use super::Tokenizer;

/// Turns ids into text one by one, holding back bytes until they are whole characters.
///
/// What [`StreamDecoder::push`] and [`StreamDecoder::finish`] return, joined, is what
/// [`Tokenizer::decode`] gives for all ids at once.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// Byte-level vocabularies: bytes of an unfinished character.
    bytes: Vec<u8>,
    /// Others: the last ids; text of those before `read` was returned already.
    ids: Vec<u32>,
    read: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            bytes: Vec::new(),
            ids: Vec::new(),
            read: 0,
        }
    }

    /// Takes one id and returns the text that is complete now, often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_byte_level() {
            self.bytes.extend(&*self.tokenizer.token_bytes(id));
            return self.complete_characters();
        }
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.read]);
        let all = self.tokenizer.decode(&self.ids);
        let waiting = self.ids.len() - self.read;
        if all.len() <= before.len() || all.ends_with('\u{fffd}') && waiting < 8 {
            return String::new();
        }
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        all.get(before.len()..).unwrap_or_default().to_owned()
    }

    /// The rest; an unfinished character becomes U+FFFD.
    pub fn finish(self) -> String {
        if self.tokenizer.is_byte_level() {
            return String::from_utf8_lossy(&self.bytes).into_owned();
        }
        let before = self.tokenizer.decode(&self.ids[..self.read]);
        let all = self.tokenizer.decode(&self.ids);
        all.get(before.len()..).unwrap_or_default().to_owned()
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
                    let Some(bad) = error.error_len() else { break };
                    text.push('\u{fffd}');
                    rest = &rest[bad..];
                }
            }
        }
        self.bytes = rest.to_vec();
        text
    }
}
