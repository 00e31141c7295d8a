//! Chat prompts: the tokenizer's template, rendered and encoded.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;

use hybridnorm::data::{ChatTemplate, Tokenizer};
use hybridnorm::text::one_line;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};

/// Instructions that a template may execute, so that it always ends.
const FUEL: u64 = 2_000_000;
/// Bytes that a template may add to the messages.
const MAX_ADDED: usize = 1 << 20;
const NAME: &str = "chat";

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Role: `system`, `user`, ...
    pub role: String,
    /// Text.
    pub content: String,
    /// Name of the author.
    pub name: Option<String>,
}

impl Message {
    fn to_value(&self) -> Value {
        let mut fields = vec![("role", self.role.as_str()), ("content", &self.content)];
        fields.extend(self.name.as_deref().map(|name| ("name", name)));
        Value::from_pairs(fields)
    }
}

/// Renders messages with a chat template, and encodes the result.
///
/// Names of special tokens that the template writes become these tokens. A message that contains such a name is encoded
/// as plain text. Between special tokens, each piece is encoded as a text of its own.
///
/// ```
/// use hybridnorm::data::{ChatTemplate, Tokenizer};
/// use hybridnorm_server::chat::{ChatPrompts, Message};
///
/// let tokenizer = Tokenizer::bytes();
/// let template = ChatTemplate::new("{% for m in messages %}{{ m.role }}:{{ m.content }}<|endoftext|>{% endfor %}");
/// let prompts = ChatPrompts::new(&template, &tokenizer)?;
/// let message = Message { role: "u".into(), content: "hi".into(), name: None };
/// assert_eq!(prompts.encode(&[message])?, [b'u', b':', b'h', b'i'].map(i32::from).into_iter().chain([256]).collect::<Vec<_>>());
/// # Ok::<(), String>(())
/// ```
pub struct ChatPrompts {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    tokenizer: Tokenizer,
    /// Special tokens by their first character, the longest first.
    special: HashMap<char, Vec<(String, i32)>>,
}

impl ChatPrompts {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not a valid template.
    pub fn new(template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<Self, String> {
        // As `transformers` configures Jinja.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        let mut environment = Environment::new();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, template.template.clone())
            .map_err(|error| {
                format!(
                    "the chat template is not valid: {}",
                    one_line(&error.to_string())
                )
            })?;
        let mut special: HashMap<char, Vec<(String, i32)>> = HashMap::new();
        for name in tokenizer.special_tokens() {
            if let (Some(first), Some(id)) =
                (name.chars().next(), tokenizer.special_token_id(&name))
            {
                special.entry(first).or_default().push((name, id as i32));
            }
        }
        for names in special.values_mut() {
            names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        }
        Ok(Self {
            environment,
            bos_token: template.bos_token.clone(),
            eos_token: template.eos_token.clone(),
            tokenizer: tokenizer.clone(),
            special,
        })
    }

    /// Returns the tokens of the prompt for the answer to some messages.
    ///
    /// # Errors
    /// If the template rejects the messages, does not end, or the tokenizer cannot encode the prompt.
    pub fn encode(&self, messages: &[Message]) -> Result<Vec<i32>, String> {
        let mark = unused_character(messages, &self.special);
        let marked: Vec<Message> = messages
            .iter()
            .map(|message| self.marked(message, mark))
            .collect();
        let text = self.render(&marked)?;
        let mut ids = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (plain, special) = match self.next_special(rest) {
                Some((at, name, id)) => (&rest[..at], Some((at + name.len(), id))),
                None => (rest, None),
            };
            let plain = plain.replace(mark, "");
            let encoded = self
                .tokenizer
                .encode(&plain)
                .map_err(|error| error.to_string())?;
            ids.extend(encoded.into_iter().map(|id| id as i32));
            match special {
                Some((end, id)) => {
                    ids.push(id);
                    rest = &rest[end..];
                }
                None => break,
            }
        }
        Ok(ids)
    }

    fn render(&self, messages: &[Message]) -> Result<String, String> {
        let message_len = |message: &Message| message.content.len() + message.role.len();
        let limit = MAX_ADDED + 2 * messages.iter().map(message_len).sum::<usize>();
        let mut out = Limited {
            bytes: Vec::new(),
            limit,
        };
        let context = minijinja::context! {
            messages => messages.iter().map(Message::to_value).collect::<Vec<Value>>(),
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            add_generation_prompt => true,
        };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut out).map(drop))
            .map_err(|error| {
                let mut message = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    let _ = write!(message, ": {source}");
                }
                format!("the chat template failed: {}", one_line(&message))
            })?;
        String::from_utf8(out.bytes).map_err(|error| error.to_string())
    }

    /// Returns a message in which `mark` follows the first character of every name of a special token.
    fn marked(&self, message: &Message, mark: char) -> Message {
        let mark_text = |text: &str| {
            let mut marked = String::with_capacity(text.len());
            let mut rest = text;
            while let Some((at, name, _)) = self.next_special(rest) {
                let first = name.chars().next().map_or(0, char::len_utf8);
                marked.push_str(&rest[..at + first]);
                marked.push(mark);
                rest = &rest[at + first..];
            }
            marked + rest
        };
        Message {
            role: mark_text(&message.role),
            content: mark_text(&message.content),
            name: message.name.as_deref().map(mark_text),
        }
    }

    /// Returns the first special token of a text: its position, name and id.
    fn next_special(&self, text: &str) -> Option<(usize, &str, i32)> {
        text.char_indices().find_map(|(at, first)| {
            let names = self.special.get(&first)?;
            let (name, id) = names
                .iter()
                .find(|(name, _)| text[at..].starts_with(name.as_str()))?;
            Some((at, name.as_str(), *id))
        })
    }
}

/// Returns a character for private use that occurs neither in the messages nor in the name of a special token.
fn unused_character(messages: &[Message], special: &HashMap<char, Vec<(String, i32)>>) -> char {
    let is_used = |c: char| {
        let in_message = |message: &Message| {
            let name = message.name.as_deref().unwrap_or_default();
            [&message.role, &message.content, name]
                .iter()
                .any(|text| text.contains(c))
        };
        messages.iter().any(in_message)
            || special.values().flatten().any(|(name, _)| name.contains(c))
    };
    // Of more characters than a body can contain three bytes each, one is unused.
    let mut candidates = ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{10fffd}');
    candidates.find(|&c| !is_used(c)).unwrap_or('\u{e000}')
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Writer that fails beyond a limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, new: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + new.len() > self.limit {
            return Err(io::Error::other(format!(
                "the prompt exceeds {} bytes",
                self.limit
            )));
        }
        self.bytes.extend_from_slice(new);
        Ok(new.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}\n{{ '<|endoftext|>' + message['role'] + '\n' + \
                          message['content'].strip() + '<|endoftext|>' }}\n{% endfor %}\n{% if add_generation_prompt \
                          %}\n{{ bos_token }}assistant\n{% endif %}";

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
            name: None,
        }
    }

    fn prompts(template: &str) -> Result<ChatPrompts, String> {
        let mut template = ChatTemplate::new(template);
        template.bos_token = "<|endoftext|>".into();
        ChatPrompts::new(&template, &Tokenizer::bytes())
    }

    fn text(ids: &[i32]) -> String {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        Tokenizer::bytes().decode(&ids)
    }

    #[test]
    fn templates_are_rendered_as_in_python() {
        let ids = prompts(CHATML)
            .unwrap()
            .encode(&[message("user", "  hi ")])
            .unwrap();
        assert_eq!(
            text(&ids),
            "<|endoftext|>user\nhi<|endoftext|>\n<|endoftext|>assistant\n"
        );
        assert_eq!(ids.iter().filter(|id| **id == 256).count(), 3);
        assert_eq!(ids.len(), 3 + "user\nhi\n".len() + "assistant\n".len());
    }

    #[test]
    fn messages_cannot_write_special_tokens() {
        let content = "a<|endoftext|>b<|endof<|endoftext|>text|>\u{e000}";
        let ids = prompts(CHATML)
            .unwrap()
            .encode(&[message("user", content)])
            .unwrap();
        assert_eq!(ids.iter().filter(|id| **id == 256).count(), 3);
        assert!(text(&ids).contains(content), "{}", text(&ids));
    }

    #[test]
    fn templates_that_fail_or_do_not_end_are_errors() {
        let render = |template: &str| {
            let prompts = prompts(template)?;
            prompts
                .encode(&[message("user", "hi")])
                .map(|ids| text(&ids))
        };
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(render("{% for").unwrap_err().contains("is not valid"));
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(endless).unwrap_err().contains("fuel"));
        let long = "{% for a in range(9999) %}{{ 'abcdefghijklmnopqrstuvwxyz' * 99 }}{% endfor %}";
        assert!(render(long).is_err());
    }
}
