//! Locks of domains: one word each, shared with the driver.

use crate::error::Error;
use crate::os::clock;
use crate::shared::backend::Backend;
use crate::shared::word::{self, Released};
use crate::state::domain::Domain;
use crate::thread::Thread;

/// Most milliseconds that the driver accepts.
const TIMEOUT_MAX: u32 = 3_600_000;

/// Locks the domain for the thread's request.
///
/// # Errors
///
/// [`Error::AlreadyHeld`], [`Error::Limit`], [`Error::LockTimeout`], [`Error::WouldDeadlock`],
/// [`Error::Deleted`], [`Error::System`]. If the request must end, an interrupt is pending too.
pub(crate) fn lock(thread: &Thread, domain: &Domain, timeout_ms: u32) -> Result<(), Error> {
    let number = domain.number();
    let tag = thread.tag();
    // The entry comes before the lock: a thread that dies in between leaves no unlisted lock.
    thread.exclusive(|| thread.state().push_held(number))?;
    if word::try_lock(domain.lock_word(), tag) {
        return Ok(());
    }
    wait(thread, domain, timeout_ms)
}

/// Locks the first domain of a request, which is alone, if it is free. Otherwise nothing has changed.
#[inline]
pub(crate) fn lock_first(thread: &Thread, domain: &Domain, tag: u64) -> bool {
    thread.list_first(domain.number());
    let is_locked = word::try_lock(domain.lock_word(), tag);
    if !is_locked {
        thread.clear_held();
    }
    is_locked
}

/// Waits for the lock of a domain that is listed as held.
#[cold]
fn wait(thread: &Thread, domain: &Domain, timeout_ms: u32) -> Result<(), Error> {
    let (number, tag) = (domain.number(), thread.tag());
    let timeout_ms = timeout_ms.clamp(1, TIMEOUT_MAX);
    let start = clock::now();
    let mut left = timeout_ms;
    loop {
        let outcome = domain
            .app()
            .backend()
            .lock_wait(tag, number, left, &|| thread.is_pending());
        let Err(error) = outcome else {
            return Ok(());
        };
        let interrupted = error.raw_os_error() == Some(libc::EINTR);
        if interrupted && !thread.is_pending() {
            let waited = (clock::now() - start) / 1_000_000;
            left = timeout_ms.saturating_sub(u32::try_from(waited).unwrap_or(u32::MAX));
            if left > 0 {
                continue;
            }
        }
        if error.raw_os_error() == Some(libc::ESTALE) || (interrupted && thread.is_pending()) {
            // The request failed while waiting: the caller comes to its landing.
            thread.set_pending(true);
        }
        thread.exclusive(|| thread.state().remove_held(number));
        return Err(match error.raw_os_error() {
            Some(libc::ETIMEDOUT | libc::EINTR | libc::ESTALE) => Error::LockTimeout {
                milliseconds: timeout_ms,
            },
            Some(libc::EDEADLK) => Error::WouldDeadlock,
            Some(libc::EEXIST) => Error::AlreadyHeld,
            Some(libc::EIDRM) => Error::Deleted,
            _ => Error::system("waiting for a domain's lock")(error),
        });
    }
}

/// Unlocks the domain, which the thread's request holds, unless the driver has done so already.
pub(crate) fn unlock(thread: &Thread, domain: u32) {
    release(thread, domain);
    thread.exclusive(|| thread.state().remove_held(domain));
}

/// Releases the lock of a domain if the thread's request still has it.
pub(crate) fn release(thread: &Thread, domain: u32) {
    let backend = thread.app().backend();
    let released = word::release(backend.lock_word(domain), thread.tag());
    if released == Released::WithWaiters {
        wake(backend, domain);
    }
}

/// The same for a domain that is open.
#[inline]
pub(crate) fn release_domain(domain: &Domain, tag: u64) {
    if word::release(domain.lock_word(), tag) == Released::WithWaiters {
        wake(domain.app().backend(), domain.number());
    }
}

/// Releases the lock of a domain if the request with that tag has it and nobody waits for it; false otherwise.
#[inline]
pub(crate) fn release_quietly(domain: &Domain, tag: u64) -> bool {
    word::release_quietly(domain.lock_word(), tag)
}

#[cold]
fn wake(backend: &dyn Backend, domain: u32) {
    // An error means that the device is gone, and its waiters with it.
    let _ = backend.lock_wake(domain);
}
