//! The end of a common request: one thread, one domain, nothing left to undo.

use super::Thread;
use crate::shared::held::HeldList;
use crate::shared::pkru;
use crate::state::domain::Domain;
use std::ptr;

impl Thread {
    /// Whether something unusual has left its mark on the thread since it was at rest.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn has_marks(&self) -> bool {
        self.marks.is_any()
    }

    /// The request's tag if it is plain: it needs no more than to commit the pages that it has written, if any, and to unlock its
    /// domain. Nothing that it would have to end was used, and everything but the lock word is as the library has left it.
    ///
    /// A word that a stray write has changed can only lead to the long way, or let the request end without what
    /// it had to undo, which it need not: what is committed depends on the list of written pages, which only the
    /// driver writes.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn plain_tag(&self, domain: &Domain) -> Option<u64> {
        if self.has_marks() {
            // The child of a fork cannot even look at its parent's control block.
            return None;
        }
        let (control, tag) = (self.control, self.tag());
        let is_plain = control.failed() != tag && self.state().is_plain(tag, domain, control);
        is_plain.then_some(tag)
    }

    /// Whether a request finds the thread and its state as they were before the first one.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        let control = self.control;
        ptr::eq(self.state(), self.own)
            && super::current().is_none()
            && self.phase() == super::Phase::Outside
            && (!self.has_marks() || !self.app.protects())
            && self.deadline.get() == 0
            && self.slot.get().is_none()
            && control.tag() == 0
            && crate::shared::held::len(&control) == 0
            && (self.arena.used() == 0 || self.resume_tag.get().is_some())
            && self.own.is_at_rest()
    }

    /// From here on nothing is written for the request, which is plain: not by a signal handler of the server either.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn end_writes(&self) {
        self.control.end_writes();
    }

    /// Takes [`Thread::end_writes`] back.
    pub(crate) fn allow_writes(&self) {
        self.control.set_key(self.state().key());
    }

    /// Ends a request that is plain, has nothing left to commit, and whose domain is unlocked. Its state is the thread's
    /// own, or [`Thread::go_own`] comes next. `WROTE` if it has made drafts.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn end_plain<const WROTE: bool>(&self) {
        let control = self.control;
        control.set_count(0);
        if WROTE || self.guards.get() {
            pkru::close();
        }
        control.set_tag_alone(0);
        if self.arena.used() != 0 {
            self.arena.reset();
        }
        self.state().clear_plain();
        self.set_current(ptr::null());
    }
}
