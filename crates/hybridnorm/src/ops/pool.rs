//! Buffers that go round from step to step.
//!
//! Fresh memory costs twice: the system hands out pages one fault at a time, and each is cleared
//! before it is overwritten. Ops take their outputs from here, and the backward pass gives back
//! every tensor that nobody holds any more, so that a training step finds the buffers of the step
//! before it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn_flex::FlexTensor;

use super::flex::{buffer, floats};

/// Elements from which a buffer is worth keeping.
const WORTH_KEEPING: usize = 1 << 12;

/// Buffers by capacity.
static SPARE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// A buffer of `n` elements whose content is left over from something else: to be overwritten.
///
/// It may be one that is up to half as large again: so the gradients of weights find room where
/// activations were.
pub(super) fn take(n: usize) -> Vec<f32> {
    if n < WORTH_KEEPING {
        return vec![0.0; n];
    }
    let spare = spares()
        .range_mut(n..=n + n / 2)
        .find_map(|(_, buffers)| buffers.pop());
    match spare {
        Some(mut buffer) => {
            buffer.resize(n, 0.0);
            buffer
        }
        None => vec![0.0; n],
    }
}

/// Keeps the buffer of a tensor that is not used any more, unless somebody else holds it.
pub(super) fn give(x: FlexTensor) {
    if is_ours(&x) {
        give_buffer(into_elements(x));
    }
}

/// Keeps a buffer.
pub(super) fn give_buffer(buffer: Vec<f32>) {
    if buffer.capacity() >= WORTH_KEEPING {
        spares().entry(buffer.capacity()).or_default().push(buffer);
    }
}

/// The elements of a tensor, to be changed: in its own buffer if nobody else holds it, else copied.
pub(super) fn into_elements(x: FlexTensor) -> Vec<f32> {
    if is_ours(&x) {
        let elements = x.into_data().try_into_vec::<f32>();
        return elements.expect("every tensor here is f32");
    }
    let mut copy = buffer(&x);
    copy.copy_from_slice(&floats(&x));
    copy
}

/// Whether nobody else holds the buffer, and the tensor shows all of it.
fn is_ours(x: &FlexTensor) -> bool {
    let is_whole = x.bytes().len() == 4 * x.layout().num_elements();
    is_whole && x.is_unique() && x.is_contiguous()
}

/// The same for several tensors.
pub(super) fn give_all<const N: usize>(all: [FlexTensor; N]) {
    all.into_iter().for_each(give);
}

/// Frees all buffers: for when what is trained changes.
pub fn clear() {
    spares().clear();
}

fn spares() -> std::sync::MutexGuard<'static, BTreeMap<usize, Vec<Vec<f32>>>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}
