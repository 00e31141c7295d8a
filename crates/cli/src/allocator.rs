//! The allocator of the binary. Besides it, the only `unsafe` code here.
#![allow(unsafe_code)]

use std::ffi::c_long;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` in mimalloc's list of options, which the bindings leave out.
const PURGE_DELAY: i32 = 15;
const NEVER: c_long = -1;

/// Sets up the allocator, before anything large is allocated.
pub fn set_up() {
    keep_freed_memory();
}

/// Keeps freed memory instead of giving it back to the system, which takes it page by page and clears
/// it anew: a training step frees what the next one asks for.
fn keep_freed_memory() {
    // SAFETY: writes a number into mimalloc's table of options, and the index is within it.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER) }
}
