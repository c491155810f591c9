//! Domains and their root pointers.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::App;
use crate::{Domain, DomainOptions};
use std::ffi::{c_int, c_void};
use std::ptr;
use vmsrs_protocol::KEY_MAX;

/// The host keeps a second copy of each sealed page, and repairs from it a page whose
/// memory went bad. The copies take as much of the window as the pages.
pub const VMSRS_MIRROR: u32 = 1;

/// Opens a domain of an app, and creates it if it is new.
///
/// Opening a key again gives the same domain. Call it from any thread, outside of
/// requests.
///
/// @param app The app.
/// @param key Any bytes.
/// @param length Length of the key, 1 to 64.
/// @param domain Set to the domain on success. It is never closed.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or `length` is out of range.
/// @retval VMSRS_ELAYOUT The heap of the domain has another layout.
/// @retval VMSRS_ENOMEM The window is full.
/// @retval VMSRS_EDAMAGED Content of the domain is lost; use another key.
/// @retval VMSRS_ESYSTEM See `errno`.
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

/// Opens a domain with options.
///
/// As `vmsrs_domain_open()`. The options of a domain that is already open in this process
/// are ignored, and a domain that has a mirror keeps it.
///
/// @param app The app.
/// @param key Any bytes.
/// @param length Length of the key, 1 to 64.
/// @param flags `VMSRS_MIRROR` or 0.
/// @param domain Set to the domain on success.
/// @retval VMSRS_EINVAL Also for an unknown flag.
/// @retval VMSRS_ENOMEM Also if the window has no room for the mirror.
/// @return Otherwise as `vmsrs_domain_open()`.
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
    // Before the slice: its length must be sane.
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

/// Reads the root pointer of a domain, from which its data is reached.
///
/// The request should hold the domain: otherwise another request may change or free what
/// the pointer leads to, and pages that the other request is writing cannot be read.
///
/// @param domain The domain.
/// @return The root pointer; null if it was never set or `domain` is null.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_root(domain: *const Domain) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    unsafe { domain.as_ref() }.map_or(ptr::null_mut(), |domain| domain.root_address().cast())
}

/// Sets the root pointer of a domain. It is committed and discarded like all its data.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param root Any value; usually a block of the domain.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `domain` is null.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ENOTHELD
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
