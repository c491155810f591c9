//! Invariants.

use super::codes::{VMSRS_EINVAL, status};
use crate::App;
use crate::Domain;
use std::ffi::{c_int, c_void};
use std::ptr;

/// Checks a domain before it is committed.
///
/// It runs in the request and should only read. An error in it fails the request, and so
/// does `vmsrs_fail()`, with a message.
///
/// @param domain The domain.
/// @param argument What the caller passed.
/// @return 0 if the domain is sound; anything else fails the request
///   (`VMSRS_KIND_INVARIANT`).
pub type InvariantFn =
    Option<unsafe extern "C-unwind" fn(domain: *mut Domain, argument: *mut c_void) -> c_int>;

/// A check and its argument.
#[derive(Clone, Copy)]
struct Check {
    function: unsafe extern "C-unwind" fn(*mut Domain, *mut c_void) -> c_int,
    argument: *mut c_void,
}

// SAFETY: the caller that registers it promises that any thread may call it with its argument.
unsafe impl Send for Check {}
// SAFETY: as above.
unsafe impl Sync for Check {}

impl Check {
    fn call(&self, domain: &'static Domain) -> Result<(), String> {
        // SAFETY: by the contract of the functions below.
        match unsafe { (self.function)(ptr::from_ref(domain).cast_mut(), self.argument) } {
            0 => Ok(()),
            value => Err(format!("the check of the invariant returned {value}")),
        }
    }
}

/// Registers a check of every domain of an app, once in a process.
///
/// It is called for each domain that the request has written to, when the request ends and
/// in `vmsrs_commit()` and `vmsrs_leave()`, by any thread and by several at a time.
///
/// @param app The app.
/// @param function The check.
/// @param argument Passed to the function; must live as long as the process.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or the app has a check already.
/// @retval VMSRS_ENESTED Inside a request or a defer.
///
/// # Safety
///
/// `app` comes from `vmsrs_open`; any thread may call `function` with `argument` at any time.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_app_invariant(
    app: *const App,
    function: InvariantFn,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { (app.as_ref(), function) } {
        (Some(app), Some(function)) => {
            let check = Check { function, argument };
            status(app.set_invariant(move |domain| check.call(domain)))
        }
        _ => VMSRS_EINVAL,
    }
}

/// Registers a check of one domain, once in a process. The check of the app is called as
/// well.
///
/// @param domain The domain.
/// @param function The check.
/// @param argument Passed to the function; must live as long as the process.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or the domain has a check already.
/// @retval VMSRS_ENESTED Inside a request or a defer.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; the rest as `vmsrs_app_invariant`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_invariant(
    domain: *const Domain,
    function: InvariantFn,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { (domain.as_ref(), function) } {
        (Some(domain), Some(function)) => {
            let check = Check { function, argument };
            status(domain.set_invariant(move |domain| check.call(domain)))
        }
        _ => VMSRS_EINVAL,
    }
}
