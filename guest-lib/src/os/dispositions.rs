//! Whose handlers the process has for the signals that the library handles.
//!
//! They are the process's: a request that gives one back (`signal(SIGSEGV, SIG_DFL)`, as crash reporters and interpreters
//! do) takes it from all others. What a server sets up between requests is its own business, and stays.

use super::signals;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

/// Those that were the server's at the last look, by their place among the library's.
static OTHERS: AtomicU32 = AtomicU32::new(0);

/// The signals whose handler is not the library's now, each with its place.
fn others() -> impl Iterator<Item = (usize, c_int)> {
    signals::all_handled()
        .iter()
        .enumerate()
        .filter(|&(_, &signal)| {
            signals::disposition(signal).is_ok_and(|now| !signals::is_ours(&now))
        })
        .map(|(place, &signal)| (place, signal))
}

/// Notes whose handlers there are, between the requests of the calling thread.
pub(crate) fn look() {
    let now = others().fold(0, |all, (place, _)| all | 1 << place);
    OTHERS.store(now, Ordering::Relaxed);
}

/// Puts back the library's handlers that were there at the last look, after a request that has failed.
pub(crate) fn restore() {
    let before = OTHERS.load(Ordering::Relaxed);
    for (_, signal) in others().filter(|(place, _)| before & 1 << place == 0) {
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
