//! The allocator of the binary. Besides it, the only `unsafe` code here.
#![allow(unsafe_code)]

use std::ffi::c_long;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Options of mimalloc, by their place in its list of options, which the bindings leave out.
const PURGE_DELAY: i32 = 15;
const ARENA_RESERVE: i32 = 23;

const NEVER: c_long = -1;
/// Address space that is reserved at a time, in KiB.
const RESERVED: c_long = 64 << 10;

/// Sets up the allocator, before anything large is allocated. On Linux the system calls it, too, before the
/// first allocation, which precedes `main`.
pub extern "C" fn set_up() {
    // Freed memory is kept instead of given back to the system, which takes it page by page and clears it
    // anew: a training step frees what the next one asks for.
    set(PURGE_DELAY, NEVER);
    // Where the address space of the process is limited, what the allocator reserves is lost for weights and
    // activations, which are memory maps of their own.
    set(ARENA_RESERVE, RESERVED);
}

fn set(option: i32, value: c_long) {
    // SAFETY: writes a number into mimalloc's table of options, and the index is within it.
    unsafe { libmimalloc_sys::mi_option_set(option, value) }
}

// SAFETY: the system calls functions of this section once, on the only thread, before `main`; this one needs
// neither arguments nor anything that Rust sets up.
#[cfg(target_os = "linux")]
#[unsafe(link_section = ".init_array")]
#[used]
static BEFORE_MAIN: extern "C" fn() = set_up;
