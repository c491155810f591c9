//! Requests with several threads.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code};
use super::failure::failed;
use super::run::{RequestFn, put};
use crate::Request;
use crate::Ticket;
use std::ffi::{c_int, c_void};
use std::ptr;

/// Lets other threads join a request.
///
/// Plain data: it can be copied and passed to any number of threads. After the request has
/// ended it is harmless. The fields are private to the library.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CTicket {
    /// Private.
    pub state: *const c_void,
    /// Private.
    pub domain: *const c_void,
    /// Private.
    pub tag: u64,
    /// Private.
    pub forks: u32,
    /// Private.
    pub reserved: u32,
}

/// Makes a ticket of the request, with which other threads join it.
///
/// @param request The request.
/// @param ticket Filled in on success.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ENOREQUEST
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

/// Works for the request of a ticket on the calling thread.
///
/// Runs the function on the request stack of this thread; it may do all that the request
/// may. The request ends only after all threads have left it. When any of them fails, all
/// are aborted, whatever they do, and discarded together.
///
/// @param ticket The ticket.
/// @param function The work.
/// @param argument Passed to the function.
/// @param result Set to what the function returned, whatever its sign, if it is not null
///   and the code is `VMSRS_OK`.
/// @retval VMSRS_OK The function returned.
/// @retval VMSRS_EFAILED The request failed; see `vmsrs_last_failure()`.
/// @retval VMSRS_EENDED The request has ended. The function was not run.
/// @retval VMSRS_EINVAL A null pointer, or the ticket is all zero. Not run.
/// @retval VMSRS_ENESTED The thread has a request. Not run.
/// @retval VMSRS_ELIMIT 256 threads have joined. Not run.
/// @retval VMSRS_ESYSTEM See `errno`. Not run.
/// @retval VMSRS_EFORKED This is a child, forked since the ticket was made or in the
///   function.
///
/// # Safety
///
/// `ticket` points to what `vmsrs_ticket` gave, or is null; the function may be aborted at any instruction.
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
