//! Code that leaves the function of its request for good, by `longjmp`, and the server's signal handlers in requests.
//!
//! While a request's function runs, its thread is on the request stack, on the stack of signal handlers, or on one that the
//! function has made. When it is on the stack that it was started with, and that the request was begun on, the function was
//! left.

use super::{Phase, Thread};
use crate::os::frames::SignalFrame;
use crate::os::signals::{self, Signals};
use crate::os::switch;
use std::ops::Range;

/// What the failure says.
pub(crate) const LEFT: &[u8] = b"the request was left without an end, by longjmp";

/// Most bytes of a stack that are searched for a signal handler.
const SEARCHED: u64 = 256 * 1024;

impl Thread {
    /// Whether the thread, whose stack pointer is `rsp`, has left the function of its request. Async-signal-safe.
    #[inline]
    pub(super) fn has_left(&self, rsp: u64) -> bool {
        let own = self.own_stack();
        own.contains(&rsp) && own.contains(&self.saved()) && self.can_divert()
    }

    /// Whether the code that calls this runs on the request stack. So does a child of `vfork`, until it ends or calls `exec`;
    /// its parent waits for that.
    #[inline]
    pub(crate) fn is_on_request_stack(&self) -> bool {
        let stack = self.stack_region();
        stack.is_some_and(|stack| stack.holds(switch::stack_pointer(), 0))
    }

    /// [`Thread::has_left`] for code that calls the library on this thread.
    #[inline]
    pub(crate) fn has_left_function(&self) -> bool {
        self.has_left(switch::stack_pointer())
    }

    /// Whether the thread, which calls the library, has left the library's own code around that function: a signal handler of
    /// the server has interrupted it and has not returned. As long as the handler runs its signal is blocked.
    pub(crate) fn has_left_library(&self) -> bool {
        self.phase() == Phase::Outside && !self.has_more_blocked(signals::blocked())
    }

    /// A signal handler of the server that runs where the thread's stack pointer is `rsp`. Async-signal-safe.
    pub(super) fn find_handler(&self, rsp: u64, blocked: Signals) -> Option<SignalFrame> {
        if !self.has_more_blocked(blocked) {
            return None;
        }
        SignalFrame::find(self.stack_above(rsp)?, blocked)
    }

    /// Addresses of a stack of the thread's, from its pointer on.
    fn stack_above(&self, rsp: u64) -> Option<Range<u64>> {
        let own = self.own_stack();
        let end = if own.contains(&rsp) {
            own.end
        } else {
            let stacks = [self.stack_region()?, &self.signal_stack];
            let stack = stacks.into_iter().find(|stack| stack.holds(rsp, 0))?;
            stack.top() as u64
        };
        Some(rsp..end.min(rsp + SEARCHED))
    }
}
