//! Header of a safetensors file: an eight-byte length, and JSON of this length with the type, the shape and the
//! byte range of every tensor.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Type, shape and byte range of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Type as the file writes it: `F32`, `BF16`, ...
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    /// Byte range after the header.
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// A header to be written.
#[derive(Default)]
pub(super) struct Header {
    json: String,
    offset: u64,
}

impl Header {
    /// Appends metadata.
    pub(super) fn push_metadata(&mut self, metadata: &BTreeMap<String, String>) {
        let comma = if self.json.is_empty() { "" } else { "," };
        self.json += &format!("{comma}\"__metadata__\":{}", serde_json::json!(metadata));
    }

    /// Appends a tensor of this type, as files write it.
    pub(super) fn push(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: u64) {
        let end = self.offset + bytes;
        let entry = serde_json::json!({ "shape": shape, "data_offsets": [self.offset, end] });
        // Keys in the order in which the safetensors crate writes them.
        let name = serde_json::Value::from(name);
        let (shape, offsets) = (&entry["shape"], &entry["data_offsets"]);
        let comma = if self.json.is_empty() { "" } else { "," };
        self.json += &format!(
            "{comma}{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}"
        );
        self.offset = end;
    }

    /// Returns the length and the JSON, padded to a multiple of eight bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut json = format!("{{{}}}", self.json).into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        bytes
    }
}

/// Parses the JSON and checks that its tensors are `data` bytes in total, without gaps.
pub(super) fn parse(json: &[u8], data: u64) -> Result<BTreeMap<String, Entry>, String> {
    let Entries(entries) = serde_json::from_slice(json)
        .map_err(|error| format!("not a safetensors file: invalid header: {error}"))?;
    for (name, entry) in &entries {
        check(entry).map_err(|problem| format!("tensor {name}: {problem}"))?;
    }
    let mut by_offset: Vec<(&String, &Entry)> = entries.iter().collect();
    by_offset.sort_by_key(|(_, entry)| (entry.begin, entry.end));
    let mut at = 0;
    for (name, entry) in by_offset {
        if entry.begin != at {
            return Err(format!(
                "tensor {name} begins at byte {} of the data, expected {at}: tensors must be contiguous",
                entry.begin
            ));
        }
        at = entry.end;
    }
    match at == data {
        true => Ok(entries),
        false => Err(format!(
            "contains {data} bytes of data, but its header describes {at}; the file is truncated or corrupted"
        )),
    }
}

fn check(entry: &Entry) -> Result<(), String> {
    let Entry {
        dtype,
        shape,
        begin,
        end,
    } = entry;
    let length = end
        .checked_sub(*begin)
        .ok_or_else(|| format!("ends at byte {end}, before it begins at {begin}"))?;
    // Tensors of types with unknown size are never read.
    let Some(size) = size_of(dtype) else {
        return Ok(());
    };
    let bytes = shape
        .iter()
        .try_fold(size, |bytes, n| bytes.checked_mul(*n as u64));
    match bytes {
        Some(bytes) if bytes == length => Ok(()),
        _ => Err(format!(
            "has {length} bytes, which do not match {dtype} of shape {shape:?}"
        )),
    }
}

/// Returns the bytes of an element.
fn size_of(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

struct Entries(BTreeMap<String, Entry>);

#[derive(Deserialize)]
#[serde(expecting = "an object with dtype, shape and data_offsets")]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = BTreeMap<String, Entry>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let RawEntry {
                        dtype,
                        shape,
                        data_offsets: [begin, end],
                    } = map.next_value()?;
                    let entry = Entry {
                        dtype,
                        shape,
                        begin,
                        end,
                    };
                    if all.insert(name.clone(), entry).is_some() {
                        return Err(de::Error::custom(format!("duplicate tensor {name}")));
                    }
                }
                Ok(all)
            }
        }
        deserializer.deserialize_map(EntriesVisitor).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str, data: u64) -> String {
        parse(json.as_bytes(), data).unwrap_err()
    }

    #[test]
    fn inconsistent_byte_ranges_are_rejected() {
        let entry = |shape: &str, begin: u64, end: u64| {
            format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
        };
        let one = |shape, begin, end| format!(r#"{{"a":{}}}"#, entry(shape, begin, end));
        assert_eq!(parse(one("[2]", 0, 8).as_bytes(), 8).unwrap().len(), 1);
        assert!(problem(&one("[2]", 0, 8), 9).contains("contains 9 bytes of data, but its header"));
        assert!(problem(&one("[3]", 0, 8), 8).contains("has 8 bytes, which do not match F32"));
        assert!(problem(&one("[2]", 8, 0), 8).contains("before it begins"));
        let large = u64::MAX / 2;
        let shape = format!("[{large},{large}]");
        assert!(problem(&one(&shape, 0, 8), 8).contains("has 8 bytes"));
        for (begin, end) in [(4, 8), (8, 12)] {
            let two = format!(
                r#"{{"a":{},"b":{}}}"#,
                entry("[2]", 0, 8),
                entry("[1]", begin, end)
            );
            match begin {
                8 => assert_eq!(parse(two.as_bytes(), 12).unwrap().len(), 2),
                _ => assert!(problem(&two, 8).contains("begins at byte 4 of the data, expected 8")),
            }
        }
        let twice = format!(r#"{{"a":{0},"a":{0}}}"#, entry("[2]", 0, 8));
        assert!(problem(&twice, 8).contains("duplicate tensor a"));
        assert!(problem(&one("[-1]", 0, 8), 8).contains("invalid header"));
        assert!(problem(&"[".repeat(100_000), 8).contains("invalid header"));
    }
}
