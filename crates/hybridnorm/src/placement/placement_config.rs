//! The `placement` value of a configuration: a name, or a table of placement fields.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value, json};

use super::error::PlacementErrorKind::{InvalidValue, UnknownField};
use super::error::{PlacementError, key, unknown};
use super::json_value;
use super::layers::normalize_overrides;
use super::named::{find_named, named, named_placements};
use super::spec::{Init, NormSpec, Placement, UnresolvedBlock};

/// Value of the key `placement` in a configuration.
///
/// ```toml
/// placement = "hybridnorm"
/// placement = { base = "hybridnorm", block = { ffn = { skip = "raw" } } }
/// placement = { block = { attn = { in_norm = true }, ffn = { in_norm = true } } }
/// ```
///
/// In a table, fields are merged into the placement that `base` names, or into the default without a
/// base. Tables of struct fields are merged; lists and scales are replaced as a whole.
///
/// ```
/// use hybridnorm::placement::PlacementConfig;
/// use serde_json::json;
/// let value = json!({ "base": "pre-norm", "block": { "ffn": { "in_scale": 0.5 } } });
/// let config = PlacementConfig::from_value(&value)?;
/// assert_eq!((config.base, config.modified), (Some("pre-norm"), true));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlacementConfig {
    /// Canonical name of the base placement.
    pub base: Option<&'static str>,
    /// True if the fields of the table changed the base.
    pub modified: bool,
    /// The resulting placement.
    pub placement: Placement,
}

impl PlacementConfig {
    /// Returns the placement of this name or alias.
    ///
    /// # Errors
    /// The name is unknown; the message lists the nearest known ones.
    ///
    /// ```
    /// use hybridnorm::placement::PlacementConfig;
    /// assert_eq!(PlacementConfig::from_name("pre-ln")?.base, Some("pre-norm"));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn from_name(name: &str) -> Result<Self, PlacementError> {
        let entry = find_named(name)?;
        Ok(Self {
            base: Some(entry.name),
            modified: false,
            placement: entry.placement(),
        })
    }

    /// Reads a name or a table.
    ///
    /// # Errors
    /// An unknown name, an unknown key or a value of the wrong type; the error names the path.
    ///
    /// ```
    /// use hybridnorm::placement::PlacementConfig;
    /// let error = PlacementConfig::from_value(&serde_json::json!({ "blok": {} })).unwrap_err();
    /// assert_eq!(error.field, "blok");
    /// ```
    pub fn from_value(value: &Value) -> Result<Self, PlacementError> {
        match value {
            Value::String(name) => Self::from_name(name),
            Value::Object(fields) => Self::from_table(fields),
            other => Err(PlacementError::new(
                InvalidValue,
                "",
                format!(
                    "expected a name or a table of placement fields, found {}",
                    kind(other)
                ),
            )),
        }
    }

    fn from_table(fields: &Map<String, Value>) -> Result<Self, PlacementError> {
        let base = match fields.get("base") {
            None => None,
            Some(Value::String(name)) => Some(find_named(name).map_err(|e| e.under("base"))?.name),
            Some(other) => {
                return Err(PlacementError::new(
                    InvalidValue,
                    "base",
                    format!("expected a placement's name, found {}", kind(other)),
                ));
            }
        };
        let start = base.map_or_else(|| Ok(Placement::default()), named)?;
        let template = template()?;
        let patch = without_base(fields, &template)?;
        let mut value = to_json(&start)?;
        json_value::merge(&mut value, &patch, &template);
        let placement = normalize_overrides(json_value::read(&value)?)?;
        Ok(Self {
            base,
            modified: placement != start,
            placement,
        })
    }

    /// Returns the configuration for the placement of a checkpoint, with its name if it equals a named placement.
    ///
    /// ```
    /// use hybridnorm::placement::{PlacementConfig, named};
    /// let config = PlacementConfig::from_checkpoint(named("pre-norm")?);
    /// assert_eq!(config.base, Some("pre-norm"));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn from_checkpoint(placement: Placement) -> Self {
        let hash = placement.hash();
        let mut all = named_placements().iter();
        Self {
            base: all
                .find(|entry| entry.placement().hash() == hash)
                .map(|entry| entry.name),
            modified: false,
            placement,
        }
    }

    /// Returns a label for tables and file names: `NAME`, `NAME+HASH` if modified, or `custom+HASH` without a base.
    ///
    /// ```
    /// use hybridnorm::placement::{Placement, PlacementConfig};
    /// assert_eq!(PlacementConfig::from_name("pre-ln")?.label(), "pre-norm");
    /// let custom = Placement { final_norm: false, ..Placement::default() };
    /// let custom = PlacementConfig::from_checkpoint(custom);
    /// assert!(custom.label().starts_with("custom+"));
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn label(&self) -> String {
        match (self.base, self.modified) {
            (Some(name), false) => name.into(),
            (Some(name), true) => format!("{name}+{}", &self.placement.hash()[..6]),
            (None, _) => format!("custom+{}", &self.placement.hash()[..6]),
        }
    }
}

fn without_base(fields: &Map<String, Value>, template: &Value) -> Result<Value, PlacementError> {
    let known: Vec<&str> = template
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys())
        .map(String::as_str)
        .chain(["base"])
        .collect();
    let mut patch = fields.clone();
    patch.remove("base");
    match patch.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(PlacementError::new(
            UnknownField,
            key(name),
            unknown("unknown field", name, &known),
        )),
        None => Ok(patch.into()),
    }
}

/// Reads the placement value of a configuration: a name or a table (see [`PlacementConfig`]).
///
/// # Errors
/// An unknown name, an unknown key or a value of the wrong type; the error names the path.
/// Consistency is checked by [`validate`](super::validate()).
///
/// ```
/// use hybridnorm::placement::{Skip, from_value};
/// use serde_json::json;
/// let placement = from_value(json!({ "base": "hybridnorm", "block": { "ffn": { "skip": "raw" } } }))?;
/// assert_eq!(placement.block.ffn.skip, Skip::Raw);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn from_value(value: Value) -> Result<Placement, PlacementError> {
    PlacementConfig::from_value(&value).map(|config| config.placement)
}

impl From<Placement> for Value {
    /// Returns the serialized form, which [`from_value`] reads.
    fn from(placement: Placement) -> Self {
        to_json(&placement).expect("a placement serializes to a table with string keys")
    }
}

impl From<NormSpec> for Value {
    /// Returns the serialized form, with every field.
    fn from(norm: NormSpec) -> Self {
        to_json(&norm).expect("a norm serializes to a table with string keys")
    }
}

impl From<Init> for Value {
    /// Returns the serialized form, with every field.
    fn from(init: Init) -> Self {
        to_json(&init).expect("an initialization serializes to a table with string keys")
    }
}

/// Serializes a placement or a part of one.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Value, PlacementError> {
    serde_json::to_value(value)
        .map_err(|e| PlacementError::new(InvalidValue, "", format!("cannot be serialized: {e}")))
}

/// Returns the serialized default with every field, including those omitted when default.
pub(super) fn template() -> Result<Value, PlacementError> {
    let mut template = to_json(&Placement::default())?;
    let block = block_template()?;
    let added_fields = json!({
        "streams": "single", "merge_norm": false, "unit_weights": false, "block": block,
    });
    let shape = template.clone();
    json_value::merge(&mut template, &added_fields, &shape);
    Ok(template)
}

/// Returns the [`template`] of a block configuration.
pub(super) fn block_template() -> Result<Value, PlacementError> {
    let mut template = to_json(&UnresolvedBlock::default())?;
    let sub_layer = json!({ "read_scale": 1.0, "combine": "add" });
    let added_fields = json!({
        "attn": sub_layer, "ffn": sub_layer,
        "attn_inner": { "norm_eps": false },
        "ffn_inner": { "gate_scale": 1.0, "up_scale": 1.0 },
    });
    let shape = template.clone();
    json_value::merge(&mut template, &added_fields, &shape);
    Ok(template)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "a table",
    }
}

impl<'de> Deserialize<'de> for PlacementConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(&value).map_err(de::Error::custom)
    }
}

impl Serialize for PlacementConfig {
    /// Serializes to the name if unmodified, otherwise to every field and the name of the base.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            base: Option<&'a str>,
            #[serde(flatten)]
            placement: &'a Placement,
        }
        match (self.base, self.modified) {
            (Some(name), false) => serializer.serialize_str(name),
            (base, _) => Table {
                base,
                placement: &self.placement,
            }
            .serialize(serializer),
        }
    }
}
