//! What Rust's library keeps of a panic that was cut short in its hook, or before it, where the message is made: that the thread is
//! in a hook, in which another panic would abort; that it is panicking; and its locks, for which every later panic would wait.

use super::aside;
use super::end::abort_process;
use crate::thread::Thread;
use std::backtrace::Backtrace;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::time::Duration;

/// How long the locks may be in use by others: symbols of a large program take long to load.
const PATIENCE: Duration = Duration::from_secs(20);

/// Puts right what the thread has left. Its heap works. `ran`: the hook itself was cut short.
pub(super) fn put_right(thread: &Thread, ran: bool) {
    // The end of a panic takes one from the thread's count, and ends the hook. The beginning of one that has no hook adds one, but
    // not where the thread is in a hook. So nothing changes for a panic that was cut short while frames were unwound.
    aside::run(thread, &mut || {
        let _ = catch_unwind(|| resume_unwind(Box::new(())));
    });
    thread.discount_panics(|work| {
        aside::run(thread, work);
    });
    if ran && !locks_work() {
        abort_process(b"vmsrs: a panic hook that was cut short has left a lock of Rust's library");
    }
}

/// Whether another thread can print, and make a backtrace.
fn locks_work() -> bool {
    let (done, wait) = mpsc::channel();
    let started = std::thread::Builder::new().spawn(move || {
        drop(std::io::stderr().lock());
        drop(Backtrace::force_capture());
        let _ = done.send(());
    });
    started.is_err() || wait.recv_timeout(PATIENCE).is_ok()
}
