//! Responses in OpenAI's schema.

use std::collections::HashMap;

use hybridnorm::data::{TextStart, Tokenizer};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::request::Api;
use crate::engine::{FinishReason, TokenLogprob};

/// Log-probability that stands for minus infinity, which JSON does not have.
const LOWEST: f32 = -9999.0;

/// Fields of every part of a response.
pub(super) struct Reply {
    pub(super) api: Api,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) tokenizer: Tokenizer,
    /// Texts with which choices begin, by prompt.
    pub(super) echo: Option<Vec<String>>,
    /// Tokens before prompts that were given as text; these texts do not contain them.
    pub(super) start: Option<TextStart>,
    /// Choices per prompt.
    pub(super) n: usize,
    pub(super) has_logprobs: bool,
    pub(super) prompt_tokens: usize,
}

/// A choice, or the part of one that a chunk of a stream contains.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Vec<TokenLogprob>,
    pub(super) finish_reason: Option<FinishReason>,
    /// Length of the choice's text before the first token, in characters.
    pub(super) offset: usize,
}

/// Log-probabilities in the schema of completions.
#[derive(Serialize, Default)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<TopLogprobs>>,
    text_offset: Vec<usize>,
}

/// Log-probabilities by token text.
struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// A token in the schema of chats.
#[derive(Serialize)]
struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatLogprob>>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    text: &'a str,
    index: usize,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<HashMap<&'static str, &'a str>>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Document<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

impl Reply {
    /// Returns the text with which a choice begins.
    pub(super) fn beginning(&self, choice: usize) -> &str {
        let echo = self
            .echo
            .as_ref()
            .and_then(|texts| texts.get(choice / self.n));
        echo.map_or("", String::as_str)
    }

    /// Returns the number of tokens of prompt and result.
    pub(super) fn usage(&self, generated: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        })
    }

    /// Returns the document of a complete response.
    pub(super) fn document(
        &self,
        parts: &[Part],
        generated: usize,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let usage = Some(self.usage(generated));
        match self.api {
            Api::Completion => {
                let choices = parts
                    .iter()
                    .map(|part| self.completion_choice(part))
                    .collect();
                self.write("text_completion", choices, usage)
            }
            Api::Chat => {
                let choices = parts.iter().map(|part| ChatChoice {
                    message: Some(
                        json!({ "role": "assistant", "content": part.text, "refusal": null }),
                    ),
                    ..self.chat_choice(part)
                });
                self.write("chat.completion", choices.collect(), usage)
            }
        }
    }

    /// Returns the document of a chunk of a stream; `is_first` for the first of its choice.
    pub(super) fn chunk(&self, part: &Part, is_first: bool) -> Result<Vec<u8>, serde_json::Error> {
        match self.api {
            Api::Completion => {
                self.write("text_completion", vec![self.completion_choice(part)], None)
            }
            Api::Chat => {
                let mut delta = HashMap::new();
                if is_first {
                    delta.insert("role", "assistant");
                }
                if is_first || !part.text.is_empty() {
                    delta.insert("content", &*part.text);
                }
                let choice = ChatChoice {
                    delta: Some(delta),
                    ..self.chat_choice(part)
                };
                self.write("chat.completion.chunk", vec![choice], None)
            }
        }
    }

    /// Returns the last chunk of a stream, which contains only the numbers of tokens.
    pub(super) fn usage_chunk(&self, generated: usize) -> Result<Vec<u8>, serde_json::Error> {
        let object = match self.api {
            Api::Completion => "text_completion",
            Api::Chat => "chat.completion.chunk",
        };
        self.write(object, Vec::<Value>::new(), Some(self.usage(generated)))
    }

    fn write<C: Serialize>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Value>,
    ) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Document {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        })
    }

    fn completion_choice<'a>(&self, part: &'a Part) -> CompletionChoice<'a> {
        CompletionChoice {
            text: &part.text,
            index: part.index,
            logprobs: self.has_logprobs.then(|| self.completion_logprobs(part)),
            finish_reason: part.finish_reason.map(FinishReason::name),
        }
    }

    fn chat_choice<'a>(&self, part: &Part) -> ChatChoice<'a> {
        ChatChoice {
            index: part.index,
            message: None,
            delta: None,
            logprobs: self.has_logprobs.then(|| self.chat_logprobs(part)),
            finish_reason: part.finish_reason.map(FinishReason::name),
        }
    }

    fn completion_logprobs(&self, part: &Part) -> CompletionLogprobs {
        let mut all = CompletionLogprobs::default();
        let mut offset = part.offset;
        for token in &part.logprobs {
            let bytes = self.bytes(token.id);
            all.token_logprobs.push(token.logprob.map(finite));
            all.top_logprobs.push(
                token
                    .logprob
                    .map(|logprob| self.top_logprobs(token, logprob)),
            );
            all.text_offset.push(offset);
            offset += self.width(token);
            all.tokens.push(display(&bytes));
        }
        all
    }

    /// Returns the alternatives of a token, and itself. Of tokens with the same text, the most likely one counts.
    fn top_logprobs(&self, token: &TokenLogprob, logprob: f32) -> TopLogprobs {
        let own = std::iter::once((token.id, logprob));
        let mut top: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
        for (id, logprob) in token.top.iter().copied().chain(own) {
            let text = display(&self.bytes(id));
            match top.iter_mut().find(|(other, _)| *other == text) {
                Some((_, other)) => *other = other.max(finite(logprob)),
                None => top.push((text, finite(logprob))),
            }
        }
        TopLogprobs(top)
    }

    fn chat_logprobs(&self, part: &Part) -> Value {
        let entry = |id: i32, logprob: f32, top: Option<Vec<ChatLogprob>>| {
            let bytes = self.bytes(id);
            ChatLogprob {
                token: display(&bytes),
                logprob: finite(logprob),
                bytes,
                top_logprobs: top,
            }
        };
        let content: Vec<ChatLogprob> = part
            .logprobs
            .iter()
            .map(|token| {
                let top = token
                    .top
                    .iter()
                    .map(|&(id, logprob)| entry(id, logprob, None))
                    .collect();
                entry(token.id, token.logprob.unwrap_or(0.0), Some(top))
            })
            .collect();
        json!({ "content": content, "refusal": null })
    }

    /// Returns the number of characters of the tokens of a part.
    pub(super) fn characters(&self, part: &Part) -> usize {
        part.logprobs.iter().map(|token| self.width(token)).sum()
    }

    /// Returns the number of characters of a token in the text of its choice.
    fn width(&self, token: &TokenLogprob) -> usize {
        let is_start = |start: TextStart| {
            let id = token.id as u32;
            start.id == Some(id) || start.of_empty == id
        };
        // Only the first token of a prompt has no log-probability.
        match token.logprob.is_none() && self.start.is_some_and(is_start) {
            true => 0,
            false => characters(&self.bytes(token.id)),
        }
    }

    fn bytes(&self, id: i32) -> Vec<u8> {
        self.tokenizer.token_text(id as u32)
    }
}

/// Returns the number of characters that begin in the bytes: of a character of several tokens, the first one counts.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOWEST)
}

/// Returns the text of a token; `bytes:\x..`, as OpenAI writes it, if it is not a whole number of characters.
fn display(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| {
            text + &format!("\\x{byte:02x}")
        }),
    }
}

#[cfg(test)]
mod tests {
    use hybridnorm::data::StartToken;

    use super::*;

    fn reply(api: Api) -> Reply {
        Reply {
            api,
            id: "id".into(),
            created: 1,
            model: "m".into(),
            tokenizer: Tokenizer::bytes(),
            echo: Some(vec!["é".into()]),
            start: None,
            n: 1,
            has_logprobs: true,
            prompt_tokens: 2,
        }
    }

    fn part() -> Part {
        let token = |id, logprob, top: &[(i32, f32)]| TokenLogprob {
            id,
            logprob,
            top: top.to_vec(),
        };
        Part {
            index: 0,
            text: "éa".into(),
            logprobs: vec![
                token(0xc3, None, &[]),
                token(0xa9, Some(-0.5), &[(97, -0.25)]),
                token(97, Some(f32::NEG_INFINITY), &[(98, -0.1), (0xff, -3.0)]),
            ],
            finish_reason: Some(FinishReason::Length),
            offset: 0,
        }
    }

    #[test]
    fn completions_have_the_schema_that_clients_expect() {
        let document: Value =
            serde_json::from_slice(&reply(Api::Completion).document(&[part()], 1).unwrap())
                .unwrap();
        let expected = json!({
            "id": "id", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{
                "text": "éa", "index": 0, "finish_reason": "length",
                "logprobs": {
                    "tokens": ["bytes:\\xc3", "bytes:\\xa9", "a"],
                    "token_logprobs": [null, -0.5, -9999.0],
                    "top_logprobs": [
                        null,
                        {"a": -0.25, "bytes:\\xa9": -0.5},
                        {"b": -0.1f32, "bytes:\\xff": -3.0, "a": -9999.0},
                    ],
                    "text_offset": [0, 1, 1],
                },
            }],
            "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
        });
        let expected: Value = serde_json::from_str(&expected.to_string()).unwrap();
        assert_eq!(
            document.to_string().replace("-0.10000000149011612", "-0.1"),
            expected.to_string().replace("-0.10000000149011612", "-0.1")
        );
    }

    #[test]
    fn offsets_do_not_count_a_start_token() {
        let tokenizer = Tokenizer::bytes();
        let reply = Reply {
            start: Some(TextStart::new(&tokenizer, StartToken::Eos)),
            ..reply(Api::Completion)
        };
        let mut part = part();
        let start = TokenLogprob {
            id: tokenizer.eos_id() as i32,
            logprob: None,
            top: Vec::new(),
        };
        part.logprobs.insert(0, start);
        part.logprobs[1].logprob = Some(-1.0);
        let logprobs = reply.completion_logprobs(&part);
        assert_eq!(logprobs.text_offset, [0, 0, 1, 1]);
        assert_eq!(reply.characters(&part), part.text.chars().count());
    }

    #[test]
    fn chats_have_the_schema_that_clients_expect() {
        let reply = reply(Api::Chat);
        let document: Value =
            serde_json::from_slice(&reply.document(&[part()], 1).unwrap()).unwrap();
        assert_eq!(document["object"], "chat.completion");
        let choice = &document["choices"][0];
        assert_eq!(
            choice["message"],
            json!({"role": "assistant", "content": "éa", "refusal": null})
        );
        assert_eq!(choice["logprobs"]["content"][1]["bytes"], json!([0xa9]));
        assert_eq!(
            choice["logprobs"]["content"][1]["top_logprobs"][0]["token"],
            "a"
        );
        let chunk: Value = serde_json::from_slice(&reply.chunk(&part(), true).unwrap()).unwrap();
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            chunk["choices"][0]["delta"],
            json!({"role": "assistant", "content": "éa"})
        );
        assert!(chunk.get("usage").is_none());
        let usage: Value = serde_json::from_slice(&reply.usage_chunk(4).unwrap()).unwrap();
        assert_eq!(
            (&usage["choices"], &usage["usage"]["completion_tokens"]),
            (&json!([]), &json!(4))
        );
    }
}
