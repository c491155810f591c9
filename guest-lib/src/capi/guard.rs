//! Memory outside of domains that requests may only read.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::{guard, guard_variables, open_guard};
use std::ffi::{c_int, c_void};

/// Lets requests only read the pages from `start` on, `length` bytes of them (both multiples of 4096). A
/// write in a request fails it. Outside of requests nothing changes, and deferred functions run outside of their
/// request (those of a task that is freed in another request run in that one).
///
/// Call it after `vmsrs_open` and before other threads start. A thread that was there before cannot
/// touch the pages until its next request ends, nor can those that it makes; one made inside a request may only read
/// them until it has had one itself. Handlers of signals begin without access: one of the server that touches the
/// pages calls `vmsrs_open_guard` first. No request may write to the pages while it blocks SIGSEGV.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENESTED` inside of a request or a deferred function, `VMSRS_ENOKEYS`,
/// `VMSRS_ESYSTEM`.
///
/// # Safety
///
/// The pages are the caller's, and stay mapped for reading and writing.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_guard(start: *mut c_void, length: usize) -> c_int {
    if start.is_null() {
        return VMSRS_EINVAL;
    }
    // SAFETY: the caller accepts the same contract.
    status(unsafe { guard(start.cast(), length) })
}

/// As `vmsrs_guard`, for the variables of the program: the pages of its `.data` and `.bss`, those with its
/// copies of variables of libraries among them (`stderr`, `environ`, `std::cout`: compile with `-fPIC
/// -mno-direct-extern-access` if requests must change such a one). For programs whose requests change none of
/// them, linked with `libvmsrs.so` and `-Wl,-z,now`.
///
/// Returns as `vmsrs_guard`, and `VMSRS_EVARIABLES`.
///
/// # Safety
///
/// As `vmsrs_guard`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_guard_variables() -> c_int {
    // SAFETY: the caller accepts the same contract.
    match unsafe { guard_variables() } {
        Ok(_) => VMSRS_OK,
        Err(error) => code(&error),
    }
}

/// Lets the calling thread write to guarded memory until it begins or ends a request, or returns from the handler
/// of a signal: for handlers, which begin without access. A request that calls it may write, too. Async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_open_guard() {
    open_guard();
}
