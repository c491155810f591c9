//! Blocks in domains.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, errno_of, set_errno, status};
use crate::Domain;
use std::ffi::{c_int, c_void};
use std::ptr;

/// A block of at least `size` bytes in a domain that the calling thread's request holds: not zeroed,
/// 16-byte aligned, visible to others when the request commits.
///
/// Null with `errno` ENOMEM (window or domain full), EPERM (no request, or it does not hold the
/// domain), EINVAL.
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

/// Like `vmsrs_alloc`, all zero.
///
/// # Safety
///
/// As `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc_zeroed(domain: *const Domain, size: usize) -> *mut c_void {
    // SAFETY: the same contract.
    let block = unsafe { vmsrs_alloc(domain, size) };
    if !block.is_null() {
        // SAFETY: a fresh block of that size.
        unsafe { ptr::write_bytes(block.cast::<u8>(), 0, size) };
    }
    block
}

/// Like `vmsrs_alloc`, aligned to `alignment`: a power of two up to 4096.
///
/// # Safety
///
/// As `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc_aligned(
    domain: *const Domain,
    size: usize,
    alignment: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    match domain.allocate(size, alignment) {
        Ok(block) => block.as_ptr().cast(),
        Err(error) => {
            set_errno(errno_of(&error));
            ptr::null_mut()
        }
    }
}

/// Changes the size of a block as `realloc` does; a null `block` allocates. Alignment is 16 bytes.
/// Null with `errno` as `vmsrs_alloc`: the block is unchanged then. A pointer that is no live block
/// fails the request, as `vmsrs_free` does.
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
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    let outcome = match ptr::NonNull::new(block.cast::<u8>()) {
        None => domain.allocate(size, 16),
        // SAFETY: the caller gives the block up; what is no block is found out.
        Some(block) => unsafe { domain.reallocate(block, size) },
    };
    match outcome {
        Ok(block) => block.as_ptr().cast(),
        Err(error) => {
            set_errno(errno_of(&error));
            ptr::null_mut()
        }
    }
}

/// Gives a block back; null is allowed.
///
/// In a request that holds the domain a pointer that is no live block fails the request
/// (`VMSRS_KIND_DOUBLE_FREE`, `VMSRS_KIND_FOREIGN_FREE`) and this does not return. Otherwise it
/// returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, or `VMSRS_ENOTHELD`, and changes nothing.
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
        // SAFETY: the caller gives the block up; what is no block is found out.
        Some(block) => status(unsafe { domain.deallocate(block) }),
    }
}
