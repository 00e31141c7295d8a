//! An HTML parser that accepts only properly nested tags.

/// Elements without an end tag.
const VOID: [&str; 3] = ["meta", "path", "!DOCTYPE"];

/// Elements whose content is not markup.
const RAW: [&str; 2] = ["style", "script"];

/// Checks that tags are properly nested and ids are unique.
pub fn check(page: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let end = tag_end(&rest[start..]).ok_or("a tag does not end")? + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/', '\n'])
            .next()
            .unwrap_or("");
        if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '!') {
            return Err(format!("<{tag}> is not a tag"));
        }
        if tag.starts_with('/') {
            match open.pop() {
                Some(last) if last == name => {}
                last => return Err(format!("</{name}> closes {last:?}")),
            }
        } else if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
            if RAW.contains(&name) {
                rest = &rest[rest
                    .find(&format!("</{name}>"))
                    .ok_or("raw text does not end")?..];
            }
        }
    }
    let mut ids = attributes(page, "id");
    let number = ids.len();
    ids.sort_unstable();
    ids.dedup();
    match (open.is_empty(), ids.len() == number) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("left open: {open:?}")),
        (_, false) => Err("duplicate id".to_owned()),
    }
}

/// Returns the values of an attribute, in order.
pub fn attributes(page: &str, name: &str) -> Vec<String> {
    let pattern = format!(" {name}=\"");
    (page.split(&pattern).skip(1))
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect()
}

/// Returns every tag with its attributes, without the text of `aria-label`.
pub fn tags(page: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), page);
    while let Some(start) = rest.find('<') {
        let end = start + tag_end(&rest[start..]).expect("a tag ends");
        let mut tag = rest[start..=end].to_owned();
        if let Some(label) = attributes(&tag, "aria-label").first() {
            tag = tag.replace(label, "");
        }
        found.push(tag);
        rest = &rest[end + 1..];
    }
    found
}

/// Returns the end of a tag: the first `>` outside quotes.
fn tag_end(tag: &str) -> Option<usize> {
    let mut quoted = false;
    tag.char_indices()
        .find(|(_, c)| {
            quoted ^= *c == '"';
            *c == '>' && !quoted
        })
        .map(|(position, _)| position)
}

#[test]
fn malformed_markup_is_rejected() {
    assert_eq!(check("<p a=\"x > y\">1 <b>2</b></p><meta a=\"b\">"), Ok(()));
    for wrong in [
        "<p>",
        "<p></b>",
        "<p><b></p></b>",
        "<p",
        "a < b",
        "<p id=\"a\"></p><p id=\"a\"></p>",
    ] {
        assert!(check(wrong).is_err(), "{wrong}");
    }
}
