//! A thread of the server, as the library knows it: control block, request stack, signal stack, and
//! which request it works for.
//!
//! A thread is registered by its first request and unregistered when it ends. Its memory lies in a
//! mapping of its own between guards, away from the C library's heap.

mod abandoned;
pub(crate) mod arena;
pub(crate) mod evidence;
mod exclusive;
pub(crate) mod fork;
mod found;
pub(crate) mod handler;
mod interrupts;
mod kept_arena;
mod landing;
mod left;
pub(crate) mod mutexes;
pub(crate) mod open;
pub(crate) mod panics;
mod quiet;
pub(crate) mod record;
mod registry;
pub(crate) mod reserve;
mod serving;
pub(crate) mod stack;

pub(crate) use exclusive::REENTRANT;
pub(crate) use interrupts::{sweep, uninterrupted};
pub(crate) use kept_arena::Needs;
pub(crate) use landing::{end_unsuppressed, fail_request};
pub(crate) use left::LEFT;
pub(crate) use registry::{current, forget_all, idle, install, keep_failure, of, with_failure};

use crate::os::alarm::Alarm;
use crate::os::latch::Take;
use crate::os::local::Local;
use crate::os::region::Region;
use crate::shared::control::Control;
use crate::shared::written::Written;
use crate::state::State;
use crate::state::domain::{App, Domain};
use crate::thread::arena::Arena;
use crate::thread::evidence::SavedStack;
use crate::thread::found::Found;
use crate::thread::mutexes::Mutexes;
use crate::thread::panics::Panics;
use crate::thread::record::Record;
use crate::thread::stack::Stack;
use std::cell::{Cell, UnsafeCell};
#[cfg(test)]
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

/// What a thread does; tells the signal handler what an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No request, or one begins, ends, is joined or left; the server's stack.
    Outside,
    /// The request's function, or the audit after it; the request stack.
    Running,
    /// A defer of a failed request; the request stack.
    Deferring,
}

/// What a thread notes while something unusual is going on; none of it when it is at rest, but for `unprotected`.
#[derive(Default)]
#[repr(C, align(8))]
struct Marks {
    /// An interrupt waits.
    pending: Cell<bool>,
    /// An invariant of the server is being checked.
    checking: Cell<bool>,
    /// The thread is inside [`Thread::exclusive`].
    exclusive: Cell<bool>,
    /// The request has failed and the thread has reached its landing.
    landed: Cell<bool>,
    /// This is a forked child's copy: the driver does not know it.
    forgotten: Cell<bool>,
    /// The thread is being single-stepped out of the C library.
    single_stepping: Cell<bool>,
    /// The app keeps no versions of pages: nothing says what a request has written.
    unprotected: Cell<bool>,
    /// What runs now has a limit of time: see [`Thread::set_limit`].
    limited: Cell<bool>,
    /// Above 0: interrupts wait until it is 0 again.
    critical: Cell<u16>,
    /// Times that an interrupt has waited for the thread to leave the C library.
    waited: Cell<u16>,
    /// Instructions that the thread has been single-stepped through in the C library, in this request.
    steps: Cell<u16>,
    /// The request has a deadline, or its arena is checked as it ends.
    unusual: Cell<bool>,
    /// The code that was cut short was a signal handler of the server's, which may have interrupted anything.
    in_handler: Cell<bool>,
}

const _: () = assert!(
    size_of::<Marks>() == size_of::<[u64; 2]>(),
    "looked at as two words"
);

impl Marks {
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    fn is_any(&self) -> bool {
        // SAFETY: as large and as aligned as the words, without gaps, and used by one thread.
        let [first, second] = unsafe { std::ptr::from_ref(self).cast::<[u64; 2]>().read() };
        first | second != 0
    }
}

/// One thread in one app.
pub(crate) struct Thread {
    app: &'static App,
    /// What the thread itself finds it by.
    local: &'static Local,
    /// The same thread in another app, or null.
    next: Cell<*const ()>,
    /// Its thread ID in the kernel.
    number: u32,
    control: Control,
    written: Written,
    /// Pages at the front of `written` that were audited and committed when the request with this tag left a domain.
    left: Cell<(u64, usize)>,
    /// The tag of the request before which what the process has open was counted last.
    counted: Cell<u64>,
    /// The tag of its next request; from `end_tag` on they are not its own. Before the request with `pause_tag` the
    /// thread may have to be looked at.
    next_tag: Cell<u64>,
    pause_tag: Cell<u64>,
    end_tag: Cell<u64>,
    /// What `pause_tag` is while the arena keeps something until the next request begins: that is looked at first.
    resume_tag: Cell<Option<u64>>,
    /// The state of requests that it begins.
    own: &'static State,
    /// The state of the request that it works for; its own when there is none.
    state: Cell<&'static State>,
    /// Its slot, if it has joined that request.
    slot: Cell<Option<usize>>,
    phase: Cell<Phase>,
    marks: Marks,
    /// Replaced by a larger one between requests alone.
    stack: UnsafeCell<Stack>,
    /// First byte after the request stack; null if there is none.
    top: Cell<*mut u8>,
    saved: UnsafeCell<u64>,
    record: Record,
    /// The stack of its latest panic in a request.
    panic: Cell<Option<SavedStack>>,
    panics: Panics,
    /// A panic hook runs in the request.
    in_hook: Cell<bool>,
    /// `CLOCK_MONOTONIC` nanoseconds at which the request is over its deadline, or 0.
    deadline: Cell<u64>,
    /// For polling, and for the library's own time limits.
    alarm: Alarm,
    /// The domain that the request was begun with.
    domain: Cell<Option<&'static Domain>>,
    /// Its requests cannot write to guarded memory, which there is.
    guards: Cell<bool>,
    arena: Arena,
    mutexes: Mutexes,
    found: Found,
    signal_stack: Region,
    _memory: Region,
}

impl Thread {
    #[inline]
    pub(crate) fn app(&self) -> &'static App {
        self.app
    }

    /// The domain that the request was begun with, also when it is over.
    pub(crate) fn domain(&self) -> Option<&'static Domain> {
        self.domain.get()
    }

    #[inline]
    pub(crate) fn is_begun_with(&self, domain: &Domain) -> bool {
        self.domain
            .get()
            .is_some_and(|first| std::ptr::eq(first, domain))
    }

    #[inline]
    pub(crate) fn set_domain(&self, domain: &'static Domain) {
        self.domain.set(Some(domain));
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What belongs to the request that the thread works for.
    #[inline]
    pub(crate) fn state(&self) -> &'static State {
        self.state.get()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    #[inline]
    pub(crate) fn set_phase(&self, phase: Phase) {
        compiler_fence(Ordering::SeqCst);
        self.phase.set(phase);
        compiler_fence(Ordering::SeqCst);
    }

    /// Whether the thread runs on its request stack, with a landing to go to.
    pub(crate) fn can_divert(&self) -> bool {
        matches!(self.phase(), Phase::Running | Phase::Deferring)
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.marks.forgotten.get()
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.marks.pending.get()
    }

    pub(crate) fn set_pending(&self, pending: bool) {
        self.marks.pending.set(pending);
    }

    pub(crate) fn wants_whole_audit(&self) -> bool {
        self.state().wants_whole_audit()
    }

    /// Notes that an invariant is being checked: an error in it is reported as one of the invariant.
    pub(crate) fn set_checking(&self, checking: bool) {
        self.marks.checking.set(checking);
    }

    /// Tag of the request that the thread works for, or 0.
    #[inline]
    pub(crate) fn tag(&self) -> u64 {
        self.control.tag()
    }

    /// Whether the request may have written to domains.
    pub(crate) fn has_drafts(&self) -> bool {
        self.has_written() || self.state().may_have_drafts() || self.is_inside_hot()
    }

    /// Whether the thread has made drafts for the request. A stray write may have changed one of the two tags.
    pub(crate) fn has_written(&self) -> bool {
        let has_written = |tag| self.written.count(tag) != 0;
        has_written(self.tag()) || has_written(self.state().tag())
    }

    /// The same for a request that is plain and has that tag; or it is inside a hot domain.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn has_listed(&self, tag: u64) -> bool {
        self.written.is_any(tag)
    }

    /// Whether the thread is inside a hot domain, where its writes make no drafts. PKRU says so, and nothing in memory that the
    /// program writes.
    pub(crate) fn is_inside_hot(&self) -> bool {
        self.written.is_inside_hot()
    }

    /// The list of pages that the thread has written.
    #[inline]
    pub(crate) fn written(&self) -> Written {
        self.written
    }

    /// Pages at the front of that list that belong to no domain which the request holds, perhaps: they were audited
    /// and committed when it left one.
    pub(crate) fn left_pages(&self) -> usize {
        let (tag, pages) = self.left.get();
        if tag == self.tag() { pages } else { 0 }
    }

    /// Notes what [`Thread::left_pages`] says from here on.
    pub(crate) fn set_left_pages(&self, pages: usize) {
        self.left.set((self.tag(), pages));
    }

    pub(crate) fn lock_timeout_ms(&self) -> u32 {
        self.state().lock_timeout_ms()
    }

    /// Its number in the kernel.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    #[cfg(test)]
    pub(crate) fn control(&self) -> NonNull<vmsrs_protocol::shared::ThreadControl> {
        self.control.block()
    }

    /// Whether the control block and the locks are as the library has left them. Only asked when the
    /// thread is neither taking nor releasing a lock.
    pub(crate) fn is_intact(&self) -> bool {
        let state = self.state();
        self.tag() == state.tag()
            && self.control.key() == state.key()
            && self.exclusive(|| state.is_intact())
    }

    /// Repairs what a stray write has done to the control block, before the driver acts on it.
    pub(crate) fn repair_control(&self) {
        let state = self.state();
        self.control.set_tag(state.tag());
        // Other threads of the request may be changing its lists, and one that was cut short may never
        // release the latch: then the list stays as it is, and unlisted locks are released after all have
        // left.
        if self.marks.exclusive.get() {
            state.repair_control();
        } else if state.latch.take(self.number, |timed_out| timed_out) != Take::GivenUp {
            state.repair_control();
            state.latch.open();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::error::{Error, RunError};
    use crate::failure::Failure;

    pub(super) fn failure(outcome: Result<(), RunError<Error>>) -> Failure {
        match outcome {
            Err(RunError::Failed(failure)) => *failure,
            other => panic!("{other:?}"),
        }
    }
}
