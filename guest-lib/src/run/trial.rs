//! Whether the C library's heap still works after a request was cut short in it.

use super::aside::{self, Aside};
use crate::os::clib;
use crate::thread::Thread;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks that are tried, the first of them always: it is more than a thread's cache of the C library serves, and less
/// than what is mapped for itself.
const SIZES: [usize; 6] = [20_000, 24, 200, 1500, 100_000, 3_000_000];

/// Times that it worked.
static PASSED: AtomicU64 = AtomicU64::new(0);

/// See [`PASSED`].
pub(super) fn passed() -> u64 {
    PASSED.load(Ordering::Relaxed)
}

/// Whether the C library's heap works: allocates and frees a block, and takes the lock of every arena. Where nothing can
/// be tried it does. `thoroughly`: with blocks of all sizes, for allocators that are not the C library's. `first` runs
/// before, under the same limits.
///
/// The thread that has it locked may be off the CPU for a while; waiting longer holds up every other thread.
pub(super) fn heap_works(thread: &Thread, thoroughly: bool, first: &mut dyn FnMut()) -> bool {
    let sizes = if thoroughly { &SIZES[..] } else { &SIZES[..1] };
    let tried = aside::run(thread, &mut || {
        first();
        for &size in sizes {
            // SAFETY: the block is given back at once.
            unsafe { libc::free(black_box(libc::malloc(black_box(size)))) };
            if thoroughly {
                // A program in Rust may have an allocator of its own.
                let mut block = Vec::<u8>::new();
                // Without memory it still works.
                let _ = black_box(block.try_reserve_exact(black_box(size)));
            }
        }
        // SAFETY: only counts; takes the lock of every arena for it.
        black_box(unsafe { libc::mallinfo() });
        if thoroughly {
            clib::ask_allocator();
        }
    });
    let works = tried != Aside::Cut;
    PASSED.fetch_add(works.into(), Ordering::Relaxed);
    works
}
