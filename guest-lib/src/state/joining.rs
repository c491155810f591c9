//! Whether other threads work for a request, or can, and whether one of them has failed it.

use super::State;
use super::members::Members;
use crate::failure::Reported;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// No thread can join any more.
pub(super) const CLOSED: u32 = 1;
/// The request has failed: all its threads go to their landings.
pub(super) const FAILED: u32 = 2;
/// Threads other than the current one may have made drafts.
pub(super) const WROTE: u32 = 4;
/// There is something to be called after the commit: the request is not plain.
pub(super) const ON_COMMIT: u32 = 8;
/// There are bytes outside of domains that go back if the request fails: it is not plain either.
pub(super) const KEPT: u32 = 16;

impl State {
    /// Whether no other thread can work for the request: its lists need no latch.
    pub(crate) fn is_alone(&self) -> bool {
        let tag = self.tag();
        tag != 0 && self.alone.load(Ordering::Relaxed) == tag
    }

    /// Other threads may join from here on. The caller holds the latch if it is in the lists.
    pub(crate) fn share(&self) {
        self.alone.store(0, Ordering::SeqCst);
    }

    /// Whether the request has that tag and a thread may join it. Asked after a slot was taken.
    pub(crate) fn is_open(&self, tag: u64) -> bool {
        // In this order: the flags of a request that is over are taken back after its tag.
        self.flags.load(Ordering::SeqCst) & (CLOSED | FAILED) == 0 && self.tag() == tag
    }

    /// Closes the request to new members, and waits for those that have joined. False if a thread ended without
    /// leaving.
    pub(crate) fn close(&self, sweep: fn(&Members) -> bool) -> bool {
        if self.is_alone() {
            self.flags.fetch_or(CLOSED, Ordering::Relaxed);
            return true;
        }
        let all_left = self.members.wait(sweep);
        self.flags.fetch_or(CLOSED, Ordering::SeqCst);
        // A thread that joined in between is seen now, or sees that it is closed.
        self.members.wait(sweep) && all_left
    }

    /// Threads may join again: the request goes on.
    pub(crate) fn reopen(&self) {
        self.flags.fetch_and(!CLOSED, Ordering::SeqCst);
    }

    /// Sets a flag.
    pub(super) fn set(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::SeqCst);
    }

    pub(super) fn unset(&self, flag: u32) {
        self.flags.fetch_and(!flag, Ordering::SeqCst);
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::SeqCst) & flag != 0
    }

    /// The request fails: all its threads go to their landings, and one of them must report it.
    pub(crate) fn mark_failed(&self) {
        self.flags.fetch_or(FAILED, Ordering::SeqCst);
    }

    /// Async-signal-safe.
    pub(crate) fn has_failed(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & FAILED != 0
    }

    /// The failure: `fail` reports it, the first time. It must not use the heap, which another thread of the request may have
    /// left locked that waits here.
    pub(crate) fn fail(&self, fail: impl FnOnce() -> Reported) -> Reported {
        self.mark_failed();
        if self.is_alone() {
            return fail();
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(fail).clone()
    }

    /// Notes that threads other than the present one may have made drafts.
    pub(crate) fn note_drafts(&self) {
        self.flags.fetch_or(WROTE, Ordering::SeqCst);
    }

    pub(crate) fn may_have_drafts(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & WROTE != 0
    }
}
