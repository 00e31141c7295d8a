//! Escaping of text from files for HTML, Markdown, Plotly and JSON.
//!
//! Names of placements, folders and machines may contain anything. They are always shown as text, never as
//! markup, links, images, mentions or formulas, and do not change the layout around them.

use std::borrow::Cow;

use serde::Serialize;

use crate::text::{escape_unprintable, truncated_line};

/// Maximum characters of a name.
pub(super) const NAME_CHARS: usize = 120;
/// Maximum characters of a table cell.
pub(super) const CELL_CHARS: usize = 400;
/// Maximum characters of a paragraph.
pub(super) const PARAGRAPH_CHARS: usize = 4000;

/// Zero-width separator between characters that together would be interpreted as markup.
const ZERO_WIDTH_SPACE: &str = "&#8203;";

/// Escapes text between or inside tags; line breaks are kept.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in escape_unprintable(text).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Escapes text as one line of about `limit` characters at most.
pub(super) fn escape_line(text: &str, limit: usize) -> String {
    escape(&truncated_line(&to_line(text), limit))
}

/// Escapes a name for Plotly, which interprets a few tags and entities.
pub(super) fn plot_text(text: &str) -> String {
    truncated_line(&to_line(text), NAME_CHARS)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Escapes a line of Markdown, or a part of one, of about `limit` characters at most.
///
/// GitHub detects mentions, issue references and URLs after it has resolved Markdown's escapes, so an
/// invisible character is inserted into these.
pub(super) fn markdown_line(text: &str, limit: usize) -> String {
    let line = to_line(text);
    let line = truncated_line(line.trim(), limit);
    let chars: Vec<char> = line.chars().collect();
    let mut escaped = String::with_capacity(line.len() + 16);
    for (at, &character) in chars.iter().enumerate() {
        let rest = &chars[at + 1..];
        let next = rest.first().copied();
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '@' => escaped.extend(["&#64;", ZERO_WIDTH_SPACE]),
            // Mathematics.
            '$' => escaped.push_str("&#36;"),
            '#' => escaped.extend(["\\#", ZERO_WIDTH_SPACE]),
            '!' if next == Some('[') => escaped.push_str("\\!"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '~' => escaped.extend(['\\', character]),
            // A URL, or the short code of an emoji.
            ':' if rest.starts_with(&['/', '/']) || is_short_code(rest) => {
                escaped.extend([":", ZERO_WIDTH_SPACE]);
            }
            '.' if ends_with_word(&chars[..at], "www") => escaped.extend([ZERO_WIDTH_SPACE, "."]),
            '-' if ends_with_word(&chars[..at], "gh") => escaped.extend([ZERO_WIDTH_SPACE, "-"]),
            // Lists, rules and headings at the start of a line.
            '-' | '+' | '=' if at == 0 && !next.is_some_and(|c| c.is_ascii_digit()) => {
                escaped.extend(['\\', character]);
            }
            '.' | ')'
                if at > 0
                    && chars[..at].iter().all(char::is_ascii_digit)
                    && next.is_none_or(char::is_whitespace) =>
            {
                escaped.extend(['\\', character]);
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Escapes a line of Markdown as [`markdown_line`] does, up to the length of a paragraph.
pub(super) fn markdown_text(text: &str) -> String {
    markdown_line(text, PARAGRAPH_CHARS)
}

/// True if `chars` end in `word`, ignoring case.
fn ends_with_word(chars: &[char], word: &str) -> bool {
    let tail = chars.iter().rev().map(char::to_ascii_lowercase);
    chars.len() >= word.len() && tail.zip(word.chars().rev()).all(|(a, b)| a == b)
}

/// True if `rest` begins with a word and a colon: `octocat:`.
fn is_short_code(rest: &[char]) -> bool {
    let word = |c: &&char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-');
    let length = rest.iter().take_while(word).count();
    let is_time = rest[..length].iter().all(char::is_ascii_digit);
    !is_time && rest.get(length) == Some(&':')
}

/// Replaces line breaks and tabs with spaces.
fn to_line(text: &str) -> Cow<'_, str> {
    match text.contains(['\n', '\r', '\t']) {
        true => Cow::Owned(text.replace(['\n', '\r', '\t'], " ")),
        false => Cow::Borrowed(text),
    }
}

/// Returns a value as JSON that is safe in a `script` element.
pub(super) fn json_in_script(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    crate::text::escape_unprintable_json(&json)
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_by_context() {
        assert_eq!(
            escape("<a b=\"c\" d='e'>&\u{1}"),
            "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;\\u{1}"
        );
        assert_eq!(escape("a\n\u{202e}b\u{9b}"), "a\n\\u{202e}b\\u{9b}");
        assert_eq!(plot_text("<b>&amp;\n"), "&lt;b&gt;&amp;amp; ");
        assert_eq!(markdown_text("a|b\n*c* <i>"), "a\\|b \\*c\\* &lt;i&gt;");
    }

    #[test]
    fn names_do_not_become_markdown_links_mentions_or_images() {
        for (text, expected) in [
            ("![x](y)", "\\!\\[x\\](y)"),
            ("@octo", "&#64;&#8203;octo"),
            ("a#12", "a\\#&#8203;12"),
            ("gh-12", "gh&#8203;-12"),
            ("http://a.b", "http:&#8203;//a.b"),
            ("WWW.a.b", "WWW&#8203;.a.b"),
            (":cat:", ":&#8203;cat:"),
            ("12:30:01 bpe:512", "12:30:01 bpe:512"),
            ("$x$", "&#36;x&#36;"),
            ("&#64;octo", "&amp;\\#&#8203;64;octo"),
        ] {
            assert_eq!(markdown_text(text), expected);
        }
    }

    #[test]
    fn a_name_does_not_begin_a_list_or_a_rule() {
        for (text, expected) in [
            ("- a", "\\- a"),
            ("--- ", "\\---"),
            ("===", "\\==="),
            ("+0.5", "+0.5"),
            ("1. a", "1\\. a"),
            ("1.5 a", "1.5 a"),
            ("    code", "code"),
        ] {
            assert_eq!(markdown_text(text), expected);
        }
    }

    #[test]
    fn long_names_are_shortened() {
        let name = "x".repeat(10_000);
        assert!(plot_text(&name).len() < 200);
        assert!(markdown_line(&name, NAME_CHARS).len() < 200);
        assert!(escape_line(&name, NAME_CHARS).len() < 200);
    }

    #[test]
    fn json_cannot_close_its_script() {
        let json = json_in_script(&"</script><!--&\u{2028}");
        assert!(!json.contains(['<', '>', '&', '\u{2028}']), "{json}");
        let back: String = serde_json::from_str(&json).unwrap();
        assert_eq!(back, "</script><!--&\u{2028}");
    }
}
