//! Chat prompts: the tokenizer's template, rendered and encoded.

mod environment;
mod generation;
mod python;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hybridnorm::data::{ChatTemplate, Tokenizer};
use hybridnorm::text::one_line;
use minijinja::{Environment, Value};

/// Bytes that a template may add to the messages.
const MAX_ADDED: usize = 1 << 20;
/// Maximum length of a template in bytes.
const MAX_TEMPLATE: usize = 128 << 10;
/// Stack in bytes of the thread that runs a template: expressions, and values that a template nests, are parsed, written
/// and freed recursively, and both may be as deep as [`MAX_TEMPLATE`] and the limit of instructions allow. Only used
/// pages take memory.
const STACK: usize = 1 << 30;
/// Time for a template. The limit of instructions does not count all work: a list that is joined with itself 60 times is
/// small, but has 2^60 elements.
const TIME: Duration = Duration::from_secs(10);
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
    environment: Arc<Environment<'static>>,
    /// Locked while a template runs; true after one did not end.
    is_stuck: Mutex<bool>,
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
        if template.template.len() > MAX_TEMPLATE {
            return Err(format!(
                "the chat template has {} bytes, at most {MAX_TEMPLATE} are possible",
                template.template.len()
            ));
        }
        let source = template.template.clone();
        let compile = move || {
            environment::environment(NAME, &source).map_err(|error| {
                format!(
                    "the chat template is not valid: {}",
                    one_line(&error.to_string())
                )
            })
        };
        let environment = with_limits(TIME, compile)?.ok_or_else(too_long)??;
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
            environment: Arc::new(environment),
            is_stuck: Mutex::new(false),
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
        let (messages, bos, eos) = (
            messages.to_vec(),
            self.bos_token.clone(),
            self.eos_token.clone(),
        );
        let environment = Arc::clone(&self.environment);
        let render = move || {
            let context = minijinja::context! {
                messages => messages.iter().map(Message::to_value).collect::<Vec<Value>>(),
                bos_token => bos,
                eos_token => eos,
                add_generation_prompt => true,
                tools => (),
                documents => (),
            };
            render_limited(&environment, context, limit)
        };
        // One at a time: a template may use as many bytes of memory as it has fuel, and one that does not end takes a
        // thread.
        let mut is_stuck = self.is_stuck.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_stuck {
            return Err(too_long());
        }
        let rendered = with_limits(TIME, render)?;
        *is_stuck = rendered.is_none();
        rendered.unwrap_or_else(|| Err(too_long()))
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

/// Runs `work` on a thread with a stack of [`STACK`] bytes; `None` if it does not end in time, and then it continues.
fn with_limits<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let name = "chat-template".to_owned();
    let thread = thread::Builder::new().name(name).stack_size(STACK);
    // The receiver is gone if the time has passed.
    let run = move || drop(sender.send(work()));
    thread
        .spawn(run)
        .map_err(|error| format!("no thread can be started for the chat template: {error}"))?;
    match receiver.recv_timeout(time) {
        Ok(found) => Ok(Some(found)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err("the chat template failed".to_owned()),
    }
}

fn too_long() -> String {
    format!(
        "the chat template did not end within {} seconds, and chats are off; restart the server with another one \
         (--chat-template)",
        TIME.as_secs()
    )
}

fn render_limited(
    environment: &Environment,
    context: Value,
    limit: usize,
) -> Result<String, String> {
    let mut out = Limited {
        bytes: Vec::new(),
        limit,
    };
    environment
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

    /// A prompt that `transformers` rendered.
    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        /// If absent, it is in the file of this name.
        template: Option<String>,
        bos: String,
        eos: String,
        messages: Vec<HashMap<String, String>>,
        prompt: Option<String>,
        error: Option<String>,
    }

    #[test]
    fn templates_of_published_models_give_the_prompts_of_transformers() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let cases: Vec<Case> = serde_json::from_str(&read("expected.json")).unwrap();
        let mut failures = Vec::new();
        for case in &cases {
            let text = case.template.clone().unwrap_or_else(|| read(&case.name));
            let mut template = ChatTemplate::new(text);
            template.bos_token.clone_from(&case.bos);
            template.eos_token.clone_from(&case.eos);
            let messages: Vec<Message> = case
                .messages
                .iter()
                .map(|fields| message(&fields["role"], &fields["content"]))
                .collect();
            let prompts = ChatPrompts::new(&template, &Tokenizer::bytes());
            let found = prompts.and_then(|prompts| prompts.render(&messages));
            let is_expected = match (&found, &case.prompt, &case.error) {
                (Ok(found), Some(prompt), None) => found == prompt,
                (Err(found), None, Some(error)) => found.contains(error),
                _ => false,
            };
            if !is_expected {
                let expected = case.prompt.as_ref().or(case.error.as_ref());
                failures.push(format!("{}: {found:?}\nexpected {expected:?}", case.name));
            }
        }
        assert!(
            cases.len() > 80 && failures.is_empty(),
            "{}",
            failures.join("\n\n")
        );
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
        // Values of exponential size.
        let doubled = |operator: &str, first: &str, end: &str| {
            render(&format!(
                "{{% set ns = namespace(s={first}) %}}{{% for a in range(30) %}}{{% set ns.s = ns.s {operator} ns.s \
                 %}}{{% endfor %}}{end}"
            ))
        };
        assert!(doubled("~", "'a'", "").unwrap_err().contains("fuel"));
        for end in [
            "{{ ns.s | tojson | length }}",
            "{{ ns.s | tojson(indent=2) | length }}",
            "{{ ''.join(ns.s) | length }}",
        ] {
            assert!(doubled("+", "['a']", end).is_err(), "{end}");
        }
        let deep = "{% set ns = namespace(s=[]) %}{% for a in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s \
                    | tojson | length }}";
        assert!(render(deep).unwrap_err().contains("levels"));
        for (wide, expected) in [
            ("{{ '{:2000000000}'.format(1) }}", "width of `format`"),
            (
                "{{ [[1]]|tojson(indent=2000000000) }}",
                "indent of `tojson`",
            ),
            ("{{ [[1]]|tojson(indent=10**30) }}", "indent of `tojson`"),
            ("{{ [[1]]|tojson(2000000000) }}", "indent of `tojson`"),
        ] {
            let error = render(wide).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let usual = "{{ '{:>3}'.format(1) }}{{ [1]|tojson(indent=1) }}{{ {'a': 1}|tojson }}";
        assert_eq!(render(usual).unwrap(), "  1[\n 1\n]{\"a\": 1}");
        assert!(
            render(&" ".repeat(MAX_TEMPLATE + 1))
                .unwrap_err()
                .contains("at most 131072")
        );
    }

    /// Parsing, writing, comparing and freeing recurse.
    #[test]
    fn deep_templates_and_values_do_not_overflow_the_stack() {
        let render = |template: &str| {
            let encoded = prompts(template).and_then(|prompts| prompts.encode(&[message("u", "")]));
            encoded.map(|ids| text(&ids))
        };
        let depth = (MAX_TEMPLATE - 100) / 2;
        for template in [
            format!("{{{{ {}1 }}}}", "-".repeat(2 * depth)),
            format!("{{{{ 1{} }}}}", "+1".repeat(depth)),
            format!("{{{{ x{} }}}}", ".a".repeat(depth)),
            format!("{{{{ {}1 }}}}", "not ".repeat(depth / 2)),
            format!("{{{{ 1{} }}}}", "|e".repeat(depth)),
            format!("{{{{ 1{} }}}}", "<1".repeat(depth)),
            "{%if 1%}".repeat(depth / 10) + &"{%endif%}".repeat(depth / 10),
        ] {
            let _ = render(&template);
        }
        let nested = "{% set ns = namespace(x=[1], y=[1]) %}{% for j in range(99) %}{% for i in range(9999) %}\
                      {% if not loop.last or j < LIMIT %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endif %}\
                      {% endfor %}{% if j == LIMIT %}{{ USE }}{% endif %}{% endfor %}";
        for limit in ["3", "6", "50"] {
            for used in [
                "1",
                "ns.x",
                "ns.x|string|length",
                "ns.x|tojson|length",
                "ns.x == ns.y",
            ] {
                let _ = render(&nested.replace("LIMIT", limit).replace("USE", used));
            }
        }
    }

    #[test]
    fn a_template_that_does_not_end_turns_chats_off() {
        let work = || thread::sleep(Duration::from_secs(60));
        assert_eq!(with_limits(Duration::from_millis(10), work), Ok(None));
        assert!(with_limits(TIME, || -> u8 { panic!("as expected") }).is_err());
        let prompts = prompts("{{ 1 }}").unwrap();
        *prompts.is_stuck.lock().unwrap() = true;
        let problem = prompts.encode(&[message("user", "hi")]).unwrap_err();
        assert!(problem.contains("chats are off"), "{problem}");
    }
}
