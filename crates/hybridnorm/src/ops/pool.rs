//! Buffers that go round from step to step.
//!
//! Fresh memory costs twice: the system hands out pages one fault at a time, and each is cleared
//! before it is overwritten. Ops take their outputs from here, and the backward pass gives back
//! every tensor that nobody holds any more, so that a training step finds the buffers of the step
//! before it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn_flex::FlexTensor;

/// Elements from which a buffer is worth keeping.
const WORTH_KEEPING: usize = 1 << 12;

static SPARE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// A buffer of `n` elements whose content is left over from something else: to be overwritten.
pub(super) fn take(n: usize) -> Vec<f32> {
    let spare = match n {
        ..WORTH_KEEPING => None,
        _ => spares().get_mut(&n).and_then(Vec::pop),
    };
    spare.unwrap_or_else(|| vec![0.0; n])
}

/// Keeps the buffer of a tensor that is not used any more, unless somebody else holds it.
pub(super) fn give(x: FlexTensor) {
    if let Some(buffer) = reclaim(x) {
        give_buffer(buffer);
    }
}

/// Keeps a buffer.
pub(super) fn give_buffer(buffer: Vec<f32>) {
    if buffer.len() >= WORTH_KEEPING {
        spares().entry(buffer.len()).or_default().push(buffer);
    }
}

/// The buffer of a tensor that nobody else holds, or another one of that size.
pub(super) fn into_buffer(x: FlexTensor) -> Vec<f32> {
    let n = x.layout().num_elements();
    reclaim(x).unwrap_or_else(|| take(n))
}

/// The buffer of a tensor, unless it is shared or the tensor shows a part of it only.
fn reclaim(x: FlexTensor) -> Option<Vec<f32>> {
    let whole = x.bytes().len() == 4 * x.layout().num_elements();
    if !(whole && x.is_unique() && x.is_contiguous()) {
        return None;
    }
    x.into_data().try_into_vec::<f32>().ok()
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
