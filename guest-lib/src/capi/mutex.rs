//! Mutexes for what lies outside of domains.

use super::codes::{VMSRS_EINVAL, status};
use crate::api::mutex::{lock, unlock};
use crate::os::mutex::RawMutex;
use std::ffi::{c_int, c_void};

/// Puts right what a mutex guards, after its request has failed.
///
/// It runs like a deferred function, with the mutex still locked. What the mutex guards is as
/// the request has left it, which may be a list with a cycle: one that has not ended after 5
/// seconds is aborted. An error in it ends it alone. In both cases the mutex is released, with
/// those that the function has locked itself.
///
/// @param argument What the mutex was initialised with.
pub type RepairFn = Option<unsafe extern "C-unwind" fn(argument: *mut c_void)>;

/// A mutex for what lies outside of domains.
///
/// Unlike a `pthread_mutex_t`, which a failed request leaves locked, this one is released when
/// the request that has locked it fails or is given up. Its fields are the library's. All
/// zero is a mutex without a function.
#[repr(C)]
#[derive(Debug)]
pub struct CMutex {
    /// The function, or null.
    pub repair: RepairFn,
    /// Its argument.
    pub argument: *mut c_void,
    /// State.
    pub state: [u32; 2],
}

const _: () = assert!(
    size_of::<RawMutex>() == size_of::<[u32; 2]>() && align_of::<RawMutex>() == align_of::<u32>()
);

impl CMutex {
    /// # Safety
    ///
    /// The mutex was initialised, and is not freed meanwhile.
    unsafe fn raw<'a>(mutex: *mut Self) -> &'a RawMutex {
        // SAFETY: two words of 32 bits, changed by atomics alone.
        unsafe { &*(&raw const (*mutex).state).cast() }
    }
}

/// Initialises a mutex.
///
/// @param mutex The mutex. It must stay where it is, and live as long as requests may use it.
/// @param repair Called when a request fails that has locked it; or null.
/// @param argument Passed to `repair`.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `mutex` is null.
///
/// # Safety
///
/// `mutex` points to room for a mutex that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_mutex_init(
    mutex: *mut CMutex,
    repair: RepairFn,
    argument: *mut c_void,
) -> c_int {
    if mutex.is_null() {
        return VMSRS_EINVAL;
    }
    let new = CMutex {
        repair,
        argument,
        state: [0; 2],
    };
    // SAFETY: room for it by contract.
    unsafe { mutex.write(new) };
    super::codes::VMSRS_OK
}

/// Locks a mutex, in a request or outside.
///
/// A thread that waits in a request is aborted as elsewhere when the request fails.
///
/// @param mutex The mutex.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `mutex` is null.
/// @retval VMSRS_EHELD The thread has it.
/// @retval VMSRS_ELIMIT The thread has locked 16 mutexes in requests.
///
/// # Safety
///
/// `mutex` was initialised by `vmsrs_mutex_init` or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_mutex_lock(mutex: *mut CMutex) -> c_int {
    // SAFETY: the same contract.
    unsafe { take(mutex, true) }
}

/// Locks a mutex if it is free.
///
/// @param mutex The mutex.
/// @retval VMSRS_ETIMEOUT It is not free.
/// @return Otherwise as `vmsrs_mutex_lock()`.
///
/// # Safety
///
/// As `vmsrs_mutex_lock`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_mutex_trylock(mutex: *mut CMutex) -> c_int {
    // SAFETY: the same contract.
    unsafe { take(mutex, false) }
}

/// # Safety
///
/// As [`vmsrs_mutex_lock`].
unsafe fn take(mutex: *mut CMutex, wait: bool) -> c_int {
    if mutex.is_null() {
        return VMSRS_EINVAL;
    }
    // SAFETY: a mutex by contract, whose function and argument do not change.
    let (raw, repair, argument) =
        unsafe { (CMutex::raw(mutex), (*mutex).repair, (*mutex).argument) };
    status(lock(raw, repair, argument, wait))
}

/// Unlocks a mutex.
///
/// @param mutex The mutex.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `mutex` is null.
/// @retval VMSRS_ENOTHELD The calling thread does not have it.
///
/// # Safety
///
/// As `vmsrs_mutex_lock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_mutex_unlock(mutex: *mut CMutex) -> c_int {
    if mutex.is_null() {
        return VMSRS_EINVAL;
    }
    // SAFETY: a mutex by contract.
    status(unlock(unsafe { CMutex::raw(mutex) }))
}
