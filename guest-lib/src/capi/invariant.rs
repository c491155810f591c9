//! Invariants.

use super::codes::{VMSRS_EINVAL, VMSRS_OK};
use crate::App;
use crate::Domain;
use std::ffi::{c_int, c_void};
use std::ptr;

/// Checks a domain: returns 0 if the domain is sound. Anything else fails the request, as does any error
/// in it. `vmsrs_fail` in it fails the request with a message.
pub type InvariantFn =
    Option<unsafe extern "C-unwind" fn(domain: *mut Domain, argument: *mut c_void) -> c_int>;

/// A check and what it is called with.
#[derive(Clone, Copy)]
struct Check {
    function: unsafe extern "C-unwind" fn(*mut Domain, *mut c_void) -> c_int,
    argument: *mut c_void,
}

// SAFETY: whoever registers it says that any thread may call it with its argument.
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

/// Registers a check of every domain of the app, once in a process. It is called before anything of a
/// domain is committed, in the request, for each domain that is to be committed with something written
/// by the request: at the end, by `vmsrs_commit`, and by `vmsrs_leave`. If it returns anything but 0, or
/// dies of an error, the request fails (`VMSRS_KIND_INVARIANT`). It should only read.
///
/// Returns `VMSRS_OK`, or `VMSRS_EINVAL`, also if the app has a check already.
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
            registered(&app.set_invariant(move |domain| check.call(domain)))
        }
        _ => VMSRS_EINVAL,
    }
}

/// Like `vmsrs_app_invariant`, for one domain. The app's check is called as well.
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
            registered(&domain.set_invariant(move |domain| check.call(domain)))
        }
        _ => VMSRS_EINVAL,
    }
}

fn registered(outcome: &Result<(), crate::error::Error>) -> c_int {
    if outcome.is_ok() {
        VMSRS_OK
    } else {
        VMSRS_EINVAL
    }
}
