//! Locks of domains: one word each, shared with the driver.

use crate::error::Error;
use crate::os::clock;
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
/// [`Error::System`]. If the request must end, an interrupt is pending too.
pub(crate) fn lock(thread: &Thread, domain: &Domain, timeout_ms: u32) -> Result<(), Error> {
    let number = domain.number();
    let tag = thread.tag();
    // The entry comes before the lock: a thread that dies in between leaves no unlisted lock.
    thread.exclusive(|| thread.state().push_held(number))?;
    let word = domain.lock_word();
    if word::try_lock(word, tag) {
        return Ok(());
    }
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
        // An error means that the device is gone, and its waiters with it.
        let _ = backend.lock_wake(domain);
    }
}
