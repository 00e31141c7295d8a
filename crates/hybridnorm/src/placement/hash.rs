//! Short hash of a placement, independent of how it was written or named.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::layers::normalize_overrides;
use super::spec::Placement;

impl Placement {
    /// Returns the canonical hash: 16 hex digits over every field, defaults included, except that fields
    /// added after the first stored hashes count only if they are not default.
    ///
    /// Placements that are equal as values have equal hashes, regardless of order, omitted defaults and
    /// number formats; overrides and selectors are normalized first. The name is not hashed. Placements
    /// that only happen to resolve to the same blocks at some depth differ here and agree in
    /// [`Resolved::hash`](super::Resolved::hash).
    ///
    /// ```
    /// use hybridnorm::placement::named;
    /// assert_eq!(named("hybridnorm")?.hash(), "a62977297bdb054b");
    /// assert_eq!(named("qkv-post")?.hash(), named("hybridnorm")?.hash());
    /// # Ok::<(), hybridnorm::Error>(())
    /// ```
    pub fn hash(&self) -> String {
        match normalize_overrides(self.clone()) {
            Ok(normalized) => canonical_hash(&normalized),
            Err(_) => canonical_hash(self),
        }
    }
}

/// Returns the first 16 hex digits of the SHA-256 of `value`'s canonical JSON: sorted keys, no spaces,
/// every number as the shortest decimal that round-trips to the same double, in exponent form.
///
/// ```
/// use hybridnorm::placement::canonical_hash;
/// use serde_json::json;
/// let (a, b) = (json!({ "x": 1, "y": 2.0 }), json!({ "y": 2, "x": 1.0 }));
/// assert_eq!(canonical_hash(&a), canonical_hash(&b));
/// ```
pub fn canonical_hash<T: Serialize>(value: &T) -> String {
    let mut json = String::new();
    write_canonical(
        &serde_json::to_value(value).unwrap_or(Value::Null),
        &mut json,
    );
    let digest = Sha256::digest(json.as_bytes());
    digest[..8].iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            // Adding zero turns -0 into 0.
            let _ = write!(out, "{:e}", number + 0.0);
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut keys: Vec<_> = fields.iter().collect();
            keys.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (index, (key, item)) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                let _ = write!(out, "{}:", Value::from(key.as_str()));
                write_canonical(item, out);
            }
            out.push('}');
        }
        plain => {
            let _ = write!(out, "{plain}");
        }
    }
}
