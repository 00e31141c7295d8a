//! Start token that a `tokenizer.json` puts before a text.

use serde_json::Value;

use super::{Kind, Tokenizer};

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
