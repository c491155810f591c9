//! Running a request.

use super::codes::{VMSRS_EFAILED, VMSRS_EINVAL, VMSRS_EUNSEALED, VMSRS_OK, code};
use super::failure::note_failure;
use super::options::COptions;
use crate::Domain;
use crate::Request;
use crate::error::{Error, RunError};
use std::ffi::{c_int, c_void};
use std::ptr;

/// The work of a request.
///
/// It runs on a stack of its own and may be aborted at any instruction (see "Failures"
/// above). One that is left by `longjmp()` fails when the thread calls the library next;
/// `pthread_exit()` in it fails the request.
///
/// @param request The request: valid until the function returns, on this thread only.
/// @param argument What the caller passed.
/// @return A result of 0 or more, or a negative value to give the request up: what it
///   wrote is discarded then.
pub type RequestFn =
    Option<unsafe extern "C-unwind" fn(request: *mut Request, argument: *mut c_void) -> c_int>;

/// Runs a function as a request that holds a domain.
///
/// Waits for the lock of the domain, runs the function and audits the heap of each domain
/// that the request has written to. Then everything it wrote is committed, or, if the
/// function returned a negative value, discarded, and its defers are run.
///
/// If the request fails, everything it wrote is discarded, its locks are released, its
/// defers are run, and this returns `VMSRS_EFAILED`; the thread goes on. `errno` is as the
/// function left it, unless this returns `VMSRS_ESYSTEM`.
///
/// @param domain The domain. It is held to the end of the request.
/// @param function The work.
/// @param argument Passed to the function.
/// @param result Set to what the function returned, if it is not null and the code is
///   `VMSRS_OK` or `VMSRS_EUNSEALED`.
/// @retval VMSRS_OK The function returned; what it wrote is committed if `*result` is not
///   negative.
/// @retval VMSRS_EFAILED The request failed; see `vmsrs_last_failure()`.
/// @retval VMSRS_EUNSEALED Committed, but not sealed in time (with `VMSRS_SEAL` only).
/// @retval VMSRS_EDAMAGED Committed, but lost by the host before it was sealed (with `VMSRS_SEAL` only).
/// @retval VMSRS_EINVAL A null pointer. The function was not run.
/// @retval VMSRS_ENESTED Called in a request or a deferred function. Not run.
/// @retval VMSRS_ETIMEOUT The domain did not become free in time. Not run.
/// @retval VMSRS_ELAYOUT The heap of the domain has another layout. Not run.
/// @retval VMSRS_EQUARANTINE Too many requests of the domain have failed (`vmsrs_app_budget()`).
///   Not run.
/// @retval VMSRS_ESYSTEM See `errno`. Not run, or what it wrote could not be committed and
///   was discarded.
/// @retval VMSRS_EFORKED This is the child of a fork in the function.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; the function may be aborted at any instruction.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_run(
    domain: *const Domain,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let (Some(domain), Some(function)) = (unsafe { domain.as_ref() }, function) else {
        return VMSRS_EINVAL;
    };
    let mut value = 0;
    // SAFETY: what it asks for is this function's contract.
    let ended = domain.run(|request| unsafe { work(request, function, argument, &mut value) });
    // SAFETY: as above.
    unsafe { end(ended, value, result) }
}

/// Runs a function as a request, with options.
///
/// @param domain The domain. It is held to the end of the request.
/// @param options The options, or null for the defaults.
/// @param function The work.
/// @param argument Passed to the function.
/// @param result As in `vmsrs_run()`.
/// @retval VMSRS_EINVAL Also for an unknown flag, or a stack of more than 1 GiB.
/// @return Otherwise as `vmsrs_run()`.
///
/// # Safety
///
/// As `vmsrs_run`; `options` points to options or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_run_with(
    domain: *const Domain,
    options: *const COptions,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let (Some(domain), Some(function)) = (unsafe { domain.as_ref() }, function) else {
        return VMSRS_EINVAL;
    };
    // SAFETY: options or null by contract.
    let options = unsafe { options.as_ref() }.copied().unwrap_or_default();
    let Some(options) = options.read() else {
        return VMSRS_EINVAL;
    };
    let mut value = 0;
    let ended = domain.run_with(&options, |request| {
        // SAFETY: what it asks for is this function's contract.
        unsafe { work(request, function, argument, &mut value) }
    });
    // SAFETY: as above.
    unsafe { end(ended, value, result) }
}

/// The function of a request.
///
/// # Safety
///
/// The request is this thread's; otherwise as [`vmsrs_run`].
#[inline]
unsafe fn work(
    request: &Request,
    function: unsafe extern "C-unwind" fn(*mut Request, *mut c_void) -> c_int,
    argument: *mut c_void,
    value: &mut c_int,
) -> Result<(), ()> {
    // SAFETY: the function is called with what its type says.
    *value = unsafe { function(ptr::from_ref(request).cast_mut(), argument) };
    if *value < 0 { Err(()) } else { Ok(()) }
}

/// What C gets of a request that has ended.
///
/// # Safety
///
/// As [`put`].
#[inline]
unsafe fn end(ended: Result<(), RunError<()>>, value: c_int, result: *mut c_int) -> c_int {
    let (status, valid) = match ended {
        Ok(()) | Err(RunError::GivenUp(())) => (VMSRS_OK, true),
        Err(RunError::Failed(failure)) => {
            note_failure(failure);
            (VMSRS_EFAILED, false)
        }
        Err(RunError::Refused(Error::Unsealed)) => (VMSRS_EUNSEALED, true),
        Err(RunError::Refused(error)) => (code(&error), false),
    };
    if valid {
        // SAFETY: room for a value or null by contract.
        unsafe { put(result, value) };
    }
    status
}

/// # Safety
///
/// `result` points to room for a value or is null.
pub(super) unsafe fn put(result: *mut c_int, value: c_int) {
    if !result.is_null() {
        // SAFETY: by contract.
        unsafe { *result = value };
    }
}
