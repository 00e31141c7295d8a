//! Checksums inside JSON files: changed content is rejected.
//!
//! The field `sha256` of an object is the SHA-256 of the rest of it as compact JSON with sorted keys, so
//! that white space and the order of keys do not matter. Files of earlier versions have no checksum.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) const KEY: &str = "sha256";

/// Content of an object, and its checksum.
#[derive(Debug)]
pub(crate) struct Checked<T> {
    pub content: T,
    pub checksum: Option<String>,
}

/// Serializes an object to JSON with its checksum, which also covers `previous_checksum`; returns the JSON and the
/// checksum.
pub(crate) fn to_json_with_checksum<T: Serialize>(
    content: &T,
    previous_checksum: &str,
) -> Result<(String, String), serde_json::Error> {
    let mut text = serde_json::to_string(content)?;
    // Computed over the parsed JSON, as when it is read: parsing may change the format of numbers.
    let sum = checksum(&serde_json::from_str(&text)?, previous_checksum);
    let end = text.rfind('}').unwrap_or(text.len());
    text.insert_str(end, &format!(",\"{KEY}\":\"{sum}\""));
    Ok((text, sum))
}

/// Serializes an object to pretty-printed JSON with its checksum.
pub(crate) fn to_pretty_json_with_checksum<T: Serialize>(
    content: &T,
) -> Result<String, serde_json::Error> {
    let text = serde_json::to_string_pretty(content)?;
    let sum = checksum(&serde_json::from_str(&text)?, "");
    let rest = text
        .trim_end()
        .strip_suffix('}')
        .unwrap_or(&text)
        .trim_end();
    Ok(format!("{rest},\n  \"{KEY}\": \"{sum}\"\n}}\n"))
}

/// Returns a list of objects as JSON; the checksum of each covers those before it.
pub(crate) fn to_json_list_with_checksums<T: Serialize>(
    contents: &[T],
) -> Result<String, serde_json::Error> {
    let mut texts = Vec::new();
    let mut previous_checksum = String::new();
    for content in contents {
        let (text, sum) = to_json_with_checksum(content, &previous_checksum)?;
        texts.push(text);
        previous_checksum = sum;
    }
    Ok(format!("[{}]", texts.join(",\n")))
}

/// Reads the output of [`to_json_list_with_checksums`], or a list of an earlier version, in which no object has
/// a checksum.
pub(crate) fn parse_list<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<Checked<T>>, String> {
    let values: Vec<Value> = deserialize(bytes)?;
    if values.iter().all(|value| value.get(KEY).is_none()) {
        let contents: Vec<T> = deserialize(bytes)?;
        return Ok(contents
            .into_iter()
            .map(Checked::without_checksum)
            .collect());
    }
    let mut previous_checksum = String::new();
    let parsed = values.into_iter().map(|value| {
        let checked = verify(value, &previous_checksum)?.ok_or("an object lacks its checksum")?;
        previous_checksum = checked.1.clone();
        Checked::with_checksum(checked)
    });
    parsed.collect()
}

/// Reads the output of [`to_json_with_checksum`], or an object of an earlier version without checksum.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Checked<T>, String> {
    match verify(deserialize(bytes)?, "")? {
        Some(checked) => Checked::with_checksum(checked),
        // Parsed from the bytes, to reject duplicate keys.
        None => deserialize(bytes).map(Checked::without_checksum),
    }
}

impl<T: DeserializeOwned> Checked<T> {
    fn without_checksum(content: T) -> Self {
        Self {
            content,
            checksum: None,
        }
    }

    fn with_checksum((value, checksum): (Value, String)) -> Result<Self, String> {
        let content = serde_json::from_value(value).map_err(|error| error.to_string())?;
        Ok(Self {
            content,
            checksum: Some(checksum),
        })
    }
}

fn deserialize<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Splits an object into its content and its checksum, which must match; `None` if it has none.
fn verify(mut value: Value, previous_checksum: &str) -> Result<Option<(Value, String)>, String> {
    match value.as_object_mut().and_then(|object| object.remove(KEY)) {
        None => Ok(None),
        Some(Value::String(sum)) if sum == checksum(&value, previous_checksum) => {
            Ok(Some((value, sum)))
        }
        Some(_) => Err(format!(
            "its content does not match its checksum ({KEY}): the file is corrupt or was modified"
        )),
    }
}

fn checksum(value: &Value, previous_checksum: &str) -> String {
    // `serde_json` objects are maps sorted by key, so that their text is canonical.
    super::sha256(format!("{previous_checksum}{value}").as_bytes())
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

    fn read(text: &str) -> Result<Checked<Lists>, String> {
        parse(text.as_bytes())
    }

    #[test]
    fn checksum_depends_on_content_not_on_layout() {
        let (text, sum) = to_json_with_checksum(&lists(), "").unwrap();
        let other = format!(" {{ \"on\" : [\"b\"],\n\"{KEY}\":\"{sum}\", \"of\":[\"a\",\"b\"]}}");
        for text in [&text, &other] {
            let parsed = read(text).unwrap();
            assert_eq!(
                (parsed.content, parsed.checksum),
                (lists(), Some(sum.clone()))
            );
        }
        for wrong in [text.replace("\"b\"]", "\"a\"]"), text.replace(&sum, "")] {
            assert!(read(&wrong).unwrap_err().contains("checksum"), "{wrong}");
        }
        // The checksum covers `previous_checksum`.
        let (text, _) = to_json_with_checksum(&lists(), &sum).unwrap();
        assert!(read(&text).is_err());
    }

    #[test]
    fn objects_without_checksum_are_read_and_marked() {
        let parsed = read(r#"{"of":["a","b"],"on":["b"]}"#).unwrap();
        assert_eq!((parsed.content, parsed.checksum), (lists(), None));
        let twice = r#"{"of":["a"],"of":["a","b"],"on":["b"]}"#;
        assert!(read(twice).unwrap_err().contains("duplicate field"));
    }

    #[test]
    fn lists_are_chained_and_pretty_objects_parse_too() {
        let text = to_json_list_with_checksums(&[lists(), lists()]).unwrap();
        let parsed = |text: &str| parse_list::<Lists>(text.as_bytes());
        assert_eq!(parsed(&text).unwrap().len(), 2);
        let lines: Vec<&str> = text.trim_matches(['[', ']']).split(",\n").collect();
        // Objects of a list cannot be swapped.
        let swapped = format!("[{},{}]", lines[1], lines[0]);
        assert!(parsed(&swapped).unwrap_err().contains("checksum"));
        let mixed = format!("[{},{{\"of\":[],\"on\":[]}}]", lines[0]);
        assert!(parsed(&mixed).unwrap_err().contains("lacks its checksum"));
        let pretty = to_pretty_json_with_checksum(&lists()).unwrap();
        assert!(read(&pretty).unwrap().checksum.is_some());
        assert!(pretty.lines().count() > 5, "{pretty}");
        assert!(read(&pretty.replace("\"b\"", "\"c\"")).is_err());
    }
}
