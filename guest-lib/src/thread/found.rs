//! How a request finds its thread, and how a failed one leaves it: what belongs to a thread and code can change, but for
//! memory, is put back.
//!
//! Reading it all takes system calls, more than a request may cost. So the thread is looked at when it is registered, as
//! each of its first requests begins, and now and then later. A thread that the server has changed between two
//! looks is looked at as each request begins.

use super::abandoned::Abandoned;
use super::{Thread, open, reserve};
use crate::os::cancellation::{self, Cancellation, Frame, Routine};
use crate::os::clib;
use crate::os::clock;
use crate::os::condition;
use crate::os::dispositions;
use crate::os::exceptions::Exceptions;
use crate::os::own_stack;
use crate::os::robust::RobustList;
use crate::os::rseq::Rseq;
use crate::os::signals::{self, Signals};
use crate::shared::pkru;
use std::cell::Cell;
use std::ops::Range;
use std::ptr;

/// Requests at the start of a thread that are looked at: servers set up their threads by then.
const FIRST: u32 = 64;

/// Of the requests after these, one in so many looks at the clock,
const STRIDE: u64 = 1024;

/// and then at the thread, if that was not done for so many nanoseconds
const AGE: u64 = 1_000_000_000;

/// or for so many requests.
const INTERVAL: u64 = 16 * STRIDE;

/// Where each request or step begins with a look at its thread, one in so many of them is also one at the process's handlers of
/// signals: that takes a system call for each.
const DISPOSITIONS: u32 = 16;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    blocked: Signals,
    cancellation: Cancellation,
    locale: libc::locale_t,
    exceptions: Exceptions,
    /// What the protection keys allow that are not the library's.
    rights: pkru::Rights,
}

impl Look {
    fn take() -> Self {
        Self {
            blocked: signals::blocked().without(signals::handled()),
            cancellation: Cancellation::current(),
            // SAFETY: only reads the thread's.
            locale: unsafe { libc::uselocale(ptr::null_mut()) },
            exceptions: Exceptions::current(),
            rights: pkru::Rights::current(),
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Found {
    look: Cell<Look>,
    looks: Cell<u32>,
    /// The tag of the request with which the next look comes at the latest.
    due: Cell<u64>,
    /// When the last look was, on the clock of deadlines.
    time: Cell<u64>,
    /// The server changes the thread between requests.
    varies: Cell<bool>,
    /// The signal that has cut the request short has found the thread's stack for handlers in its place.
    has_signal_stack: Cell<bool>,
    robust: RobustList,
    /// Mutexes on that list after the last failure.
    locks: Cell<u32>,
    rseq: Rseq,
    /// The stack that the thread was started with.
    own_stack: Range<u64>,
    pub(super) abandoned: Abandoned,
    /// A word on the request stack: until it is 0, threads of the C library use that stack. Or 0.
    pub(super) lent: Cell<u64>,
    /// Until then interrupts wait, on the clock of deadlines: see [`Thread::fails_standard`]. May be long over.
    pub(super) grace: Cell<u64>,
}

impl Found {
    /// On the thread that it is for.
    pub(super) fn new() -> Self {
        Self {
            look: Cell::new(Look::take()),
            looks: Cell::new(0),
            due: Cell::new(0),
            time: Cell::new(0),
            varies: Cell::new(false),
            has_signal_stack: Cell::new(false),
            robust: RobustList::of_this_thread(),
            locks: Cell::new(0),
            rseq: Rseq::of_this_thread(),
            own_stack: own_stack::bounds(),
            abandoned: Abandoned::default(),
            lent: Cell::new(0),
            grace: Cell::new(0),
        }
    }

    /// Looks at the thread; `each` if every step begins with a look.
    fn look(&self, each: bool) {
        let (before, now) = (self.look.replace(Look::take()), self.look.get());
        let looks = self.looks.get().saturating_add(1);
        self.looks.set(looks);
        if before != now {
            self.varies.set(true);
        }
        let is_frequent = each || self.varies.get();
        if !is_frequent || looks % DISPOSITIONS == 1 {
            dispositions::look();
        }
        self.time.set(clock::last_tick());
    }

    /// How many requests may begin until the next look.
    fn interval(&self) -> u64 {
        if self.looks.get() < FIRST || self.varies.get() {
            1
        } else {
            INTERVAL
        }
    }

    /// Whether there has to be a look before the request with that tag.
    fn is_due(&self, tag: u64) -> bool {
        tag >= self.due.get() || clock::last_tick().saturating_sub(self.time.get()) >= AGE
    }

    /// The tag of the next request before which that may be so, after a request with this tag.
    fn next(&self, tag: u64) -> u64 {
        self.due.get().min(tag + STRIDE)
    }
}

impl Thread {
    /// Looks at the thread before the request begins, or before the thread works on for one: that is done `each` time. Returns
    /// false if the reserve could not be filled, for lack of memory.
    pub(super) fn look(&self, tag: u64, each: bool) -> bool {
        self.count_open(tag);
        // A request that returned may have taken it away.
        let _ = signals::enter_signal_stack(&self.signal_stack);
        self.found.look(each);
        reserve::fill()
    }

    /// Looks at the thread if it is time to. Returns the tag of the next request before which it may be.
    pub(super) fn look_if_due(&self, tag: u64) -> u64 {
        if self.found.is_due(tag) {
            let interval = if self.look(tag, false) {
                self.found.interval()
            } else {
                1
            };
            self.found.due.set(tag + interval);
        }
        self.found.next(tag)
    }

    /// Has the thread looked at as its next request begins.
    pub(super) fn look_next(&self) {
        self.found.due.set(0);
        let next = self.next_tag.get();
        match self.resume_tag.get() {
            Some(_) => self.resume_tag.set(Some(next)),
            None => self.pause_tag.set(next),
        }
    }

    /// The stack that the thread was started with; its addresses.
    pub(super) fn own_stack(&self) -> &Range<u64> {
        &self.found.own_stack
    }

    /// Whether the thread had the signals blocked that `now` are, when its request began. Async-signal-safe.
    pub(super) fn has_more_blocked(&self, now: Signals) -> bool {
        !now.without(self.found.look.get().blocked).are_none()
    }

    /// Puts back which signals the thread blocks, after an error that no signal told.
    pub(crate) fn restore_signals(&self) {
        let (now, found) = (signals::blocked(), self.found.look.get().blocked);
        if now == found {
            return;
        }
        if self.find_handler(self.cut_at(), now).is_some() {
            self.marks.in_handler.set(true);
        }
        signals::forget_broken_pipe(now.without(found));
        found.block();
    }

    /// Whether what was cut short was a signal handler of the server's, for the first who asks.
    pub(crate) fn take_in_handler(&self) -> bool {
        self.marks.in_handler.take()
    }

    /// The same from the end of the signal handler on that `context` is for. Async-signal-safe.
    ///
    /// # Safety
    ///
    /// The kernel's context of this thread.
    pub(super) unsafe fn restore_signals_after(&self, context: *mut libc::ucontext_t) {
        let found = self.found.look.get().blocked;
        // SAFETY: by contract.
        unsafe {
            let has_stack = signals::had_signal_stack(&self.signal_stack, &*context);
            self.found.has_signal_stack.set(has_stack);
            let now = Signals::read(&(*context).uc_sigmask);
            signals::forget_broken_pipe(now.without(found));
            self.note_signal_stack(&(*context).uc_stack);
            self.blocked_at_landing().block_after(context);
        }
    }

    /// The same at once, in a signal handler that does not return. Async-signal-safe.
    pub(super) fn restore_signals_now(&self) {
        self.blocked_at_landing().block();
    }

    /// What the thread blocks when it lands. Async-signal-safe.
    fn blocked_at_landing(&self) -> Signals {
        let found = self.found.look.get().blocked;
        if self.was_cut_on_signal_stack() {
            found.with(signals::all_but_errors())
        } else {
            found
        }
    }

    /// Lets the signals come that wait since the landing.
    pub(super) fn admit_signals(&self) {
        self.found.look.get().blocked.block();
    }

    /// Puts back the rest, once the thread has landed. What an error can strike in is given to `run`, which says whether
    /// it was done: routines of the C library that abandoned code has asked for, and reading its lists.
    pub(crate) fn restore(&self, run: impl Fn(&mut dyn FnMut()) -> bool) {
        // Not from the handler: since Linux 6.12 its end refuses to replace the stack that it runs on.
        if !self.found.has_signal_stack.take() && !self.has_spare_signal_stack() {
            let _ = signals::enter_signal_stack(&self.signal_stack);
        }
        let look = self.found.look.get();
        look.rights.restore();
        look.exceptions.restore(|pointer| {
            // Where a signal has interrupted the frame, the unwinder counts it one lower.
            self.frame(pointer & !7, size_of::<u64>()) == Frame::Live
        });
        // SAFETY: a locale that the thread had.
        unsafe { libc::uselocale(look.locale) };
        self.found.rseq.restore();
        let frame = |address, bytes| self.frame(address, bytes);
        cancellation::drop_dead_unwindings(frame);
        // Frames below were unwound, and may have been overwritten since.
        let pointer = self.cut_at();
        let intact = match self.stack_region() {
            Some(stack) if stack.reaches(pointer) => pointer,
            _ => u64::MAX,
        };
        cancellation::drop_dead_cleanups(frame, |address, routine| {
            if address >= intact || self.is_elsewhere(address, size_of::<u64>()) {
                self.clean_up(&routine, &run);
            }
        });
        look.cancellation.set();
        if self.found.robust.is_in_use() {
            let is_dead = |address| self.frame(address, size_of::<u64>()) == Frame::Dead;
            let (mut agree, mut left) = (false, 0);
            let mut drop = || {
                agree = self.found.robust.drop_dead(is_dead);
                left = if agree { self.found.robust.count() } else { 0 };
            };
            if !run(&mut drop) || !agree {
                self.found.robust.empty();
            }
            open::note_locks(left.saturating_sub(self.found.locks.replace(left)));
        }
    }

    /// Runs a routine of the C library that abandoned code has asked for.
    #[cold]
    fn clean_up(&self, routine: &Routine, run: &dyn Fn(&mut dyn FnMut()) -> bool) {
        if clib::contains(routine.address()) {
            // SAFETY: nothing runs on the request stack before the request is over.
            run(&mut || unsafe {
                condition::run(routine, |address, bytes| {
                    self.frame(address, bytes) == Frame::Dead
                });
            });
        }
    }

    /// Whether that many bytes lie in an abandoned frame, when the request has been cut short.
    pub(crate) fn is_dead(&self, address: u64, bytes: usize) -> bool {
        self.frame(address, bytes) == Frame::Dead
    }

    /// Where that many bytes of a list's element lie, when the request has been cut short.
    #[inline]
    fn frame(&self, address: u64, bytes: usize) -> Frame {
        // Most lists are empty.
        if address == 0 {
            Frame::Live
        } else {
            self.frame_at(address, bytes)
        }
    }

    #[cold]
    fn frame_at(&self, address: u64, bytes: usize) -> Frame {
        let (Some(stack), own) = (self.stack_region(), self.own_stack()) else {
            return Frame::Live;
        };
        let is_aligned = address.is_multiple_of(8);
        if is_aligned && (stack.holds(address, bytes) || self.is_elsewhere(address, bytes)) {
            Frame::Dead
        } else if !is_aligned
            || (own.contains(&self.saved()) && !(self.saved()..own.end).contains(&address))
        {
            Frame::Wild
        } else {
            Frame::Live
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_looked_at_by_number_and_a_slow_one_by_time() {
        let found = Found::new();
        found.due.set(INTERVAL);
        // As if the last look were still to come.
        found.time.set(u64::MAX);
        assert!(!found.is_due(INTERVAL - 1) && found.is_due(INTERVAL));
        assert_eq!(found.next(1), 1 + STRIDE);
        assert_eq!(found.next(INTERVAL - 1), INTERVAL);
        // As if it had been when the machine started.
        found.time.set(0);
        assert!(found.is_due(1));
        found.time.set(u64::MAX);
        found.due.set(0);
        assert!(found.is_due(1) && found.next(1) == 0);
    }
}
