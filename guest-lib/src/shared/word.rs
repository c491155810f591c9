//! The lock word of a domain, as programs change it without a system call.
//!
//! 0 is free, else it is the tag of the request that holds the domain, with [`LOCK_WAITERS`] when
//! threads sleep in the driver. The driver changes words too: it takes a lock for a sleeper, and
//! releases the locks of a request that it fails. So a request cannot be sure that a lock it took is
//! still its own, and a release must not free another's.
//!
//! `tests/loom` builds this file with loom's atomics and runs it against a model of the driver.

use crate::sync::{AtomicU64, Ordering};
use vmsrs_protocol::shared::{LOCK_TAG, LOCK_WAITERS};

/// What a release has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Nobody waited.
    Quietly,
    /// Threads sleep: the driver must wake one.
    WithWaiters,
    /// The word is not the tag's: the driver has released it, since the request has failed.
    Before,
}

/// Takes a lock that is free.
#[inline]
pub(crate) fn try_lock(word: &AtomicU64, tag: u64) -> bool {
    // Also a release: a thread that sees the tag here sees it in its thread's control block, or knows that the
    // thread has lost it.
    word.compare_exchange(0, tag, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Releases a lock that the tag holds and nobody waits for; false otherwise.
#[inline]
pub(crate) fn release_quietly(word: &AtomicU64, tag: u64) -> bool {
    word.compare_exchange(tag, 0, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Releases a lock if the tag still holds it.
#[inline]
pub(crate) fn release(word: &AtomicU64, tag: u64) -> Released {
    let mut value = tag;
    loop {
        // Also an acquire: a sleeper queued itself before it set the mark that is seen here, so
        // that the wake-up finds it.
        match word.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) if value & LOCK_WAITERS != 0 => return Released::WithWaiters,
            Ok(_) => return Released::Quietly,
            Err(now) if now & LOCK_TAG != tag => return Released::Before,
            Err(now) => value = now,
        }
    }
}
