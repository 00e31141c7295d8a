//! Deserialization of typed values from JSON values, with errors that name the path.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::{Map, Value, map};

use super::error::PlacementErrorKind::InvalidValue;
use super::error::{PlacementError, key};

/// Deserializes a `T`; the error's field is the path from `value` to the mistake.
pub(super) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, PlacementError> {
    T::deserialize(Node(value))
}

/// Merges `patch` into `base`. Tables are merged if `template` also has a table there, i.e. for structs of the
/// placement; other values are replaced as a whole.
pub(super) fn merge(base: &mut Value, patch: &Value, template: &Value) {
    match (base, patch, template) {
        (Value::Object(base), Value::Object(patch), Value::Object(template)) => {
            for (key, value) in patch {
                let inner = template.get(key).unwrap_or(&Value::Null);
                merge(base.entry(key).or_insert(Value::Null), value, inner);
            }
        }
        (base, patch, _) => *base = patch.clone(),
    }
}

/// Returns the part of `value` with the keys of `shape`, i.e. a patch in normalized form. Fields that
/// `value` omits are taken from `template`, which omits none.
pub(super) fn restrict_to_keys(value: &Value, shape: &Value, template: &Value) -> Value {
    match (value, shape, template) {
        (Value::Object(value), Value::Object(shape), Value::Object(template)) => shape
            .iter()
            .filter_map(|(key, inner)| {
                let below = template.get(key).unwrap_or(&Value::Null);
                let value = value.get(key).or(template.get(key))?;
                Some((key.clone(), restrict_to_keys(value, inner, below)))
            })
            .collect::<Map<_, _>>()
            .into(),
        (value, _, _) => value.clone(),
    }
}

/// Returns the patch that [`merge`] needs to turn `base` into `changed`; `None` if they are equal. Both have every
/// key of `template`.
pub(super) fn difference(base: &Value, changed: &Value, template: &Value) -> Option<Value> {
    match (base, changed, template) {
        _ if base == changed => None,
        (Value::Object(base), Value::Object(changed), Value::Object(template)) => {
            let fields = template.iter().filter_map(|(key, inner)| {
                let patch = difference(base.get(key)?, changed.get(key)?, inner)?;
                Some((key.clone(), patch))
            });
            Some(fields.collect::<Map<_, _>>().into())
        }
        _ => Some(changed.clone()),
    }
}

#[derive(Clone, Copy)]
struct Node<'a>(&'a Value);

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = PlacementError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlacementError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(on) => visitor.visit_bool(*on),
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
            }),
            Value::Object(fields) => {
                let mut remaining = fields.len();
                let read = visitor.visit_map(Fields {
                    fields: fields.iter(),
                    current: None,
                    remaining: &mut remaining,
                })?;
                match remaining {
                    0 => Ok(read),
                    _ => Err(PlacementError::new(
                        InvalidValue,
                        "",
                        format!("expected a table with one key, found {} keys", fields.len()),
                    )),
                }
            }
            Value::Number(number) => {
                if let Some(whole) = number.as_u64() {
                    visitor.visit_u64(whole)
                } else if let Some(whole) = number.as_i64() {
                    visitor.visit_i64(whole)
                } else {
                    visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
                }
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlacementError> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PlacementError> {
        match self.0 {
            Value::String(text) => {
                let known = variants.iter().find(|known| matches_name(text, known));
                let name: StrDeserializer<'_, PlacementError> =
                    known.copied().unwrap_or(text).into_deserializer();
                visitor.visit_enum(name)
            }
            // Not a string, such as a boolean or a number: the error shows one of the names.
            other => Err(expected_name_error(other, variants)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, PlacementError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// True if `found` is `name`; dashes, as in the names of placements, are read as underscores.
pub(super) fn matches_name(found: &str, name: &str) -> bool {
    let underscored = |c: char| if c == '-' { '_' } else { c };
    found.chars().map(underscored).eq(name.chars())
}

/// Returns the error for a value where one of these names was expected.
fn expected_name_error(found: &Value, names: &[&str]) -> PlacementError {
    let list: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let is_none = |name: &&&str| **name == "none";
    let example = match found {
        Value::Bool(true) => names.iter().find(|name| !is_none(name)),
        _ => names.first(),
    };
    let example = example.copied().unwrap_or_default();
    PlacementError::new(
        InvalidValue,
        "",
        format!(
            "expected one of {} in quotation marks, as in \"{example}\", found {}",
            list.join(", "),
            describe(found)
        ),
    )
}

fn describe(value: &Value) -> String {
    match value {
        Value::Object(_) => "a table".into(),
        Value::Array(_) => "an array".into(),
        other => other.to_string(),
    }
}

struct Fields<'a, 'n> {
    fields: map::Iter<'a>,
    current: Option<(&'a str, &'a Value)>,
    remaining: &'n mut usize,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = PlacementError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, PlacementError> {
        let Some((name, value)) = self.fields.next() else {
            return Ok(None);
        };
        self.current = Some((name, value));
        *self.remaining -= 1;
        let name: StrDeserializer<'_, PlacementError> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, PlacementError> {
        let (name, value) = self.current.take().unwrap_or(("", &Value::Null));
        seed.deserialize(Node(value))
            .map_err(|error| error.under(&key(name)))
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = PlacementError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, PlacementError> {
        self.items
            .next()
            .map(|(index, item)| {
                seed.deserialize(Node(item))
                    .map_err(|error| error.under(&format!("[{index}]")))
            })
            .transpose()
    }
}
