//! Leases: bytes of a domain that are sent outside of requests.

use super::codes::{VMSRS_EFAILED, VMSRS_EINVAL, VMSRS_OK, code};
use super::failure::note_failure;
use crate::os::errno;
use crate::os::view::View;
use crate::thread::uninterrupted;
use crate::{Domain, Lease, Request, RunError};
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

/// Finds what is to be leased.
///
/// @param request The request: valid until the function returns, on this thread only.
/// @param argument What the caller passed.
/// @param bytes To be set to the first byte, in a block of the request's domain; null before.
/// @param length To be set to the number of bytes.
/// @return A result of 0 or more, or a negative value to give the request up.
pub type FindFn = Option<
    unsafe extern "C-unwind" fn(
        request: *mut Request,
        argument: *mut c_void,
        bytes: *mut *const c_void,
        length: *mut usize,
    ) -> c_int,
>;

/// Bytes of a domain that do not change. All zero if there are none.
#[repr(C)]
#[derive(Debug)]
pub struct CLease {
    /// The first byte, or null.
    pub data: *const c_void,
    /// Number of bytes.
    pub length: usize,
    /// The library's: numbers that no other lease has, before or after.
    pub state: [u64; 3],
}

/// No bytes.
const NOTHING: CLease = CLease {
    data: ptr::null(),
    length: 0,
    state: [0; 3],
};

/// Leases bytes of a domain, to be read outside of requests: by `writev()` or `send()` to a
/// slow client, for example, which may take any number of turns of an event loop.
///
/// Runs a function as a request, as `vmsrs_run()` does, which finds the bytes in the domain;
/// they are leased before that request ends, and only if it succeeds. They are (a part of)
/// one block, and committed: the request may change other ones only.
///
/// The lease shows them at an address of its own. They stay as they are, whatever
/// becomes of the domain: requests change what the lease was taken of, free it, or delete
/// the domain, and nobody waits for the lease. It lasts until `vmsrs_lease_end()` or the end
/// of the process. A child of `fork()` does not have it. What the host has lost of it cannot
/// be read: a system call gives `EFAULT`, a direct access raises `SIGBUS`.
///
/// It costs two calls of the kernel and a page fault: small values are copied for less.
/// Without protection it is a copy.
///
/// @param domain The domain.
/// @param find Finds the bytes.
/// @param argument Passed to `find`.
/// @param lease Set to the lease; its `data` is null if `find` has left its `bytes` null, or has
///   given up, or if this returns an error.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or the bytes are not the domain's.
/// @retval VMSRS_EUNCOMMITTED The request has changed the bytes.
/// @retval VMSRS_ELIMIT All leases together have more pages than the pool has frames, or those of
///   pages that are not sealed yet more than an eighth of it, or the process has 262,144 leases.
/// @retval VMSRS_EDAMAGED Content of the domain is lost.
/// @return Otherwise as `vmsrs_run()`. After each of these but `VMSRS_OK` the request has
///   changed nothing.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; the function may be aborted at any instruction; `lease` points to room for one.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_lease(
    domain: *const Domain,
    find: FindFn,
    argument: *mut c_void,
    lease: *mut CLease,
) -> c_int {
    if lease.is_null() {
        return VMSRS_EINVAL;
    }
    // SAFETY: room for it by contract.
    unsafe { lease.write(NOTHING) };
    // SAFETY: a handle or null by contract.
    let (Some(domain), Some(find)) = (unsafe { domain.as_ref() }, find) else {
        return VMSRS_EINVAL;
    };
    let leased = domain.lease(|request| {
        let (mut bytes, mut length) = (ptr::null(), 0);
        // SAFETY: the function is called with what its type says.
        let result = unsafe {
            find(
                ptr::from_ref(request).cast_mut(),
                argument,
                &raw mut bytes,
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(());
        }
        let first = NonNull::new(bytes.cast_mut().cast::<u8>());
        Ok(first.map(|first| NonNull::slice_from_raw_parts(first, length)))
    });
    match leased {
        Ok(leased) => {
            if let Some(view) = leased.and_then(Lease::into_view) {
                let (first, length, state) = view.into_parts();
                let leased = CLease {
                    data: first.as_ptr().cast(),
                    length,
                    state,
                };
                // SAFETY: room for it by contract.
                unsafe { lease.write(leased) };
            }
            VMSRS_OK
        }
        Err(RunError::GivenUp(())) => VMSRS_OK,
        Err(RunError::Failed(failure)) => {
            note_failure(failure);
            VMSRS_EFAILED
        }
        Err(RunError::Refused(error)) => code(&error),
    }
}

/// Ends a lease. Can be called by any thread, also in requests; `errno` stays as it is.
///
/// A lease is ended once, by any copy of the structure; other copies get an error from then on. Keep the structure outside of
/// domains: a request that ends a lease and fails afterwards has ended it for good, but a structure in a domain is restored
/// by the failure, and points to bytes that are unmapped. Ending that one again does no harm.
///
/// @param lease The lease; it has no bytes afterwards, whatever this returns.
/// @retval VMSRS_OK It is ended; or it had no bytes, or is null: nothing was to be done.
/// @retval VMSRS_EINVAL It is not a lease of this process's, or not any more: it was ended by another copy, or belongs to the
///   parent of a fork, or one of its fields is wrong. Nothing is unmapped.
///
/// # Safety
///
/// `lease` can be written, or is null; nobody uses the bytes of the lease afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_lease_end(lease: *mut CLease) -> c_int {
    if lease.is_null() {
        return VMSRS_OK;
    }
    errno::kept(|| {
        // An interrupt would leave it mapped.
        uninterrupted(|| {
            // SAFETY: it can be written by contract.
            let ended = unsafe { lease.replace(NOTHING) };
            match (NonNull::new(ended.data.cast_mut().cast()), ended.state) {
                (None, [0, 0, 0]) if ended.length == 0 => VMSRS_OK,
                (Some(first), state) => {
                    // SAFETY: nobody uses its bytes by contract.
                    let view = unsafe { View::from_parts(first, ended.length, state) };
                    if view.end() { VMSRS_OK } else { VMSRS_EINVAL }
                }
                _ => VMSRS_EINVAL,
            }
        })
    })
}
