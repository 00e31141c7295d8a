//! Extraction of one string field from a JSON record, without parsing the other values into memory.
//!
//! As tolerant as Python's `json`, which writes most of these files: `NaN`, `Infinity` and `-Infinity` are
//! numbers, an unpaired surrogate is a character (U+FFFD here), numbers may have any number of digits, and
//! the last value of a duplicate key is used.
//!
//! Memory: the returned text. Nested values are not parsed recursively.

mod scanner;

use scanner::{Scanner, Value};

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
    let mut scanner = Scanner::new(record);
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
    scanner.skip_whitespace();
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
    let mut scanner = Scanner::new(text);
    let is_value = scanner.skip_value().is_ok();
    scanner.skip_whitespace();
    is_value && scanner.peek().is_none()
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
        let error_of = |record: &str| text_field(record, "text").unwrap_err();
        let missing = error_of(r#"{"body": "x", "id": 1}"#);
        assert_eq!(
            missing.problem,
            "no field `text`; the fields are `body`, `id`"
        );
        assert_eq!(missing.reason, "no field `text`");
        for value in ["1", "-1", "0.5", "true", "[1]", "{\"a\":1}", "NaN"] {
            let error = error_of(&format!("{{\"text\":{value}}}"));
            assert_eq!(error.reason, "field `text` is not a string");
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
            let error = error_of(record);
            assert!(error.problem.contains(problem), "{record}: {error:?}");
            assert_eq!(
                (error.at, error.reason.as_str()),
                (Some(at), "not valid JSON")
            );
        }
        assert!(error_of("[1, 2]").problem.contains("found an array"));
        let deep = format!("{{\"n\":{}", "[".repeat(20_000));
        assert!(
            error_of(&deep)
                .problem
                .contains("nested more than 10000 levels deep")
        );
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
