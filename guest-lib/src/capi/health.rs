//! Budgets of failures, and what a server looks at to plan its restart.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, status};
use crate::{App, Budget, Domain};
use std::ffi::c_int;
use std::time::Duration;

/// How many requests of a domain may fail within a time. If all fields are 0, there is no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CBudget {
    /// Failures that are allowed; 0 for any number.
    pub failures: u32,
    /// Within so many milliseconds.
    pub within_ms: u32,
    /// Milliseconds for which a domain with more failures is refused.
    pub pause_ms: u32,
    /// Must be 0.
    pub reserved: u32,
}

impl CBudget {
    fn read(self) -> Option<Budget> {
        (self.reserved == 0).then_some(Budget {
            failures: self.failures,
            within: Duration::from_millis(self.within_ms.into()),
            pause: Duration::from_millis(self.pause_ms.into()),
        })
    }
}

/// Sets the budget of failures of each domain of an app.
///
/// A domain with more failures is refused for a while: calls that begin a request with it
/// or enter it return `VMSRS_EQUARANTINE`. An incident of its own says so. What counts are
/// requests of this process that were begun with the domain.
///
/// @param app The app.
/// @param budget The budget.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or the reserved field is not 0.
/// @retval VMSRS_ENESTED Inside a request or a defer.
///
/// # Safety
///
/// `app` comes from `vmsrs_open`, `budget` points to a budget.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_app_budget(app: *const App, budget: *const CBudget) -> c_int {
    // SAFETY: a handle, a budget, or null by contract.
    let (Some(app), Some(budget)) = (unsafe { (app.as_ref(), budget.as_ref()) }) else {
        return VMSRS_EINVAL;
    };
    let Some(budget) = budget.read() else {
        return VMSRS_EINVAL;
    };
    status(app.set_budget(budget))
}

/// Sets the budget of failures of one domain, instead of the app's.
///
/// @param domain The domain.
/// @param budget The budget; one without a number is the app's again.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or the reserved field is not 0.
/// @retval VMSRS_ENESTED Inside a request or a defer.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`, `budget` points to a budget.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_budget(
    domain: *const Domain,
    budget: *const CBudget,
) -> c_int {
    // SAFETY: a handle, a budget, or null by contract.
    let (Some(domain), Some(budget)) = (unsafe { (domain.as_ref(), budget.as_ref()) }) else {
        return VMSRS_EINVAL;
    };
    let Some(budget) = budget.read() else {
        return VMSRS_EINVAL;
    };
    status(domain.set_budget(budget))
}

/// What has happened in the process since its start that a restart would make good.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CHealth {
    /// Requests that have failed, in all apps.
    pub failures: u64,
    /// Of these: aborted in the C library, in an allocator or by an interrupt, or by
    /// `abort()`. The heap was tried then, and worked; what was allocated there stays.
    pub heap_suspect: u64,
    /// Deferred functions that have failed: what they were to undo may be left.
    pub defers_failed: u64,
    /// How often a domain was refused for its failures.
    pub quarantines: u64,
    /// Descriptors of the library that a stray `close()` had taken, and that were made
    /// again.
    pub descriptors_repaired: u64,
    /// Descriptors that failed requests have left open: an estimate, from counts of all that
    /// the process had open before and after them.
    pub left_descriptors: u64,
    /// Bytes of memory outside of domains that failed requests have left allocated: an
    /// estimate, as above.
    pub left_bytes: u64,
    /// Robust mutexes that failed requests have left locked: the only ones that are known to
    /// belong to a thread.
    pub locks_left: u64,
}

/// Tells how the process is: what a server looks at to plan its restart. Can be called
/// anywhere.
///
/// @param health Filled in on success.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `health` is null.
///
/// # Safety
///
/// `health` points to room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_health(health: *mut CHealth) -> c_int {
    if health.is_null() {
        return VMSRS_EINVAL;
    }
    let now = crate::health();
    let now = CHealth {
        failures: now.failures,
        heap_suspect: now.heap_suspect,
        defers_failed: now.defers_failed,
        quarantines: now.quarantines,
        descriptors_repaired: now.descriptors_repaired,
        left_descriptors: now.left_descriptors,
        left_bytes: now.left_bytes,
        locks_left: now.locks_left,
    };
    // SAFETY: room for it by contract.
    unsafe { health.write(now) };
    VMSRS_OK
}
