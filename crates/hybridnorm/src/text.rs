//! Text that came out of files, made fit for a line of output.

use std::borrow::Cow;

/// Characters of a line that is printed whole.
const LINE_CHARS: usize = 1000;

/// One line of at most some 1,000 characters: characters that would move the cursor, colour the
/// terminal or turn the direction of writing are escaped, and the middle of a long text is left out
/// and counted.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let is_plain = !text.chars().any(is_unprintable);
    if is_plain && text.len() <= LINE_CHARS {
        return Cow::Borrowed(text);
    }
    let chars = text.chars().count();
    if chars <= LINE_CHARS {
        return Cow::Owned(escaped(text.chars()));
    }
    let (head, tail) = (LINE_CHARS * 3 / 4, LINE_CHARS / 4);
    let left_out = chars - head - tail;
    let begin = escaped(text.chars().take(head));
    let end = escaped(text.chars().skip(head + left_out));
    Cow::Owned(format!("{begin} [... {left_out} characters ...] {end}"))
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

/// Control characters, line separators, and marks that turn or hide text.
fn is_unprintable(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(
            one_line("naïve ☃ 模型: expected 3"),
            "naïve ☃ 模型: expected 3"
        );
    }

    #[test]
    fn what_moves_a_terminal_is_escaped() {
        assert_eq!(
            one_line("a\x1b[31m\nb\u{202e}c"),
            r"a\u{1b}[31m\nb\u{202e}c"
        );
    }

    #[test]
    fn the_middle_of_a_long_text_is_counted() {
        let found = one_line(&format!("begin{}end", "x".repeat(9992))).into_owned();
        assert!(
            found.starts_with("beginx") && found.ends_with("xend"),
            "{found}"
        );
        assert!(found.contains("[... 9000 characters ...]"), "{found}");
        assert!(found.len() < 1100);
    }
}
