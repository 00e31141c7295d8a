//! Commands for a device.

/// An allocation on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(pub usize);

/// A part of an allocation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The allocation.
    pub memory: Memory,
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub bytes: usize,
}

impl Span {
    /// Returns the part of it from byte `start` on, `bytes` long.
    ///
    /// # Panics
    /// If it is not within the span.
    pub fn part(self, start: usize, bytes: usize) -> Self {
        assert!(
            start <= self.bytes && bytes <= self.bytes - start,
            "part of a span: bytes {start}..{} of {}",
            start + bytes,
            self.bytes
        );
        Self {
            start: self.start + start,
            bytes,
            ..self
        }
    }
}

/// Type of elements in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Double precision.
    F64,
    /// Integers.
    I32,
}

impl ElementType {
    /// Returns the bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Elements in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// Where they are.
    pub span: Span,
    /// Their type.
    pub element_type: ElementType,
}

impl Elements {
    /// Returns their number.
    pub fn len(self) -> usize {
        self.span.bytes / self.element_type.bytes()
    }

    /// True if there are none.
    pub fn is_empty(self) -> bool {
        self.span.bytes == 0
    }

    /// Returns a part of them.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn part(self, start: usize, len: usize) -> Self {
        let size = self.element_type.bytes();
        Self {
            span: self.span.part(size * start, size * len),
            ..self
        }
    }
}

/// A command for a device; commands run one after another.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Runs a kernel.
    Launch(Launch),
    /// Multiplies two matrices.
    Matmul(Matmul),
    /// Copies memory.
    Copy(Copy),
    /// Fills memory.
    Fill(Fill),
}

/// Copies bytes from one span to another one of the same length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Copy {
    /// Source.
    pub from: Span,
    /// Destination.
    pub to: Span,
}

/// Fills a span with a 32-bit pattern.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fill {
    /// Destination, a multiple of four bytes.
    pub to: Span,
    /// The pattern.
    pub pattern: u32,
}

/// Runs a kernel on a grid of blocks of threads, both in one dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Name of the entry point, `KERNEL(name, ...)` in the sources.
    pub kernel: &'static str,
    /// Number of blocks.
    pub blocks: u32,
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// The struct that the kernel takes.
    pub arguments: Arguments,
}

/// A field of a kernel's arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    /// The address of elements.
    Address(Span),
    /// A null pointer.
    Null,
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// `float`.
    Float(f32),
    /// `double`.
    Double(f64),
}

/// The struct that a kernel takes by value, field by field, in the order of its declaration.
///
/// ```
/// use hybridnorm_cuda::{Arguments, Memory, Span};
///
/// let x = Span { memory: Memory(0), start: 64, bytes: 16 };
/// let arguments = Arguments::default().int(7).address(x).float(0.5);
/// // As in C, an address is aligned to eight bytes.
/// let address = |span: Span| 0x1000 + span.start as u64;
/// let bytes = arguments.to_bytes(address);
/// assert_eq!(bytes[0..4], 7i32.to_le_bytes());
/// assert_eq!(bytes[8..16], 0x1040u64.to_le_bytes());
/// assert_eq!(bytes[16..20], 0.5f32.to_le_bytes());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments(Vec<Field>);

impl Arguments {
    /// Adds a pointer.
    #[must_use]
    pub fn address(self, span: Span) -> Self {
        self.with(Field::Address(span))
    }

    /// Adds a pointer, null without a span.
    #[must_use]
    pub fn optional_address(self, span: Option<Span>) -> Self {
        self.with(span.map_or(Field::Null, Field::Address))
    }

    /// Adds `Floats` or `FloatsMut` without elements, with a null pointer.
    #[must_use]
    pub fn no_floats(self) -> Self {
        self.with(Field::Null).long(0)
    }

    /// Adds `Floats` or `FloatsMut`: elements in single precision or bfloat16.
    ///
    /// # Panics
    /// If they are of another type.
    #[must_use]
    pub fn floats(self, x: Elements) -> Self {
        let is_bf16 = match x.element_type {
            ElementType::F32 => 0,
            ElementType::Bf16 => 1,
            other => panic!("kernel arguments: floats, not {other:?}"),
        };
        // The struct has the alignment of its pointer.
        self.address(x.span).long(is_bf16)
    }

    /// Adds an `int`.
    ///
    /// # Panics
    /// If it is too large.
    #[must_use]
    pub fn count(self, x: usize) -> Self {
        self.int(i32::try_from(x).expect("a count of less than 2^31"))
    }

    /// Adds an `int`.
    #[must_use]
    pub fn int(self, x: i32) -> Self {
        self.with(Field::Int(x))
    }

    /// Adds an `int64`.
    #[must_use]
    pub fn long(self, x: i64) -> Self {
        self.with(Field::Long(x))
    }

    /// Adds a `float`.
    #[must_use]
    pub fn float(self, x: f32) -> Self {
        self.with(Field::Float(x))
    }

    /// Adds a `double`.
    #[must_use]
    pub fn double(self, x: f64) -> Self {
        self.with(Field::Double(x))
    }

    fn with(mut self, field: Field) -> Self {
        self.0.push(field);
        self
    }

    /// Returns the spans whose addresses are passed.
    pub fn spans(&self) -> impl Iterator<Item = Span> {
        self.0.iter().filter_map(|field| match field {
            Field::Address(span) => Some(*span),
            _ => None,
        })
    }

    /// Returns the bytes of the struct, in the layout of C, with the addresses of spans.
    pub fn to_bytes(&self, address: impl Fn(Span) -> u64) -> Vec<u8> {
        fn push<const N: usize>(bytes: &mut Vec<u8>, field: [u8; N]) {
            bytes.resize(bytes.len().next_multiple_of(N), 0);
            bytes.extend(field);
        }
        let mut bytes = Vec::new();
        for field in &self.0 {
            match *field {
                Field::Address(span) => push(&mut bytes, address(span).to_le_bytes()),
                Field::Null => push(&mut bytes, 0u64.to_le_bytes()),
                Field::Int(x) => push(&mut bytes, x.to_le_bytes()),
                Field::Long(x) => push(&mut bytes, x.to_le_bytes()),
                Field::Float(x) => push(&mut bytes, x.to_le_bytes()),
                Field::Double(x) => push(&mut bytes, x.to_le_bytes()),
            }
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

/// An operand of a matrix product: row-major, in single precision or bfloat16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixOperand {
    /// Its elements.
    pub elements: Elements,
    /// Elements from a row to the next.
    pub stride: usize,
    /// True if the product takes its transpose.
    pub is_transposed: bool,
}

/// `c = a b`, or `c += a b`, for `a` (m, k), `b` (k, n) and `c` (m, n) after transposition, with sums in single
/// precision.
///
/// Both operands are of the same type; in single precision no product is rounded to fewer bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Inner dimension.
    pub k: usize,
    /// Left operand.
    pub a: MatrixOperand,
    /// Right operand.
    pub b: MatrixOperand,
    /// Result, not transposed.
    pub c: MatrixOperand,
    /// True if the product is added to what is there.
    pub accumulate: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span {
        memory: Memory(1),
        start: 8,
        bytes: 16,
    };

    #[test]
    fn fields_are_aligned_as_in_c() {
        let arguments = Arguments::default()
            .int(1)
            .int(2)
            .float(3.0)
            .double(4.0)
            .int(5)
            .address(SPAN);
        let bytes = arguments.to_bytes(|span| 1000 + span.start as u64);
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[16..24], 4.0f64.to_le_bytes());
        assert_eq!(bytes[32..40], 1008u64.to_le_bytes());
        assert_eq!(arguments.spans().collect::<Vec<_>>(), [SPAN]);
    }

    #[test]
    fn parts_lie_within_their_span() {
        let elements = Elements {
            span: SPAN,
            element_type: ElementType::Bf16,
        };
        assert_eq!(elements.len(), 8);
        let part = elements.part(2, 6);
        assert_eq!((part.span.start, part.span.bytes), (12, 12));
    }

    #[test]
    #[should_panic(expected = "part of a span")]
    fn parts_beyond_their_span_are_rejected() {
        let _ = SPAN.part(8, 9);
    }
}
