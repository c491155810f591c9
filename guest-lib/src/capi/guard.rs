//! Memory outside of domains that requests may only read.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::{guard, guard_variables, open_guard};
use std::ffi::{c_int, c_void};

/// Makes pages outside of domains read-only for requests.
///
/// A write in a request fails it (`VMSRS_KIND_MEMORY`); a system call that would write
/// there gives `EFAULT`. Outside of requests nothing changes. The pages must stay mapped for
/// reading and writing, and no request may write to them while it blocks SIGSEGV.
///
/// Call it after `vmsrs_open()` and before other threads start. A thread that exists
/// already cannot touch the pages until its next request ends, nor can threads that it
/// creates; one that is created in a request can only read them until it has had a request
/// of its own. Signal handlers start without access; see `vmsrs_open_guard()`.
///
/// @param start The first page.
/// @param length Bytes, a multiple of 4096.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL Null, not whole pages, or pages of domains are among them.
/// @retval VMSRS_ENESTED Called in a request or a deferred function.
/// @retval VMSRS_ENOKEYS No protection key is left.
/// @retval VMSRS_ESYSTEM See `errno`. If pages are not mapped, those before the first such
///   one are guarded.
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

/// Makes the variables of the program read-only for requests: the pages of its `.data` and
/// `.bss`.
///
/// For programs whose requests change none of them, linked with `libvmsrs.so` and
/// `-Wl,-z,now`. The program's copies of variables of libraries (`stderr`, `environ`,
/// `std::cout`) are among them; `-fPIC -mno-direct-extern-access` leaves those in their
/// libraries.
///
/// @retval VMSRS_EVARIABLES The variables cannot be guarded.
/// @return Otherwise as `vmsrs_guard()`.
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

/// Lets the calling thread write to guarded memory until it begins or ends a request, or
/// returns from the signal handler that calls this.
///
/// For signal handlers, which start without access. In a request it opens the memory to the
/// request. Async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_open_guard() {
    open_guard();
}
