//! What is done to a domain as a whole.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::Domain;
use std::ffi::c_int;
use std::ptr;

/// How large a domain is, and how it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CDomainInfo {
    /// Pages of 4 KiB that it has of the window.
    pub pages: u32,
    /// Pages of these that were ever committed.
    pub committed: u32,
    /// Committed pages whose newest version is not sealed yet.
    pub unsealed: u32,
    /// Pages that a request has written and not committed, and those that stay writable
    /// between requests.
    pub drafts: u32,
    /// Milliseconds for which it is refused for its failures; 0 if it is not.
    pub quarantine_ms: u64,
}

/// Deletes a domain: its content and its key are gone, for all processes.
///
/// Waits for the request that holds the domain, as long as a request waits for a lock. Its
/// pages go back to the window, and what other processes have mapped of them is gone at
/// once. Opening the key again makes a new domain.
///
/// Requests that wait for the domain, and all later ones, get `VMSRS_EDELETED`. The handle
/// stays valid for that. Pointers into the domain lead nowhere, or later into another domain.
///
/// A deletion counts like a commit: after a crash of the guest the domain is there as a
/// whole or gone as a whole. `vmsrs_flush()` waits until it is gone for good.
///
/// @param domain The domain.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `domain` is null.
/// @retval VMSRS_ENESTED Called in a request or a deferred function.
/// @retval VMSRS_ETIMEOUT The domain did not become free in time.
/// @retval VMSRS_EDELETED It is deleted already.
/// @retval VMSRS_ESYSTEM See `errno`.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open` or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_delete(domain: *const Domain) -> c_int {
    // SAFETY: a handle or null by contract; handles live as long as the process.
    match unsafe { domain.as_ref() } {
        None => VMSRS_EINVAL,
        Some(domain) => status(domain.delete()),
    }
}

/// Empties a domain: deletes it, and opens its key again, with a mirror if it had one.
///
/// The old handle is that of a deleted domain from then on, in all processes. An invariant and
/// a budget of the domain are to be set again. After a crash of the guest the domain is there
/// with all that it had, or empty.
///
/// @param domain The domain; set to the new one on success.
/// @return As `vmsrs_domain_delete()`, or as `vmsrs_domain_open()`: it is deleted then.
///
/// # Safety
///
/// `domain` points to a handle from `vmsrs_domain_open`, or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_clear(domain: *mut *mut Domain) -> c_int {
    // SAFETY: a place with a handle or null by contract.
    let cleared = unsafe { domain.as_ref().and_then(|domain| domain.as_ref()) };
    match cleared.map(Domain::clear) {
        None => VMSRS_EINVAL,
        Some(Ok(empty)) => {
            // SAFETY: it is not null, see above.
            unsafe { domain.write(ptr::from_ref(empty).cast_mut()) };
            VMSRS_OK
        }
        Some(Err(error)) => code(&error),
    }
}

/// Tells how large a domain is, and how it is. Can be called by any thread, also in requests.
///
/// Without protection all pages count as committed.
///
/// @param domain The domain.
/// @param info Filled in on success.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_EDELETED
/// @retval VMSRS_ESYSTEM See `errno`.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; `info` points to room for the answer.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_info(domain: *const Domain, info: *mut CDomainInfo) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    if info.is_null() {
        return VMSRS_EINVAL;
    }
    match domain.info() {
        Ok(now) => {
            let now = CDomainInfo {
                pages: now.pages,
                committed: now.committed,
                unsealed: now.unsealed,
                drafts: now.drafts,
                quarantine_ms: u64::try_from(now.quarantine.as_nanos().div_ceil(1_000_000))
                    .unwrap_or(u64::MAX),
            };
            // SAFETY: room for the answer by contract.
            unsafe { ptr::write(info, now) };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}
