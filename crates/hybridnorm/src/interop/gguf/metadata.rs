//! Values of a GGUF file's metadata, and their bounded reading.

use std::io::Read;

/// Longest text of the metadata, in bytes; the longest are chat templates.
const TEXT_LIMIT: u64 = 4 << 20;
/// Maximum number of elements of an array; vocabularies and merges are below it.
const ELEMENTS_LIMIT: u64 = 1 << 22;
/// Maximum bytes of metadata and tensor descriptions together.
pub(super) const HEADER_LIMIT: u64 = 64 << 20;

/// A value of the metadata. Memory is about that of the file's bytes: arrays are stored packed.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::interop) enum Value {
    /// Unsigned or signed integer of any width.
    Integer(i128),
    /// Number of single or double precision, with the shortest decimal digits that determine it.
    Number(f64),
    Bool(bool),
    Text(String),
    Texts(Texts),
    Numbers(Numbers),
}

/// An array of texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::interop) struct Texts {
    /// All texts, concatenated.
    text: String,
    /// End of each text.
    ends: Vec<u32>,
}

impl Texts {
    pub(in crate::interop) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(in crate::interop) fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.text.get(begin as usize..end)
    }

    pub(in crate::interop) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// An array of numbers, as the file stores them.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::interop) struct Numbers {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Numbers {
    pub(in crate::interop) fn len(&self) -> usize {
        self.bytes.len() / self.kind.size()
    }

    /// Iterates over the elements, as numbers of double precision.
    pub(in crate::interop) fn iter(&self) -> impl Iterator<Item = f64> {
        self.bytes
            .chunks_exact(self.kind.size())
            .map(|bytes| match self.kind.parse(bytes) {
                Value::Integer(value) => value as f64,
                Value::Number(value) => value,
                Value::Bool(value) => f64::from(u8::from(value)),
                Value::Text(_) | Value::Texts(_) | Value::Numbers(_) => f64::NAN,
            })
    }
}

impl Value {
    /// Returns a description for messages.
    pub(in crate::interop) fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("{:?}", crate::text::truncated_line(text, 60)),
            Self::Texts(texts) => format!("an array of {} texts", texts.len()),
            Self::Numbers(numbers) => format!("an array of {} numbers", numbers.len()),
        }
    }

    /// True for a value that disables the feature of its key: zero, false or nothing.
    pub(super) fn is_disabled(&self) -> bool {
        match self {
            Self::Integer(value) => *value == 0,
            Self::Number(value) => *value == 0.0,
            Self::Bool(value) => !value,
            Self::Text(text) => text.is_empty(),
            Self::Texts(texts) => texts.len() == 0,
            Self::Numbers(numbers) => numbers.iter().all(|value| value == 0.0),
        }
    }
}

/// Types of scalar values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Kind {
    fn of(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Reads a value from its bytes, of which there are [`Kind::size`].
    fn parse(self, bytes: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Integer(i128::from(unsigned)),
            Self::I8 => Value::Integer(i128::from(unsigned as i8)),
            Self::I16 => Value::Integer(i128::from(unsigned as i16)),
            Self::I32 => Value::Integer(i128::from(unsigned as i32)),
            Self::I64 => Value::Integer(i128::from(unsigned as i64)),
            Self::F32 => Value::Number(shortest(f32::from_bits(unsigned as u32))),
            Self::F64 => Value::Number(f64::from_bits(unsigned)),
            Self::Bool => Value::Bool(unsigned != 0),
        }
    }
}

/// Returns the number with the shortest decimal digits that determine `value`: 1e-5, where the exact value is
/// 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// A reader of at most a given number of bytes.
pub(super) struct Bounded<R> {
    reader: R,
    left: u64,
    position: u64,
}

impl<R: Read> Bounded<R> {
    /// Returns a reader of the first `limit` bytes.
    pub(super) fn new(reader: R, limit: u64) -> Self {
        Self {
            reader,
            left: limit,
            position: 0,
        }
    }

    /// Returns the number of bytes read.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Reads bytes; the memory for them is allocated only if the file contains as many.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, String> {
        if count > self.left {
            return Err(format!(
                "at byte {}: {count} bytes expected, {} left in the file or below the limit of {HEADER_LIMIT} bytes \
                 for metadata; the file is truncated or malformed",
                self.position, self.left
            ));
        }
        let mut bytes = vec![0; count as usize];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|error| format!("at byte {}: {error}", self.position))?;
        self.left -= count;
        self.position += count;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        let low = u64::from(self.u32()?);
        Ok(low | u64::from(self.u32()?) << 32)
    }

    /// Reads a text of at most `limit` bytes.
    pub(super) fn text(&mut self, limit: u64) -> Result<String, String> {
        let at = self.position;
        let length = self.u64()?;
        if length > limit {
            return Err(format!(
                "at byte {at}: a text of {length} bytes, expected at most {limit}"
            ));
        }
        String::from_utf8(self.bytes(length)?)
            .map_err(|_| format!("at byte {at}: a text that is not UTF-8"))
    }

    /// Reads a value after its type.
    pub(super) fn value(&mut self) -> Result<Value, String> {
        let at = self.position;
        match self.u32()? {
            TEXT => self.text(TEXT_LIMIT).map(Value::Text),
            ARRAY => self.array(),
            id => match Kind::of(id) {
                Some(kind) => Ok(kind.parse(&self.bytes(kind.size() as u64)?)),
                None => Err(format!(
                    "at byte {at}: type {id} of a value, expected 0 to 12"
                )),
            },
        }
    }

    fn array(&mut self) -> Result<Value, String> {
        let at = self.position;
        let id = self.u32()?;
        let count = self.u64()?;
        if count > ELEMENTS_LIMIT {
            return Err(format!(
                "at byte {at}: an array of {count} elements, expected at most {ELEMENTS_LIMIT}"
            ));
        }
        match (id, Kind::of(id)) {
            (TEXT, _) => self.texts(count).map(Value::Texts),
            (_, Some(kind)) => Ok(Value::Numbers(Numbers {
                kind,
                bytes: self.bytes(count * kind.size() as u64)?,
            })),
            (ARRAY, _) => Err(format!(
                "at byte {at}: an array of arrays, which is not supported"
            )),
            _ => Err(format!(
                "at byte {at}: an array of type {id}, expected 0 to 12"
            )),
        }
    }

    fn texts(&mut self, count: u64) -> Result<Texts, String> {
        let mut texts = Texts::default();
        for _ in 0..count {
            texts.text += &self.text(TEXT_LIMIT)?;
            // The sum is at most `HEADER_LIMIT`.
            texts.ends.push(texts.text.len() as u32);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Result<Value, String> {
        Bounded::new(bytes, bytes.len() as u64).value()
    }

    fn bytes(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn scalars_of_all_widths() {
        for (id, stored, expected) in [
            (0_u32, vec![200], Value::Integer(200)),
            (1, vec![200], Value::Integer(-56)),
            (3, vec![0, 128], Value::Integer(-32_768)),
            (5, vec![255; 4], Value::Integer(-1)),
            (10, vec![255; 8], Value::Integer(i128::from(u64::MAX))),
            (11, vec![255; 8], Value::Integer(-1)),
            (6, 1e-5_f32.to_le_bytes().to_vec(), Value::Number(1e-5)),
            (12, 0.1_f64.to_le_bytes().to_vec(), Value::Number(0.1)),
            (7, vec![1], Value::Bool(true)),
        ] {
            let found = value(&bytes(&[&id.to_le_bytes(), &stored])).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn arrays_are_read_packed() {
        let texts = bytes(&[
            &9_u32.to_le_bytes(),
            &8_u32.to_le_bytes(),
            &2_u64.to_le_bytes(),
            &1_u64.to_le_bytes(),
            b"a",
            &2_u64.to_le_bytes(),
            "é".as_bytes(),
        ]);
        let Value::Texts(texts) = value(&texts).unwrap() else {
            panic!("expected texts")
        };
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "é"]);
        let numbers = bytes(&[
            &9_u32.to_le_bytes(),
            &5_u32.to_le_bytes(),
            &2_u64.to_le_bytes(),
            &3_i32.to_le_bytes(),
            &(-4_i32).to_le_bytes(),
        ]);
        let Value::Numbers(numbers) = value(&numbers).unwrap() else {
            panic!("expected numbers")
        };
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [3.0, -4.0]);
    }

    #[test]
    fn sizes_are_checked_before_memory_is_allocated() {
        let long = u64::MAX.to_le_bytes();
        for (parts, expected) in [
            (
                [&8_u32.to_le_bytes()[..], &long, &[]],
                "expected at most 4194304",
            ),
            (
                [&8_u32.to_le_bytes()[..], &9_u64.to_le_bytes(), b"abc"],
                "9 bytes expected",
            ),
            (
                [&9_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &long],
                "an array of 1844",
            ),
            ([&13_u32.to_le_bytes()[..], &[], &[]], "type 13"),
            (
                [&9_u32.to_le_bytes()[..], &9_u32.to_le_bytes(), &[0; 8]],
                "array of arrays",
            ),
            (
                [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[255]],
                "not UTF-8",
            ),
        ] {
            let problem = value(&bytes(&parts)).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
