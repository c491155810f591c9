//! What may cut a request short from outside, an interrupt or its deadline, and when it must wait.

use super::landing::fail_request;
use super::registry::current;
use super::{Phase, Thread};
use crate::failure::Kind;
use crate::os::clib;
use crate::os::clock::now;
use crate::os::signals;
use crate::state::members::Members;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

/// Time between two looks whether a thread has left the C library.
const RETRY: Duration = Duration::from_micros(500);

/// Looks until a thread is cut short in the C library after all: it may loop there.
const RETRIES: u32 = 400;

/// Of these, the first ones that only look.
const LOOKS: u32 = 16;

/// Instructions that a thread is led through in one request; who needs more is only looked at.
const STEPS: u32 = 50_000;

/// How long a thread may be led until the interrupt comes again.
const LEAD: Duration = Duration::from_millis(50);

/// Runs code that must not be cut short on any thread, in a request or not: see [`Thread::critical`].
pub(crate) fn uncut<T>(code: impl FnOnce() -> T) -> T {
    match current() {
        Some(thread) => thread.critical(code),
        None => code(),
    }
}

/// [`Members::sweep`], not cut short.
pub(crate) fn sweep(members: &Members) -> bool {
    uncut(|| members.sweep())
}

impl Thread {
    pub(crate) fn is_critical(&self) -> bool {
        self.critical.get() > 0
    }

    /// Runs code of the library that interrupts must not cut short; one that came meanwhile takes
    /// effect at the end.
    pub(crate) fn critical<T>(&self, code: impl FnOnce() -> T) -> T {
        self.critical.set(self.critical.get() + 1);
        compiler_fence(Ordering::SeqCst);
        let value = code();
        compiler_fence(Ordering::SeqCst);
        self.critical.set(self.critical.get() - 1);
        self.act_on_pending();
        value
    }

    /// Fails the request if an interrupt waits, or another thread of it has failed.
    pub(crate) fn act_on_pending(&self) {
        if !self.is_critical() && self.phase() == Phase::Running && self.is_doomed() {
            self.set_pending(false);
            fail_request(Kind::Deadline, 0, &[]);
        }
    }

    /// Whether the request is past its deadline. Async-signal-safe.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.get() != 0 && now() >= self.deadline.get()
    }

    /// Whether the request has failed, by another thread of it or by the driver's word.
    /// Async-signal-safe.
    fn has_failed(&self) -> bool {
        let tag = self.state().tag();
        tag != 0
            && !self.landed.get()
            && (self.state().has_failed() || self.control.failed() == tag)
    }

    /// The thread has come to its landing: further interrupts for the request tell it nothing, and it
    /// starts no threads any more.
    pub(crate) fn land(&self) {
        self.landed.set(true);
        self.state().members.take_back();
        // An error, unlike an interrupt, cuts critical code short.
        self.critical.set(0);
        self.pending.set(false);
        self.led.set(false);
    }

    /// Whether the interrupt waits until the thread has left the C library: it comes again a little later, or
    /// the thread is led from now on, if `can_trap` says that its traps come to the library. Not if it has
    /// waited too long already. `instruction` is the next one, `number` RAX. Async-signal-safe.
    pub(crate) fn may_wait(
        &self,
        instruction: u64,
        number: u64,
        can_trap: impl FnOnce() -> bool,
    ) -> bool {
        let was_led = self.led.take();
        if !was_led {
            self.waited.set(self.waited.get() + 1);
        }
        let (waited, steps) = (self.waited.get(), self.steps.get());
        if waited > RETRIES {
            return false;
        }
        // The alarm is for a handler of the server that strikes meanwhile, and does not return.
        let leads = waited > LOOKS
            && steps < STEPS
            && clib::can_step(instruction, number)
            && (was_led || (can_trap() && self.alarm.set(signals::interrupt(), LEAD)));
        if leads {
            self.steps.set(steps + 1);
            self.led.set(true);
            return true;
        }
        self.alarm.set(signals::interrupt(), RETRY)
    }

    /// Whether the thread is led out of the C library, instruction by instruction. Async-signal-safe.
    pub(crate) fn is_led(&self) -> bool {
        self.led.get()
    }

    /// Whether the thread was led in this request: a trap may be from then, behind a handler of the server.
    /// Async-signal-safe.
    pub(crate) fn was_led(&self) -> bool {
        self.steps.get() != 0
    }

    /// Limits the time of what the library runs on the request stack next. False if the kernel has
    /// no timer.
    pub(crate) fn set_limit(&self, limit: Duration) -> bool {
        // It may hang in the C library itself.
        self.waited.set(RETRIES);
        self.pending.set(false);
        self.deadline.set(now() + limit.as_nanos() as u64);
        self.alarm.set(signals::interrupt(), limit)
    }

    /// Takes the limit back.
    pub(crate) fn clear_limit(&self) {
        self.alarm.stop();
        self.deadline.set(0);
    }

    /// From here on the driver does not hold the request to its deadline.
    pub(crate) fn meet_deadline(&self) {
        self.control.set_deadline(0);
    }

    /// Whether an interrupt is for the request that the thread works for. Async-signal-safe.
    pub(crate) fn must_end(&self) -> bool {
        self.is_overdue() || self.has_failed()
    }

    pub(super) fn is_doomed(&self) -> bool {
        self.is_pending() || self.has_failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Hooked;
    use crate::thread::{current, of};
    use std::ffi::c_void;
    use std::hint::black_box;
    use std::ptr;

    struct Spin<'a> {
        thread: &'a Thread,
        ended: bool,
    }

    /// Runs on the request stack, as a trial of the C library's heap that hangs does.
    unsafe extern "C" fn spin(argument: *mut c_void) {
        // SAFETY: the test passes this, which lives until this returns or is cut short.
        let spin = unsafe { &mut *argument.cast::<Spin<'_>>() };
        spin.thread.set_phase(Phase::Running);
        let start = now();
        // Ends by itself if nobody cuts it short.
        while now() - start < 10_000_000_000 {
            black_box(());
        }
        spin.ended = true;
        spin.thread.set_phase(Phase::Ending);
    }

    #[test]
    fn an_error_in_critical_code_leaves_interrupts_on() {
        let app = Hooked::app("error in critical code", |_| ());
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
        thread.attend(thread.state());
        assert!(thread.set_limit(Duration::from_millis(10)));
        let mut argument = Spin {
            thread,
            ended: false,
        };
        // SAFETY: the request stack is free; spin() does not unwind.
        let cut = unsafe { thread.on_request_stack(spin, (&raw mut argument).cast()) };
        thread.clear_limit();
        thread.rest();
        assert!(cut && !argument.ended);
    }
}
