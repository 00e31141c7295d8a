//! The allocator of the binary. Besides it, the only `unsafe` code here.
#![allow(unsafe_code)]

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_long;
use std::ops::RangeInclusive;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Sizes in bytes of the allocations that mimalloc serves from pages of 4 MiB. A page belongs to one thread and
/// one of 12 size classes, and all of it is used before a freed block is used again: threads that ask for every
/// size class, as the matmuls of experts with varying numbers of rows do, come to hold tens of MiB.
const SHARING_LARGE_PAGES: RangeInclusive<usize> = 64 << 10..=512 << 10;

/// Mimalloc with those allocations enlarged beyond the largest size class: each then has pages of its own, which
/// are free as soon as it is. Pages that are never written to take no memory.
struct Allocator;

/// The layout that is asked for in place of this one.
fn enlarged(layout: Layout) -> Layout {
    if !SHARING_LARGE_PAGES.contains(&layout.size()) {
        return layout;
    }
    Layout::from_size_align(SHARING_LARGE_PAGES.end() + 1, layout.align()).unwrap_or(layout)
}

// SAFETY: every block comes from mimalloc for a layout at least as large as the one that was asked for, and
// mimalloc tells a block's size by its address, not by the layout it is freed or moved with.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is not 0: it is the caller's or larger.
        unsafe { MiMalloc.alloc(enlarged(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if enlarged(layout) == layout {
            // SAFETY: as in `alloc`.
            return unsafe { MiMalloc.alloc_zeroed(layout) };
        }
        // SAFETY: as in `alloc`. Only what was asked for is cleared, and thereby touched.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has at least these bytes.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is mimalloc's.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let size =
            Layout::from_size_align(size, layout.align()).map_or(size, |new| enlarged(new).size());
        // SAFETY: the block is mimalloc's, and the size is not 0.
        unsafe { MiMalloc.realloc(block, layout, size) }
    }
}

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
    set(ARENA_RESERVE, RESERVED);
    #[cfg(target_os = "linux")]
    if rustix::process::getrlimit(rustix::process::Resource::As)
        .current
        .is_some()
    {
        reserve_nothing();
    }
}

/// Where the address space of the process is limited, what allocators reserve is lost for weights and activations,
/// which are memory maps of their own.
#[cfg(target_os = "linux")]
fn reserve_nothing() {
    set(ARENA_RESERVE, 0);
    // The C library's, which its own functions use: 64 MiB for each thread.
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the C library's settings of `malloc`.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
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
