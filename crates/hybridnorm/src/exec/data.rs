//! Tensor elements on the host, without a shape.

use crate::graph::{DType, Type};

/// Borrowed counterpart of [`Tensor`].
#[derive(Debug, Clone, Copy)]
pub enum TensorRef<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
    /// Integers.
    I32(&'a [i32]),
}

/// Elements copied from an executor.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Integers.
    I32(Vec<i32>),
}

/// Returns the input of a run with this name.
///
/// # Panics
/// If it is missing, or has another type or length.
pub(super) fn input<'a>(inputs: &[(&str, TensorRef<'a>)], name: &str, ty: Type) -> TensorRef<'a> {
    let found = inputs.iter().find(|(given, _)| *given == name);
    let (_, data) = found.unwrap_or_else(|| panic!("input {name} is missing"));
    assert!(
        data.can_be_stored_as(ty.dtype),
        "input {name}: {} instead of {}",
        data.dtype(),
        ty.dtype
    );
    assert_eq!(ty.elements(), data.len(), "input {name}: elements");
    *data
}

impl<'a> TensorRef<'a> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
            Self::I32(x) => x.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::I32(_) => DType::I32,
        }
    }

    /// Returns the bytes of the elements.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice(x),
            Self::F64(x) => bytemuck::cast_slice(x),
            Self::I32(x) => bytemuck::cast_slice(x),
        }
    }

    /// True if an executor stores the elements as a type: their own, or one that they are rounded to.
    pub(super) fn can_be_stored_as(&self, dtype: DType) -> bool {
        let rounded = [(DType::F64, DType::F32), (DType::F32, DType::Bf16)];
        self.dtype() == dtype || rounded.contains(&(self.dtype(), dtype))
    }
}

impl Tensor {
    /// Returns the elements, borrowed.
    pub fn as_tensor_ref(&self) -> TensorRef<'_> {
        match self {
            Self::F32(x) => TensorRef::F32(x),
            Self::F64(x) => TensorRef::F64(x),
            Self::I32(x) => TensorRef::I32(x),
        }
    }

    /// Returns the elements in single precision.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(x) => x,
            Self::F64(x) => x.into_iter().map(|x| x as f32).collect(),
            Self::I32(x) => x.into_iter().map(|x| x as f32).collect(),
        }
    }

    /// Returns the elements in double precision.
    pub fn into_f64(self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.into_iter().map(f64::from).collect(),
            Self::F64(x) => x,
            Self::I32(x) => x.into_iter().map(f64::from).collect(),
        }
    }

    /// Returns the elements as integers.
    ///
    /// # Panics
    /// If they are not integers.
    pub fn into_i32(self) -> Vec<i32> {
        match self {
            Self::I32(x) => x,
            _ => panic!("the elements are not integers"),
        }
    }
}
