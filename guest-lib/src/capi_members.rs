//! The C interface of requests with several threads or steps; a part of [`crate::capi`].

use crate::capi::{
    COptions, RequestFn, VMSRS_EFAILED, VMSRS_EINVAL, VMSRS_OK, code, note_failure, status,
};
use crate::domain::Domain;
use crate::error::{Error, RunError};
use crate::request::Request;
use crate::task::{Step, Task};
use crate::ticket::{JoinError, Ticket};
use std::ffi::{c_int, c_void};
use std::ptr;

/// Lets other threads work for a request. Good until its request ends; can be copied and sent to any
/// number of threads. The fields are the library's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CTicket {
    /// The library's.
    pub state: *const c_void,
    /// The library's.
    pub domain: *const c_void,
    /// The library's.
    pub tag: u64,
    /// The library's.
    pub forks: u32,
    /// 0.
    pub reserved: u32,
}

/// What a step returns when the request goes on with another step.
pub const VMSRS_STEP_SUSPEND: c_int = 1;
/// What a step returns when the request is done: everything it wrote is committed.
pub const VMSRS_STEP_DONE: c_int = 0;

/// Gives a ticket of the running request, by which other threads join it with `vmsrs_join`.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`.
///
/// # Safety
///
/// `request` is the one that the calling function got; `ticket` points to room for it.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_ticket(request: *const Request, ticket: *mut CTicket) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(request) = (unsafe { request.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    if ticket.is_null() {
        return VMSRS_EINVAL;
    }
    match request.ticket() {
        Ok(taken) => {
            // SAFETY: room for it by contract.
            unsafe { ticket.write(taken.to_c()) };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}

/// Works for the ticket's request on the calling thread: runs `function` on the thread's request stack.
/// What it returns goes to `*result` (which may be null), whatever its sign. The request ends only after
/// all threads have left it. When any of them fails, all come to their landings, whatever they do.
///
/// `VMSRS_OK`: `*result` is valid. `VMSRS_EFAILED`: the request has failed, see `vmsrs_last_failure`.
/// `VMSRS_EENDED`, `VMSRS_EINVAL`, `VMSRS_ENESTED`, `VMSRS_ELIMIT` (256 threads), `VMSRS_ESYSTEM`: the
/// function was not run. `VMSRS_EFORKED`: this is the child of a fork.
///
/// # Safety
///
/// `ticket` points to what `vmsrs_ticket` gave, or is null; the function bears being cut short.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_join(
    ticket: *const CTicket,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: a ticket or null by contract.
    let (Some(ticket), Some(function)) = (unsafe { ticket.as_ref() }, function) else {
        return VMSRS_EINVAL;
    };
    // SAFETY: what vmsrs_ticket() gave, by contract.
    let Some(ticket) = (unsafe { Ticket::from_c(ticket) }) else {
        return VMSRS_EINVAL;
    };
    let outcome = ticket.join(|request| {
        // SAFETY: the function is called with what its type says; the request is this thread's.
        unsafe { function(ptr::from_ref(request).cast_mut(), argument) }
    });
    match outcome {
        Ok(value) => {
            // SAFETY: room for a value or null by contract.
            unsafe { put(result, value) };
            VMSRS_OK
        }
        Err(error) => failed(error),
    }
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

/// # Safety
///
/// `result` points to room for a value or is null.
unsafe fn put(result: *mut c_int, value: c_int) {
    if !result.is_null() {
        // SAFETY: by contract.
        unsafe { *result = value };
    }
}

fn failed(error: JoinError) -> c_int {
    match error {
        RunError::Failed(failure) => {
            note_failure(failure);
            VMSRS_EFAILED
        }
        RunError::Refused(error) => code(&error),
        RunError::GivenUp(never) => match never {},
    }
}
