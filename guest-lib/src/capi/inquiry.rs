//! Questions about the request of the calling thread, and about pointers.

use super::codes::{errno_of, set_errno};
use crate::{in_request, usable_size};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// Tells whether the calling thread works for a request.
///
/// For code that is called in requests and outside of them: an allocator, a logger, a
/// wrapper of locks. Can be called anywhere.
///
/// @return 1 in the function of a request, of a step or of a thread that has joined one;
///   0 elsewhere, in deferred functions too.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_in_request() -> c_int {
    c_int::from(in_request())
}

/// Tells how many bytes of a block may be used.
///
/// That is what was asked for: the bytes that follow are a red zone. As in `vmsrs_free()`, a
/// pointer into a domain of the request that is not a live block fails the request.
///
/// @param block A block of a domain that the request of the calling thread holds, or null.
/// @return The bytes. 0 for null; 0 with `errno` `EPERM` without a request, and for a pointer
///   into none of its domains.
///
/// # Safety
///
/// Any pointer may be passed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_usable_size(block: *const c_void) -> usize {
    let Some(block) = NonNull::new(block.cast_mut().cast::<u8>()) else {
        return 0;
    };
    usable_size(block).unwrap_or_else(|error| {
        set_errno(errno_of(&error));
        0
    })
}
