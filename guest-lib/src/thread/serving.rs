//! Which request a thread works for: begin and end, join and leave, suspend and resume.

use super::Thread;
use crate::error::Error;
use crate::os::clock::now;
use crate::shared::held::HeldList;
use crate::shared::pkru;
use crate::state::{Limits, Start, State};
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

impl Thread {
    /// Begins a request: from here on the driver lets it write to the domains that it locks. Returns its tag.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there are no tags.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn begin(&self, limits: Limits) -> Result<u64, Box<Error>> {
        // First, so that a signal handler of the server finds a request in the middle.
        self.set_current(self);
        if self.next_tag.get() >= self.pause_tag.get() {
            self.pause()?;
        }
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 1);
        let deadline = match limits.deadline_ms {
            0 => 0,
            limit => now() + u64::from(limit) * 1_000_000,
        };
        if deadline != 0 {
            // At rest there is none.
            self.deadline.set(deadline);
            self.marks.unusual.set(true);
        }
        let start = Start {
            tag,
            deadline,
            limits,
        };
        let (ours, control) = (pkru::ours(), self.control);
        let key = self.state().begin(start, ours, control);
        control.set_deadline(deadline);
        control.set_key(key);
        control.set_tag_alone(tag);
        if ours.guards() {
            self.close_guard(ours);
        }
        Ok(tag)
    }

    /// It cannot write to guarded memory in a request.
    #[cold]
    fn close_guard(&self, ours: pkru::Ours) {
        self.guards.set(true);
        pkru::open(ours, 0);
    }

    /// Begins a request with a state that is not the thread's.
    ///
    /// # Errors
    ///
    /// As [`Thread::begin`].
    pub(crate) fn begin_as(&self, state: &'static State, limits: Limits) -> Result<(), Error> {
        self.state.set(state);
        self.begin(limits).map(drop).map_err(|error| *error)
    }

    /// What few requests do before they begin.
    #[cold]
    fn pause(&self) -> Result<(), Box<Error>> {
        if self.empty_arena() && self.next_tag.get() < self.pause_tag.get() {
            return Ok(());
        }
        if self.next_tag.get() >= self.end_tag.get() {
            self.fetch_tags()?;
        }
        let next = self.look_if_due(self.next_tag.get());
        self.pause_tag.set(next.min(self.end_tag.get()));
        Ok(())
    }

    fn fetch_tags(&self) -> Result<(), Box<Error>> {
        let tags = self.app.backend().tags().map_err(|error| {
            self.go();
            Error::system("fetching tags")(error)
        })?;
        self.next_tag.set(tags.next);
        self.end_tag.set(tags.end);
        Ok(())
    }

    /// Works on for a request as its owner, which ends it and has its list of domains.
    pub(crate) fn attach_owner(&self, state: &'static State) {
        state.set_control(self.control);
        self.attach(state, None);
    }

    /// Works for a request that another thread owns. The thread has taken a slot.
    pub(crate) fn join(&self, state: &'static State, slot: usize) {
        state.note_drafts();
        self.attach(state, Some(slot));
    }

    /// The thread is at rest: see [`Thread::go_idle`].
    fn attach(&self, state: &'static State, slot: Option<usize>) {
        self.empty_arena();
        self.look(state.tag(), true);
        self.slot.set(slot);
        self.state.set(state);
        self.deadline.set(state.deadline());
        let is_unusual = state.deadline() != 0 || self.arena.checks_blocks();
        self.marks.unusual.set(is_unusual);
        self.set_current(self);
        let control = self.control;
        control.set_deadline(state.deadline());
        control.set_key(state.key());
        control.set_tag(state.tag());
        // Drafts that other threads make, or that there are from before, are the request's, too.
        let may_meet_drafts = !state.is_alone() || state.may_have_drafts();
        pkru::open(pkru::ours(), if may_meet_drafts { state.key() } else { 0 });
    }

    /// Stops working for the request. All ways out lead here, except for the child of a fork
    /// ([`forget_all`]).
    fn detach(&self) {
        pkru::close();
        self.control.set_tag(0);
        self.control.set_deadline(0);
        self.deadline.set(0);
        self.alarm.stop();
        self.marks.exclusive.set(false);
        self.end_arena();
    }

    /// Ends the request; nothing is held any more, and no other thread has joined it. `kept`: what it wrote
    /// was audited and committed.
    pub(crate) fn end(&self, kept: bool) {
        let state = self.state();
        self.detach();
        self.clear_held();
        state.clear(kept);
    }

    /// Everything that the request wrote so far is committed, and it goes on. If it goes on alone, its key is closed again,
    /// until its next draft: it may end as a request that wrote nothing.
    pub(crate) fn note_committed(&self) {
        if self.state().is_alone() && !self.has_written() {
            pkru::open(pkru::ours(), 0);
        }
    }

    /// Leaves a request that stays suspended.
    pub(crate) fn suspend(&self) {
        let state = self.state();
        if self.has_written() {
            state.note_drafts();
        }
        self.detach();
        state.drop_control();
        self.clear_held();
    }

    /// Lists the first domain that the request, which is alone, holds or is about to lock.
    #[inline]
    pub(crate) fn list_first(&self, domain: u32) {
        let control = self.control;
        control.set_entry(0, domain);
        control.set_count(1);
    }

    /// Nothing is held, nor waited for.
    #[inline]
    pub(crate) fn clear_held(&self) {
        self.control.set_count(0);
    }

    /// Whether the request is another thread's, which this one has joined.
    pub(crate) fn has_joined(&self) -> bool {
        self.slot.get().is_some()
    }

    /// Leaves a request that the thread has joined.
    pub(crate) fn leave(&self) {
        self.detach();
        let (state, slot) = (self.state(), self.slot.take());
        self.go_idle();
        if let Some(slot) = slot {
            state.members.leave(slot);
        }
    }

    /// Runs the defers of a request that is over.
    pub(crate) fn attach_ended(&self, state: &'static State) {
        self.state.set(state);
        self.set_current(self);
    }

    /// The thread has no request: it is at rest, as every request finds it.
    pub(crate) fn go_idle(&self) {
        self.go();
        // From here on the signal handler does not know the thread.
        self.slot.set(None);
        self.marks.pending.set(false);
        self.marks.critical.set(0);
        self.marks.waited.set(0);
        self.marks.steps.set(0);
        self.marks.single_stepping.set(false);
        self.marks.checking.set(false);
        self.marks.exclusive.set(false);
        self.marks.landed.set(false);
        self.marks.unusual.set(false);
    }

    /// After [`Thread::end_plain`]: the state of the request may have been another than the thread's own.
    #[inline]
    pub(crate) fn go_own(&self) {
        self.state.set(self.own);
    }

    /// The thread has no request any more, and is at rest.
    pub(super) fn go(&self) {
        self.state.set(self.own);
        self.set_current(ptr::null());
    }

    #[inline]
    pub(super) fn set_current(&self, current: *const Self) {
        compiler_fence(Ordering::SeqCst);
        self.local.current.set(current.cast());
        compiler_fence(Ordering::SeqCst);
    }
}
