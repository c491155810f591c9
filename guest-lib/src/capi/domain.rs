//! Domains and their root pointers.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::App;
use crate::{Domain, DomainOptions};
use std::ffi::{c_int, c_void};
use std::ptr;
use vmsrs_protocol::KEY_MAX;

/// Flag of `vmsrs_domain_open_with`: the host keeps a second copy of each sealed page, and repairs
/// from it a page whose memory went wrong. The copies take as much room of the window as the pages.
pub const VMSRS_MIRROR: u32 = 1;

/// Opens the domain of `app` with the key of `length` bytes (1 to 64, any values), makes it if it is
/// new.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ELAYOUT`, `VMSRS_ENOMEM` (the window is full),
/// `VMSRS_EDAMAGED`,
/// `VMSRS_ESYSTEM`.
///
/// # Safety
///
/// `app` comes from `vmsrs_open`, `key` points to `length` bytes, `domain` to room for a pointer.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_open(
    app: *const App,
    key: *const c_void,
    length: usize,
    domain: *mut *mut Domain,
) -> c_int {
    // SAFETY: the same contract.
    unsafe { vmsrs_domain_open_with(app, key, length, 0, domain) }
}

/// Like `vmsrs_domain_open`, with flags: `VMSRS_MIRROR` or 0. A domain that is open already in this
/// process stays as it is, and one that has a mirror keeps it.
///
/// Returns what `vmsrs_domain_open` returns; `VMSRS_ENOMEM` also when the window has no room for the
/// mirror.
///
/// # Safety
///
/// As `vmsrs_domain_open`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_open_with(
    app: *const App,
    key: *const c_void,
    length: usize,
    flags: u32,
    domain: *mut *mut Domain,
) -> c_int {
    if flags & !VMSRS_MIRROR != 0 {
        return VMSRS_EINVAL;
    }
    let options = DomainOptions {
        mirror: flags & VMSRS_MIRROR != 0,
    };
    // SAFETY: a handle or null by contract.
    let Some(app) = (unsafe { app.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    // The length first: a slice of an absurd length must not even be made.
    if key.is_null() || domain.is_null() || !(1..=KEY_MAX).contains(&length) {
        return VMSRS_EINVAL;
    }
    // SAFETY: `length` bytes by contract.
    let key = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), length) };
    match app.domain_with(key, options) {
        Ok(opened) => {
            // SAFETY: room for a pointer by contract.
            unsafe { *domain = ptr::from_ref(opened).cast_mut() };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}

/// The domain's root pointer, or null if it was never set. Its request should hold the domain, or
/// what the pointer leads to may change meanwhile.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_root(domain: *const Domain) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    unsafe { domain.as_ref() }.map_or(ptr::null_mut(), |domain| domain.root_address().cast())
}

/// Sets the domain's root pointer.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ENOTHELD`.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_set_root(domain: *const Domain, root: *mut c_void) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { domain.as_ref() } {
        None => VMSRS_EINVAL,
        Some(domain) => status(domain.set_root_address(root.cast())),
    }
}
