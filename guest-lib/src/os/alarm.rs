//! A timer that sends the library's signal to its own thread.
//!
//! The kernel's calls are used directly, since the C library's `timer_create` allocates: this is
//! needed where the C library's heap may be locked or half changed.

use std::cell::Cell;
use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr;
use std::time::Duration;

/// One timer of the calling thread, made when it is first set: to make one and take it back costs more than to set it.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    timer: Cell<Option<c_int>>,
    is_set: Cell<bool>,
}

impl Alarm {
    /// Sends `signal` to the calling thread, whose number is `me`, once, after `delay`; both are the same in all calls. False
    /// if the kernel has no timer for it. Async-signal-safe.
    pub(crate) fn set(&self, me: u32, signal: c_int, delay: Duration) -> bool {
        let Some(timer) = self.timer.get().or_else(|| make(me, signal)) else {
            return false;
        };
        self.timer.set(Some(timer));
        self.is_set.set(true);
        set(timer, delay)
    }

    /// Takes the signal back, unless it is on the way already. Async-signal-safe.
    pub(crate) fn stop(&self) {
        if let Some(timer) = self.timer.get()
            && self.is_set.take()
        {
            set(timer, Duration::ZERO);
        }
    }
}

fn make(me: u32, signal: c_int) -> Option<c_int> {
    let mut id: c_int = 0;
    // SAFETY: all zero is a sigevent.
    let mut event: libc::sigevent = unsafe { zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_notify_thread_id = me.cast_signed();
    // SAFETY: reads the event, writes the number, both alive.
    let made = unsafe {
        libc::syscall(
            libc::SYS_timer_create,
            libc::CLOCK_MONOTONIC,
            &raw const event,
            &raw mut id,
        )
    };
    (made == 0).then_some(id)
}

/// No delay: never.
fn set(timer: c_int, delay: Duration) -> bool {
    // SAFETY: all zero is a time.
    let mut time: libc::itimerspec = unsafe { zeroed() };
    time.it_value.tv_sec = delay.as_secs() as libc::time_t;
    time.it_value.tv_nsec = delay.subsec_nanos().into();
    let none = ptr::null_mut::<libc::itimerspec>();
    // SAFETY: reads the time, which is alive.
    unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const time, none) == 0 }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            // SAFETY: a timer of this process, made above.
            unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
        }
    }
}
