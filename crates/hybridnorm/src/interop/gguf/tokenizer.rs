//! Conversion of a GGUF file's tokenizer to a `tokenizer.json`.

use std::collections::{BTreeMap, HashMap};

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::metadata::{Texts, Value};
use super::pieces;
use super::pre_tokenizers::{DEFAULT, PreTokenizer};
use crate::data::{CHAT_TEMPLATE_LIMIT as TEMPLATE_LIMIT, ChatTemplate};

/// Types of tokens, `llama_token_type` of llama.cpp.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Names of tokens that end generated text in llama.cpp, whatever the keys of the file say: ends of texts, then ends of
/// turns.
pub(super) const END_OF_TEXT_NAMES: [&str; 2] = ["<|endoftext|>", "<|end_of_text|>"];
pub(super) const END_OF_TURN_NAMES: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
];
/// Roles of tokens that end generated text.
const END_ROLES: [&str; 3] = ["eos", "eot", "eom"];
const TEMPLATE: &str = "tokenizer.chat_template";

/// A converted tokenizer.
pub(super) struct Converted {
    /// The bytes of a `tokenizer.json`.
    pub(super) json: Vec<u8>,
    /// Name of the end-of-text token, if the file names one.
    pub(super) eos: Option<String>,
    /// Id of the start token, if the file names one.
    pub(super) bos: Option<u32>,
    /// Ids of the tokens that end generated text.
    pub(super) ends: Vec<u32>,
    pub(super) chat_template: Option<ChatTemplate>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
}

/// Contents of a `tokenizer.json`.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: Json,
    padding: Json,
    added_tokens: Vec<Json>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Bpe<'a>,
}

/// Byte-pair encoding.
#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: Option<f64>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_map")]
    vocab: Vec<(&'a str, u32)>,
    merges: Vec<(&'a str, &'a str)>,
}

fn as_map<S: Serializer>(vocab: &[(&str, u32)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(vocab.iter().copied())
}

/// Metadata of a tokenizer.
pub(super) struct Tokens<'a> {
    metadata: &'a BTreeMap<String, Value>,
    texts: &'a Texts,
    types: Vec<i64>,
}

/// Converts the tokenizer; `None` if the file has none.
pub(super) fn convert(metadata: &BTreeMap<String, Value>) -> Result<Option<Converted>, String> {
    let model = match metadata.get("tokenizer.ggml.model") {
        None => return Ok(None),
        Some(Value::Text(model)) => model.as_str(),
        Some(other) => {
            return Err(format!(
                "tokenizer.ggml.model = {}, expected a text",
                other.describe()
            ));
        }
    };
    if matches!(model, "none" | "no_vocab") {
        return Ok(None);
    }
    let tokens = Tokens::read(metadata)?;
    let mut notes = Vec::new();
    if tokens.flag("tokenizer.ggml.add_eos_token")? == Some(true) {
        notes.push(
            "tokenizer.ggml.add_eos_token = true has no effect: a prompt is continued, so no end-of-text token follows it"
                .into(),
        );
    }
    let json = match model {
        "gpt2" => tokens.byte_level(&mut notes)?,
        "llama" => tokens.sentencepiece()?,
        other => {
            return Err(format!(
                "tokenizer.ggml.model = {:?}, expected \"gpt2\" or \"llama\"",
                crate::text::truncated_line(other, 40)
            ));
        }
    };
    let eos = tokens.named("eos")?.map(|(_, text)| text.to_owned());
    let bos = tokens.named("bos")?;
    let mut chat_template = tokens.chat_template()?;
    if let Some(template) = &mut chat_template {
        template.bos_token = bos.map(|(_, text)| text.to_owned()).unwrap_or_default();
        template.eos_token = eos.clone().unwrap_or_default();
    }
    Ok(Some(Converted {
        json: serde_json::to_vec(&json).map_err(|error| error.to_string())?,
        eos,
        bos: bos.map(|(id, _)| id),
        ends: tokens.ends()?,
        chat_template,
        notes,
    }))
}

impl<'a> Tokens<'a> {
    fn read(metadata: &'a BTreeMap<String, Value>) -> Result<Self, String> {
        let texts =
            texts(metadata, "tokenizer.ggml.tokens")?.ok_or("tokenizer.ggml.tokens is missing")?;
        let types = match metadata.get("tokenizer.ggml.token_type") {
            None => vec![NORMAL; texts.len()],
            Some(Value::Numbers(types)) if types.len() == texts.len() => {
                types.iter().map(|id| id as i64).collect()
            }
            Some(other) => {
                return Err(format!(
                    "tokenizer.ggml.token_type = {}, expected an array of {} numbers, one for each token",
                    other.describe(),
                    texts.len()
                ));
            }
        };
        let tokens = Self {
            metadata,
            texts,
            types,
        };
        tokens.reject_duplicates()?;
        Ok(tokens)
    }

    /// A `tokenizer.json` identifies tokens by their texts.
    fn reject_duplicates(&self) -> Result<(), String> {
        let mut seen = HashMap::new();
        for (id, text, _) in self.iter() {
            if let Some(earlier) = seen.insert(text, id) {
                let text = crate::text::truncated_line(text, 40);
                return Err(format!(
                    "tokenizer.ggml.tokens has {text:?} with the ids {earlier} and {id}, expected different texts"
                ));
            }
        }
        Ok(())
    }

    /// Iterates over ids, texts and types; without unused ids at the end, whose texts converters make up.
    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, i64)> {
        let is_used = |kind: &i64| *kind != UNUSED;
        let last = self.types.iter().rposition(is_used);
        let all = self.texts.iter().zip(&self.types);
        let all = all.take(last.map_or(0, |last| last + 1));
        (0..).zip(all).map(|(id, (text, kind))| (id, text, *kind))
    }

    /// Returns id and text of the token of a role, `eos` for example, if the file names one.
    fn named(&self, role: &str) -> Result<Option<(u32, &'a str)>, String> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let Some(value) = self.metadata.get(&key) else {
            return Ok(None);
        };
        let id = match value {
            Value::Integer(id) => u32::try_from(*id).ok(),
            _ => None,
        };
        let text = id.and_then(|id| Some((id, self.texts.get(id as usize)?)));
        text.map(Some).ok_or_else(|| {
            format!(
                "{key} = {}, expected an id below {}",
                value.describe(),
                self.texts.len()
            )
        })
    }

    /// Returns the ids of the tokens that end generated text: those of the keys, and those with a name that llama.cpp
    /// recognizes.
    fn ends(&self) -> Result<Vec<u32>, String> {
        let mut ends = Vec::new();
        for role in END_ROLES {
            ends.extend(self.named(role)?.map(|(id, _)| id));
        }
        let is_end =
            |text: &str| END_OF_TURN_NAMES.contains(&text) || END_OF_TEXT_NAMES.contains(&text);
        let named = self.iter().filter(|(_, text, _)| is_end(text));
        ends.extend(named.map(|(id, ..)| id));
        Ok(ends)
    }

    /// Returns the chat template, if the file has one.
    fn chat_template(&self) -> Result<Option<ChatTemplate>, String> {
        match self.metadata.get(TEMPLATE) {
            None => Ok(None),
            Some(Value::Text(text)) if text.len() as u64 <= TEMPLATE_LIMIT => {
                Ok(Some(ChatTemplate::new(text.as_str())))
            }
            Some(Value::Text(text)) => Err(format!(
                "{TEMPLATE} has {} bytes, expected at most {TEMPLATE_LIMIT}",
                text.len()
            )),
            Some(other) => Err(format!(
                "{TEMPLATE} = {}, expected a text",
                other.describe()
            )),
        }
    }

    /// Returns a setting that is true or false.
    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(format!("{key} = {}, expected a boolean", other.describe())),
        }
    }

    /// Returns the tokens that are matched as a whole: special ones, which text is never encoded to, and others.
    fn added(&self) -> Vec<Json> {
        let added = |(id, text, kind): (u32, &str, i64)| {
            matches!(kind, UNKNOWN | CONTROL | USER_DEFINED).then(|| {
                json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind != USER_DEFINED,
                })
            })
        };
        self.iter().filter_map(added).collect()
    }

    /// Returns the vocabulary of the model. Added tokens after all others are not part of it.
    fn vocab(&self) -> Vec<(&'a str, u32)> {
        let is_ordinary = |kind: i64| !matches!(kind, CONTROL | USER_DEFINED);
        let last = self.iter().filter(|(_, _, kind)| is_ordinary(*kind)).last();
        let count = last.map_or(0, |(id, ..)| id as usize + 1);
        self.iter()
            .take(count)
            .map(|(id, text, _)| (text, id))
            .collect()
    }

    /// Returns the part of a `tokenizer.json` that adds the start token, if there is one to be added: as the file says,
    /// else as llama.cpp does by default for the kind of tokenizer.
    fn post_processor(&self, adds_by_default: bool) -> Result<Json, String> {
        let adds_start = self
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_by_default);
        let Some((id, text)) = self.named("bos")?.filter(|_| adds_start) else {
            return Ok(Json::Null);
        };
        let start = json!({"SpecialToken": {"id": text, "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let mut special = serde_json::Map::new();
        special.insert(
            text.to_owned(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        );
        Ok(json!({
            "type": "TemplateProcessing",
            "single": [start, sequence("A")],
            "pair": [start, sequence("A"), start, sequence("B")],
            "special_tokens": special,
        }))
    }

    /// Converts byte-level BPE with its merges.
    fn byte_level(&self, notes: &mut Vec<String>) -> Result<TokenizerJson<'a>, String> {
        let key = "tokenizer.ggml.pre";
        let name = match self.metadata.get(key) {
            None => {
                notes.push(format!(
                    "{key} is missing; text is split as llama.cpp does by default, which may not be how the model \
                     was trained"
                ));
                DEFAULT
            }
            Some(Value::Text(name)) => name,
            Some(other) => return Err(format!("{key} = {}, expected a text", other.describe())),
        };
        let split = PreTokenizer::by_name(name)?;
        if self.flag("tokenizer.ggml.add_space_prefix")? == Some(true) {
            return Err(
                "tokenizer.ggml.add_space_prefix = true for a byte-level tokenizer, expected false"
                    .into(),
            );
        }
        Ok(TokenizerJson {
            version: "1.0",
            truncation: Json::Null,
            padding: Json::Null,
            added_tokens: self.added(),
            normalizer: split.normalizer(),
            pre_tokenizer: split.pre_tokenizer(),
            post_processor: self.post_processor(split.adds_bos)?,
            decoder: json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
            }),
            model: Bpe {
                r#type: "BPE",
                dropout: None,
                unk_token: None,
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: split.ignores_merges,
                vocab: self.vocab(),
                merges: self.merges()?,
            },
        })
    }

    /// Returns the merges of the file: two tokens with a space between them.
    fn merges(&self) -> Result<Vec<(&'a str, &'a str)>, String> {
        let key = "tokenizer.ggml.merges";
        let merges = texts(self.metadata, key)?.ok_or_else(|| format!("{key} is missing"))?;
        let pairs = merges.iter().enumerate().map(|(n, merge)| {
            // The first token may begin with a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge[first..].find(' ').map(|at| at + first);
            space
                .map(|at| (&merge[..at], &merge[at + 1..]))
                .ok_or_else(|| {
                    let merge = crate::text::truncated_line(merge, 40);
                    format!("{key}[{n}] = {merge:?}, expected two tokens with a space between them")
                })
        });
        pairs.collect()
    }

    /// Converts SentencePiece's BPE, whose merges follow from the scores of its pieces.
    fn sentencepiece(&self) -> Result<TokenizerJson<'a>, String> {
        let key = "tokenizer.ggml.scores";
        let scores: Vec<f64> = match self.metadata.get(key) {
            Some(Value::Numbers(scores)) if scores.len() == self.texts.len() => {
                scores.iter().collect()
            }
            Some(other) => {
                return Err(format!(
                    "{key} = {}, expected an array of {} numbers, one for each token",
                    other.describe(),
                    self.texts.len()
                ));
            }
            None => return Err(format!("{key} is missing")),
        };
        let has_prefix = self
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
        if self.flag("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
            return Err("tokenizer.ggml.remove_extra_whitespaces = true, expected false".into());
        }
        if self
            .metadata
            .contains_key("tokenizer.ggml.precompiled_charsmap")
        {
            return Err(
                "tokenizer.ggml.precompiled_charsmap is set, which is not supported".into(),
            );
        }
        let ordinary = self.iter().filter(|(_, _, kind)| *kind == NORMAL);
        let pieces = ordinary.map(|(id, text, _)| (text, id, scores[id as usize]));
        let merges = pieces::merges(pieces)?;
        let unknown = self.iter().find(|(_, _, kind)| *kind == UNKNOWN);
        let unknown = match unknown {
            Some((_, text, _)) => Some(text),
            None => self.named("unknown")?.map(|(_, text)| text),
        };
        Ok(TokenizerJson {
            version: "1.0",
            truncation: Json::Null,
            padding: Json::Null,
            added_tokens: self.added(),
            normalizer: pieces::normalizer(has_prefix),
            pre_tokenizer: Json::Null,
            post_processor: self.post_processor(true)?,
            decoder: pieces::decoder(has_prefix),
            model: Bpe {
                r#type: "BPE",
                dropout: None,
                unk_token: unknown,
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: true,
                byte_fallback: true,
                ignore_merges: false,
                vocab: self.vocab(),
                merges,
            },
        })
    }
}

/// Returns an array of texts, if there is one of this key.
fn texts<'a>(
    metadata: &'a BTreeMap<String, Value>,
    key: &str,
) -> Result<Option<&'a Texts>, String> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Texts(texts)) => Ok(Some(texts)),
        Some(other) => Err(format!(
            "{key} = {}, expected an array of texts",
            other.describe()
        )),
    }
}

#[cfg(test)]
mod tests;
