//! One string field out of one line of JSON, without building the rest.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The string under `field` of the JSON object in `line`.
///
/// The error says what is wrong with the line, without naming it.
pub(super) fn text_field(line: &str, field: &str) -> Result<String, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Field(field)
        .deserialize(&mut json)
        .map_err(|error| without_line(&error))?;
    json.end().map_err(|error| without_line(&error))?;
    match found {
        Found::Text(text) => Ok(text),
        Found::Other => Err(format!("field `{field}` is not a string")),
        Found::Missing(keys) if keys.is_empty() => {
            Err(format!("no field `{field}`: the object is empty"))
        }
        Found::Missing(keys) => Err(format!(
            "no field `{field}`; the fields are {}",
            keys.iter()
                .map(|key| format!("`{key}`"))
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

/// The caller knows the line; to the reader each line is the first.
fn without_line(error: &serde_json::Error) -> String {
    error
        .to_string()
        .replace(" at line 1 column ", " at column ")
}

enum Found {
    Text(String),
    Other,
    Missing(Vec<String>),
}

struct Field<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut keys = Vec::new();
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<str>>()? {
            if key == self.0 {
                found = Some(map.next_value::<StringOrOther>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if found.is_none() && keys.len() < 8 {
                    keys.push(key.into_owned());
                }
            }
        }
        Ok(match found {
            Some(StringOrOther(Some(text))) => Found::Text(text),
            Some(StringOrOther(None)) => Found::Other,
            None => Found::Missing(keys),
        })
    }
}

struct StringOrOther(Option<String>);

impl<'de> de::Deserialize<'de> for StringOrOther {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = StringOrOther;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a value")
            }
            fn visit_str<E>(self, text: &str) -> Result<StringOrOther, E> {
                Ok(StringOrOther(Some(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<StringOrOther, E> {
                Ok(StringOrOther(Some(text)))
            }
            fn visit_bool<E>(self, _: bool) -> Result<StringOrOther, E> {
                Ok(StringOrOther(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<StringOrOther, E> {
                Ok(StringOrOther(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<StringOrOther, E> {
                Ok(StringOrOther(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<StringOrOther, E> {
                Ok(StringOrOther(None))
            }
            fn visit_unit<E>(self) -> Result<StringOrOther, E> {
                Ok(StringOrOther(None))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(
                self,
                mut items: A,
            ) -> Result<StringOrOther, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(StringOrOther(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StringOrOther, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(StringOrOther(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::text_field;

    #[test]
    fn finds_the_field_wherever_it_stands() {
        let line = r#"{"id": 3, "meta": {"text": "no"}, "text": "a\nb", "x": [1, {}]}"#;
        assert_eq!(text_field(line, "text").unwrap(), "a\nb");
        assert_eq!(text_field(r#"{"te\u0078t":"c"}"#, "text").unwrap(), "c");
    }

    #[test]
    fn says_what_is_wrong() {
        let missing = text_field(r#"{"body": "x", "id": 1}"#, "text").unwrap_err();
        assert_eq!(missing, "no field `text`; the fields are `body`, `id`");
        for value in ["1", "-1", "0.5", "null", "true", "[1]", "{\"a\":1}"] {
            let error = text_field(&format!("{{\"text\":{value}}}"), "text").unwrap_err();
            assert_eq!(error, "field `text` is not a string");
        }
        for line in [
            "",
            "[]",
            "{",
            "{\"text\":\"a\"} x",
            "{\"text\":\"\\ud800\"}",
        ] {
            assert!(text_field(line, "text").is_err(), "{line}");
        }
    }
}
