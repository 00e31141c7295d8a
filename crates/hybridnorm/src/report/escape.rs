//! Text out of files, as HTML, Markdown, Plotly and JSON need it.
//!
//! Names of placements, folders and machines may hold anything. Whatever they hold, they are shown as
//! text: they are neither markup, links, images, mentions nor formulas, and they do not move what
//! stands beside them.

use std::borrow::Cow;

use serde::Serialize;

use crate::text::{at_most, visible};

/// Characters of a name that are shown.
pub(super) const NAME_CHARS: usize = 120;
/// Characters of a cell of a table.
pub(super) const CELL_CHARS: usize = 400;
/// Characters of a paragraph.
pub(super) const PARAGRAPH_CHARS: usize = 4000;

/// Between two characters that would mean something together. It takes no room.
const APART: &str = "&#8203;";

/// Text between or inside of tags; its lines stay.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in visible(text).chars() {
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

/// As [`escape`], one line of at most some `limit` characters.
pub(super) fn escape_line(text: &str, limit: usize) -> String {
    escape(&at_most(&in_a_line(text), limit))
}

/// A name that Plotly shows: it reads a few tags and entities.
pub(super) fn plot_text(text: &str) -> String {
    at_most(&in_a_line(text), NAME_CHARS)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A line of Markdown, or a part of one, of at most some `limit` characters.
///
/// GitHub looks for mentions, references to issues and addresses in what is left when Markdown's own
/// escapes are read, so that these get a character between that is not seen.
pub(super) fn markdown_line(text: &str, limit: usize) -> String {
    let line = in_a_line(text);
    let line = at_most(line.trim(), limit);
    let chars: Vec<char> = line.chars().collect();
    let mut escaped = String::with_capacity(line.len() + 16);
    for (at, &character) in chars.iter().enumerate() {
        let rest = &chars[at + 1..];
        let next = rest.first().copied();
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '@' => escaped.extend(["&#64;", APART]),
            // Mathematics.
            '$' => escaped.push_str("&#36;"),
            '#' => escaped.extend(["\\#", APART]),
            '!' if next == Some('[') => escaped.push_str("\\!"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '~' => escaped.extend(['\\', character]),
            // An address, or a picture by its name.
            ':' if rest.starts_with(&['/', '/']) || is_short_code(rest) => {
                escaped.extend([":", APART]);
            }
            '.' if follows(&chars[..at], "www") => escaped.extend([APART, "."]),
            '-' if follows(&chars[..at], "gh") => escaped.extend([APART, "-"]),
            // Lists, rules and headings begin a line.
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

/// As [`markdown_line`], as long as a paragraph may be.
pub(super) fn markdown_text(text: &str) -> String {
    markdown_line(text, PARAGRAPH_CHARS)
}

/// Whether `chars` end in a word, whose case does not matter.
fn follows(chars: &[char], word: &str) -> bool {
    let tail = chars.iter().rev().map(char::to_ascii_lowercase);
    chars.len() >= word.len() && tail.zip(word.chars().rev()).all(|(a, b)| a == b)
}

/// Whether a word and a colon follow: `octocat:`.
fn is_short_code(rest: &[char]) -> bool {
    let word = |c: &&char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-');
    let length = rest.iter().take_while(word).count();
    let is_time = rest[..length].iter().all(char::is_ascii_digit);
    !is_time && rest.get(length) == Some(&':')
}

/// Line feeds and tabs become spaces.
fn in_a_line(text: &str) -> Cow<'_, str> {
    match text.contains(['\n', '\r', '\t']) {
        true => Cow::Owned(text.replace(['\n', '\r', '\t'], " ")),
        false => Cow::Borrowed(text),
    }
}

/// A value as JSON that may stand in a `script` element.
pub(super) fn json_in_script(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    crate::text::visible_json(&json)
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_for_where_it_stands() {
        assert_eq!(
            escape("<a b=\"c\" d='e'>&\u{1}"),
            "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;\\u{1}"
        );
        assert_eq!(escape("a\n\u{202e}b\u{9b}"), "a\n\\u{202e}b\\u{9b}");
        assert_eq!(plot_text("<b>&amp;\n"), "&lt;b&gt;&amp;amp; ");
        assert_eq!(markdown_text("a|b\n*c* <i>"), "a\\|b \\*c\\* &lt;i&gt;");
    }

    #[test]
    fn markdown_makes_no_link_mention_or_picture_of_a_name() {
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
