//! The mutex of a thread that was cut short while it waited for a condition variable.
//!
//! The C library's own routine for that takes the thread off those that wait, and locks the mutex again: it is meant for a
//! thread that is cancelled, whose cleanup handlers have the mutex as they had it before the wait. An abandoned function has
//! none, and was without the mutex when it was cut short.

use super::cancellation::Routine;
use super::modules;
use std::ffi::{c_int, c_uint};

/// What the routine gets: `struct _condvar_cleanup_buffer`, the same since it was made (glibc 2.25).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Wait {
    position: u64,
    condition: u64,
    mutex: u64,
    private: u64,
}

/// The first words of a mutex, which programs are compiled with.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Mutex {
    lock: c_int,
    count: c_uint,
    owner: u32,
}

/// Whether the mutex at that address is the calling thread's.
fn is_mine(address: u64) -> Option<bool> {
    let mut mutex = [Mutex::default()];
    modules::read(address, &mut mutex)?;
    // SAFETY: no conditions.
    Some(mutex[0].owner == unsafe { libc::gettid() }.cast_unsigned())
}

/// Runs the routine. A mutex that it has locked is unlocked again; that it was no such routine, and no mutex, is not possible
/// then. `is_dead` says whether that many bytes lie in an abandoned frame.
///
/// # Safety
///
/// As for [`Routine::run`].
pub(crate) unsafe fn run(routine: &Routine, is_dead: impl Fn(u64, usize) -> bool) {
    let mut wait = [Wait::default()];
    let argument = routine.argument();
    let mutex = (is_dead(argument, size_of::<Wait>())
        && modules::read(argument, &mut wait).is_some())
    .then_some(wait[0].mutex)
    .filter(|&mutex| mutex.is_multiple_of(8) && is_mine(mutex) == Some(false));
    // SAFETY: by contract.
    unsafe { routine.run() };
    if let Some(mutex) = mutex.filter(|&mutex| is_mine(mutex) == Some(true)) {
        // SAFETY: a mutex that the calling thread has locked.
        unsafe { libc::pthread_mutex_unlock(mutex as *mut libc::pthread_mutex_t) };
    }
}
