//! What the library knows of the calling thread.
//!
//! Found relative to the thread pointer, wherever the library is loaded (the initial-exec model of thread-local
//! storage, which Rust cannot be asked for). The usual model takes a call into the dynamic linker, which allocates
//! the memory at a thread's first access if the library was loaded by `dlopen`, and may wait for the linker's lock:
//! a signal handler cannot do that, nor can a thread on its way into a request.

use super::latch::Latch;
use std::arch::{asm, global_asm};
use std::cell::Cell;

/// Bytes for what was refused.
pub(crate) const REFUSED: usize = 64;

/// One for each thread, all zero at its start. It has no destructor: see [`super::thread_end`].
#[repr(C)]
pub(crate) struct Local {
    /// The thread whose request runs, or null.
    pub(crate) current: Cell<*const ()>,
    /// The thread in the app that it has used last, or null.
    pub(crate) last: Cell<*const ()>,
    /// The first of the threads that it is in its apps, or null.
    pub(crate) first: Cell<*const ()>,
    /// What `vmsrs_last_failure()` tells, or null.
    pub(crate) failure: Cell<*mut ()>,
    /// What `vmsrs_refused()` tells: text with a zero at its end.
    pub(crate) refused: Cell<[u8; REFUSED]>,
    /// See [`super::identity`].
    pub(crate) identity: Cell<u64>,
    /// The library's lock that it has, or null.
    pub(crate) lock: Cell<*const Latch>,
    /// The signals that were blocked before it was taken: the kernel's set.
    pub(crate) blocked: Cell<u64>,
}

global_asm!(
    ".pushsection .tbss, \"awT\", @nobits",
    ".p2align 3",
    ".globl vmsrs_local",
    ".hidden vmsrs_local",
    ".type vmsrs_local, @object",
    ".size vmsrs_local, {size}",
    "vmsrs_local:",
    ".zero {size}",
    ".popsection",
    size = const size_of::<Local>(),
);

/// The calling thread's. Async-signal-safe.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn local() -> &'static Local {
    let place: *const Local;
    // SAFETY: the offset from the thread pointer, which the word there is too (the ABI's variant II).
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + vmsrs_local@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) place,
            options(pure, readonly, nostack)
        );
    }
    // SAFETY: as above. It lives as long as the thread, which alone uses it, and zeros are a value of it.
    unsafe { &*place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_its_own_and_finds_zeros() {
        local().failure.set(std::ptr::dangling_mut());
        let theirs = || {
            let all_zero = local().current.get().is_null() && local().failure.get().is_null();
            (all_zero, std::ptr::from_ref(local()).addr())
        };
        let (all_zero, place) = std::thread::spawn(theirs).join().unwrap();
        assert!(all_zero);
        assert_ne!(place, std::ptr::from_ref(local()).addr());
        assert!(!local().failure.replace(std::ptr::null_mut()).is_null());
    }
}
