//! The calling thread's `errno`.

use std::ffi::c_int;

fn place() -> *mut c_int {
    // SAFETY: no conditions.
    unsafe { libc::__errno_location() }
}

/// Async-signal-safe.
pub(crate) fn set(value: c_int) {
    // SAFETY: the calling thread's own.
    unsafe { *place() = value };
}

/// Runs code that leaves `errno` as it was. Async-signal-safe if the code is.
#[inline]
pub(crate) fn kept<T>(code: impl FnOnce() -> T) -> T {
    // SAFETY: the calling thread's own.
    let before = unsafe { *place() };
    let value = code();
    set(before);
    value
}
