//! Types of request fields. They are read without intermediate values, so that a body takes at most a few times its size.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Maximum number of prompts of a request.
pub(super) const MAX_PROMPTS: usize = 256;
/// Maximum number of stop strings.
const MAX_STOPS: usize = 16;
/// Maximum length of a stop string in bytes.
const MAX_STOP_LEN: usize = 256;

/// Prompts: one or several, as text or token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<i32>>),
}

const EXPECTED_PROMPT: &str =
    "a string, a list of strings, a list of token ids, or a list of lists of token ids";

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut state = PromptState::default();
        deserializer.deserialize_any(PromptVisitor(&mut state, 0))?;
        let tokens = match state.flat.is_empty() {
            true => state.tokens,
            false => vec![state.flat],
        };
        Ok(match tokens.is_empty() {
            true => Self::Texts(state.texts),
            false => Self::Tokens(tokens),
        })
    }
}

/// Prompts read so far: only one of the fields is not empty.
#[derive(Default)]
struct PromptState {
    texts: Vec<String>,
    flat: Vec<i32>,
    tokens: Vec<Vec<i32>>,
}

impl PromptState {
    fn check<E: Error>(&self, is_consistent: bool) -> Result<(), E> {
        if !is_consistent {
            return Err(E::custom(format!(
                "expected {EXPECTED_PROMPT}, found a mixture"
            )));
        }
        let count = self.texts.len().max(self.tokens.len());
        match count > MAX_PROMPTS {
            true => Err(E::custom(format!("more than {MAX_PROMPTS} prompts"))),
            false => Ok(()),
        }
    }
}

/// Visitor of a prompt value at a depth: the value, an element of it, or an element of an element.
struct PromptVisitor<'a>(&'a mut PromptState, usize);

impl<'de> DeserializeSeed<'de> for PromptVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PromptVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED_PROMPT)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let Self(state, depth) = self;
        if depth > 1 {
            return Err(E::invalid_type(
                serde::de::Unexpected::Str(text),
                &EXPECTED_PROMPT,
            ));
        }
        state.texts.push(text.to_owned());
        state.check(state.flat.is_empty() && state.tokens.is_empty())
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<(), E> {
        let Self(state, depth) = self;
        let id =
            i32::try_from(id).map_err(|_| E::custom(format!("token id {id} is out of range")))?;
        match (depth, state.tokens.last_mut()) {
            (2, Some(last)) => last.push(id),
            (1, _) => state.flat.push(id),
            _ => {
                return Err(E::custom(format!(
                    "expected {EXPECTED_PROMPT}, found a number"
                )));
            }
        }
        let is_flat = depth == 1;
        state.check(state.texts.is_empty() && (state.tokens.is_empty() || !is_flat))
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<(), E> {
        Err(E::custom(format!("token id {id} is out of range")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(state, depth) = self;
        match depth {
            0 => (),
            1 => {
                state.tokens.push(Vec::new());
                state.check(state.texts.is_empty() && state.flat.is_empty())?;
            }
            _ => {
                return Err(A::Error::custom(format!(
                    "expected {EXPECTED_PROMPT}, found deeper lists"
                )));
            }
        }
        while seq
            .next_element_seed(PromptVisitor(state, depth + 1))?
            .is_some()
        {}
        Ok(())
    }
}

/// Stop strings: one or several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stops(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StopVisitor;

        impl<'de> Visitor<'de> for StopVisitor {
            type Value = Stops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Stops, E> {
                check_stop(text)?;
                Ok(Stops(vec![text.to_owned()]))
            }

            fn visit_unit<E: Error>(self) -> Result<Stops, E> {
                Ok(Stops::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Stops, A::Error> {
                let mut stops = Vec::new();
                while let Some(stop) = seq.next_element::<String>()? {
                    check_stop(&stop)?;
                    if stops.len() == MAX_STOPS {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_STOPS} stop strings"
                        )));
                    }
                    stops.push(stop);
                }
                Ok(Stops(stops))
            }
        }

        deserializer.deserialize_any(StopVisitor)
    }
}

fn check_stop<E: Error>(text: &str) -> Result<(), E> {
    match text.len() {
        0 => Err(E::custom("a stop string is empty")),
        1..=MAX_STOP_LEN => Ok(()),
        len => Err(E::custom(format!(
            "a stop string has {len} bytes, at most {MAX_STOP_LEN} are possible"
        ))),
    }
}

/// Text of a message: a string, or a list of parts of type `text`, which are concatenated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content(pub(super) String);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of parts of type `text`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                #[derive(Deserialize)]
                struct Part {
                    r#type: String,
                    text: Option<String>,
                }
                let mut all = String::new();
                while let Some(part) = seq.next_element::<Part>()? {
                    match part.text {
                        Some(text) if part.r#type == "text" => all.push_str(&text),
                        _ => {
                            return Err(A::Error::custom(
                                "a part is not of type `text`, the only one supported",
                            ));
                        }
                    }
                }
                Ok(Content(all))
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

/// Value of a field that this server does not support. It is accepted only where it has no effect: `null`, `false`, 0,
/// and empty strings, lists and objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Unsupported {
    /// Absent, or without effect.
    #[default]
    Neutral,
    /// It would change the result.
    Set,
}

impl Unsupported {
    fn set_if(is_set: bool) -> Self {
        if is_set { Self::Set } else { Self::Neutral }
    }
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyVisitor;

        impl<'de> Visitor<'de> for AnyVisitor {
            type Value = Unsupported;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Unsupported, E> {
                Ok(Unsupported::set_if(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Unsupported, E> {
                Ok(Unsupported::set_if(value != 0))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Unsupported, E> {
                Ok(Unsupported::set_if(value != 0))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Unsupported, E> {
                Ok(Unsupported::set_if(value != 0.0))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Unsupported, E> {
                Ok(Unsupported::set_if(!value.is_empty()))
            }

            fn visit_unit<E: Error>(self) -> Result<Unsupported, E> {
                Ok(Unsupported::Neutral)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unsupported, A::Error> {
                let mut is_set = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    is_set = true;
                }
                Ok(Unsupported::set_if(is_set))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
                let mut is_set = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    is_set = true;
                }
                Ok(Unsupported::set_if(is_set))
            }
        }

        deserializer.deserialize_any(AnyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(json: &str) -> Result<Prompts, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn prompts_have_four_forms() {
        let texts = |all: &[&str]| {
            Ok(Prompts::Texts(
                all.iter().map(|text| (*text).to_owned()).collect(),
            ))
        };
        assert_eq!(prompts(r#""a""#), texts(&["a"]));
        assert_eq!(prompts(r#"["a", ""]"#), texts(&["a", ""]));
        assert_eq!(prompts("[]"), texts(&[]));
        assert_eq!(prompts("[1, 2]"), Ok(Prompts::Tokens(vec![vec![1, 2]])));
        assert_eq!(
            prompts("[[1], [], [2, 3]]"),
            Ok(Prompts::Tokens(vec![vec![1], vec![], vec![2, 3]]))
        );
        let many = vec!["[1]"; MAX_PROMPTS + 1].join(",");
        for broken in [
            "1",
            "null",
            "true",
            "{}",
            "[1, \"a\"]",
            "[\"a\", 1]",
            "[[1], 2]",
            "[1, [2]]",
            "[[1], \"a\"]",
            "[[\"a\"]]",
            "[[[1]]]",
            "[-1]",
            "[1.5]",
            "[2147483648]",
            "[null]",
            &format!("[{many}]"),
        ] {
            assert!(prompts(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn stop_strings_are_limited() {
        let stops = |json: &str| {
            serde_json::from_str::<Stops>(json)
                .map(|stops| stops.0)
                .map_err(|e| e.to_string())
        };
        assert_eq!(stops(r#""a""#).unwrap(), ["a"]);
        assert_eq!(stops(r#"["a", "b"]"#).unwrap(), ["a", "b"]);
        assert!(stops("null").unwrap().is_empty());
        let (many, long) = (vec!["\"a\""; 17].join(","), "a".repeat(257));
        for broken in [
            "\"\"",
            "[1]",
            "3",
            &format!("[{many}]"),
            &format!("\"{long}\""),
        ] {
            assert!(stops(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn values_without_effect_are_neutral() {
        let of = |json: &str| serde_json::from_str::<Unsupported>(json).unwrap();
        for neutral in ["null", "false", "0", "0.0", "\"\"", "[]", "{}"] {
            assert_eq!(of(neutral), Unsupported::Neutral, "{neutral}");
        }
        for set in ["true", "1", "-0.5", "\"a\"", "[null]", "{\"50256\": -100}"] {
            assert_eq!(of(set), Unsupported::Set, "{set}");
        }
    }

    #[test]
    fn parts_of_a_message_are_concatenated() {
        let of = |json: &str| {
            serde_json::from_str::<Content>(json)
                .map(|content| content.0)
                .ok()
        };
        assert_eq!(of(r#""a""#).as_deref(), Some("a"));
        assert_eq!(
            of(r#"[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]"#).as_deref(),
            Some("ab")
        );
        assert_eq!(of(r#"[{"type": "image_url", "image_url": {}}]"#), None);
    }
}
