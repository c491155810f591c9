//! Stacks other than the request stack that a request was cut short on: that of a signal handler of the server, or of a
//! coroutine.
//!
//! Nobody says which memory is a coroutine's stack, so only frames of the code that was cut short count as abandoned, as far as
//! the unwinder finds them.

use super::Thread;
use crate::os::mappings;
use crate::os::region::Region;
use crate::os::signals;
use crate::os::unwind::{self, Frames, Registers};
use std::cell::Cell;

/// First address of a stack, and the first one after it.
type Bounds = (u64, u64);

/// No stack.
const NONE: Bounds = (0, 0);

/// Bytes of a stack for signal handlers that is used for a moment.
const SPARE: usize = 64 * 1024;

const fn holds(bounds: Bounds, address: u64) -> bool {
    bounds.0 <= address && address < bounds.1
}

/// See the module's description. All of it only while a failed thread is restored.
#[derive(Debug, Default)]
pub(super) struct Abandoned {
    frames: Cell<Frames>,
    /// The stack of signal handlers on which the thread was cut short, until it is dealt with and from then on.
    cut_on: Cell<Bounds>,
    signal_stack: Cell<Bounds>,
}

impl Thread {
    fn abandoned(&self) -> &Abandoned {
        &self.found.abandoned
    }

    /// Notes that the thread was cut short on its stack for signal handlers, if it was. Async-signal-safe.
    #[inline]
    pub(super) fn note_signal_stack(&self, stack: &libc::stack_t) {
        let low = stack.ss_sp as u64;
        let bounds = (low, low + stack.ss_size as u64);
        let is_on = stack.ss_flags & libc::SS_DISABLE == 0 && holds(bounds, self.cut_at());
        self.abandoned()
            .cut_on
            .set(if is_on { bounds } else { NONE });
    }

    /// Whether it was: then signals wait, whose handlers would overwrite its frames. Async-signal-safe.
    pub(super) fn was_cut_on_signal_stack(&self) -> bool {
        self.abandoned().cut_on.get().1 != 0
    }

    /// Gives the thread another stack for signal handlers, if it was cut short on the one that it has, and lets signals come again.
    /// Nothing is known of the frames there if there is no memory.
    #[inline]
    pub(crate) fn keep_signal_stack(&self) -> Option<Region> {
        if self.was_cut_on_signal_stack() {
            self.replace_signal_stack()
        } else {
            None
        }
    }

    #[cold]
    fn replace_signal_stack(&self) -> Option<Region> {
        let bounds = self.abandoned().cut_on.replace(NONE);
        let spare = Region::new(SPARE)
            .ok()
            .filter(|spare| signals::enter_signal_stack(spare).is_ok());
        if spare.is_some() {
            self.abandoned().signal_stack.set(bounds);
        }
        self.admit_signals();
        spare
    }

    /// The same for a thread whose frames there are nobody's business.
    #[inline]
    pub(crate) fn admit_late_signals(&self) {
        if self.was_cut_on_signal_stack() {
            self.abandoned().cut_on.set(NONE);
            self.admit_signals();
        }
    }

    pub(super) fn has_spare_signal_stack(&self) -> bool {
        self.abandoned().signal_stack.get().1 != 0
    }

    /// Whether code with that stack pointer was on another stack than the request's.
    #[inline]
    pub(crate) fn was_elsewhere(&self, pointer: u64) -> bool {
        let stack = self.stack_region();
        stack.is_some_and(|stack| !stack.reaches(pointer))
    }

    /// Finds the frames of the code that was cut short, and was elsewhere. `run` as for [`Thread::restore`].
    #[cold]
    pub(crate) fn find_frames(
        &self,
        registers: &Registers,
        run: impl Fn(&mut dyn FnMut()) -> bool,
    ) {
        let Some(stack) = self.stack_region() else {
            return;
        };
        let pointer = registers.rsp;
        let is_overwritten = !self.has_spare_signal_stack() && self.signal_stack.holds(pointer, 0);
        if is_overwritten || self.own_stack().contains(&pointer) {
            return;
        }
        let was_on_request_stack = Cell::new(false);
        let is_end = |pointer| {
            let is_on = stack.holds(pointer, 0);
            // Below the request are frames of the server, which it returns to.
            let has_left = was_on_request_stack.replace(is_on) && !is_on;
            has_left || self.own_stack().contains(&pointer)
        };
        let mut frames = Frames::default();
        // SAFETY: they are abandoned: the thread has landed.
        run(&mut || unsafe { unwind::frames(registers, &is_end, &mut frames) });
        self.abandoned().frames.set(frames);
    }

    /// Whether that many bytes lie in these frames.
    pub(super) fn is_elsewhere(&self, address: u64, bytes: usize) -> bool {
        self.abandoned().frames.get().hold(address, bytes)
    }

    /// Whether so many bytes below that stack pointer, where the thread was cut short, are nobody else's.
    pub(crate) fn has_room_at(&self, pointer: u64, bytes: usize) -> bool {
        let low = pointer.saturating_sub(bytes as u64);
        let signal_stack = self.abandoned().signal_stack.get();
        if holds(signal_stack, pointer) {
            return holds(signal_stack, low);
        }
        match self.stack_region() {
            Some(stack) if stack.reaches(pointer) => stack.holds(low, bytes),
            _ => {
                self.is_elsewhere(pointer, 0)
                    && !self.signal_stack.holds(pointer, 0)
                    && mappings::is_stack(low, pointer)
            }
        }
    }

    /// Nothing is left to be done about these frames, and the thread has its stack for signal handlers again.
    #[cold]
    pub(crate) fn forget_frames(&self, spare: Option<&Region>) {
        self.abandoned().frames.set(Frames::default());
        self.abandoned().signal_stack.set(NONE);
        if spare.is_some() {
            let _ = signals::enter_signal_stack(&self.signal_stack);
        }
    }
}
