//! Number of bytes of text per token.

use super::{Kind, Tokenizer};

impl Tokenizer {
    /// Returns the reason why the bytes of a token may differ from its text; `None` if they never do, so that
    /// the bytes of any run of tokens are known.
    pub fn inexact_text_bytes_reason(&self) -> Option<&str> {
        match &self.kind {
            Kind::Bytes | Kind::Tiktoken(..) => None,
            Kind::Json(json) => json.inexact_bytes_reason(),
        }
    }

    /// Returns the bytes of text of a token: 0 for special tokens, which no text is encoded to. `None` if the
    /// token does not determine them ([`Tokenizer::inexact_text_bytes_reason`]) and for invalid ids.
    pub fn token_text_bytes(&self, id: u32) -> Option<u64> {
        if id == self.eos {
            return Some(0);
        }
        let bytes = match &self.kind {
            Kind::Bytes => u8::try_from(id).ok().map(|_| 1),
            Kind::Tiktoken(bpe, _) => {
                let bytes = bpe.decode_bytes(&[id]).ok()?;
                let name = std::str::from_utf8(&bytes).unwrap_or_default();
                match bpe.special_tokens().contains(name) {
                    true => return Some(0),
                    false => Some(bytes.len()),
                }
            }
            Kind::Json(json) if json.inexact_bytes_reason().is_some() => None,
            Kind::Json(json) if json.is_special(id) => return Some(0),
            Kind::Json(json) => json.bytes()?.get(id as usize).map(Vec::len),
        };
        bytes.filter(|&bytes| bytes > 0).map(|bytes| bytes as u64)
    }
}
