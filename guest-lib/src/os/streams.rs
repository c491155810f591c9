//! Streams of the C library: a thread that is cut short in a function for one, as by a wild pointer that it was to write, has
//! it locked, and every other thread that uses it would wait forever.
//!
//! Such functions unlock it when the C library unwinds their frames, which abandoned code does not have.

use super::weak::address_of;
use std::arch::asm;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What a stream's lock is (`_IO_lock_t`).
#[repr(C)]
struct Lock {
    word: i32,
    /// How often its owner has taken it.
    count: i32,
    owner: usize,
}

/// Places in a stream (`struct _IO_FILE`), which programs are compiled with.
const NEXT: usize = 104;
const LOCK: usize = 136;

/// More are a circle.
const STREAMS_MAX: usize = 100_000;

/// The locks of the three streams that all programs have.
static STANDARD: [AtomicPtr<Lock>; 3] = [const { AtomicPtr::new(ptr::null_mut()) }; 3];

unsafe extern "C" {
    fn funlockfile(stream: *mut libc::FILE);
}

/// Notes the locks that are asked for at each failure: a stream may be damaged by then.
pub(crate) fn install() {
    let streams = [
        address_of!("_IO_2_1_stdin_"),
        address_of!("_IO_2_1_stdout_"),
        address_of!("_IO_2_1_stderr_"),
    ];
    for (place, stream) in STANDARD.iter().zip(streams) {
        if stream != 0 {
            // SAFETY: a stream of the C library's, which has a lock.
            place.store(unsafe { lock_of(stream as *mut c_void) }, Ordering::Relaxed);
        }
    }
}

/// # Safety
///
/// A stream.
unsafe fn lock_of(stream: *mut c_void) -> *mut Lock {
    // SAFETY: by contract.
    unsafe { stream.byte_add(LOCK).cast::<*mut Lock>().read() }
}

/// What the C library notes as the calling thread.
fn me() -> usize {
    let me;
    // SAFETY: the thread control block has its own address there (ABI).
    unsafe {
        asm!("mov {}, fs:[16]", out(reg) me, options(pure, readonly, nostack, preserves_flags));
    }
    me
}

/// Whether the calling thread has one of the three locked.
pub(crate) fn has_standard() -> bool {
    let me = me();
    STANDARD.iter().any(|place| {
        let lock = place.load(Ordering::Relaxed);
        // SAFETY: static memory of the C library, or null; others may write it.
        !lock.is_null() && unsafe { (&raw const (*lock).owner).read_volatile() } == me
    })
}

/// Unlocks all streams that the calling thread has locked. Follows the C library's list of them without its lock, which may belong
/// to a thread that waits for one of these streams: the caller survives if the list changes or is damaged, and calls this again.
pub(crate) fn unlock_all() {
    let all = address_of!("_IO_list_all");
    if all == 0 {
        return;
    }
    // SAFETY: the list's head; its streams, as long as the list is intact.
    unsafe {
        let mut stream = (all as *const *mut c_void).read_volatile();
        let me = me();
        for _ in 0..STREAMS_MAX {
            if stream.is_null() {
                break;
            }
            let lock = lock_of(stream);
            if !lock.is_null() && (&raw const (*lock).owner).read_volatile() == me {
                (*lock).count = 1;
                funlockfile(stream.cast());
            }
            stream = stream.byte_add(NEXT).cast::<*mut c_void>().read_volatile();
        }
    }
}
