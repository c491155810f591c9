//! What failed requests leave open: descriptors, memory outside of domains, robust mutexes.
//!
//! Nothing tells whose a descriptor or a block is, and a count as each request begins would cost each some system calls. So the
//! process is counted when a request fails, and when threads are looked at ([`Thread::look`]); what there is more than at
//! the last count is said to be the failed request's. That is exact if the count before came as the request began, and the
//! process has one thread; otherwise it is an estimate, and called one. After the first failures counting is limited to a
//! small part of the time.

use super::Thread;
use crate::os::clock;
use crate::shared::backend::Backend;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use vmsrs_protocol::incident::{REPORT_LEFT, REPORT_LEFT_ESTIMATE};
use vmsrs_protocol::ioctl::IoctlFail;

/// So many failures of a process are counted whatever it costs.
const FIRST: u32 = 64;

/// After these, one part in so many of the time may be spent on counting.
const SHARE: u64 = 100;

/// The last count; `NONE` before the first.
static DESCRIPTORS: AtomicU32 = AtomicU32::new(NONE);
static MEMORY: AtomicU64 = AtomicU64::new(0);
const NONE: u32 = u32::MAX;

/// When counting is allowed again.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Failures so far.
static FAILURES: AtomicU32 = AtomicU32::new(0);

/// What all failures have left. The terms may be negative: what others open and close is in them, and cancels.
static LEFT_DESCRIPTORS: AtomicI64 = AtomicI64::new(0);
static LEFT_MEMORY: AtomicI64 = AtomicI64::new(0);

/// Descriptors and bytes that failed requests have left, all together.
pub(crate) fn left_by_all() -> (u64, u64) {
    let read = |sum: &AtomicI64| u64::try_from(sum.load(Relaxed)).unwrap_or(0);
    (read(&LEFT_DESCRIPTORS), read(&LEFT_MEMORY))
}

/// Mutexes that failed requests have left locked.
static LOCKS: AtomicU64 = AtomicU64::new(0);

/// See [`LOCKS`].
pub(crate) fn locks_left() -> u64 {
    LOCKS.load(Relaxed)
}

/// Counts mutexes that a failed request has left locked.
pub(super) fn note_locks(count: u32) {
    LOCKS.fetch_add(count.into(), Relaxed);
}

/// What there is more of than at the count before.
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    descriptors: i64,
    bytes: i64,
    /// The process has one thread.
    is_alone: bool,
}

/// Counts, unless that was done lately, in nanoseconds of the clock. `owned`: descriptors that are closed in a moment.
fn count(backend: &dyn Backend, lately: u64, is_free: bool, owned: u32) -> Option<Difference> {
    if !is_free && lately < NEXT.load(Relaxed) {
        return None;
    }
    let start = clock::now();
    let now = backend.usage()?;
    let end = clock::now();
    NEXT.store(end + SHARE * (end - start), Relaxed);
    let descriptors = now.descriptors.saturating_sub(owned);
    let before = (
        DESCRIPTORS.swap(descriptors, Relaxed),
        MEMORY.swap(now.memory, Relaxed),
    );
    if before.0 == NONE {
        return Some(Difference::default());
    }
    Some(Difference {
        descriptors: i64::from(descriptors) - i64::from(before.0),
        bytes: now
            .memory
            .cast_signed()
            .wrapping_sub(before.1.cast_signed()),
        is_alone: now.threads == 1,
    })
}

impl Thread {
    /// Counts before a request begins.
    pub(super) fn count_open(&self, tag: u64) {
        if count(self.app().backend(), clock::now(), false, 0).is_some() {
            self.counted.set(tag);
        }
    }

    /// Completes the report of a failed request by what it leaves open.
    pub(crate) fn report_open(&self, record: &mut IoctlFail) {
        let is_first = FAILURES.load(Relaxed) < FIRST;
        if is_first {
            FAILURES.fetch_add(1, Relaxed);
        }
        let has_before = DESCRIPTORS.load(Relaxed) != NONE;
        let owned = self.state().owned_descriptors();
        let Some(left) = count(self.app().backend(), record.detected_ns, is_first, owned) else {
            return;
        };
        if !has_before {
            return;
        }
        LEFT_DESCRIPTORS.fetch_add(left.descriptors, Relaxed);
        LEFT_MEMORY.fetch_add(left.bytes, Relaxed);
        record.left_descriptors = u32::try_from(left.descriptors.max(0)).unwrap_or(u32::MAX);
        record.left_bytes = left.bytes.max(0).cast_unsigned();
        record.flags |= REPORT_LEFT;
        if self.counted.get() != self.tag() || !left.is_alone {
            record.flags |= REPORT_LEFT_ESTIMATE;
        }
    }
}
