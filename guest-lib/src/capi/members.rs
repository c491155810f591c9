//! Requests with several threads.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code};
use super::failure::failed;
use super::run::{RequestFn, put};
use crate::Request;
use crate::Ticket;
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
