//! Serialized forms of placement values with custom serialization.
//!
//! A scale is a number, a formula's name or a table; a selector is a list of indices or a table; an
//! optional value is `false` when off, so that an override can switch it off again and every field of a
//! placement has a serialized form, also in TOML, which has no null.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::json_value::matches_name;
use super::norm_functions::{NAMES, NONE, by_name, properties};
use super::spec::{
    AttnScale, Formula, LearnedShape, NormFn, ResolvedScale, Scale, Selector, StdRule,
};

/// Formulas without arguments: the name, its aliases, and the formula.
const FORMULAS: [(&str, &[&str], Formula); 8] = [
    ("inv_sqrt_layer", &["inv_sqrt_l"], Formula::InvSqrtLayer),
    ("inv_sqrt_2_layer", &["inv_sqrt_2l"], Formula::InvSqrt2Layer),
    ("inv_sqrt_2_depth", &["inv_sqrt_2L"], Formula::InvSqrt2Depth),
    ("two_depth", &["two_L"], Formula::TwoDepth),
    ("sqrt_width", &[], Formula::SqrtWidth),
    ("inv_sqrt_width", &[], Formula::InvSqrtWidth),
    ("sqrt_ln_2_depth", &[], Formula::SqrtLn2Depth),
    ("layer_scale", &[], Formula::LayerScale),
];

impl Formula {
    /// Names of the formulas without arguments.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [""; FORMULAS.len()];
        let mut i = 0;
        while i < FORMULAS.len() {
            names[i] = FORMULAS[i].0;
            i += 1;
        }
        names
    };

    /// Returns the formula of this name or alternative spelling; [`Formula::DepthPower`] has no name,
    /// since it needs two numbers.
    ///
    /// ```
    /// use hybridnorm::placement::Formula;
    /// assert_eq!(Formula::by_name("inv_sqrt_layer"), Some(Formula::InvSqrtLayer));
    /// assert_eq!(Formula::by_name("no_formula"), None);
    /// ```
    pub fn by_name(name: &str) -> Option<Self> {
        let mut all = FORMULAS.iter();
        all.find(|(name_in_file, aliases, _)| *name_in_file == name || aliases.contains(&name))
            .map(|(.., formula)| *formula)
    }
}

impl Serialize for Formula {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Self::DepthPower { k, p } = *self {
            return table(serializer, "depth_power", &Power { k, p });
        }
        match FORMULAS.iter().find(|(.., formula)| formula == self) {
            Some((word, ..)) => serializer.serialize_str(word),
            None => Err(S::Error::custom("this formula cannot be serialized")),
        }
    }
}

impl Serialize for Scale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Const(value) => serializer.serialize_f64(*value),
            Self::Formula(formula) => formula.serialize(serializer),
            Self::Learned { shape, init, start } => table(
                serializer,
                "learned",
                &Learned {
                    shape: *shape,
                    init: init.as_ref(),
                    start: start.as_deref(),
                },
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Scale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScaleVisitor;
        impl<'de> Visitor<'de> for ScaleVisitor {
            type Value = Scale;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(
                    "a number, a formula's name, { depth_power = { k, p } } or \
                     { learned = { shape, init, start } }",
                )
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Scale, E> {
                Ok(Scale::Const(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Scale, E> {
                Ok(Scale::Const(value as f64))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Scale, E> {
                Ok(Scale::Const(value as f64))
            }
            fn visit_str<E: Error>(self, name: &str) -> Result<Scale, E> {
                match Formula::by_name(&name.replace('-', "_")) {
                    Some(formula) => Ok(Scale::Formula(formula)),
                    None if name == "depth_power" => Err(E::custom(
                        "`depth_power` requires k and p: { depth_power = { k = 2, p = 0.25 } }",
                    )),
                    None => Err(E::unknown_variant(name, Formula::NAMES)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scale, A::Error> {
                let written = ScaleTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(match written {
                    ScaleTable::DepthPower(Power { k, p }) => {
                        Scale::Formula(Formula::DepthPower { k, p })
                    }
                    ScaleTable::Learned(Learned { shape, init, start }) => Scale::Learned {
                        shape,
                        init: Box::new(init),
                        start: start.map(Box::new),
                    },
                })
            }
        }
        deserializer.deserialize_any(ScaleVisitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ScaleTable {
    DepthPower(Power),
    Learned(Learned<Scale>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `k` and `p`")]
struct Power {
    k: f64,
    p: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `shape` and `init`")]
struct Learned<T> {
    shape: LearnedShape,
    init: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<T>,
}

impl Serialize for ResolvedScale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Const(value) => serializer.serialize_f64(value),
            Self::Learned { shape, init, start } => {
                table(serializer, "learned", &Learned { shape, init, start })
            }
        }
    }
}

impl<'de> Deserialize<'de> for ResolvedScale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scale::deserialize(deserializer)? {
            Scale::Const(value) => Ok(Self::Const(value)),
            Scale::Learned { shape, init, start } => Ok(Self::Learned {
                shape,
                init: number(&init)?,
                start: start.as_deref().map(number).transpose()?,
            }),
            Scale::Formula(_) => Err(D::Error::custom("a resolved scale cannot be a formula")),
        }
    }
}

fn number<E: Error>(scale: &Scale) -> Result<f64, E> {
    match scale {
        Scale::Const(value) => Ok(*value),
        _ => Err(E::custom(
            "`init` and `start` of a resolved scale must be numbers",
        )),
    }
}

impl Serialize for AttnScale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::InvSqrtHeadDim => serializer.serialize_str("inv_sqrt_head_dim"),
            Self::SqrtHeadDim => serializer.serialize_str("sqrt_head_dim"),
            Self::Const(value) => serializer.serialize_f64(value),
            Self::Cosine => serializer.serialize_str("cosine"),
        }
    }
}

impl<'de> Deserialize<'de> for AttnScale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_name(
            deserializer,
            Self::Const,
            &["inv_sqrt_head_dim", "sqrt_head_dim", "cosine"],
            &[Self::InvSqrtHeadDim, Self::SqrtHeadDim, Self::Cosine],
        )
    }
}

impl Serialize for StdRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::SmallInit => serializer.serialize_str("small_init"),
            Self::Const(value) => serializer.serialize_f64(value),
        }
    }
}

impl<'de> Deserialize<'de> for StdRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_name(
            deserializer,
            Self::Const,
            &["small_init"],
            &[Self::SmallInit],
        )
    }
}

/// Reads a number through `number`, or one of `names` as the value at the same index.
fn number_or_name<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    number: fn(f64) -> T,
    names: &'static [&'static str],
    values: &[T],
) -> Result<T, D::Error> {
    struct NumberOrNameVisitor<'v, T> {
        number: fn(f64) -> T,
        names: &'static [&'static str],
        values: &'v [T],
    }
    impl<T: Copy> Visitor<'_> for NumberOrNameVisitor<'_, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a number or one of `{}`", self.names.join("`, `"))
        }
        fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
            Ok((self.number)(value))
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
            Ok((self.number)(value as f64))
        }
        fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
            Ok((self.number)(value as f64))
        }
        fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
            match self
                .names
                .iter()
                .position(|known| matches_name(name, known))
            {
                Some(index) => Ok(self.values[index]),
                None => Err(E::unknown_variant(name, self.names)),
            }
        }
    }
    deserializer.deserialize_any(NumberOrNameVisitor {
        number,
        names,
        values,
    })
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Indices(indices) => indices.serialize(serializer),
            Self::Range { start, end } => table(
                serializer,
                "range",
                &Span {
                    start: *start,
                    end: *end,
                },
            ),
            Self::FirstFraction(fraction) => table(serializer, "first_fraction", fraction),
            Self::Last(count) => table(serializer, "last", count),
            Self::Every(step) => table(serializer, "every", step),
        }
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SelectorVisitor;
        impl<'de> Visitor<'de> for SelectorVisitor {
            type Value = Selector;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(
                    "a list of 0-based block indices, { range = { start, end } }, \
                     { first_fraction = … }, { last = … } or { every = … }",
                )
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Selector, A::Error> {
                let mut indices = Vec::new();
                while let Some(index) = seq.next_element()? {
                    indices.push(index);
                }
                Ok(Selector::Indices(indices))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Selector, A::Error> {
                let written = SelectorTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(match written {
                    SelectorTable::Indices(indices) => Selector::Indices(indices),
                    SelectorTable::Range(Span { start, end }) => Selector::Range { start, end },
                    SelectorTable::FirstFraction(fraction) => Selector::FirstFraction(fraction),
                    SelectorTable::Last(count) => Selector::Last(count),
                    SelectorTable::Every(step) => Selector::Every(step),
                })
            }
        }
        deserializer.deserialize_any(SelectorVisitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum SelectorTable {
    Indices(Vec<usize>),
    Range(Span),
    FirstFraction(f64),
    Last(usize),
    Every(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `start` and `end`")]
struct Span {
    start: usize,
    end: usize,
}

fn table<S: Serializer, T: Serialize + ?Sized>(
    serializer: S,
    key: &str,
    value: &T,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}

/// True if a field is omitted from the serialized form. Only fields added after the first stored
/// hashes are omitted, so that these hashes stay valid; code that needs every field uses
/// [`template`](super::placement_config::template).
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Serialized form of an optional norm function: its name, or the name for no norm.
pub(super) mod norm_function_or_none {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<NormFn>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(value.map_or(NONE, |function| properties(function).name))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<NormFn>, D::Error> {
        struct NormFunctionVisitor;
        impl<'de> Visitor<'de> for NormFunctionVisitor {
            type Value = Option<NormFn>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name in quotation marks")
            }
            fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Self::Value, A::Error> {
                let (name, content): (String, _) = data.variant()?;
                let function = by_name(&name);
                if function.is_none() && name != NONE {
                    return Err(Error::unknown_variant(&name, &NAMES));
                }
                content.unit_variant()?;
                Ok(function)
            }
        }
        // Read as an enum in every format, so that deserializers report the problem with other values.
        d.deserialize_enum("NormFn", &NAMES, NormFunctionVisitor)
    }
}

/// Serialized form of an optional number: `false` if off.
pub(super) mod number_or_false {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(number) => s.serialize_f64(*number),
            None => s.serialize_bool(false),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = Option<f64>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number, or false for off")
            }
            fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
                if on {
                    return Err(E::invalid_type(serde::de::Unexpected::Bool(on), &self));
                }
                Ok(None)
            }
            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
                Ok(Some(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Some(value as f64))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Some(value as f64))
            }
        }
        d.deserialize_any(NumberVisitor)
    }
}

/// Serialized form of an optional table: `false` if off, `true` if all its fields are default.
pub(super) mod table_or_false {
    use super::*;
    use std::marker::PhantomData;

    pub fn serialize<S: Serializer, T: Serialize>(
        value: &Option<T>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(fields) => fields.serialize(s),
            None => s.serialize_bool(false),
        }
    }

    pub fn deserialize<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de> + Default,
    {
        struct TableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for TableVisitor<T> {
            type Value = Option<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("true, false or a table")
            }
            fn visit_bool<E: Error>(self, on: bool) -> Result<Self::Value, E> {
                Ok(on.then(T::default))
            }
            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Some)
            }
        }
        d.deserialize_any(TableVisitor(PhantomData))
    }
}
