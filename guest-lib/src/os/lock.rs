//! The locks of the library's own data.
//!
//! While a thread has one, its signals wait, but for those of errors: neither an interrupt nor a signal handler of the
//! server ends it there, or comes back to the lock. Under a lock no pointer of a caller is followed and no code of the
//! server runs. An error there all the same, of damaged memory, comes to the landing, which gives the lock back
//! ([`give_back`]). The lock of a thread that is gone, as a child of `vfork` may be, is taken from it. So no lock
//! stays held.

use super::identity::{is_used, thread_number};
use super::latch::{Latch, Take};
use super::local::local;
use super::signals::{self, Held};
use std::cell::UnsafeCell;
use std::ptr;

/// Data under a lock of its own. Locks do not nest.
#[derive(Debug, Default)]
pub(crate) struct Lock<T> {
    latch: Latch,
    data: UnsafeCell<T>,
}

// SAFETY: one thread at a time uses the data.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) const fn new(data: T) -> Self {
        Self {
            latch: Latch::new(),
            data: UnsafeCell::new(data),
        }
    }

    /// Runs code of the library with the data; see the module's description for what it may do.
    pub(crate) fn with<R>(&self, code: impl FnOnce(&mut T) -> R) -> R {
        let taken = Taken::new(&self.latch);
        // SAFETY: under the lock, until the end.
        let value = code(unsafe { &mut *self.data.get() });
        drop(taken);
        value
    }
}

/// A lock that the calling thread has.
struct Taken<'a> {
    latch: &'a Latch,
    /// Their signals come again after it.
    _held: Held,
}

impl<'a> Taken<'a> {
    fn new(latch: &'a Latch) -> Self {
        let held = signals::hold();
        let me = thread_number();
        loop {
            match latch.take(me, |timed_out| timed_out) {
                Take::Taken => break,
                Take::GivenUp => {
                    let owner = latch.owner();
                    if owner != 0 && !is_used(owner.into()) {
                        latch.open_for(owner);
                    }
                }
                Take::Own => {
                    signals::write_stderr(
                        b"vmsrs: the library was called in the middle of its own work; the process ends, \
                        committed domains are whole\n",
                    );
                    signals::end_process();
                }
            }
        }
        local().blocked.set(held.before);
        local().lock.set(ptr::from_ref(latch));
        Self { latch, _held: held }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        local().lock.set(ptr::null());
        self.latch.open();
    }
}

/// The thread has come to its landing: gives back the lock that it had there, if any, and lets its signals come.
pub(crate) fn give_back() {
    if open() {
        signals::set_mask(libc::SIG_SETMASK, local().blocked.get());
    }
}

/// Gives back the lock that the thread has, if any. Its signals wait on. Async-signal-safe.
pub(crate) fn open() -> bool {
    let latch = local().lock.replace(ptr::null());
    // SAFETY: null, or a lock, which is in a static or in an app, and both live as long as the process.
    match unsafe { latch.as_ref() } {
        Some(latch) => {
            latch.open_for(thread_number());
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_of_a_thread_that_is_gone_is_taken_from_it() {
        static LOCK: Lock<u32> = Lock::new(0);
        std::thread::spawn(|| {
            // As a thread leaves it that ends in the middle.
            assert_eq!(LOCK.latch.take(thread_number(), |_| true), Take::Taken);
        })
        .join()
        .unwrap();
        LOCK.with(|count| *count += 1);
        LOCK.with(|count| assert_eq!(*count, 1));
    }

    #[test]
    fn signals_wait_under_a_lock() {
        static LOCK: Lock<u32> = Lock::new(0);
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        extern "C" fn count(_: i32) {
            COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let count: extern "C" fn(i32) = count;
        let seen = || COUNT.load(std::sync::atomic::Ordering::Relaxed);
        // SAFETY: a handler that only counts.
        unsafe { libc::signal(libc::SIGWINCH, count as libc::sighandler_t) };
        LOCK.with(|_| {
            // SAFETY: sends this thread a signal.
            unsafe { libc::raise(libc::SIGWINCH) };
            assert_eq!(seen(), 0);
        });
        assert_eq!(seen(), 1);
    }
}
