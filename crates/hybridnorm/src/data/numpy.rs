//! Defensive parser of NumPy file headers.

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::manifest::Dtype;

/// Maximum header size in bytes; NumPy writes 118 bytes for plain arrays.
const HEADER_LIMIT: usize = 64 << 10;

/// Layout of the array in a NumPy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Array {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Byte offset of the data.
    pub(super) offset: usize,
}

/// True if a file starts with the magic of a NumPy file.
pub(super) fn is_numpy(file: &[u8]) -> bool {
    file.starts_with(b"\x93NUMPY")
}

/// Reads the header of a NumPy file of one or two dimensions and checks it against the file's
/// length.
pub(super) fn parse(file: &[u8]) -> Result<Array, String> {
    let offset = data_offset(file)?;
    let text = &file[..offset];
    reject_unsafe_header(&text[10..])?;
    reject_numpy_scalars(&text[10..])?;
    let header = NpyHeader::from_reader(text).map_err(|error| {
        let text = error.to_string();
        format!(
            "invalid header: {}",
            text.lines().next().unwrap_or_default()
        )
    })?;
    let dtype = integer_type(&header.dtype())?;
    let shape = header.shape().to_vec();
    if !matches!(shape.len(), 1 | 2) {
        return Err(format!(
            "an array of {} dimensions, expected 1 (a stream) or 2 (one instance per row)",
            shape.len()
        ));
    }
    if shape.len() == 2 && header.order() == Order::Fortran && shape.iter().all(|&n| n > 1) {
        return Err(
            "stored column by column (Fortran order); save numpy.ascontiguousarray(array)".into(),
        );
    }
    let expected = shape
        .iter()
        .try_fold(dtype.size() as u64, |bytes, &n| bytes.checked_mul(n))
        .and_then(|bytes| bytes.checked_add(offset as u64))
        .ok_or("the shape is too large")?;
    if expected != file.len() as u64 {
        return Err(format!(
            "{} bytes, but shape {shape:?} of {} needs {expected}",
            file.len(),
            dtype.name()
        ));
    }
    Ok(Array {
        dtype,
        shape,
        offset,
    })
}

fn data_offset(file: &[u8]) -> Result<usize, String> {
    let (before, length) = match *file {
        _ if !is_numpy(file) => return Err("not a NumPy file".into()),
        _ if file.len() < 12 => return Err("truncated within its header".into()),
        [_, _, _, _, _, _, 1, _, a, b, ..] => (10, u16::from_le_bytes([a, b]).into()),
        [_, _, _, _, _, _, 2 | 3, _, a, b, c, d, ..] => {
            (12, u32::from_le_bytes([a, b, c, d]) as usize)
        }
        [_, _, _, _, _, _, major, minor, ..] => {
            return Err(format!("NumPy format {major}.{minor}, expected 1.0 to 3.0"));
        }
        _ => return Err("truncated within its header".into()),
    };
    if length > HEADER_LIMIT {
        return Err(format!(
            "a header of {length} bytes, expected at most {HEADER_LIMIT}"
        ));
    }
    match before + length {
        end if end <= file.len() => Ok(end),
        _ => Err("truncated within its header".into()),
    }
}

/// Rejects headers that would make a parser recurse deeply or overflow 64 bits.
fn reject_unsafe_header(header: &[u8]) -> Result<(), String> {
    if header.iter().filter(|byte| b"([{".contains(byte)).count() > 8 {
        return Err("invalid header: too deeply nested for an array of numbers".into());
    }
    header
        .split(|byte| !byte.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .try_fold(1_u64, |product, digits| {
            let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
            product.checked_mul(number.max(1))
        })
        .map(drop)
        .ok_or_else(|| "the shape is too large".into())
}

/// Rejects shapes with the repr of NumPy 2 integers, such as `np.int64(5)`, which neither NumPy nor
/// other readers accept; the message names the cause.
fn reject_numpy_scalars(header: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(header);
    let Some(at) = text.find("np.").or_else(|| text.find("numpy.")) else {
        return Ok(());
    };
    let call: String = text[at..]
        .chars()
        .take_while(|char| char.is_ascii_alphanumeric() || "._()".contains(*char))
        .take(40)
        .collect();
    Err(format!(
        "invalid header: `{}` where a plain number is expected, which NumPy 2 writes for a shape of NumPy \
         integers (as in open_memmap) and NumPy itself cannot read; save the file again with \
         shape=tuple(int(n) for n in shape)",
        call.split_inclusive(')').next().unwrap_or_default()
    ))
}

fn integer_type(dtype: &DType) -> Result<Dtype, String> {
    let DType::Plain(plain) = dtype else {
        return Err(format!(
            "numbers of type {}, a structured type or an array in an array; save the field that holds the tokens",
            dtype.descr()
        ));
    };
    let size = plain.size_field();
    if plain.endianness() == Endianness::Big && size > 1 {
        return Err(format!(
            "numbers of type {}, big-endian; save array.astype('<u{size}')",
            dtype.descr()
        ));
    }
    match (plain.type_char(), size) {
        (TypeChar::Uint, 1) => Ok(Dtype::U8),
        (TypeChar::Uint, 2) => Ok(Dtype::U16),
        (TypeChar::Uint, 4) => Ok(Dtype::U32),
        (TypeChar::Uint, 8) => Ok(Dtype::U64),
        (TypeChar::Int, 1) => Ok(Dtype::I8),
        (TypeChar::Int, 2) => Ok(Dtype::I16),
        (TypeChar::Int, 4) => Ok(Dtype::I32),
        (TypeChar::Int, 8) => Ok(Dtype::I64),
        _ => Err(format!(
            "numbers of type {}, expected integers such as '<u2' or '<u4'; tokens are saved with \
             array.astype(numpy.uint16) or numpy.uint32",
            dtype.descr()
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(descr: &str, fortran: &str, shape: &str, data: usize) -> Vec<u8> {
        let text =
            format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((text.len() as u16).to_le_bytes());
        file.extend(text.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    #[test]
    fn reads_plain_headers() {
        let stream = parse(&file("'<u2'", "False", "(5,)", 10)).unwrap();
        assert_eq!((stream.dtype, stream.shape), (Dtype::U16, vec![5]));
        for (descr, dtype, size) in [
            ("'|u1'", Dtype::U8, 1),
            ("'|i1'", Dtype::I8, 1),
            ("'<i2'", Dtype::I16, 2),
            ("'<u8'", Dtype::U64, 8),
        ] {
            let found = parse(&file(descr, "False", "(5,)", 5 * size)).unwrap();
            assert_eq!(found.dtype, dtype);
        }
        let rows = parse(&file("'<i8'", "False", "(2, 3)", 48)).unwrap();
        assert_eq!((rows.dtype, rows.shape), (Dtype::I64, vec![2, 3]));
    }

    #[test]
    fn rejects_other_headers() {
        let nested = format!("{}3{}", "(".repeat(5000), ")".repeat(5000));
        for (bad, why) in [
            (file("'<f4'", "False", "(5,)", 20), "numbers of type"),
            (file("'>u2'", "False", "(5,)", 10), "numbers of type"),
            (file("'|O'", "False", "(5,)", 40), "numbers of type"),
            (
                file("[('a', '<u2')]", "False", "(5,)", 10),
                "numbers of type",
            ),
            (file("'>i4'", "False", "(5,)", 20), "astype('<u4')"),
            (
                file("'<u2'", "False", "(np.int64(5),)", 10),
                "`np.int64(5)`",
            ),
            (
                file("'<u2'", "False", "(5, numpy.uint8(2))", 20),
                "`numpy.uint8(2)`",
            ),
            (file("'<u2'", "True", "(2, 2)", 8), "column by column"),
            (file("'<u2'", "False", "()", 2), "0 dimensions"),
            (file("'<u2'", "False", "(1, 1, 1)", 2), "3 dimensions"),
            (file("'<u2'", "False", "(5,)", 9), "needs"),
            (
                file("'<u2'", "False", "(4294967296, 4294967296)", 9),
                "too large",
            ),
            (
                file("'<u2'", "False", "(99999999999999999999999,)", 9),
                "too large",
            ),
            (file("'<u2'", "False", &nested, 2), "nested"),
            (b"\x93NUMPY\x01\x00".to_vec(), "truncated"),
            (b"\x93NUMPY\x09\x00\x00\x00\x00\x00".to_vec(), "format 9.0"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "a header of"),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(why), "{error} / {why}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            bytes.splice(0..0, *b"\x93NUMPY\x01\x00");
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_files_never_panic(
            at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>()
        ) {
            let mut bytes = file("'<u2'", "False", "(5, 3)", 30);
            let cut = cut.index(bytes.len());
            prop_assert!(parse(&bytes[..cut]).is_err());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // A changed digit of the shape may fit the shorter file.
            let _ = (parse(&bytes), parse(&bytes[..cut]));
        }
    }
}
