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

/// The request goes on with another step.
pub const VMSRS_STEP_SUSPEND: c_int = 1;
/// The request is done: what it wrote is committed.
pub const VMSRS_STEP_DONE: c_int = 0;

/// Creates a task: a request in steps, which holds a domain. It begins with its first step.
///
/// @param domain The domain.
/// @param options The options, or null for the defaults.
/// @param task Set to the task on success; `vmsrs_task_free()` ends it.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, an unknown flag, or a stack of more than 1 GiB.
/// @retval VMSRS_ESYSTEM See `errno`.
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

/// Runs a function as the next step of a task.
///
/// Each step may run on another thread, one at a time. The first one locks the domain. The
/// domains stay locked between the steps and the deadline goes on: a task that misses it
/// while it is suspended fails at once, and the next step returns `VMSRS_EFAILED`.
///
/// @param task The task.
/// @param function The step. It returns `VMSRS_STEP_SUSPEND`, `VMSRS_STEP_DONE`, or a
///   negative value to give the request up.
/// @param argument Passed to the function.
/// @param result Set to what the function returned, if it is not null and the code is
///   `VMSRS_OK` or `VMSRS_EUNSEALED`.
/// @retval VMSRS_OK The function returned.
/// @retval VMSRS_EFAILED The request failed, in this step or before it; see
///   `vmsrs_last_failure()`.
/// @retval VMSRS_EUNSEALED Committed, but not sealed in time.
/// @retval VMSRS_EDAMAGED Committed, but lost by the host before it was sealed.
/// @retval VMSRS_EENDED The task has ended before. The function was not run.
/// @retval VMSRS_EINVAL A null pointer. Not run.
/// @retval VMSRS_ENESTED The thread has a request. Not run; try again outside of it.
/// @retval VMSRS_ETIMEOUT The domain did not become free in time. Not run; try again.
/// @retval VMSRS_ELAYOUT The heap of the domain has another layout. Not run.
/// @retval VMSRS_ELIMIT 4096 tasks of the process are suspended. The request was given up.
/// @retval VMSRS_ESYSTEM See `errno`.
/// @retval VMSRS_EFORKED This is a child, forked since the task was made or in the function.
///
/// # Safety
///
/// `task` comes from `vmsrs_task_new`, and no other thread uses it meanwhile; the function may be
/// aborted at any instruction.
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

/// Frees a task. A request that has not ended is given up: what it wrote is discarded, and
/// its defers are run.
///
/// In a request, the defers run as a part of that one. In a forked child a task of the
/// parent is freed without effect on the parent.
///
/// @param task The task; null does nothing.
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
