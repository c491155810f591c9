//! Whether the C library's heap still works after a request was cut short in it.

use super::aside::{self, Aside};
use crate::thread::Thread;
use std::hint::black_box;

/// Whether the C library's heap works: allocates and frees a block, and takes the lock of every arena. Where nothing can
/// be tried it does.
///
/// The thread that has it locked may be off the CPU for a while; waiting longer holds up every other thread.
pub(super) fn heap_works(thread: &Thread) -> bool {
    let tried = aside::run(thread, &mut || {
        // More than a thread's cache serves, less than what is mapped for itself.
        // SAFETY: the block is given back at once.
        unsafe { libc::free(black_box(libc::malloc(black_box(20_000)))) };
        // SAFETY: only counts; takes the lock of every arena for it.
        black_box(unsafe { libc::mallinfo() });
    });
    tried != Aside::Cut
}
