//! Checksums inside files of JSON: what was changed on its way is refused.
//!
//! The field `sha256` of an object is the SHA-256 of the rest of it as compact JSON with sorted keys, so
//! that white space and the order of keys do not matter. Files of earlier versions have none.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::files;

pub(super) const KEY: &str = "sha256";

/// What was read, and the checksum that it had.
#[derive(Debug)]
pub(super) struct Opened<T> {
    pub content: T,
    pub checksum: Option<String>,
}

/// An object as JSON with its checksum, in which what stands `before` it takes part; and that checksum.
pub(super) fn seal<T: Serialize>(
    content: &T,
    before: &str,
) -> Result<(String, String), serde_json::Error> {
    let mut text = serde_json::to_string(content)?;
    // Numbers are compared as they are read.
    let sum = checksum(&serde_json::from_str(&text)?, before);
    let end = text.rfind('}').unwrap_or(text.len());
    text.insert_str(end, &format!(",\"{KEY}\":\"{sum}\""));
    Ok((text, sum))
}

/// What [`seal`] wrote, or what was written before there were checksums.
pub(super) fn open<T: DeserializeOwned>(
    mut value: Value,
    before: &str,
) -> Result<Opened<T>, String> {
    let checksum = match value.as_object_mut().and_then(|object| object.remove(KEY)) {
        None => None,
        Some(Value::String(sum)) if sum == checksum(&value, before) => Some(sum),
        Some(_) => {
            return Err(format!(
                "its content is not what its checksum ({KEY}) says: the file is damaged or was changed"
            ));
        }
    };
    serde_json::from_value(value)
        .map(|content| Opened { content, checksum })
        .map_err(|error| error.to_string())
}

/// What is said of something that must have a checksum and has none.
pub(super) fn missing() -> String {
    format!(
        "has no checksum ({KEY}), as everything has that was written since this study was begun: it was \
         changed"
    )
}

fn checksum(value: &Value, before: &str) -> String {
    // Objects are sorted maps.
    files::sha256(format!("{before}{value}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::rungs::Rung;
    use super::*;

    fn rung() -> Rung {
        Rung {
            of: vec!["a".into(), "b".into()],
            on: vec!["b".into()],
        }
    }

    fn read(text: &str, before: &str) -> Result<Opened<Rung>, String> {
        open(serde_json::from_str(text).map_err(|_| "no JSON")?, before)
    }

    #[test]
    fn layout_does_not_matter_and_content_does() {
        let (text, sum) = seal(&rung(), "").unwrap();
        let other = format!(" {{ \"on\" : [\"b\"],\n\"{KEY}\":\"{sum}\", \"of\":[\"a\",\"b\"]}}");
        for text in [&text, &other] {
            let opened = read(text, "").unwrap();
            assert_eq!(
                (opened.content, opened.checksum),
                (rung(), Some(sum.clone()))
            );
        }
        for wrong in [text.replace("\"b\"]", "\"a\"]"), text.replace(&sum, "")] {
            assert!(
                read(&wrong, "").unwrap_err().contains("checksum"),
                "{wrong}"
            );
        }
        // What stands before takes part.
        assert!(read(&text, &sum).is_err());
    }

    #[test]
    fn what_has_no_checksum_is_read_and_known_as_such() {
        let opened = read(r#"{"of":["a","b"],"on":["b"]}"#, "").unwrap();
        assert_eq!((opened.content, opened.checksum), (rung(), None));
    }
}
