//! The chat template next to a tokenizer.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::{CONFIG_NAME, Kind, Tokenizer};
use crate::error::{Error, Result};
use crate::files;

const TEMPLATE_NAME: &str = "chat_template.jinja";
/// Maximum size of a template in bytes.
pub(crate) const TEMPLATE_LIMIT: u64 = 1 << 20;

/// Chat template of a tokenizer: a Jinja template that formats messages as a prompt, and the special tokens that it may
/// refer to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ChatTemplate {
    /// The template.
    pub template: String,
    /// Name of the start token, empty if there is none.
    pub bos_token: String,
    /// Name of the end token, empty if there is none.
    pub eos_token: String,
}

/// Keys of a `tokenizer_config.json` that are read here.
#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    bos_token: Option<Name>,
    eos_token: Option<Name>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`bos_token` or `eos_token`: expected a string or {\"content\": ..}"
)]
enum Name {
    Plain(String),
    Token { content: String },
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`chat_template`: expected a string, or a list of {\"name\": .., \"template\": ..}"
)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplate {
    /// Creates a template that refers to no start or end token.
    pub fn new(template: impl Into<String>) -> Self {
        Self {
            template: template.into(),
            ..Self::default()
        }
    }

    /// Reads the template of a folder: `chat_template.jinja`, else the `chat_template` of `tokenizer_config.json`, of
    /// several the one named `default`; `None` if there is none.
    ///
    /// # Errors
    /// If a file cannot be read, or is larger than 1 MiB (16 MiB for the configuration).
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        Settings::read(folder).map(|settings| settings.chat_template)
    }
}

/// Settings next to a `tokenizer.json`.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Name of the start token.
    pub(crate) bos_token: Option<String>,
    /// Name of the end-of-text token.
    pub(crate) eos_token: Option<String>,
    pub(crate) chat_template: Option<ChatTemplate>,
}

impl Settings {
    /// Reads the settings of a folder: `chat_template.jinja` and `tokenizer_config.json`, if they exist.
    ///
    /// # Errors
    /// See [`ChatTemplate::read`].
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_NAME);
        let config = match files::exists(&path)? {
            true => read_config(&path)?,
            false => Config::default(),
        };
        let separate = folder.join(TEMPLATE_NAME);
        let template = match files::exists(&separate)? {
            true => Some(read_template(&separate)?),
            false => config.chat_template.and_then(|templates| match templates {
                Templates::One(template) => Some(template),
                Templates::Named(all) => {
                    let mut all = all.into_iter();
                    all.find(|named| named.name == "default")
                        .map(|named| named.template)
                }
            }),
        };
        let name = |name: Name| match name {
            Name::Plain(content) | Name::Token { content } => content,
        };
        let (bos_token, eos_token) = (config.bos_token.map(name), config.eos_token.map(name));
        Ok(Self {
            chat_template: template.map(|template| ChatTemplate {
                template,
                bos_token: bos_token.clone().unwrap_or_default(),
                eos_token: eos_token.clone().unwrap_or_default(),
            }),
            bos_token,
            eos_token,
        })
    }
}

/// Reads a file that holds one template.
///
/// # Errors
/// If it cannot be read, is larger than 1 MiB, or is not UTF-8.
fn read_template(path: &Path) -> Result<String> {
    let bytes = files::read_small(path, TEMPLATE_LIMIT)?;
    String::from_utf8(bytes).map_err(|_| Error::format(path, "is not UTF-8"))
}

fn read_config(path: &Path) -> Result<Config> {
    let text = files::read_small(path, 16 << 20)?;
    serde_json::from_slice(&text).map_err(|error| match error.is_data() {
        true => Error::format(
            path,
            "expected a JSON object, its `chat_template` to be a string or a list of `{\"name\": .., \"template\": ..}`, \
             and its tokens to be strings or `{\"content\": ..}`",
        ),
        false => Error::format(path, error.to_string()),
    })
}

impl Tokenizer {
    /// Returns the chat template that was stored next to the tokenizer, if any.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_deref()
    }

    /// Returns the tokenizer with another chat template, or without one.
    #[must_use]
    pub fn with_chat_template(mut self, template: Option<ChatTemplate>) -> Self {
        self.chat_template = template.map(Arc::new);
        self
    }

    /// Returns the tokenizer with the chat template in a file. It refers to the start and end tokens of the tokenizer's
    /// own template, if it has one, and else to the tokenizer's.
    ///
    /// # Errors
    /// If the file cannot be read, is larger than 1 MiB, or is not UTF-8.
    pub fn with_chat_template_file(self, path: &Path) -> Result<Self> {
        let template = read_template(path)?;
        let template = match self.chat_template() {
            Some(own) => ChatTemplate {
                template,
                ..own.clone()
            },
            None => ChatTemplate {
                template,
                bos_token: self.bos.map(|id| self.name_of(id)).unwrap_or_default(),
                eos_token: self.name_of(self.eos),
            },
        };
        Ok(self.with_chat_template(Some(template)))
    }

    /// Returns the id of a special token, which [`Tokenizer::encode`] never returns, by name.
    pub fn special_token_id(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => (name == super::END_OF_TEXT).then_some(self.eos),
            Kind::Tiktoken(core, _) => {
                let is_special = core.special_tokens().contains(name);
                let ids = is_special.then(|| core.encode_with_special_tokens(name))?;
                ids.first().copied()
            }
            Kind::Json(json) => json.special_id(name),
        }
    }

    /// Returns the bytes of the text of a token: with the space that separates it from the previous word, if it has one.
    /// The bytes of one token may be a part of a character. Empty for an unknown id.
    pub fn token_text(&self, id: u32) -> Vec<u8> {
        match &self.kind {
            Kind::Json(json) if json.bytes().is_none() => {
                let name = json.name_of(id).unwrap_or_default();
                let byte = name
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'));
                match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => name.replace('\u{2581}', " ").into_bytes(),
                }
            }
            _ if id as usize >= self.vocab_size => Vec::new(),
            _ => self.token_bytes(id).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn template(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>> {
        ChatTemplate::read(folder(files).path())
    }

    #[test]
    fn templates_are_found_in_every_form() {
        let string =
            r#"{"chat_template": "a", "bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;
        let expected = ChatTemplate {
            template: "a".into(),
            bos_token: "<s>".into(),
            eos_token: "</s>".into(),
        };
        assert_eq!(
            template(&[(CONFIG_NAME, string)]).unwrap(),
            Some(expected.clone())
        );
        let separate = template(&[(CONFIG_NAME, string), (TEMPLATE_NAME, "b")])
            .unwrap()
            .unwrap();
        assert_eq!((&*separate.template, &*separate.bos_token), ("b", "<s>"));
        let named = r#"{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(
            template(&[(CONFIG_NAME, named)]).unwrap(),
            Some(ChatTemplate::new("d"))
        );
        assert_eq!(
            template(&[(CONFIG_NAME, r#"{"eos_token": null}"#)]).unwrap(),
            None
        );
        assert_eq!(template(&[]).unwrap(), None);
        let error = template(&[(CONFIG_NAME, r#"{"chat_template": 3}"#)]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("its `chat_template` to be a string"),
            "{error}"
        );
    }

    #[test]
    fn a_template_is_saved_with_its_tokenizer() {
        let template = ChatTemplate {
            template: "{{ messages }}".into(),
            bos_token: "<|begin|>".into(),
            eos_token: "<|endoftext|>".into(),
        };
        let tokenizer = Tokenizer::train_bpe(&["a b"], 257, &mut crate::data::quiet).unwrap();
        let folder = folder(&[]);
        let path = folder.path().join("tokenizer");
        let tokenizer = tokenizer.with_chat_template(Some(template.clone()));
        tokenizer.save(&path).unwrap();
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!(loaded.chat_template(), Some(&template));
        assert_eq!(loaded.fingerprint(), tokenizer.fingerprint());
        assert_eq!((loaded.end_ids(), loaded.bos_id()), (&[256][..], None));
    }

    #[test]
    fn ends_and_named_start_are_saved() {
        let tokenizer = Tokenizer::train_bpe(&["a b"], 257, &mut crate::data::quiet).unwrap();
        let folder = folder(&[]);
        let path = folder.path().join("tokenizer");
        let ends = tokenizer.with_end_ids(&[7, 256, 7, 999]);
        assert_eq!(ends.end_ids(), [256, 7]);
        ends.with_bos_id(Some(65)).save(&path).unwrap();
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!(
            (loaded.end_ids(), loaded.bos_id()),
            (&[256, 7][..], Some(65))
        );
        // Records of earlier versions have no such field.
        let record = path.join(super::super::RECORD_NAME);
        let text = std::fs::read_to_string(&record).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(
            json.as_object_mut()
                .unwrap()
                .remove("other_end_ids")
                .is_some()
        );
        std::fs::write(&record, json.to_string()).unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap().end_ids(), [256]);
    }

    #[test]
    fn special_tokens_are_found_by_name_and_tokens_have_bytes() {
        let tokenizers = [
            (Tokenizer::bytes(), 256),
            (Tokenizer::r50k(), 50_256),
            (Tokenizer::cl100k(), 100_257),
        ];
        for (tokenizer, id) in tokenizers {
            assert_eq!(tokenizer.special_token_id("<|endoftext|>"), Some(id));
            assert_eq!(tokenizer.special_token_id("a"), None);
            assert_eq!(tokenizer.token_text(id), b"<|endoftext|>");
            let ids = tokenizer.encode("a é").unwrap();
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|id| tokenizer.token_text(*id))
                .collect();
            assert_eq!(bytes, "a é".as_bytes());
            assert!(tokenizer.token_text(u32::MAX).is_empty());
        }
    }
}
