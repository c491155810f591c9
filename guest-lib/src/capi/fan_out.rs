//! Several pieces of a request's work at once.

use super::codes::{VMSRS_EENDED, VMSRS_EINVAL, VMSRS_OK, code};
use super::run::RequestFn;
use crate::Request;
use std::ffi::{c_int, c_void};
use std::ptr;

/// Maximum number of pieces in one call.
const PIECES_MAX: usize = 1 << 16;

/// A piece of the work of a request, for `vmsrs_fan_out()`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CPiece {
    /// The work, called on a thread of its own with that thread's request.
    pub function: RequestFn,
    /// Passed to the function.
    pub argument: *mut c_void,
    /// Set to `VMSRS_OK` if the piece was run, or to the reason why not: `VMSRS_ELIMIT`,
    /// `VMSRS_ESYSTEM`.
    pub outcome: c_int,
    /// Set to what the function returned, whatever its sign; 0 if it was not run.
    pub result: c_int,
}

/// A function and its argument, on their way to a thread.
struct Call {
    function: unsafe extern "C-unwind" fn(*mut Request, *mut c_void) -> c_int,
    argument: *mut c_void,
}

// SAFETY: the caller of vmsrs_fan_out() promises that another thread may call it with its argument.
unsafe impl Send for Call {}

impl Call {
    fn run(self, request: &Request) -> c_int {
        // SAFETY: the arguments are those of the function's type; the request is this thread's.
        unsafe { (self.function)(ptr::from_ref(request).cast_mut(), self.argument) }
    }
}

/// Runs pieces of the work of a request in parallel, each on a new thread that joins the
/// request, and waits for them.
///
/// When a piece fails, the request fails, and this does not return.
///
/// @param request The request.
/// @param pieces The pieces, which only this call may use until it returns. It sets
///   `outcome` and `result` of each.
/// @param count How many, at most 65536.
/// @retval VMSRS_OK All pieces were run.
/// @retval VMSRS_EINVAL A null pointer, or too many pieces. None was run, and `pieces` is
///   unchanged.
/// @retval VMSRS_ENOREQUEST None was run, and `pieces` is unchanged.
/// @retval VMSRS_ELIMIT Not all were run, since 256 threads have joined; see `outcome`.
/// @retval VMSRS_ESYSTEM Not all were run, since no thread could be created; see `outcome`.
///
/// # Safety
///
/// `request` is the one that the calling function got; `pieces` points to `count` pieces, which only this
/// call uses until it returns; another thread may call each function with its argument, and may be
/// aborted at any instruction.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_fan_out(
    request: *const Request,
    pieces: *mut CPiece,
    count: usize,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(request) = (unsafe { request.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    // Before the slice: its length must be sane.
    if pieces.is_null() || count > PIECES_MAX {
        return VMSRS_EINVAL;
    }
    // SAFETY: `count` pieces by contract.
    let pieces = unsafe { std::slice::from_raw_parts_mut(pieces, count) };
    let call = |piece: &CPiece| {
        let (function, argument) = (piece.function?, piece.argument);
        Some(Call { function, argument })
    };
    let Some(calls) = pieces.iter().map(call).collect::<Option<Vec<_>>>() else {
        return VMSRS_EINVAL;
    };
    let work = calls
        .into_iter()
        .map(|call| move |request: &Request| call.run(request));
    let done = match request.fan_out_each(work.collect()) {
        Ok(done) => done,
        Err(error) => return code(&error),
    };
    let refused = done.refused.as_ref().map_or(VMSRS_EENDED, code);
    let mut status = VMSRS_OK;
    for (piece, outcome) in pieces.iter_mut().zip(done.outcomes) {
        (piece.outcome, piece.result) = match outcome {
            Some(Ok(value)) => (VMSRS_OK, value),
            Some(Err(error)) => (code(&error), 0),
            None => (refused, 0),
        };
        if status == VMSRS_OK {
            status = piece.outcome;
        }
    }
    status
}
