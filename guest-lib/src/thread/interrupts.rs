//! What may cut a request short from outside, an interrupt or its deadline, and when it must wait.

use super::landing::fail_request;
use super::registry::current;
use super::{Phase, Thread};
use crate::failure::Kind;
use crate::os::clock::now;
use crate::os::signals;
use crate::os::sleep::Sleep;
use crate::os::switch;
use crate::state::members::Members;
use std::ffi::c_int;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

/// Time between two polls whether a thread has left the C library.
const RETRY: Duration = Duration::from_micros(500);

/// Polls until a thread is cut short in the C library after all: it may loop there.
const RETRIES: u16 = 400;

/// The first of these only poll.
const LOOKS: u16 = 16;

/// Most instructions that a thread is single-stepped through in one request; after that it is only polled.
const STEPS: u16 = 50_000;

/// How often a thread is told in one request that a system call has failed, if it does nothing else.
const WAYS_OUT: u16 = 25;

/// How long a thread may be single-stepped until the interrupt comes again.
const STEP_LIMIT: Duration = Duration::from_millis(50);

/// How long a thread goes on whose standard stream has failed: it gives back locks, and may unwind its stack.
/// [`WAYS_OUT`] times are less than the second after which the driver fails the request without its thread.
const GRACE: Duration = Duration::from_millis(20);

/// What a thread does that an interrupt has found, and whose request has to end.
#[derive(Debug)]
pub(super) enum Turn {
    /// It goes on, and is looked at again.
    GoesOn,
    /// So it does, and is told that its system call has failed with that error.
    Fails(c_int),
    /// It goes to its landing.
    Lands,
}

/// Runs code that must not be cut short, on a thread with or without a request: see [`Thread::critical`].
pub(crate) fn uninterrupted<T>(code: impl FnOnce() -> T) -> T {
    match current() {
        Some(thread) => thread.critical(code),
        None => code(),
    }
}

/// [`Members::sweep`], not cut short.
pub(crate) fn sweep(members: &Members) -> bool {
    uninterrupted(|| members.sweep())
}

impl Thread {
    pub(crate) fn is_critical(&self) -> bool {
        self.marks.critical.get() > 0
    }

    /// Runs code of the library that interrupts must not cut short; one that came meanwhile takes
    /// effect at the end.
    pub(crate) fn critical<T>(&self, code: impl FnOnce() -> T) -> T {
        self.marks.critical.set(self.marks.critical.get() + 1);
        compiler_fence(Ordering::SeqCst);
        let value = code();
        compiler_fence(Ordering::SeqCst);
        self.marks.critical.set(self.marks.critical.get() - 1);
        self.act_on_pending();
        value
    }

    /// Whether an interrupt cuts short what runs now: the request's function, or a defer that has a limit. Async-signal-safe.
    pub(crate) fn can_be_cut(&self) -> bool {
        match self.phase() {
            Phase::Running => true,
            Phase::Deferring => self.marks.limited.get(),
            Phase::Outside => false,
        }
    }

    /// Fails the request if an interrupt waits, or another thread of it has failed.
    pub(crate) fn act_on_pending(&self) {
        if !self.is_critical() && self.can_be_cut() && self.must_abort() {
            self.set_pending(false);
            fail_request(Kind::Deadline, 0, &[]);
        }
    }

    /// The same where the thread has just come to its request stack: an interrupt of a request that it owns has
    /// come to the thread itself.
    #[inline]
    pub(crate) fn act_on_early(&self) {
        if self.is_pending() || self.slot.get().is_some() {
            self.act_on_pending();
        }
    }

    /// Whether the request is past its deadline. Async-signal-safe.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.get() != 0 && now() >= self.deadline.get()
    }

    /// Whether the request has failed in another thread, or the driver has failed it.
    /// Async-signal-safe.
    fn has_failed(&self) -> bool {
        let tag = self.state().tag();
        tag != 0
            && !self.marks.landed.get()
            && (self.state().has_failed() || self.control.failed() == tag)
    }

    /// The thread has reached its landing: it ignores further interrupts for the request, and starts no
    /// more threads.
    pub(crate) fn land(&self) {
        self.marks.landed.set(true);
        self.state().members.take_back(self.number);
        self.land_in_defer();
    }

    /// What was cut short, a request or one of its defers, may have been critical: an error, unlike an interrupt, cuts that
    /// short too.
    pub(crate) fn land_in_defer(&self) {
        self.marks.critical.set(0);
        self.marks.pending.set(false);
        self.marks.single_stepping.set(false);
        self.found.grace.set(0);
    }

    /// Goes to the landing of what runs on this thread now, without an error.
    ///
    /// # Safety
    ///
    /// The calling code runs under the thread's switch.
    pub(crate) unsafe fn go_to_landing(&self) -> ! {
        self.set_phase(Phase::Outside);
        // SAFETY: by contract.
        unsafe { switch::leap(self.saved()) }
    }

    /// What the thread does, which can be cut short. `can_trap` says whether its traps come to the library. Async-signal-safe.
    pub(super) fn turn(&self, sleep: Sleep, callers: &[u64], can_trap: impl Fn() -> bool) -> Turn {
        if self.fails_standard(sleep, callers) {
            return Turn::Fails(libc::EIO);
        }
        if self.has_grace() {
            return Turn::GoesOn;
        }
        if sleep.is_busy(callers) {
            let waits = self.may_wait(sleep, can_trap);
            return if waits { Turn::GoesOn } else { Turn::Lands };
        }
        if self.lends_stack(sleep.operations(callers)) {
            return Turn::Lands;
        }
        let error = self.way_out(sleep, callers, can_trap);
        error.map_or(Turn::Lands, Turn::Fails)
    }

    /// Whether the interrupt waits until the thread has left the C library: it comes again a little later, or
    /// the thread is single-stepped from now on, if `can_trap` says that its traps come to the library. Not if it has
    /// waited too long already. Async-signal-safe.
    fn may_wait(&self, sleep: Sleep, can_trap: impl FnOnce() -> bool) -> bool {
        let has_single_stepped = self.marks.single_stepping.take();
        if !has_single_stepped {
            self.marks.waited.set(self.marks.waited.get() + 1);
        }
        let (waited, steps) = (self.marks.waited.get(), self.marks.steps.get());
        if waited > RETRIES {
            return false;
        }
        // The alarm is for the case that a handler of the server runs meanwhile and does not return.
        let may_sleep = sleep.may_begin();
        let limit = if may_sleep { RETRY } else { STEP_LIMIT };
        let leads = waited > LOOKS
            && steps < STEPS
            && sleep.can_step()
            && ((has_single_stepped && !may_sleep)
                || (can_trap() && self.alarm.set(self.number, signals::interrupt(), limit)));
        if leads {
            self.marks.steps.set(steps + 1);
            self.marks.single_stepping.set(true);
            return true;
        }
        self.alarm.set(self.number, signals::interrupt(), RETRY)
    }

    /// The error that ends what the thread sleeps in, with which it is single-stepped out of the C library; if `can_trap` says
    /// as above, and not too often in a request. Async-signal-safe.
    fn way_out(
        &self,
        sleep: Sleep,
        callers: &[u64],
        can_trap: impl FnOnce() -> bool,
    ) -> Option<c_int> {
        let steps = self.marks.steps.get();
        if steps >= STEPS {
            return None;
        }
        let error = sleep.way_out(callers)?;
        if !can_trap()
            || !self
                .alarm
                .set(self.number, signals::interrupt(), STEP_LIMIT)
        {
            return None;
        }
        // From here on it is not only polled.
        self.marks
            .waited
            .set(self.marks.waited.get().max(LOOKS + 1));
        self.marks.steps.set(steps + STEPS / WAYS_OUT);
        self.marks.single_stepping.set(true);
        Some(error)
    }

    /// Whether what the thread sleeps in fails, and the thread goes on for a moment: see [`Sleep::uses_standard_descriptor`]. The
    /// request fails also if it ends by itself meanwhile. Not too often in a request. Async-signal-safe.
    fn fails_standard(&self, sleep: Sleep, callers: &[u64]) -> bool {
        let steps = self.marks.steps.get();
        if steps >= STEPS
            || !sleep.uses_standard_descriptor(callers)
            || !self.alarm.set(self.number, signals::interrupt(), GRACE)
        {
            return false;
        }
        self.marks.steps.set(steps + STEPS / WAYS_OUT);
        self.found.grace.set(now() + GRACE.as_nanos() as u64);
        self.set_pending(true);
        true
    }

    /// Whether it still does; the interrupt comes again. Async-signal-safe.
    pub(crate) fn has_grace(&self) -> bool {
        now() < self.found.grace.get() && self.alarm.set(self.number, signals::interrupt(), RETRY)
    }

    /// Whether the thread is being single-stepped out of the C library. Async-signal-safe.
    pub(crate) fn is_single_stepping(&self) -> bool {
        self.marks.single_stepping.get()
    }

    /// Whether the thread was single-stepped in this request: a late trap may be from then.
    /// Async-signal-safe.
    pub(crate) fn has_single_stepped(&self) -> bool {
        self.marks.steps.get() != 0
    }

    /// Limits how long the next function on the request stack may take. False if the kernel has
    /// no timer.
    pub(crate) fn set_limit(&self, limit: Duration) -> bool {
        // It may hang in the C library itself.
        self.marks.waited.set(RETRIES);
        self.marks.pending.set(false);
        self.marks.limited.set(true);
        self.deadline.set(now() + limit.as_nanos() as u64);
        self.alarm.set(self.number, signals::interrupt(), limit)
    }

    /// Takes the limit back.
    pub(crate) fn clear_limit(&self) {
        self.alarm.stop();
        self.deadline.set(0);
        self.marks.limited.set(false);
    }

    /// From here on the driver does not enforce the request's deadline.
    pub(crate) fn clear_driver_deadline(&self) {
        self.control.set_deadline(0);
    }

    /// Whether an interrupt is for the request that the thread works for. Async-signal-safe.
    pub(crate) fn must_end(&self) -> bool {
        self.is_overdue() || self.has_failed()
    }

    pub(super) fn must_abort(&self) -> bool {
        self.is_pending() || self.has_failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::os::switch::LANDED;
    use crate::thread::{current, of};
    use std::ffi::c_void;
    use std::hint::black_box;
    use std::ptr;

    struct Spin<'a> {
        thread: &'a Thread,
        ended: bool,
    }

    /// Runs on the request stack, as a trial of the C library's heap that hangs does.
    unsafe extern "C" fn spin(argument: *mut c_void) -> u32 {
        // SAFETY: the test passes this, which lives until this returns or is cut short.
        let spin = unsafe { &mut *argument.cast::<Spin<'_>>() };
        spin.thread.set_phase(Phase::Running);
        let start = now();
        // Ends by itself if it is not cut short.
        while now() - start < 10_000_000_000 {
            black_box(());
        }
        spin.ended = true;
        spin.thread.set_phase(Phase::Outside);
        0
    }

    #[test]
    fn error_in_critical_code_leaves_interrupts_on() {
        let app = MockBackend::app("error in critical code", |_| ());
        let domain = app.domain("one").unwrap();
        let outcome = domain.run(|_| {
            current().unwrap().critical(|| {
                // SAFETY: it is not; that is the test.
                unsafe { black_box(ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
            });
            Ok(())
        });
        assert_eq!(crate::thread::tests::failure(outcome).address, 16);
        let thread = of(app).unwrap();
        assert!(!thread.is_critical() && !thread.is_pending());
        // What comes next has its time limited, before any other request begins.
        thread.attach_ended(thread.state());
        assert!(thread.set_limit(Duration::from_millis(10)));
        let mut argument = Spin {
            thread,
            ended: false,
        };
        // SAFETY: the request stack is free; spin() does not unwind.
        let code = unsafe { thread.on_request_stack(spin, (&raw mut argument).cast()) };
        thread.clear_limit();
        thread.go_idle();
        assert_eq!((code, argument.ended), (LANDED, false));
    }
}
