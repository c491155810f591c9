//! The lock of a request's own lists and of the heaps of its domains.
//!
//! A thread that is cut short may hold it. Then the request has failed, so whoever waits for it
//! gives up, and it is opened by force when all threads have left the request. A thread may also have
//! ended with it: so whoever has slept for nothing looks whether one has. And a thread may want it that
//! has it: a handler of a signal, or a wild jump, called the library in the middle of itself.

use crate::os::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const FREE: u32 = 0;
/// Beside the number of the thread that has the latch: others may sleep. Linux numbers threads from 1, below
/// 2^22.
const CONTENDED: u32 = 1 << 31;

/// How long a waiter sleeps before it looks whether it should give up.
const PATIENCE: Duration = Duration::from_millis(10);

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Latch(AtomicU32);

/// What came of taking the latch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    Taken,
    /// The caller has had it already.
    Own,
    /// Another thread has it, and the caller did not want to wait any longer.
    GivenUp,
}

impl Latch {
    /// Takes the latch for the calling thread, whose number is `me`, unless `give_up` says so while another
    /// one has it. That is told whether a sleep has just ended without a wake-up.
    pub(crate) fn take(&self, me: u32, give_up: impl Fn(bool) -> bool) -> Take {
        let mut for_nothing = false;
        let mut seen = FREE;
        loop {
            if seen == FREE {
                let taken = self
                    .0
                    .compare_exchange(FREE, me, Ordering::Acquire, Ordering::Relaxed);
                match taken {
                    Ok(_) => return Take::Taken,
                    Err(now) => seen = now,
                }
                continue;
            }
            if seen & !CONTENDED == me {
                return Take::Own;
            }
            if give_up(for_nothing) {
                return Take::GivenUp;
            }
            let marked = seen | CONTENDED;
            if marked != seen
                && let Err(now) =
                    self.0
                        .compare_exchange(seen, marked, Ordering::Relaxed, Ordering::Relaxed)
            {
                (seen, for_nothing) = (now, false);
                continue;
            }
            let slept = futex::wait(&self.0, marked, PATIENCE);
            // Another error is as good as a wake-up.
            for_nothing = slept.is_err_and(|error| error.raw_os_error() == Some(libc::ETIMEDOUT));
            seen = self.0.load(Ordering::Relaxed);
        }
    }

    /// Whether the thread with that number has it.
    pub(crate) fn is_of(&self, me: u32) -> bool {
        self.0.load(Ordering::Relaxed) & !CONTENDED == me
    }

    /// Opens the latch: the caller has taken it, or nobody is left who could have. All sleepers are woken,
    /// so none is forgotten when the next one to take it does not mark it.
    pub(crate) fn open(&self) {
        if self.0.swap(FREE, Ordering::Release) & CONTENDED != 0 {
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
            for number in 1..5 {
                let (latch, count) = (&latch, &count);
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        assert_eq!(latch.take(number, |_| false), Take::Taken);
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
        assert_eq!(latch.take(1, |_| false), Take::Taken);
        assert_eq!(latch.take(2, |_| true), Take::GivenUp);
        latch.open();
        assert_eq!(latch.take(2, |_| true), Take::Taken);
    }

    #[test]
    fn who_waits_for_a_latch_that_nobody_opens_is_asked_after_a_sleep_for_nothing() {
        let latch = Latch::default();
        assert_eq!(latch.take(1, |_| false), Take::Taken);
        assert_eq!(latch.take(2, |for_nothing| for_nothing), Take::GivenUp);
    }

    #[test]
    fn who_has_the_latch_already_is_told_so_whether_others_wait_or_not() {
        let latch = Latch::default();
        assert_eq!(latch.take(1, |_| false), Take::Taken);
        assert_eq!(latch.take(1, |_| false), Take::Own);
        assert_eq!(latch.take(2, |for_nothing| for_nothing), Take::GivenUp);
        assert_eq!(latch.take(1, |_| false), Take::Own);
    }
}
