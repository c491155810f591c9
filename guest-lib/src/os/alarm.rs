//! A timer that sends the library's signal to its own thread.
//!
//! A request that deletes a timer by a number that it has never been given, 0 for example, is not to hit one of these: the kernel
//! counts the numbers up in a process, and the first [`SKIPPED`] are taken and given back. One that is deleted all the same is
//! made again. A process can have a limited number of them (`RLIMIT_SIGPENDING`), which a request may use up: one is kept, to be
//! given up for the thread that needs one.
//!
//! The kernel's calls are used directly, since the C library's `timer_create` allocates: this is
//! needed where the C library's heap may be locked or half changed.

use super::identity::thread_number;
use crate::error::Error;
use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Numbers that no timer of the library has.
const SKIPPED: c_int = 1000;

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
        self.is_set.set(true);
        if self.timer.get().is_some_and(|timer| set(timer, delay)) {
            return true;
        }
        self.timer
            .set(make(me, signal).or_else(|| make_of_spare(me, signal)));
        self.timer.get().is_some_and(|timer| set(timer, delay))
    }

    /// Takes the signal back, unless it is on the way already. Async-signal-safe.
    pub(crate) fn stop(&self) {
        if let Some(timer) = self.timer.get()
            && self.is_set.take()
        {
            set(timer, Duration::ZERO);
            if SPARE.load(Ordering::Relaxed) == NONE && !keep_spare() {
                // The next thread may need it more.
                self.timer.set(None);
                delete(timer);
                keep_spare();
            }
        }
    }
}

/// A timer that is never set, or this.
const NONE: c_int = -1;
static SPARE: AtomicI32 = AtomicI32::new(NONE);

/// False if there is no timer for it.
fn keep_spare() -> bool {
    let Some(spare) = make(thread_number(), libc::SIGURG) else {
        return false;
    };
    let kept = SPARE.compare_exchange(NONE, spare, Ordering::Relaxed, Ordering::Relaxed);
    if kept.is_err() {
        delete(spare);
    }
    true
}

fn make_of_spare(me: u32, signal: c_int) -> Option<c_int> {
    let spare = SPARE.swap(NONE, Ordering::Relaxed);
    (spare != NONE).then(|| delete(spare));
    make(me, signal)
}

/// Takes the first numbers, once in a process, before any timer is set.
///
/// # Errors
///
/// [`Error::System`] if the process may have none.
pub(crate) fn install() -> Result<(), Error> {
    for _ in 0..SKIPPED {
        let spare = make(thread_number(), libc::SIGURG);
        let spare =
            spare.ok_or_else(|| Error::system("making a timer")(io::Error::last_os_error()));
        delete(spare?);
    }
    keep_spare();
    Ok(())
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
            delete(timer);
        }
    }
}

fn delete(timer: c_int) {
    // SAFETY: a timer of this process, made above.
    unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_others_delete_is_made_again() {
        let (alarm, me) = (Alarm::default(), thread_number());
        let set = || alarm.set(me, libc::SIGURG, Duration::from_secs(1000));
        install().unwrap();
        assert!(set());
        let timer = alarm.timer.get().unwrap();
        assert!(timer >= SKIPPED - 1, "{timer}");
        delete(timer);
        assert!(set());
        assert_ne!(alarm.timer.get(), Some(timer));
    }
}
