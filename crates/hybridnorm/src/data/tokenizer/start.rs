//! Start token: the token before a text that a model continues or scores.

use serde::Serialize;
use serde_json::Value;

use super::{Kind, Tokenizer};

/// Choice of the token before a text that a model continues or scores. Texts of training have none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StartToken {
    /// The token that the tokenizer puts before a text (the post-processor of its `tokenizer.json`), if any, as
    /// `transformers` does.
    #[default]
    Tokenizer,
    /// The end-of-text token, which precedes documents in training.
    Eos,
    /// None.
    None,
}

/// Tokens before texts; see [`StartToken`].
///
/// ```
/// use hybridnorm::data::{StartToken, TextStart, Tokenizer};
///
/// let tokenizer = Tokenizer::bytes();
/// let start = TextStart::new(&tokenizer, StartToken::Eos);
/// assert_eq!(start.before(&tokenizer.encode("a")?), [256, 97]);
/// // A model needs at least one token.
/// let none = TextStart::new(&tokenizer, StartToken::None);
/// assert_eq!((none.before(&[97]), none.before(&[])), (vec![97], vec![256]));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextStart {
    /// Token before every text.
    pub id: Option<u32>,
    /// Token that replaces an empty text: the one before every text, else the start token that the tokenizer adds, the
    /// one that it names, or end-of-text.
    pub of_empty: u32,
}

impl TextStart {
    /// Returns the tokens before texts of a tokenizer.
    pub fn new(tokenizer: &Tokenizer, choice: StartToken) -> Self {
        let own = tokenizer.start_id();
        let id = match choice {
            StartToken::Tokenizer => own,
            StartToken::Eos => Some(tokenizer.eos_id()),
            StartToken::None => None,
        };
        Self {
            id,
            of_empty: id
                .or(own)
                .or(tokenizer.bos_id())
                .unwrap_or(tokenizer.eos_id()),
        }
    }

    /// Returns the ids of a text after its start token, which is not repeated if they begin with it; never empty.
    pub fn before(&self, ids: &[u32]) -> Vec<u32> {
        match (self.id, ids) {
            (_, []) => vec![self.of_empty],
            (Some(id), [first, ..]) if *first != id => [&[id], ids].concat(),
            _ => ids.to_vec(),
        }
    }
}

impl Tokenizer {
    /// Returns the id of the token that the post-processor of its `tokenizer.json` puts before a single text, such as
    /// `<s>`; `None` if it adds none. [`Tokenizer::encode`] does not add it.
    ///
    /// ```
    /// use hybridnorm::data::Tokenizer;
    ///
    /// assert_eq!(Tokenizer::r50k().start_id(), None);
    /// ```
    pub fn start_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Json(json) => {
                let file: Value = serde_json::from_slice(json.file()).ok()?;
                start_id(&file["post_processor"])
            }
            Kind::Bytes | Kind::Tiktoken(..) => None,
        }
    }
}

fn start_id(processor: &Value) -> Option<u32> {
    let id = match processor["type"].as_str()? {
        "Sequence" => {
            let mut all = processor["processors"].as_array()?.iter();
            return all.find_map(start_id);
        }
        "TemplateProcessing" => {
            let name = processor["single"][0]["SpecialToken"]["id"].as_str()?;
            &processor["special_tokens"][name]["ids"][0]
        }
        "BertProcessing" | "RobertaProcessing" => &processor["cls"][1],
        _ => return None,
    };
    u32::try_from(id.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_tokens_of_post_processors() {
        let id = |json: &str| start_id(&serde_json::from_str(json).unwrap());
        let template = r#"{"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}}"#;
        assert_eq!(id(template), Some(5));
        let nested = format!(
            r#"{{"type": "Sequence", "processors": [{{"type": "ByteLevel"}}, {template}]}}"#
        );
        assert_eq!(id(&nested), Some(5));
        assert_eq!(
            id(r#"{"type": "RobertaProcessing", "cls": ["<s>", 7]}"#),
            Some(7)
        );
        let ends_only = template.replacen("SpecialToken", "Sequence", 1);
        assert_eq!(id(&ends_only), None);
        for none in [
            r#"{"type": "ByteLevel"}"#,
            "null",
            "3",
            r#"{"type": "TemplateProcessing"}"#,
        ] {
            assert_eq!(id(none), None, "{none}");
        }
    }
}
