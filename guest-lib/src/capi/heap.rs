//! Blocks in domains.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, errno_of, set_errno, status};
use crate::{Domain, Error};
use std::ffi::{c_int, c_void};
use std::ptr;

/// Allocates a block in a domain.
///
/// The block is aligned to 16 bytes and not zeroed. Others see it when the request
/// commits; if the request fails, it is gone. All threads of a request may allocate and
/// free at the same time.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param size Bytes. 0 gives a block of its own, too.
/// @return The block, or null with `errno`: `ENOMEM` (window or domain full, or `size` too
///   large), `EPERM` (no request, or it does not hold the domain), `EINVAL` (`domain` is
///   null), or what the driver said.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open` or is null.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc(domain: *const Domain, size: usize) -> *mut c_void {
    // SAFETY: the same contract.
    unsafe { vmsrs_alloc_aligned(domain, size, 16) }
}

/// Allocates a block in a domain, filled with zeros.
///
/// Pages of a block of 64 KiB or more that are zero already are not written.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param size Bytes.
/// @return As `vmsrs_alloc()`.
///
/// # Safety
///
/// As `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc_zeroed(domain: *const Domain, size: usize) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let domain = unsafe { domain.as_ref() };
    block_of(domain.map(|domain| domain.allocate_zeroed(size, 16)))
}

/// Allocates an aligned block in a domain.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param size Bytes.
/// @param alignment A power of two, at most 4096. At least 16 is used.
/// @return As `vmsrs_alloc()`; `EINVAL` also for another alignment.
///
/// # Safety
///
/// As `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_ALLOC_ALIGNED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc_aligned(
    domain: *const Domain,
    size: usize,
    alignment: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let domain = unsafe { domain.as_ref() };
    block_of(domain.map(|domain| domain.allocate(size, alignment)))
}

/// What a call returns that takes a block; without a domain it has an invalid argument.
fn block_of(taken: Option<Result<ptr::NonNull<u8>, Error>>) -> *mut c_void {
    let error = match taken {
        Some(Ok(block)) => return block.as_ptr().cast(),
        Some(Err(error)) => errno_of(&error),
        None => libc::EINVAL,
    };
    set_errno(error);
    ptr::null_mut()
}

/// Changes the size of a block in a domain, in place or by moving it.
///
/// A block that moves is aligned to 16 bytes. A pointer that is not a live block fails the
/// request, as in `vmsrs_free()`.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param block The block, not to be used after success; null allocates.
/// @param size Bytes. 0 does not free the block.
/// @return As `vmsrs_alloc()`. On an error the block is unchanged.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_REALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_realloc(
    domain: *const Domain,
    block: *mut c_void,
    size: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let domain = unsafe { domain.as_ref() };
    block_of(
        domain.map(|domain| match ptr::NonNull::new(block.cast::<u8>()) {
            None => domain.allocate(size, 16),
            // SAFETY: the caller gives the block up; the heap detects what is not a block.
            Some(block) => unsafe { domain.reallocate(block, size) },
        }),
    )
}

/// Frees a block of a domain.
///
/// In a request that holds the domain, a pointer that is not a live block fails the
/// request (`VMSRS_KIND_DOUBLE_FREE`, `VMSRS_KIND_FOREIGN_FREE`), and so does a block that
/// was written past its end (`VMSRS_KIND_RED_ZONE`); this does not return then.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param block The block; null does nothing.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `domain` is null.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ENOTHELD
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`; nobody uses the block afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_free(domain: *const Domain, block: *mut c_void) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    match ptr::NonNull::new(block.cast::<u8>()) {
        None => VMSRS_OK,
        // SAFETY: the caller gives the block up; the heap detects what is not a block.
        Some(block) => status(unsafe { domain.deallocate(block) }),
    }
}
