//! The lock of a request's own lists and of the heaps of its domains.
//!
//! A thread that is cut short may hold it. Then the request has failed, so whoever waits for it
//! gives up, and it is opened by force when all threads have left the request. A thread may also have
//! ended with it: so whoever has slept for nothing looks whether one has.

use crate::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and others may sleep.
const CONTENDED: u32 = 2;

/// How long a waiter sleeps before it looks whether it should give up.
const PATIENCE: Duration = Duration::from_millis(10);

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Latch(AtomicU32);

impl Latch {
    /// Takes the latch; false if `give_up` said so while it was taken. That is told whether a sleep has
    /// just ended without a wake-up.
    pub(crate) fn take(&self, give_up: impl Fn(bool) -> bool) -> bool {
        if self
            .0
            .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return true;
        }
        // Whoever has slept marks it again: there may be more sleepers.
        let mut for_nothing = false;
        while self.0.swap(CONTENDED, Ordering::Acquire) != FREE {
            if give_up(for_nothing) {
                return false;
            }
            let slept = futex::wait(&self.0, CONTENDED, PATIENCE);
            // Another error is as good as a wake-up.
            for_nothing = slept.is_err_and(|error| error.raw_os_error() == Some(libc::ETIMEDOUT));
        }
        true
    }

    /// Opens the latch: the caller has taken it, or nobody is left who could have.
    pub(crate) fn open(&self) {
        if self.0.swap(FREE, Ordering::Release) == CONTENDED {
            futex::wake_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;

    struct Count(UnsafeCell<u64>);
    // SAFETY: the test changes it under the latch.
    unsafe impl Sync for Count {}

    #[test]
    fn one_thread_at_a_time_has_the_latch() {
        let (latch, count) = (Latch::default(), Count(UnsafeCell::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let count = &count;
                    for _ in 0..10_000 {
                        assert!(latch.take(|_| false));
                        // SAFETY: under the latch.
                        unsafe { *count.0.get() += 1 };
                        latch.open();
                    }
                });
            }
        });
        assert_eq!(count.0.into_inner(), 40_000);
    }

    #[test]
    fn who_waits_for_an_abandoned_latch_gives_up_when_told_to() {
        let latch = Latch::default();
        assert!(latch.take(|_| false));
        assert!(!latch.take(|_| true));
        latch.open();
        assert!(latch.take(|_| true));
    }

    #[test]
    fn who_waits_for_a_latch_that_nobody_opens_is_asked_after_a_sleep_for_nothing() {
        let latch = Latch::default();
        assert!(latch.take(|_| false));
        assert!(!latch.take(|for_nothing| for_nothing));
    }
}
