//! How the process is: what a server looks at to plan its restart.

use super::left::end_left;
use super::{run, trial};
use crate::failure::{Failure, Kind};
use crate::run::End;
use crate::shared::descriptor;
use crate::state::Limits;
use crate::state::domain::Domain;
use crate::thread::{self, open};
use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened in the process since its start that a restart would make good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Requests that have failed, in all apps.
    pub failures: u64,
    /// Of these: where the request was cut short in the C library, in an allocator or by an interrupt, or had called
    /// `abort`. The heap was tried then, and worked; what the request had allocated there stays.
    pub heap_suspect: u64,
    /// Defers that have failed: what they were to undo may be left.
    pub defers_failed: u64,
    /// How often a domain was put in quarantine.
    pub quarantines: u64,
    /// Descriptors of the library that a stray `close` had taken, and that were made again.
    pub descriptors_repaired: u64,
    /// Descriptors that failed requests have left open: an estimate, from counts of all that the process had open before and
    /// after them.
    pub left_descriptors: u64,
    /// Bytes of memory outside of domains that failed requests have left allocated: an estimate, as above.
    pub left_bytes: u64,
    /// Robust mutexes that failed requests have left locked: the only ones that are known to belong to a thread.
    pub locks_left: u64,
}

static FAILURES: AtomicU64 = AtomicU64::new(0);
static DEFERS_FAILED: AtomicU64 = AtomicU64::new(0);
static QUARANTINES: AtomicU64 = AtomicU64::new(0);

/// See [`Health`]. Can be called anywhere.
#[must_use]
pub fn health() -> Health {
    end_left();
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (left_descriptors, left_bytes) = open::left_by_all();
    Health {
        failures: read(&FAILURES),
        heap_suspect: trial::passed(),
        defers_failed: read(&DEFERS_FAILED),
        quarantines: read(&QUARANTINES),
        descriptors_repaired: descriptor::repaired(),
        left_descriptors,
        left_bytes,
        locks_left: open::locks_left(),
    }
}

/// Counts a request that has failed and is over, on its thread, and puts its domain in quarantine if there were too many.
pub(super) fn note_failure(domain: Option<&'static Domain>, failure: &Failure) {
    if failure.kind == Kind::Quarantine {
        return;
    }
    FAILURES.fetch_add(1, Ordering::Relaxed);
    DEFERS_FAILED.fetch_add(failure.defers_failed.into(), Ordering::Relaxed);
    if let Some(domain) = domain.filter(|domain| domain.note_failure()) {
        QUARANTINES.fetch_add(1, Ordering::Relaxed);
        report_quarantine(domain);
        domain.quarantine();
    }
}

/// The incident of its own: that of a request that does nothing. Without the domain's lock, which another request may
/// have for long, there is none.
fn report_quarantine(domain: &'static Domain) {
    const LIMITS: Limits = Limits {
        deadline_ms: 0,
        lock_timeout_ms: 100,
        whole_audit: false,
    };
    const TEXT: &[u8] = b"too many requests of the domain have failed: it is refused for a while";
    let report =
        |_: &super::request::Request| -> End { thread::fail_request(Kind::Quarantine, 0, TEXT) };
    let reported: Result<(), _> = run::<false, _>(domain, LIMITS, false, report);
    debug_assert!(reported.is_err());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::mock::MockBackend;
    use crate::{Budget, RunError};
    use std::time::Duration;

    #[test]
    fn domain_over_its_budget_is_refused_for_a_while() {
        let app = MockBackend::app("budget", |hooks| hooks.protects = true);
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        app.set_budget(Budget {
            failures: 2,
            within: Duration::from_secs(3600),
            pause: Duration::from_secs(3600),
        })
        .unwrap();
        let fail = |domain: &'static Domain| {
            domain.run(|request| -> Result<(), Error> { request.fail("on purpose") })
        };
        let before = health();
        for _ in 0..3 {
            assert!(matches!(fail(one), Err(RunError::Failed(_))));
        }
        for _ in 0..2 {
            let refused = fail(one);
            assert!(
                matches!(refused, Err(RunError::Refused(Error::Quarantined { milliseconds })) if milliseconds > 0),
                "{refused:?}"
            );
        }
        assert_eq!(one.holder(), 0);
        // Another domain has its own failures, and cannot enter this one.
        let entered = two.run(|request| request.enter(one).map(drop));
        assert!(matches!(
            entered,
            Err(RunError::GivenUp(Error::Quarantined { .. }))
        ));
        assert!(matches!(fail(two), Err(RunError::Failed(_))));
        // Its own budget counts, not the app's.
        two.set_budget(Budget {
            failures: 1,
            within: Duration::from_secs(3600),
            pause: Duration::from_nanos(1),
        })
        .unwrap();
        // A request that fails could not take it back.
        let set = two.run(|_| app.set_budget(Budget::default()));
        assert!(matches!(set, Err(RunError::GivenUp(Error::Nested))));
        let set = two.run(|_| two.set_invariant(|_| Err("wrong".to_owned())));
        assert!(matches!(set, Err(RunError::GivenUp(Error::Nested))));
        assert!(matches!(fail(two), Err(RunError::Failed(_))));
        two.run(|_| Ok::<_, Error>(())).unwrap();
        let after = health();
        assert!(after.failures >= before.failures + 5);
        assert!(after.quarantines >= before.quarantines + 2);
    }
}
