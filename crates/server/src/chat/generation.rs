//! The tag `generation` of `transformers`, which marks the answers in a chat for training. It renders its contents.

/// Replaces the tag by `with`, which also renders its contents in a scope of its own.
pub(super) fn replaced(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = next_tag(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes()[1] {
            b'#' => rest.find("#}").map_or(rest.len(), |end| end + 2),
            b'{' => end_of_code(rest, "}}"),
            _ => end_of_code(rest, "%}"),
        };
        let (tag, after) = rest.split_at(end);
        match word(tag) {
            Some("raw") => {
                let end = end_of_raw(after);
                out.push_str(tag);
                out.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            Some("generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// Returns the position of the next statement, expression or comment.
fn next_tag(text: &str) -> Option<usize> {
    let pairs = text.as_bytes().windows(2);
    let mut pairs = pairs.map(|pair| matches!(pair, b"{%" | b"{{" | b"{#"));
    pairs.position(|is_tag| is_tag)
}

/// Returns the position after `end`, which does not count in a string.
fn end_of_code(code: &str, end: &str) -> usize {
    let bytes = code.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(end.as_bytes()) => return at + end.len(),
            _ => {}
        }
        at += 1;
    }
    code.len()
}

/// Returns the first word of a statement.
fn word(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    inner.split(|c| !is_part(c)).next()
}

/// Returns the position of the statement that ends a raw block.
fn end_of_raw(text: &str) -> usize {
    let mut starts = text.match_indices("{%");
    starts
        .find(|(at, _)| word(&text[*at..]) == Some("endraw"))
        .map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn only_the_tag_is_replaced() {
        let template = "a{%- generation -%}b{{ '{% generation %}' }}{% endgeneration %}{# {% generation %} #}c";
        let expected = "a{%- with -%}b{{ '{% generation %}' }}{% endwith %}{# {% generation %} #}c";
        assert_eq!(replaced(template), expected);
        let raw = "{% raw %}{% generation %}{%- endraw %}{%generation%}é{%endgeneration%}";
        let expected = "{% raw %}{% generation %}{%- endraw %}{%with%}é{%endwith%}";
        assert_eq!(replaced(raw), expected);
        for same in [
            "{% if generation %}{% endif %}",
            "{% set generations = '%}' %}",
            "{{ \"\\\"{% generation %}\" }}",
            "{",
            "{%",
            "{# a",
            "{{ 'a",
            "{% raw %}",
            "é{ %}",
        ] {
            assert_eq!(replaced(same), same);
        }
    }
}
