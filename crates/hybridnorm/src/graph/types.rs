//! Shapes and element types.

use std::fmt;

/// Element type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// Single precision.
    F32,
    /// bfloat16, of activations in mixed precision.
    Bf16,
    /// Double precision, for sums and gradient norms that the host reads.
    F64,
    /// Token ids, and the dispatch of tokens to experts.
    I32,
}

impl DType {
    /// Returns the bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Formats an element type as `f32`.
impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
            Self::I32 => "i32",
        })
    }
}

/// Sizes of up to three dimensions, row-major; the last one is the width of a row.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    sizes: [usize; Self::MAX_RANK],
    rank: usize,
}

impl Shape {
    const MAX_RANK: usize = 3;

    /// Returns the sizes.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        product(self.sizes())
    }

    /// Returns the number of elements of a row: the last size.
    pub fn width(&self) -> usize {
        self.sizes().last().copied().unwrap_or(1)
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        let (_, outer) = self.sizes().split_last().unwrap_or((&1, &[]));
        product(outer)
    }

    /// Returns the shape with the last dimension replaced by `width`.
    pub fn with_width(mut self, width: usize) -> Self {
        self.rank = self.rank.max(1);
        self.sizes[self.rank - 1] = width;
        self
    }
}

/// Returns the product of sizes, saturating at the largest number.
fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |all, &n| all.saturating_mul(n))
}

impl From<&[usize]> for Shape {
    /// # Panics
    /// If there are more than three sizes.
    fn from(given: &[usize]) -> Self {
        assert!(
            given.len() <= Self::MAX_RANK,
            "shape {given:?} has more than {} dimensions",
            Self::MAX_RANK
        );
        let mut sizes = [1; Self::MAX_RANK];
        sizes[..given.len()].copy_from_slice(given);
        Self {
            sizes,
            rank: given.len(),
        }
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Self::from(&sizes[..])
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

/// Shape and element type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Type {
    /// Sizes of the dimensions.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

/// Formats a type as `f32[2, 3]`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

impl Type {
    /// Creates a type in single precision.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Self {
            shape: shape.into(),
            dtype: DType::F32,
        }
    }

    /// Creates a type in double precision.
    pub fn f64(shape: impl Into<Shape>) -> Self {
        Self {
            shape: shape.into(),
            dtype: DType::F64,
        }
    }

    /// Creates a type of integers.
    pub fn i32(shape: impl Into<Shape>) -> Self {
        Self {
            shape: shape.into(),
            dtype: DType::I32,
        }
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Returns the bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.bytes())
    }
}
