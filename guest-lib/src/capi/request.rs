//! What a running request does with domains, defers and its arena.

use super::codes::{VMSRS_EINVAL, status};
use super::options::VMSRS_SEAL;
use crate::Domain;
use crate::Request;
use crate::failure::Kind;
use crate::thread;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// Work that undoes something outside of domains.
pub type DeferFn = Option<unsafe extern "C-unwind" fn(argument: *mut c_void)>;

/// Locks the shared domain for the request and opens an atomic section on it.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_EHELD`, `VMSRS_ELIMIT`,
/// `VMSRS_EAPP`, `VMSRS_ETIMEOUT`, `VMSRS_EDEADLOCK` (the holder waits for this request, directly or
/// through others), `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`. The order in which domains are entered is the
/// server's affair; with the same order in every request, none ever waits in a circle.
///
/// # Safety
///
/// `request` is the one that the calling function got, `domain` comes from `vmsrs_domain_open`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_enter(request: *const Request, domain: *const Domain) -> c_int {
    // SAFETY: handles or null by contract.
    match unsafe { (request.as_ref(), domain.as_ref()) } {
        (Some(request), Some(domain)) => status(request.enter_unguarded(domain)),
        _ => VMSRS_EINVAL,
    }
}

/// Commits what the request wrote to the entered domain, and unlocks it. A domain that is never left
/// is held to the end of the request and commits together with it.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ENOTHELD`, `VMSRS_EMAIN`,
/// `VMSRS_ESYSTEM`. Does not return when the audit finds damage: the request fails.
///
/// # Safety
///
/// As `vmsrs_enter`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_leave(request: *const Request, domain: *const Domain) -> c_int {
    // SAFETY: handles or null by contract.
    match unsafe { (request.as_ref(), domain.as_ref()) } {
        (Some(request), Some(domain)) => status(request.leave_unguarded(domain)),
        _ => VMSRS_EINVAL,
    }
}

/// Commits everything that the request wrote so far; it goes on and keeps its domains. `flags` is
/// `VMSRS_SEAL` or 0. The defers registered so far are forgotten.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_EUNSEALED`, `VMSRS_ESYSTEM`. Does
/// not return when the audit finds damage: the request fails.
///
/// # Safety
///
/// As `vmsrs_enter`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_commit(request: *const Request, flags: u32) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { request.as_ref() } {
        Some(request) if flags & !VMSRS_SEAL == 0 => {
            status(request.commit(flags & VMSRS_SEAL != 0))
        }
        _ => VMSRS_EINVAL,
    }
}

/// Calls the request failed (`VMSRS_KIND_INVARIANT`) with a message of up to 127 bytes (may be
/// null). Does not return inside a request; `vmsrs_run` returns `VMSRS_EFAILED`. Outside of a
/// request it aborts the process.
///
/// # Safety
///
/// `message` is a C string or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_fail(message: *const c_char) -> ! {
    let message = if message.is_null() {
        &[][..]
    } else {
        // SAFETY: a C string by contract.
        unsafe { CStr::from_ptr(message) }.to_bytes()
    };
    thread::fail_request(Kind::Invariant, 0, message)
}

/// Registers work that undoes something outside of domains (a file, a descriptor) if the request
/// fails or is given up. The newest runs first. It runs on the thread that ends it, outside of the request: domains cannot be
/// written, errors in it are suppressed.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ELIMIT`.
///
/// # Safety
///
/// `request` is the one that the calling function got; `function` may be called with `argument`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_defer(
    request: *const Request,
    function: DeferFn,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { (request.as_ref(), function) } {
        (Some(request), Some(function)) => status(request.defer_raw(function, argument)),
        _ => VMSRS_EINVAL,
    }
}

/// Memory of the request's arena: not zeroed, 16-byte aligned, gone when the request ends, not
/// versioned. Null when the request has used up its 16 MiB, or `request` is null or not the running
/// request of the calling thread.
///
/// # Safety
///
/// `request` is the one that the calling function got.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_arena_alloc(request: *const Request, size: usize) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    unsafe { request.as_ref() }
        .and_then(|request| request.checked_arena().ok()?.allocate(size, 16))
        .map_or(ptr::null_mut(), |block| block.as_ptr().cast())
}

/// Locks several shared domains in an order that is the same in all requests, and holds them to the end
/// of the request or to `vmsrs_leave`. Domains that the request holds already are no error.
///
/// Returns as `vmsrs_enter`; if it is not `VMSRS_OK`, what this call has locked before is left again.
///
/// # Safety
///
/// `request` is the one that the calling function got, `domains` points to `count` domains.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_enter_all(
    request: *const Request,
    domains: *const *const Domain,
    count: usize,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(request) = (unsafe { request.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    // The length first: a slice of an absurd length must not even be made.
    if domains.is_null() || count > 1 << 16 {
        return VMSRS_EINVAL;
    }
    // SAFETY: so many pointers by contract.
    let domains = unsafe { std::slice::from_raw_parts(domains, count) };
    if domains.iter().any(|domain| domain.is_null()) {
        return VMSRS_EINVAL;
    }
    // SAFETY: handles, not null, which live for ever; a reference is laid out as a pointer.
    let domains =
        unsafe { std::slice::from_raw_parts(domains.as_ptr().cast::<&'static Domain>(), count) };
    status(request.enter_all(domains))
}
