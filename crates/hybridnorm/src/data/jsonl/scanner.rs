//! Scanner of JSON values in one text.

use std::borrow::Cow;

use super::JsonError;

/// Maximum nesting depth of values.
const DEPTH_LIMIT: usize = 10_000;
/// Maximum number of keys listed in a message.
const NAMED_KEYS: usize = 8;

pub(super) enum Value<'t> {
    String((Cow<'t, str>, bool)),
    /// Kind of a value that is not a string.
    Other(&'static str),
}

/// JSON text and the byte position of the scan.
pub(super) struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    /// Returns a scanner at the first value of `text`.
    pub(super) fn new(text: &'t str) -> Self {
        let mut scanner = Self { text, at: 0 };
        scanner.skip_whitespace();
        scanner
    }

    /// Returns the next byte; `None` at the end.
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips whitespace.
    pub(super) fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Consumes `byte` if it is next.
    fn consume_if(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn syntax(&self, problem: String) -> JsonError {
        JsonError {
            reason: "not valid JSON".into(),
            problem,
            at: Some(self.at),
        }
    }

    /// Returns the error for an unexpected token.
    pub(super) fn unexpected(&self, expected: &str) -> JsonError {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let word: String = rest
            .chars()
            .take_while(|char| char.is_alphanumeric())
            .take(12)
            .collect();
        let found = match (word.is_empty(), rest.chars().next()) {
            (_, None) => "the record ends".into(),
            (true, Some(char)) => format!("found `{char}`"),
            (false, _) => format!("found `{word}`"),
        };
        self.syntax(format!("{found}, expected {expected}"))
    }

    /// Reads an object and returns the last value of `field`.
    pub(super) fn field(&mut self, field: &str) -> Result<Value<'t>, JsonError> {
        self.at += 1;
        let mut found = None;
        let mut keys = Vec::new();
        self.skip_whitespace();
        if !self.consume_if(b'}') {
            loop {
                let (key, _) = self.key()?;
                if key == field {
                    found = Some(match self.peek() {
                        Some(b'"') => Value::String(self.string()?),
                        _ => Value::Other(self.skip_value()?),
                    });
                } else {
                    self.skip_value()?;
                    if found.is_none() && keys.len() < NAMED_KEYS {
                        keys.push(format!("`{key}`"));
                    }
                }
                self.skip_whitespace();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break self.at += 1,
                    _ => return Err(self.unexpected("`,` or `}`")),
                }
                self.skip_whitespace();
            }
        }
        found.ok_or_else(|| JsonError {
            reason: format!("no field `{field}`"),
            problem: match keys.is_empty() {
                true => format!("no field `{field}`: the object is empty"),
                false => format!("no field `{field}`; the fields are {}", keys.join(", ")),
            },
            at: None,
        })
    }

    /// Reads a key and its colon, up to the value.
    fn key(&mut self) -> Result<(Cow<'t, str>, bool), JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a key in double quotes"));
        }
        let key = self.string()?;
        self.skip_whitespace();
        if !self.consume_if(b':') {
            return Err(self.unexpected("`:`"));
        }
        self.skip_whitespace();
        Ok(key)
    }

    /// Skips a value and returns its kind.
    pub(super) fn skip_value(&mut self) -> Result<&'static str, JsonError> {
        let kind = match self.peek() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            _ => return self.skip_scalar(),
        };
        // Closing brackets still expected.
        let mut open = Vec::new();
        loop {
            // A value begins here.
            let closing = match self.peek() {
                Some(b'{') => Some(b'}'),
                Some(b'[') => Some(b']'),
                _ => {
                    self.skip_scalar()?;
                    None
                }
            };
            if let Some(close) = closing {
                if open.len() == DEPTH_LIMIT {
                    return Err(self.syntax(format!("nested more than {DEPTH_LIMIT} levels deep")));
                }
                self.at += 1;
                self.skip_whitespace();
                if !self.consume_if(close) {
                    open.push(close);
                    if close == b'}' {
                        self.key()?;
                    }
                    continue;
                }
            }
            // A value has ended here.
            loop {
                let Some(&close) = open.last() else {
                    return Ok(kind);
                };
                self.skip_whitespace();
                if self.consume_if(close) {
                    open.pop();
                    continue;
                }
                if !self.consume_if(b',') {
                    let expected = format!("`,` or `{}`", char::from(close));
                    return Err(self.unexpected(&expected));
                }
                self.skip_whitespace();
                if close == b'}' {
                    self.key()?;
                }
                break;
            }
        }
    }

    fn skip_scalar(&mut self) -> Result<&'static str, JsonError> {
        const WORDS: [(&str, &str); 6] = [
            ("null", "null"),
            ("true", "a boolean"),
            ("false", "a boolean"),
            ("NaN", "a number"),
            ("Infinity", "a number"),
            ("-Infinity", "a number"),
        ];
        let rest = self.text.get(self.at..).unwrap_or_default();
        if rest.starts_with('"') {
            self.skip_string()?;
            return Ok("a string");
        }
        if let Some((word, kind)) = WORDS.iter().find(|(word, _)| rest.starts_with(word)) {
            self.at += word.len();
            return Ok(kind);
        }
        match number(rest.as_bytes()) {
            Some(length) => {
                self.at += length;
                Ok("a number")
            }
            None => Err(self.unexpected("a value")),
        }
    }

    /// Skips a string, including its quotes.
    fn skip_string(&mut self) -> Result<(), JsonError> {
        let begin = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.escape()?;
                }
                Some(byte @ 0..0x20) => {
                    return Err(self.syntax(match byte {
                        b'\n' | b'\r' => "a line ends within a string".into(),
                        _ => format!("control character 0x{byte:02x} within a string"),
                    }));
                }
                Some(_) => self.at += 1,
                None => {
                    self.at = begin;
                    return Err(self.syntax("unterminated string".into()));
                }
            }
        }
    }

    /// Reads a string; the flag is true if an unpaired surrogate was replaced.
    pub(super) fn string(&mut self) -> Result<(Cow<'t, str>, bool), JsonError> {
        let begin = self.at + 1;
        self.skip_string()?;
        let raw = &self.text[begin..self.at - 1];
        if !raw.contains('\\') {
            return Ok((Cow::Borrowed(raw), false));
        }
        let mut inside = Scanner { text: raw, at: 0 };
        let mut text = String::with_capacity(raw.len());
        let mut replaced = false;
        while inside.at < raw.len() {
            let rest = &raw[inside.at..];
            let plain = rest.find('\\').unwrap_or(rest.len());
            text.push_str(&rest[..plain]);
            inside.at += plain;
            if inside.at == raw.len() {
                break;
            }
            match inside.escape()? {
                Escape::Char(char) => text.push(char),
                Escape::Unit(high @ 0xd800..0xdc00) => {
                    let before = inside.at;
                    let low = match raw[before..].starts_with("\\u") {
                        true => inside.escape()?,
                        false => Escape::Char(' '),
                    };
                    if let Escape::Unit(low @ 0xdc00..0xe000) = low {
                        let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    } else {
                        inside.at = before;
                        text.push(char::REPLACEMENT_CHARACTER);
                        replaced = true;
                    }
                }
                Escape::Unit(_) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    replaced = true;
                }
            }
        }
        Ok((Cow::Owned(text), replaced))
    }

    /// Reads an escape sequence.
    fn escape(&mut self) -> Result<Escape, JsonError> {
        let bytes = &self.text.as_bytes()[self.at..];
        let char = match bytes.get(1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let digits = bytes
                    .get(2..6)
                    .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
                let unit = digits
                    .and_then(|digits| std::str::from_utf8(digits).ok())
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                    .ok_or_else(|| self.syntax("`\\u` without four hexadecimal digits".into()))?;
                self.at += 6;
                return Ok(match char::from_u32(unit) {
                    Some(char) => Escape::Char(char),
                    None => Escape::Unit(unit),
                });
            }
            _ => return Err(self.syntax("an unknown escape sequence in a string".into())),
        };
        self.at += 2;
        Ok(Escape::Char(char))
    }
}

enum Escape {
    Char(char),
    /// Surrogate code unit.
    Unit(u32),
}

/// Returns the length in bytes of a leading number; `None` without one.
fn number(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let mut end = usize::from(bytes.first() == Some(&b'-'));
    end += match bytes.get(end)? {
        b'0' => 1,
        _ => Some(digits(end)).filter(|&digits| digits > 0)?,
    };
    if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if let Some(b'e' | b'E') = bytes.get(end) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    Some(end)
}
