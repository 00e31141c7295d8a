//! Hints for the caches.
#![allow(unsafe_code)]

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the cache lines of data that is read or written soon, where the processor does not expect it: at the start
/// of rows that are far apart.
#[inline(always)]
pub(crate) fn prefetch<T>(data: &[T]) {
    const { assert!(size_of::<T>() != 0 && LINE.is_multiple_of(size_of::<T>())) };
    #[cfg(target_arch = "x86_64")]
    for x in data.iter().step_by(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction is part of the baseline, and has no effect but on caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}
