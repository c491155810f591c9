//! Whose handlers the process has for the signals that the library handles.
//!
//! They are the process's: a request that gives one back (`signal(SIGSEGV, SIG_DFL)`, as crash reporters and interpreters
//! do) takes it from all others. What a server sets up between requests is its own business, and stays.

use super::signals::{self, Signals};
use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

/// Those of the library's signals that had another handler at the last look, as [`Signals`] has them.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// The signals that the library handles, and whose handler is another one now. Takes a system call for each; the driver tells the
/// same of a failed request.
pub(crate) fn others() -> Signals {
    let is_other =
        |signal: c_int| signals::disposition(signal).is_ok_and(|now| !signals::is_ours(&now));
    let all = signals::all_handled().iter().copied();
    all.filter(|&signal| is_other(signal))
        .fold(Signals::default(), |all, signal| {
            all.with(Signals::of(signal))
        })
}

/// Notes whose handlers there are, between the requests of the calling thread.
pub(crate) fn look() {
    OTHERS.store(others().bits(), Ordering::Relaxed);
}

/// Puts back the library's handlers that were there at the last look, after a request that has failed. `others`: see
/// [`others`].
pub(crate) fn restore(others: Signals) {
    let lost = others.without(Signals::from_bits(OTHERS.load(Ordering::Relaxed)));
    if lost.are_none() {
        return;
    }
    let all = signals::all_handled().iter();
    for &signal in all.filter(|&&signal| lost.has(signal)) {
        signals::take(signal);
    }
}

/// Whether this process is a child that has the handlers of its parent (`CLONE_SIGHAND`): what it changes of them, the
/// parent has changed. Async-signal-safe.
pub(crate) fn are_the_parents() -> bool {
    const KCMP_SIGHAND: c_int = 4;
    // SAFETY: only compares.
    unsafe {
        let (this, parent) = (libc::getpid(), libc::getppid());
        libc::syscall(libc::SYS_kcmp, this, parent, KCMP_SIGHAND, 0, 0) == 0
    }
}

/// Ends this process, without a change of any handler. Async-signal-safe.
pub(crate) fn end_child() {
    // SAFETY: ends the process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}
