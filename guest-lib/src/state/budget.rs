//! How many requests of a domain may fail within a time before it is refused for a while: a user whose every request fails
//! costs the server each time, and his data is perhaps what makes them fail.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A budget of failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Failures that are allowed; 0 for any number.
    pub failures: u32,
    /// Within this time.
    pub within: Duration,
    /// How long a domain with more failures is refused.
    pub pause: Duration,
}

/// The budget of an app or a domain: none at first.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    failures: AtomicU32,
    within: AtomicU64,
    pause: AtomicU64,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Allowed {
    pub(crate) fn set(&self, budget: Budget) {
        self.within
            .store(nanoseconds(budget.within), Ordering::Relaxed);
        self.pause
            .store(nanoseconds(budget.pause), Ordering::Relaxed);
        self.failures.store(budget.failures, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.failures.load(Ordering::Acquire) != 0
    }

    pub(crate) fn pause(&self) -> u64 {
        self.pause.load(Ordering::Relaxed)
    }
}

/// The failures of a domain. Of failures at the same time one may not be counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    count: AtomicU32,
    since: AtomicU64,
    /// When the domain is allowed again, or 0.
    until: AtomicU64,
}

impl Tally {
    /// Counts a failure at that time; whether these are more than allowed now. Then the count begins again.
    pub(crate) fn note(&self, allowed: &Allowed, now: u64) -> bool {
        let within = allowed.within.load(Ordering::Relaxed);
        if now.saturating_sub(self.since.load(Ordering::Relaxed)) > within {
            self.since.store(now, Ordering::Relaxed);
            self.count.store(0, Ordering::Relaxed);
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        // Of several at the same time the last one tells.
        let is_last = |count| {
            self.count
                .compare_exchange(count, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        count > allowed.failures.load(Ordering::Relaxed) && is_last(count)
    }

    /// From here on the domain is refused.
    pub(crate) fn refuse_until(&self, time: u64) {
        self.until.store(time.max(1), Ordering::SeqCst);
    }

    /// Nanoseconds for which the domain is refused, 0 if it is not.
    pub(crate) fn refused_for(&self, now: impl FnOnce() -> u64) -> u64 {
        match self.until.load(Ordering::SeqCst) {
            0 => 0,
            until => {
                let left = until.saturating_sub(now());
                if left == 0 {
                    // All over: it has its whole budget again.
                    self.since.store(0, Ordering::Relaxed);
                    self.until.store(0, Ordering::SeqCst);
                }
                left
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_within_the_time_alone() {
        let (allowed, tally) = (Allowed::default(), Tally::default());
        allowed.set(Budget {
            failures: 2,
            within: Duration::from_nanos(100),
            pause: Duration::from_nanos(50),
        });
        let note = |now| tally.note(&allowed, now);
        assert_eq!([1000, 1050, 1200, 1210].map(note), [false; 4]);
        assert!(note(1220));
        tally.refuse_until(1270);
        assert_eq!(tally.refused_for(|| 1230), 40);
        assert_eq!(tally.refused_for(|| 1270), 0);
        assert_eq!([1271, 1272].map(note), [false; 2]);
        assert!(note(1273));
    }

    #[test]
    fn budget_below_what_has_failed_already_counts_from_the_next_failure() {
        let (allowed, tally) = (Allowed::default(), Tally::default());
        let budget = |failures| Budget {
            failures,
            within: Duration::from_nanos(100),
            pause: Duration::from_nanos(50),
        };
        allowed.set(budget(5));
        let note = |now| tally.note(&allowed, now);
        assert_eq!([1000, 1001, 1002, 1003].map(note), [false; 4]);
        allowed.set(budget(2));
        assert!(note(1004));
    }
}
