//! Global allocator of the binary; the only `unsafe` code of this crate.
#![allow(unsafe_code)]

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_long;
use std::ops::RangeInclusive;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Sizes in bytes of the allocations that mimalloc serves from 4 MiB pages. A page belongs to one thread and one of
/// 12 size classes, and is used up before a freed block is reused: threads that allocate in every size class, as the
/// GEMMs of experts with varying numbers of rows do, accumulate tens of MiB.
const SHARING_LARGE_PAGES: RangeInclusive<usize> = 64 << 10..=512 << 10;

/// Mimalloc with those allocations enlarged beyond the largest size class: each then has its own pages, which are
/// free as soon as it is freed. Pages never written to take no memory.
struct Allocator;

/// Returns the layout to allocate for `layout`.
fn enlarged(layout: Layout) -> Layout {
    if !SHARING_LARGE_PAGES.contains(&layout.size()) {
        return layout;
    }
    Layout::from_size_align(SHARING_LARGE_PAGES.end() + 1, layout.align()).unwrap_or(layout)
}

// SAFETY: every block is allocated by mimalloc with a layout at least as large as the requested one, and mimalloc
// finds a block's size by its address, not by the layout passed to free or move it.
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
        // SAFETY: as in `alloc`. Only the requested bytes are cleared, so the others stay untouched.
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

/// Values of `mi_option_t` that the bindings do not declare.
const PURGE_DELAY: i32 = 15;
const ARENA_RESERVE: i32 = 23;

const NEVER: c_long = -1;
/// Address space reserved at a time, in KiB.
const ARENA_RESERVE_KIB: c_long = 64 << 10;

/// Sets up the allocator before anything large is allocated. On Linux the C runtime also calls it before `main`, and so
/// before the first allocation.
pub extern "C" fn set_up() {
    // Keep freed memory: the system would take it back page by page and clear it again, and a training step allocates
    // what the previous one freed.
    set_mimalloc_option(PURGE_DELAY, NEVER);
    set_mimalloc_option(ARENA_RESERVE, ARENA_RESERVE_KIB);
    #[cfg(target_os = "linux")]
    if rustix::process::getrlimit(rustix::process::Resource::As)
        .current
        .is_some()
    {
        disable_reservations();
    }
}

/// Disables reservations, for a process with limited address space: what allocators reserve is not available for
/// weights and activations, which are separate memory maps.
#[cfg(target_os = "linux")]
fn disable_reservations() {
    set_mimalloc_option(ARENA_RESERVE, 0);
    // `malloc` of the C library, used by its own functions, reserves 64 MiB per thread.
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the C library's settings of `malloc`.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn set_mimalloc_option(option: i32, value: c_long) {
    // SAFETY: writes a number into mimalloc's table of options, and the index is within it.
    unsafe { libmimalloc_sys::mi_option_set(option, value) }
}

// SAFETY: the C runtime calls the functions in this section once, before `main`, while there is one thread; this one
// needs neither arguments nor anything that Rust sets up.
#[cfg(target_os = "linux")]
#[unsafe(link_section = ".init_array")]
#[used]
static BEFORE_MAIN: extern "C" fn() = set_up;
