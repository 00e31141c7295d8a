//! Checksums inside files of JSON: what was changed on its way is refused.
//!
//! The field `sha256` of an object is the SHA-256 of the rest of it as compact JSON with sorted keys, so
//! that white space and the order of keys do not matter. Files of earlier versions have none.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) const KEY: &str = "sha256";

/// What was read, and the checksum that it had.
#[derive(Debug)]
pub(crate) struct Opened<T> {
    pub content: T,
    pub checksum: Option<String>,
}

/// An object as JSON with its checksum, in which what stands `before` it takes part; and that checksum.
pub(crate) fn seal<T: Serialize>(
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

/// As [`seal`], with a line for every key.
pub(crate) fn seal_pretty<T: Serialize>(content: &T) -> Result<String, serde_json::Error> {
    let text = serde_json::to_string_pretty(content)?;
    let sum = checksum(&serde_json::from_str(&text)?, "");
    let rest = text
        .trim_end()
        .strip_suffix('}')
        .unwrap_or(&text)
        .trim_end();
    Ok(format!("{rest},\n  \"{KEY}\": \"{sum}\"\n}}\n"))
}

/// A list of objects as JSON, in the checksum of each of which those before it take part.
pub(crate) fn seal_list<T: Serialize>(contents: &[T]) -> Result<String, serde_json::Error> {
    let mut texts = Vec::new();
    let mut before = String::new();
    for content in contents {
        let (text, sum) = seal(content, &before)?;
        texts.push(text);
        before = sum;
    }
    Ok(format!("[{}]", texts.join(",\n")))
}

/// What [`seal_list`] wrote, or what was written before there were checksums.
pub(crate) fn open_list<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<Opened<T>>, String> {
    let values: Vec<Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut before = String::new();
    let opened = values.into_iter().map(|value| {
        let opened = open(value, &before)?;
        before = opened.checksum.clone().unwrap_or_default();
        Ok(opened)
    });
    opened.collect()
}

/// What [`seal`] wrote, or what was written before there were checksums.
pub(crate) fn open<T: DeserializeOwned>(
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

fn checksum(value: &Value, before: &str) -> String {
    // Objects are sorted maps.
    super::sha256(format!("{before}{value}").as_bytes())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Lists {
        of: Vec<String>,
        on: Vec<String>,
    }

    fn lists() -> Lists {
        Lists {
            of: vec!["a".into(), "b".into()],
            on: vec!["b".into()],
        }
    }

    fn read(text: &str, before: &str) -> Result<Opened<Lists>, String> {
        open(serde_json::from_str(text).map_err(|_| "no JSON")?, before)
    }

    #[test]
    fn layout_does_not_matter_and_content_does() {
        let (text, sum) = seal(&lists(), "").unwrap();
        let other = format!(" {{ \"on\" : [\"b\"],\n\"{KEY}\":\"{sum}\", \"of\":[\"a\",\"b\"]}}");
        for text in [&text, &other] {
            let opened = read(text, "").unwrap();
            assert_eq!(
                (opened.content, opened.checksum),
                (lists(), Some(sum.clone()))
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
        assert_eq!((opened.content, opened.checksum), (lists(), None));
    }

    #[test]
    fn lists_are_chained_and_pretty_objects_open_too() {
        let text = seal_list(&[lists(), lists()]).unwrap();
        let opened = |text: &str| open_list::<Lists>(text.as_bytes());
        assert_eq!(opened(&text).unwrap().len(), 2);
        let lines: Vec<&str> = text.trim_matches(['[', ']']).split(",\n").collect();
        // Neither may stand in the place of the other.
        let swapped = format!("[{},{}]", lines[1], lines[0]);
        assert!(opened(&swapped).unwrap_err().contains("checksum"));
        let pretty = seal_pretty(&lists()).unwrap();
        assert!(read(&pretty, "").unwrap().checksum.is_some());
        assert!(pretty.lines().count() > 5, "{pretty}");
        assert!(read(&pretty.replace("\"b\"", "\"c\""), "").is_err());
    }
}
