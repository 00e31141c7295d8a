//! Flex tensors as slices and back.

use std::borrow::Cow;

use burn::tensor::{DType, Shape, TensorData};
use burn_flex::FlexTensor;

use super::pool;

/// The elements of a float tensor in row-major order; copies only what is not contiguous.
pub(super) fn floats(x: &FlexTensor) -> Cow<'_, [f32]> {
    match x.as_slice::<f32>() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(x.to_contiguous().storage::<f32>().to_vec()),
    }
}

/// The elements of an integer tensor as the `i32` that kernels take.
pub(super) fn ids(x: &FlexTensor) -> Cow<'_, [i32]> {
    let x = x.to_contiguous();
    match x.dtype() {
        DType::I32 => Cow::Owned(x.storage::<i32>().to_vec()),
        DType::I64 => x
            .storage::<i64>()
            .iter()
            .map(|&id| i32::try_from(id).unwrap_or(i32::MAX))
            .collect(),
        other => panic!("token ids must be I32 or I64, found {other:?}"),
    }
}

/// A tensor over values that are already in row-major order.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// A tensor of the same shape as `x`.
pub(super) fn like(values: Vec<f32>, x: &FlexTensor) -> FlexTensor {
    tensor(values, x.layout().shape().clone())
}

/// A buffer as large as `x`, to be overwritten.
pub(super) fn buffer(x: &FlexTensor) -> Vec<f32> {
    pool::take(x.layout().num_elements())
}

/// Size of the last dimension.
pub(super) fn last_dim(x: &FlexTensor) -> usize {
    let shape = x.layout().shape();
    shape[shape.num_dims() - 1]
}
