//! Buffers that go round from step to step.
//!
//! Fresh memory costs twice: the system hands out pages one fault at a time, and each is cleared
//! before it is overwritten. Ops take their outputs from here, and the backward pass gives back
//! every tensor that nobody holds any more, so that a training step finds the buffers of the step
//! before it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::DType;
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

/// [`give`] for several tensors.
pub(super) fn give_all<const N: usize>(all: [FlexTensor; N]) {
    all.into_iter().for_each(give);
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
        return elements.expect("checked to be f32");
    }
    let mut copy = buffer(&x);
    copy.copy_from_slice(&floats(&x));
    copy
}

/// Whether nobody else holds the buffer, and the tensor shows all of it.
fn is_ours(x: &FlexTensor) -> bool {
    let is_whole = x.bytes().len() == 4 * x.layout().num_elements();
    is_whole && x.is_unique() && x.is_contiguous() && x.dtype() == DType::F32
}

/// Frees all buffers: for when what is trained changes.
pub fn clear() {
    spares().clear();
}

fn spares() -> std::sync::MutexGuard<'static, BTreeMap<usize, Vec<Vec<f32>>>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eager::flex::tensor;

    /// A length that nothing else asks for, since the pool is one for all threads.
    const N: usize = 12_345_678;

    #[test]
    fn a_buffer_serves_what_is_a_little_smaller_and_comes_back_whole() {
        let buffer = take(N);
        let place = buffer.as_ptr();
        give(tensor(buffer, [N]));
        let smaller = take(N - N / 4);
        assert_eq!((smaller.as_ptr(), smaller.len()), (place, N - N / 4));
        give_buffer(smaller);
        let much_smaller = take(N / 2);
        assert_ne!(much_smaller.as_ptr(), place);
        let again = take(N);
        assert_eq!((again.as_ptr(), again.len()), (place, N));
    }

    #[test]
    fn a_shared_tensor_is_copied_and_not_kept() {
        let x = tensor(vec![1.0; N + 1], [N + 1]);
        let other = x.clone();
        let mut elements = into_elements(x);
        elements.fill(2.0);
        assert!(other.storage::<f32>().iter().all(|&x| x == 1.0));
        let kept = other.clone();
        give(other);
        assert!(kept.storage::<f32>().iter().all(|&x| x == 1.0));
        let fresh = take(N + 1);
        assert_ne!(fresh.as_ptr(), kept.storage::<f32>().as_ptr());
    }
}
