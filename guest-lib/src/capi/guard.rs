//! Memory outside of domains that requests may only read.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::guard::{guard, guard_variables};
use std::ffi::{c_int, c_void};

/// Lets requests only read the pages from `start` on, `length` bytes of them (both multiples of 4096). A
/// write in a request fails it. Outside of requests, and so in deferred functions, nothing changes.
///
/// Call it after `vmsrs_open` and before other threads start. A thread that was there before cannot
/// touch the pages until it has had a request; one made inside a request may only read them until it has
/// had one itself. Handlers of signals cannot touch the pages at all (pkeys(7)).
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOKEYS`, `VMSRS_ESYSTEM`.
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

/// As `vmsrs_guard`, for all variables of the program itself (`.data` and `.bss`; not those of its
/// libraries). For programs whose requests change none of them, linked with `libvmsrs.so` and `-z now`.
///
/// Returns `VMSRS_OK`, `VMSRS_ENOKEYS`, `VMSRS_EVARIABLES`, `VMSRS_ESYSTEM`.
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
