//! What is known of a failed request.

use super::codes::{VMSRS_EFAILED, VMSRS_EINVAL, VMSRS_ENOREQUEST, VMSRS_OK, code};
use crate::JoinError;
use crate::error::RunError;
use crate::failure::Failure;
use crate::thread;
use std::ffi::{c_char, c_int};

/// A failed request.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CFailure {
    /// A value of enum `vmsrs_kind`.
    pub kind: u32,
    /// The signal, or 0.
    pub signal: i32,
    /// `si_code` of the signal, or 0.
    pub code: i32,
    /// Pages discarded.
    pub drafts: u32,
    /// Number of the incident, for "vmsrs incidents" on the host; 0 if there is none.
    pub incident: u64,
    /// Address of the access or of the block, or 0.
    pub address: u64,
    /// Instruction pointer at the error, or 0.
    pub instruction: u64,
    /// Nanoseconds from the detection to the end of the discard.
    pub recovery_ns: u64,
    /// Deferred functions that failed and were aborted.
    pub defers_failed: u32,
    /// 0.
    pub reserved: u32,
    /// Message of a panic or of `vmsrs_fail()`; may be empty.
    pub message: [c_char; 128],
}

/// Describes the last failed request of the calling thread: the one for which
/// `vmsrs_run()`, `vmsrs_join()` or `vmsrs_task_step()` returned `VMSRS_EFAILED`.
///
/// @param failure Filled in on success.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `failure` is null.
/// @retval VMSRS_ENOREQUEST No request of this thread has failed.
///
/// # Safety
///
/// `failure` points to room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_last_failure(failure: *mut CFailure) -> c_int {
    if failure.is_null() {
        return VMSRS_EINVAL;
    }
    thread::with_failure(|last| match last {
        None => VMSRS_ENOREQUEST,
        Some(last) => {
            // SAFETY: room for it by contract.
            unsafe { failure.write(CFailure::from(last)) };
            VMSRS_OK
        }
    })
}

/// Keeps a failure for `vmsrs_last_failure`.
pub(super) fn note_failure(failure: Box<Failure>) {
    thread::keep_failure(failure);
}

impl From<&Failure> for CFailure {
    fn from(failure: &Failure) -> Self {
        let mut message = [0; 128];
        for (to, from) in message.iter_mut().take(127).zip(failure.message.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        Self {
            kind: failure.kind.number(),
            signal: failure.signal,
            code: failure.code,
            drafts: failure.drafts,
            incident: failure.incident,
            address: failure.address,
            instruction: failure.instruction,
            recovery_ns: u64::try_from(failure.recovery.as_nanos()).unwrap_or(u64::MAX),
            defers_failed: failure.defers_failed,
            reserved: 0,
            message,
        }
    }
}

pub(super) fn failed(error: JoinError) -> c_int {
    match error {
        RunError::Failed(failure) => {
            note_failure(failure);
            VMSRS_EFAILED
        }
        RunError::Refused(error) => code(&error),
        RunError::GivenUp(never) => match never {},
    }
}
