//! Requests in steps.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code};
use super::failure::failed;
use super::options::COptions;
use super::run::{RequestFn, put};
use crate::Domain;
use crate::error::{Error, RunError};
use crate::{Step, Task};
use std::ffi::{c_int, c_void};
use std::ptr;

/// What a step returns when the request goes on with another step.
pub const VMSRS_STEP_SUSPEND: c_int = 1;
/// What a step returns when the request is done: everything it wrote is committed.
pub const VMSRS_STEP_DONE: c_int = 0;

/// Makes a request that will hold `domain` and is done in steps, each on any thread. It begins with its
/// first step. `options` may be null.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ESYSTEM`.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; `options` points to options or is null; `task` points to
/// room for a pointer.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_task_new(
    domain: *const Domain,
    options: *const COptions,
    task: *mut *mut Task,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    // SAFETY: options or null by contract.
    let options = unsafe { options.as_ref() }.copied().unwrap_or_default();
    let (Some(options), false) = (options.read(), task.is_null()) else {
        return VMSRS_EINVAL;
    };
    match Task::new(domain, options) {
        Ok(made) => {
            // SAFETY: room for a pointer by contract.
            unsafe { *task = Box::into_raw(Box::new(made)) };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}

/// Runs `function` as the next step of the request; one thread at a time. It returns
/// `VMSRS_STEP_SUSPEND` (the request goes on later, and keeps what it holds and wrote), `VMSRS_STEP_DONE`
/// (what it wrote is committed), or a negative value (it is given up). That goes to `*result`, which
/// may be null. The first step takes the domain's lock.
///
/// `VMSRS_OK`, `VMSRS_EUNSEALED`: `*result` is valid. `VMSRS_EFAILED`: the request has failed, in this
/// step or by its deadline before it; see `vmsrs_last_failure`. `VMSRS_EENDED`: it is over.
/// `VMSRS_ENESTED`, `VMSRS_ETIMEOUT`: the function was not run, the step can be tried again.
/// `VMSRS_EINVAL`, `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`, `VMSRS_EFORKED`: as `vmsrs_run`.
///
/// # Safety
///
/// `task` comes from `vmsrs_task_new`, and no other thread uses it meanwhile; the function bears being
/// cut short.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_task_step(
    task: *mut Task,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: a task or null by contract.
    let (Some(task), Some(function)) = (unsafe { task.as_mut() }, function) else {
        return VMSRS_EINVAL;
    };
    let mut value = 0;
    let outcome = task.step(|request| {
        // SAFETY: as in vmsrs_join().
        value = unsafe { function(ptr::from_ref(request).cast_mut(), argument) };
        match value {
            VMSRS_STEP_SUSPEND => Step::Suspend,
            value if value < 0 => Step::GiveUp,
            _ => Step::Done(()),
        }
    });
    let unsealed = matches!(outcome, Err(RunError::Refused(Error::Unsealed)));
    if outcome.is_ok() || unsealed {
        // SAFETY: room for a value or null by contract.
        unsafe { put(result, value) };
    }
    outcome.map_or_else(failed, |_| VMSRS_OK)
}

/// Ends a task; one that is not over is given up. Null is allowed.
///
/// # Safety
///
/// `task` comes from `vmsrs_task_new`, and nobody uses it afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_task_free(task: *mut Task) {
    if !task.is_null() {
        // SAFETY: made by vmsrs_task_new(), and given up by the caller.
        drop(unsafe { Box::from_raw(task) });
    }
}
