//! Running a request.

use super::codes::{VMSRS_EFAILED, VMSRS_EINVAL, VMSRS_EUNSEALED, VMSRS_OK, code};
use super::failure::note_failure;
use super::options::COptions;
use crate::Domain;
use crate::Request;
use crate::error::{Error, RunError};
use std::ffi::{c_int, c_void};
use std::ptr;

/// Work of one request. What it returns goes to `*result` of `vmsrs_run`; a negative value gives the
/// request up: everything it wrote is discarded.
pub type RequestFn =
    Option<unsafe extern "C-unwind" fn(request: *mut Request, argument: *mut c_void) -> c_int>;

/// Runs `function` as a request that holds `domain`.
///
/// The function runs on a stack of its own. When it ends with a value of 0 or more, everything it
/// wrote to domains is committed; with a negative value it is discarded and the defers run. When an
/// error strikes, it is discarded, the locks are free again, the defers have run, and this returns
/// `VMSRS_EFAILED`.
///
/// `VMSRS_OK`: `*result` is what the function returned (committed if not negative; `result` may be
/// null). `VMSRS_EFAILED`: see `vmsrs_last_failure`. `VMSRS_EUNSEALED`: committed, `*result` is
/// valid. `VMSRS_EINVAL`, `VMSRS_ENESTED`, `VMSRS_ETIMEOUT`, `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`: the
/// function was not run.
/// `VMSRS_EFORKED`: this is the child of a fork inside the function.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; the function bears being cut short.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_run(
    domain: *const Domain,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: the same contract; no options are the default ones.
    unsafe { vmsrs_run_with(domain, ptr::null(), function, argument, result) }
}

/// Like `vmsrs_run`, with options (null for the defaults).
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
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    let Some(function) = function else {
        return VMSRS_EINVAL;
    };
    // SAFETY: options or null by contract.
    let options = unsafe { options.as_ref() }.copied().unwrap_or_default();
    let Some(options) = options.read() else {
        return VMSRS_EINVAL;
    };
    let mut value = 0;
    let outcome = domain.run_with(&options, |request| {
        // SAFETY: the function is called with what its type says; the request is this thread's.
        value = unsafe { function(ptr::from_ref(request).cast_mut(), argument) };
        if value < 0 { Err(()) } else { Ok(()) }
    });
    let (status, valid) = match outcome {
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
