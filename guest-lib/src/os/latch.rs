//! A lock that knows its owner, for a request's own lists and the heaps of its domains, and for [`super::lock`].
//!
//! A thread that is cut short may hold it. Then the request has failed: waiters give up, and the latch is
//! opened by force when all threads have left the request. A thread may also end while it holds the
//! latch, so a waiter whose sleep timed out checks for that. And the thread that wants the latch may hold
//! it already: a signal handler, or a jump through a bad pointer, called the library while it was at work.

use super::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const FREE: u32 = 0;
/// Set besides the ID of the thread that has the latch: others may sleep. Linux numbers threads from 1, below
/// 2^22.
const CONTENDED: u32 = 1 << 31;

/// How long a waiter sleeps before it checks whether to give up.
const PATIENCE: Duration = Duration::from_millis(10);

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Latch(AtomicU32);

/// Result of taking the latch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    Taken,
    /// The caller has it already.
    Own,
    /// Another thread has it, and the caller did not want to wait any longer.
    GivenUp,
}

impl Latch {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Takes the latch for the calling thread, whose number is `me`, unless `give_up` says so while another
    /// one has it. Its argument is whether a sleep has just timed out.
    pub(crate) fn take(&self, me: u32, give_up: impl Fn(bool) -> bool) -> Take {
        let mut timed_out = false;
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
            if give_up(timed_out) {
                return Take::GivenUp;
            }
            let marked = seen | CONTENDED;
            if marked != seen
                && let Err(now) =
                    self.0
                        .compare_exchange(seen, marked, Ordering::Relaxed, Ordering::Relaxed)
            {
                (seen, timed_out) = (now, false);
                continue;
            }
            let slept = futex::wait(&self.0, marked, PATIENCE);
            // Any other error counts as a wake-up.
            timed_out = slept.is_err_and(|error| error.raw_os_error() == Some(libc::ETIMEDOUT));
            seen = self.0.load(Ordering::Relaxed);
        }
    }

    /// Whether no thread has it.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.0.load(Ordering::Relaxed) == FREE
    }

    /// 0 if no thread has it.
    ///
    /// # Safety
    ///
    /// No other thread can take it.
    #[inline]
    pub(crate) unsafe fn peek(&self) -> u32 {
        // SAFETY: so nothing writes it at the same time.
        unsafe { self.0.as_ptr().read() }
    }

    /// The number of the thread that has it, or 0.
    pub(crate) fn owner(&self) -> u32 {
        self.0.load(Ordering::Relaxed) & !CONTENDED
    }

    /// Opens it if the thread with that number has it, which is gone or the calling one.
    pub(crate) fn open_for(&self, owner: u32) {
        // Others may set the mark meanwhile.
        let opened = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |seen| {
                (owner != FREE && seen & !CONTENDED == owner).then_some(FREE)
            });
        if opened.is_ok_and(|seen| seen & CONTENDED != 0) {
            futex::wake_all(&self.0);
        }
    }

    /// Whether the thread with that number has it.
    pub(crate) fn is_held_by(&self, me: u32) -> bool {
        self.0.load(Ordering::Relaxed) & !CONTENDED == me
    }

    /// Opens the latch if it is taken: nobody else uses it.
    pub(crate) fn reset(&self) {
        if !self.is_free() {
            self.open();
        }
    }

    /// Opens the latch: the caller has taken it, or no thread is left that could have. All sleepers are
    /// woken: the next one to take the latch may not set the mark.
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
    fn latch_that_is_opened_for_its_owner_is_free_whoever_begins_to_wait() {
        const ROUNDS: u32 = 20_000;
        let latch = Latch::default();
        std::thread::scope(|scope| {
            for number in 1..3 {
                let latch = &latch;
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        // A latch that stays taken is seen as a sleep that never ends.
                        while latch.take(number, |_| false) != Take::Taken {}
                        latch.open_for(number);
                    }
                });
            }
        });
        assert!(latch.is_free());
    }

    #[test]
    fn waiter_of_an_abandoned_latch_gives_up_when_told() {
        let latch = Latch::default();
        assert_eq!(latch.take(1, |_| false), Take::Taken);
        assert_eq!(latch.take(2, |_| true), Take::GivenUp);
        latch.open();
        assert_eq!(latch.take(2, |_| true), Take::Taken);
    }

    #[test]
    fn waiter_is_asked_to_give_up_after_a_timeout() {
        let latch = Latch::default();
        assert_eq!(latch.take(1, |_| false), Take::Taken);
        assert_eq!(latch.take(2, |timed_out| timed_out), Take::GivenUp);
    }

    #[test]
    fn taking_an_own_latch_says_so() {
        let latch = Latch::default();
        assert_eq!(latch.take(1, |_| false), Take::Taken);
        assert_eq!(latch.take(1, |_| false), Take::Own);
        assert_eq!(latch.take(2, |timed_out| timed_out), Take::GivenUp);
        assert_eq!(latch.take(1, |_| false), Take::Own);
    }
}
