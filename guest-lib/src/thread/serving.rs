//! Which request a thread works for: begin and end, join and leave, suspend and resume.

use super::registry::CURRENT;
use super::{Phase, Thread};
use crate::error::Error;
use crate::os::clock::now;
use crate::shared::pkru;
use crate::state::{Limits, Start, State};
use std::ptr;

impl Thread {
    /// Begins a request: from here on the driver lets it write to the domains that it locks.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there are no tags.
    pub(crate) fn begin(&self, limits: Limits) -> Result<(), Error> {
        self.begin_as(self.own, limits)
    }

    /// Begins a request with a state that is not the thread's.
    ///
    /// # Errors
    ///
    /// As [`Thread::begin`].
    pub(crate) fn begin_as(&self, state: &'static State, limits: Limits) -> Result<(), Error> {
        let mut tags = self.tags.get();
        if tags.next >= tags.end {
            let backend = self.app.backend();
            tags = backend.tags().map_err(Error::system("fetching tags"))?;
        }
        let tag = tags.next;
        tags.next += 1;
        self.tags.set(tags);
        state.begin(Start {
            tag,
            deadline: match limits.deadline_ms {
                0 => 0,
                limit => now() + u64::from(limit) * 1_000_000,
            },
            limits,
        });
        self.attach_owner(state);
        Ok(())
    }

    /// Works for a request as its owner, which begins or ends it and has its list of domains.
    pub(crate) fn attach_owner(&self, state: &'static State) {
        state.set_control(self.control);
        self.attach(state, None);
    }

    /// Works for a request that another thread owns. The thread has taken a slot.
    pub(crate) fn join(&self, state: &'static State, slot: usize) {
        state.note_drafts();
        self.attach(state, Some(slot));
    }

    fn attach(&self, state: &'static State, slot: Option<usize>) {
        self.state.set(state);
        self.slot.set(slot);
        self.pending.set(false);
        self.critical.set(0);
        self.waited.set(0);
        self.steps.set(0);
        self.single_stepping.set(false);
        self.checking.set(false);
        self.exclusive.set(false);
        self.landed.set(false);
        self.deadline.set(state.deadline());
        self.set_phase(Phase::Entering);
        CURRENT.set(ptr::from_ref(self));
        self.control.set_deadline(state.deadline());
        self.control.set_key(state.key());
        self.control.set_tag(state.tag());
        pkru::open(state.key());
    }

    /// Stops working for the request. All ways out lead here, except for the child of a fork
    /// ([`forget_all`]).
    fn detach(&self) {
        pkru::close();
        self.control.set_tag(0);
        self.control.set_deadline(0);
        self.deadline.set(0);
        self.alarm.stop();
        self.exclusive.set(false);
        self.arena.reset();
    }

    /// Ends the request; nothing is held any more, and no other thread has joined it. `kept`: what it wrote
    /// was audited and committed.
    pub(crate) fn end(&self, kept: bool) {
        let state = self.state();
        self.detach();
        self.clear_held();
        state.clear(kept);
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

    fn clear_held(&self) {
        crate::shared::held::HeldList::set_count(&self.control, 0);
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
        self.set_phase(Phase::Ending);
        CURRENT.set(ptr::from_ref(self));
    }

    /// The thread has no request.
    pub(crate) fn go_idle(&self) {
        self.state.set(self.own);
        self.set_phase(Phase::Idle);
        CURRENT.set(ptr::null());
    }
}
