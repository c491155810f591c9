//! Calls of exit() in a request, without a device. A test program of its own, in whose children they happen.

mod common;

use common::domain;
use std::sync::{Condvar, Mutex, mpsc};
use vmsrs::{Request, RunError};

/// Whether the request has failed; set when the thread that has not called `exit` leaves it.
static FAILED: Mutex<Option<bool>> = Mutex::new(None);
static LEFT: Condvar = Condvar::new();

/// An exit handler that waits until no thread is in the request, as those of servers do.
extern "C" fn at_end() {
    let failed = FAILED.lock().unwrap();
    let failed = LEFT.wait_while(failed, |failed| failed.is_none()).unwrap();
    let code = if *failed == Some(true) { 7 } else { 8 };
    // SAFETY: ends the child without the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// Runs code in a child, which is killed if it hangs.
fn child_ends_with(code: i32, run: impl FnOnce()) {
    // SAFETY: this program has one other thread, which waits for this one.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: in the child, which ends without the parent's exit handlers.
        unsafe {
            libc::alarm(300);
            libc::atexit(at_end);
            run();
            libc::_exit(1)
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code,
        "{status:#x}"
    );
}

fn exit() -> ! {
    // SAFETY: exit handlers of this program may run on any thread.
    unsafe { libc::exit(1) }
}

/// Waits in a system call that never returns.
fn pause(_: &Request) {
    loop {
        // SAFETY: always sound.
        unsafe { libc::pause() };
    }
}

/// Records how the request ended, and waits for the end of the process.
fn ended<T, E>(outcome: &Result<T, RunError<E>>) -> ! {
    *FAILED.lock().unwrap() = Some(matches!(outcome, Err(RunError::Failed(_))));
    LEFT.notify_all();
    loop {
        std::thread::park();
    }
}

/// Runs `leader` in a request and `member` on a thread that has joined it, once both are in the request.
fn pair(leader: impl FnOnce(&Request), member: impl FnOnce(&Request) + Send + 'static) {
    let domain = domain();
    let outcome = domain.run(|request| {
        let ticket = request.ticket().unwrap();
        let (inside, is_inside) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = ticket.join(|request| {
                inside.send(()).unwrap();
                member(request);
            });
            ended(&outcome)
        });
        is_inside.recv().unwrap();
        leader(request);
        Ok::<_, ()>(())
    });
    ended(&outcome)
}

#[test]
fn exit_in_request_fails_it_on_other_threads() {
    child_ends_with(7, || pair(pause, |_| exit()));
    child_ends_with(7, || pair(|_| exit(), pause));
    // The leader returns, but the partial work of the exiting thread is not kept.
    child_ends_with(7, || pair(|_| (), |_| exit()));
}
