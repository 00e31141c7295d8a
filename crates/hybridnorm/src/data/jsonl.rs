//! Extraction of one string field from a JSON record, without building the other values.
//!
//! As tolerant as Python's `json`, which writes most of these files: `NaN`, `Infinity` and `-Infinity` are
//! numbers, an unpaired surrogate is a character (U+FFFD here), numbers may have any number of digits, and
//! the last value of a duplicate key is used.
//!
//! Memory: the returned text. Nested values are not parsed recursively.

use std::borrow::Cow;

/// Maximum nesting depth of values.
const DEPTH_LIMIT: usize = 10_000;
/// Maximum number of keys listed in a message.
const NAMED_KEYS: usize = 8;

/// Value of the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FieldValue {
    /// A string.
    Text {
        /// Its characters.
        text: String,
        /// True if it had an unpaired surrogate, replaced by U+FFFD.
        replaced: bool,
    },
    /// `null`.
    Null,
}

/// Reason why a record has no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JsonError {
    /// Short reason; records with the same reason are counted together.
    pub(super) reason: String,
    /// Description without the position.
    pub(super) problem: String,
    /// Byte offset within the record, for syntax errors.
    pub(super) at: Option<usize>,
}

/// Returns the string under `field` of the JSON object in `record`, or `record` itself if it is a string or null.
pub(super) fn text_field(record: &str, field: &str) -> Result<FieldValue, JsonError> {
    let mut scanner = Scanner {
        text: record,
        at: 0,
    };
    scanner.space();
    let found = match scanner.peek() {
        Some(b'"') => Value::String(scanner.string()?),
        Some(b'{') => scanner.field(field)?,
        _ => {
            let kind = scanner.skip_value()?;
            if kind != "null" {
                return Err(JsonError {
                    reason: "not a JSON object".into(),
                    problem: format!("found {kind}, expected a JSON object or a string"),
                    at: None,
                });
            }
            Value::Other(kind)
        }
    };
    scanner.space();
    if scanner.peek().is_some() {
        return Err(scanner.unexpected("the end of the record"));
    }
    match found {
        Value::String(text) => Ok(FieldValue::Text {
            replaced: text.1,
            text: text.0.into_owned(),
        }),
        Value::Other("null") => Ok(FieldValue::Null),
        Value::Other(kind) => Err(JsonError {
            reason: format!("field `{field}` is not a string"),
            problem: format!("field `{field}` is not a string but {kind}"),
            at: None,
        }),
    }
}

/// True if a text is exactly one JSON value.
pub(super) fn is_one_value(text: &str) -> bool {
    let mut scanner = Scanner { text, at: 0 };
    scanner.space();
    let is_value = scanner.skip_value().is_ok();
    scanner.space();
    is_value && scanner.peek().is_none()
}

enum Value<'t> {
    String((Cow<'t, str>, bool)),
    /// Kind of a value that is not a string.
    Other(&'static str),
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

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
    fn unexpected(&self, expected: &str) -> JsonError {
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
    fn field(&mut self, field: &str) -> Result<Value<'t>, JsonError> {
        self.at += 1;
        let mut found = None;
        let mut keys = Vec::new();
        self.space();
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
                self.space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break self.at += 1,
                    _ => return Err(self.unexpected("`,` or `}`")),
                }
                self.space();
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
        self.space();
        if !self.consume_if(b':') {
            return Err(self.unexpected("`:`"));
        }
        self.space();
        Ok(key)
    }

    /// Skips a value and returns its kind.
    fn skip_value(&mut self) -> Result<&'static str, JsonError> {
        let kind = match self.peek() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            _ => return self.skip_plain(),
        };
        // Closing brackets still expected.
        let mut open = Vec::new();
        loop {
            // A value begins here.
            let empty = match self.peek() {
                Some(b'{') => Some(b'}'),
                Some(b'[') => Some(b']'),
                _ => {
                    self.skip_plain()?;
                    None
                }
            };
            if let Some(close) = empty {
                if open.len() == DEPTH_LIMIT {
                    return Err(self.syntax(format!("nested more than {DEPTH_LIMIT} deep")));
                }
                self.at += 1;
                self.space();
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
                self.space();
                if self.consume_if(close) {
                    open.pop();
                    continue;
                }
                if !self.consume_if(b',') {
                    let expected = format!("`,` or `{}`", char::from(close));
                    return Err(self.unexpected(&expected));
                }
                self.space();
                if close == b'}' {
                    self.key()?;
                }
                break;
            }
        }
    }

    fn skip_plain(&mut self) -> Result<&'static str, JsonError> {
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
    fn string(&mut self) -> Result<(Cow<'t, str>, bool), JsonError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(record: &str) -> String {
        match text_field(record, "text").unwrap() {
            FieldValue::Text { text, .. } => text,
            FieldValue::Null => panic!("null"),
        }
    }

    #[test]
    fn finds_field_at_any_position() {
        let line = r#"{"id": 3, "meta": {"text": "no"}, "text": "a\nb", "x": [1, {}]}"#;
        assert_eq!(text(line), "a\nb");
        assert_eq!(text(r#"{"te\u0078t":"c"}"#), "c");
        assert_eq!(text(r#"  {"text" : "a" , "text" : "b"} "#), "b");
        assert_eq!(text("\"alone\""), "alone");
        assert_eq!(text_field(r#"{"text":null}"#, "text"), Ok(FieldValue::Null));
        assert_eq!(text_field(" null ", "text"), Ok(FieldValue::Null));
        assert!(text_field("null null", "text").is_err());
    }

    #[test]
    fn accepts_python_json() {
        let line =
            r#"{"a":NaN,"b":[Infinity,-Infinity,{"c":NaN}],"d":1e999,"text":"x","e":-0.5E+3}"#;
        assert_eq!(text(line), "x");
        let digits = "9".repeat(10_000);
        assert_eq!(text(&format!("{{\"n\":{digits},\"text\":\"x\"}}")), "x");
        let deep = format!("{}{}", "[".repeat(9_999), "]".repeat(9_999));
        assert_eq!(text(&format!("{{\"n\":{deep},\"text\":\"x\"}}")), "x");
    }

    #[test]
    fn surrogates_are_paired_or_replaced() {
        let of =
            |escapes: &str| text_field(&format!("{{\"text\":\"{escapes}\"}}"), "text").unwrap();
        let expected = |text: &str, replaced| FieldValue::Text {
            text: text.into(),
            replaced,
        };
        assert_eq!(of(r"\ud83d\ude00"), expected("😀", false));
        assert_eq!(of(r"a\ud83d"), expected("a\u{fffd}", true));
        assert_eq!(of(r"\ude00b"), expected("\u{fffd}b", true));
        assert_eq!(of(r"\ud83d\n"), expected("\u{fffd}\n", true));
        assert_eq!(of(r"\ud83d\ud83d\ude00"), expected("\u{fffd}😀", true));
        assert_eq!(text(r#"{"other":"\ud83d","text":"x"}"#), "x");
    }

    #[test]
    fn errors_name_problem_and_position() {
        let flaw = |record: &str| text_field(record, "text").unwrap_err();
        let missing = flaw(r#"{"body": "x", "id": 1}"#);
        assert_eq!(
            missing.problem,
            "no field `text`; the fields are `body`, `id`"
        );
        assert_eq!(missing.reason, "no field `text`");
        for value in ["1", "-1", "0.5", "true", "[1]", "{\"a\":1}", "NaN"] {
            let flaw = flaw(&format!("{{\"text\":{value}}}"));
            assert_eq!(flaw.reason, "field `text` is not a string");
        }
        for (record, problem, at) in [
            ("", "the record ends, expected a value", 0),
            ("{", "the record ends, expected a key in double quotes", 1),
            ("{'text':1}", "found `'`, expected a key", 1),
            (r#"{"text":"a"} x"#, "found `x`, expected the end", 13),
            (
                r#"{"text":"a" "b":1}"#,
                "found `\"`, expected `,` or `}`",
                12,
            ),
            (
                r#"{"text":"a","b":nan}"#,
                "found `nan`, expected a value",
                16,
            ),
            (
                r#"{"text":"a","b":01}"#,
                "found `1`, expected `,` or `}`",
                17,
            ),
            (
                r#"{"text":"a","b":[1,]}"#,
                "found `]`, expected a value",
                19,
            ),
            (r#"{"text":"a"#, "unterminated string", 8),
            (r#"{"text":"\x"}"#, "unknown escape", 9),
            (r#"{"text":"\u12"}"#, "four hexadecimal digits", 9),
            ("{\"text\":\"a\tb\"}", "control character 0x09", 10),
        ] {
            let flaw = flaw(record);
            assert!(flaw.problem.contains(problem), "{record}: {flaw:?}");
            assert_eq!(
                (flaw.at, flaw.reason.as_str()),
                (Some(at), "not valid JSON")
            );
        }
        assert!(flaw("[1, 2]").problem.contains("found an array"));
        let deep = format!("{{\"n\":{}", "[".repeat(20_000));
        assert!(flaw(&deep).problem.contains("nested more than 10000 deep"));
    }

    #[test]
    fn agrees_with_serde_json() {
        let records = [
            r#"{"text":"a","x":{"y":[{"z":[]},{}],"w":""}}"#,
            r#"{"text":"\"\\\/\b\f\n\r\té"}"#,
            r#"{"text":""}"#,
        ];
        for record in records {
            let value: serde_json::Value = serde_json::from_str(record).unwrap();
            assert_eq!(text(record), value["text"].as_str().unwrap());
        }
    }
}
