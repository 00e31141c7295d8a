//! Escaping and truncation of untrusted text for output.

use std::borrow::Cow;

/// Maximum characters of a line that is printed in full.
const LINE_CHARS: usize = 1000;

/// Returns one line of about 1,000 characters at most: characters that move the cursor, colour the
/// terminal or change the text direction are escaped, and the middle of a long text is replaced by its
/// number of characters.
///
/// ```
/// use hybridnorm::text::one_line;
///
/// assert_eq!(one_line("two\nlines"), r"two\nlines");
/// ```
pub fn one_line(text: &str) -> Cow<'_, str> {
    truncated_line(text, LINE_CHARS)
}

/// Returns one line as [`one_line`] does, of about `limit` characters at most.
pub fn truncated_line(text: &str, limit: usize) -> Cow<'_, str> {
    let is_plain = !text.chars().any(is_unprintable);
    if is_plain && text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let chars = text.chars().count();
    if chars <= limit {
        return Cow::Owned(escaped(text.chars()));
    }
    let (head, tail) = (limit * 3 / 4, limit / 4);
    let n_omitted = chars - head - tail;
    let begin = escaped(text.chars().take(head));
    let end = escaped(text.chars().skip(head + n_omitted));
    Cow::Owned(format!("{begin} [... {n_omitted} characters ...] {end}"))
}

/// Escapes text of several lines as [`one_line`] does, but keeps line feeds and tabs, and the full length.
pub fn escape_unprintable(text: &str) -> Cow<'_, str> {
    let needs_escape = |char: char| is_unprintable(char) && !matches!(char, '\n' | '\t');
    if !text.chars().any(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match needs_escape(char) {
            true => shown.extend(char.escape_default()),
            false => shown.push(char),
        }
    }
    Cow::Owned(shown)
}

/// Replaces unprintable characters that JSON allows in strings by JSON escapes, so that they cannot move the
/// cursor. The JSON value is unchanged.
pub fn escape_unprintable_json(json: &str) -> Cow<'_, str> {
    use std::fmt::Write as _;
    let needs_escape = |char: char| is_unprintable(char) && !matches!(char, '\n' | '\t' | '\r');
    if !json.chars().any(needs_escape) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for char in json.chars() {
        match needs_escape(char) {
            // All of them are below U+10000.
            true => drop(write!(shown, "\\u{:04x}", u32::from(char))),
            false => shown.push(char),
        }
    }
    Cow::Owned(shown)
}

fn escaped(chars: impl Iterator<Item = char>) -> String {
    chars.fold(String::new(), |mut line, char| {
        match is_unprintable(char) {
            true => line.extend(char.escape_default()),
            false => line.push(char),
        }
        line
    })
}

/// True for control characters, line separators, and marks that reverse or hide text.
fn is_unprintable(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_unchanged() {
        assert_eq!(
            one_line("naïve ☃ 模型: expected 3"),
            "naïve ☃ 模型: expected 3"
        );
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            one_line("a\x1b[31m\nb\u{202e}c"),
            r"a\u{1b}[31m\nb\u{202e}c"
        );
    }

    #[test]
    fn line_feeds_tabs_and_json_values_are_unchanged() {
        assert_eq!(escape_unprintable("a\n\tb"), "a\n\tb");
        assert_eq!(escape_unprintable("a\u{9b}2J\r\n"), "a\\u{9b}2J\\r\n");
        let json = serde_json::to_string("\u{9b}\u{7f}\u{202e}").unwrap();
        let shown = escape_unprintable_json(&json);
        assert_eq!(shown, r#""\u009b\u007f\u202e""#);
        let back: String = serde_json::from_str(&shown).unwrap();
        assert_eq!(back, "\u{9b}\u{7f}\u{202e}");
    }

    #[test]
    fn text_is_truncated_to_the_given_limit() {
        assert_eq!(
            truncated_line("abcdefghij", 4),
            "abc [... 6 characters ...] j"
        );
    }

    #[test]
    fn truncation_states_the_number_of_omitted_characters() {
        let found = one_line(&format!("begin{}end", "x".repeat(9992))).into_owned();
        assert!(
            found.starts_with("beginx") && found.ends_with("xend"),
            "{found}"
        );
        assert!(found.contains("[... 9000 characters ...]"), "{found}");
        assert!(found.len() < 1100);
    }
}
