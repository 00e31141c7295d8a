//! Error messages of the TOML, JSON and YAML parsers, in words that need no knowledge of Rust.

use std::borrow::Cow;

/// Prefixes of the parsers' type errors.
const PREFIXES: [&str; 3] = ["invalid type: ", "invalid value: ", "invalid length "];
const EXPECTED: &str = ", expected ";

/// Returns the message with `invalid type: string "x", expected usize` and the like in plain words.
///
/// ```
/// let message = "invalid type: string \"2\", expected usize";
/// assert_eq!(
///     hybridnorm::parse_errors::plain_message(message),
///     "expected a non-negative integer, found the string \"2\"; write 2 without quotation marks"
/// );
/// ```
pub fn plain_message(message: &str) -> Cow<'_, str> {
    // TOML integers are i64.
    if message == "u64 value was too large" {
        return format!("expected an integer of at most {}", i64::MAX).into();
    }
    let begin = PREFIXES
        .iter()
        .filter_map(|words| Some((message.find(words)?, *words)))
        .min();
    let Some((begin, words)) = begin else {
        let plain = message.replace("wanted string or table", "expected a string");
        return match plain == message {
            true => Cow::Borrowed(message),
            false => plain.into(),
        };
    };
    let rest = &message[begin + words.len()..];
    let Some(comma) = rest.rfind(EXPECTED) else {
        return Cow::Borrowed(message);
    };
    let found = &rest[..comma];
    let (expected, position) = split_position(&rest[comma + EXPECTED.len()..]);
    let hint = hint(found, expected);
    let found = match words {
        "invalid length " if found == "1" => "1 element".into(),
        "invalid length " => format!("{found} elements"),
        // Any value that is not a string.
        _ if found == "unit variant" && is_name(expected) => "another type".into(),
        _ => found_type(found),
    };
    let expected = expected_type(expected);
    let before = &message[..begin];
    Cow::Owned(format!(
        "{before}expected {expected}, found {found}{hint}{position}"
    ))
}

/// Splits the expected type from ` at line 3 column 5` after it.
fn split_position(text: &str) -> (&str, &str) {
    match text.rfind(" at line ") {
        Some(position) => text.split_at(position),
        None => (text, ""),
    }
}

fn found_type(found: &str) -> String {
    let inner = |kind: &str| found.strip_prefix(kind);
    let ticked = |kind: &str| inner(kind).map(|value| value.trim_matches('`').to_owned());
    if let Some(text) = inner("string ") {
        return format!("the string {text}");
    }
    let number = ticked("integer ")
        .or_else(|| ticked("floating point "))
        .or_else(|| ticked("boolean "));
    match found {
        _ if number.is_some() => number.unwrap_or_default(),
        "sequence" => "an array".into(),
        "map" => "a table".into(),
        "null" | "unit value" | "Option value" => "null".into(),
        "unit variant" => "a string, true or false".into(),
        "newtype variant" | "tuple variant" | "struct variant" => "a table".into(),
        other => other.to_owned(),
    }
}

/// Returns the expected type, such as `usize`, in plain words.
pub(crate) fn expected_type(expected: &str) -> Cow<'_, str> {
    if is_float(expected) {
        return "a number".into();
    }
    if is_unsigned(expected) {
        return "a non-negative integer".into();
    }
    if let Some(length) = expected
        .strip_prefix("an array of length ")
        .or_else(|| expected.strip_prefix("a tuple of size "))
    {
        return format!("an array of length {length}").into();
    }
    match expected {
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => "an integer".into(),
        "bool" | "a boolean" => "true or false".into(),
        "a string" | "str" | "string" | "path string" | "a character" => "a string".into(),
        "a sequence" | "a tuple" => "an array".into(),
        "a map" | "map" => "a table".into(),
        _ if is_name(expected) => "a string".into(),
        "unit" => "nothing".into(),
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged ") => {
            "a table".into()
        }
        _ if expected.starts_with("enum ") || expected.starts_with("adjacently tagged ") => {
            "a string".into()
        }
        _ => expected.into(),
    }
}

/// True for the name of a variant.
fn is_name(kind: &str) -> bool {
    matches!(
        kind,
        "string only" | "string or map" | "string or table" | "variant identifier"
    )
}

fn is_float(kind: &str) -> bool {
    matches!(kind, "f32" | "f64")
}

fn is_unsigned(kind: &str) -> bool {
    matches!(kind, "u8" | "u16" | "u32" | "u64" | "usize" | "u128")
        || kind.starts_with("a nonzero ")
}

/// Returns what to write instead, where that is clear.
fn hint(found: &str, expected: &str) -> String {
    let text = found
        .strip_prefix("string ")
        .map(|text| text.trim_matches('"'));
    let float = found
        .strip_prefix("floating point ")
        .and_then(|text| text.trim_matches('`').parse::<f64>().ok());
    match (text, float) {
        (Some(text), _) if is_float(expected) && text.parse::<f64>().is_ok() => {
            format!("; write {text} without quotation marks")
        }
        (Some(text), _) if is_unsigned(expected) && text.parse::<u64>().is_ok() => {
            format!("; write {text} without quotation marks")
        }
        (Some(text @ ("true" | "false")), _) if expected == "a boolean" => {
            format!("; write {text} without quotation marks")
        }
        (_, Some(value)) if is_unsigned(expected) && value >= 0.0 && value.fract() == 0.0 => {
            format!("; write {value:.0} without a decimal point or exponent")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_messages_are_in_plain_words() {
        for (message, expected) in [
            (
                "a.toml: line 3: invalid type: string \"1e-3\", expected f64",
                "a.toml: line 3: expected a number, found the string \"1e-3\"; write 1e-3 without \
                 quotation marks",
            ),
            (
                "invalid value: integer `-1`, expected usize at line 3 column 7",
                "expected a non-negative integer, found -1 at line 3 column 7",
            ),
            (
                "invalid type: floating point `1000.0`, expected usize",
                "expected a non-negative integer, found 1000.0; write 1000 without a decimal point or exponent",
            ),
            (
                "invalid type: map, expected a sequence",
                "expected an array, found a table",
            ),
            (
                "invalid type: sequence, expected struct TrainSection",
                "expected a table, found an array",
            ),
            (
                "invalid type: boolean `true`, expected string or map",
                "expected a string, found true",
            ),
            (
                "invalid type: unit variant, expected string only",
                "expected a string, found another type",
            ),
            (
                "a.toml: line 3: precision: wanted string or table",
                "a.toml: line 3: precision: expected a string",
            ),
            (
                "invalid length 3, expected an array of length 2",
                "expected an array of length 2, found 3 elements",
            ),
            (
                "invalid type: string \"a, expected b\", expected a boolean",
                "expected true or false, found the string \"a, expected b\"",
            ),
            ("missing field `x`", "missing field `x`"),
            ("invalid type: ", "invalid type: "),
        ] {
            assert_eq!(plain_message(message), expected);
        }
    }
}
