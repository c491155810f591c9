//! Exit of the process inside a request, without a device: a separate test program, whose children exit.

mod common;

use common::domain;
use std::sync::{Condvar, Mutex, mpsc};
use vmsrs::{Request, RunError};

/// Whether the request has failed, once the thread that did not call `exit` is out of it.
static FAILED: Mutex<Option<bool>> = Mutex::new(None);
static OUT: Condvar = Condvar::new();

/// An exit handler as servers have them: waits until no thread works any more.
extern "C" fn at_end() {
    let failed = FAILED.lock().unwrap();
    let failed = OUT.wait_while(failed, |failed| failed.is_none()).unwrap();
    let code = if *failed == Some(true) { 7 } else { 8 };
    // SAFETY: ends the child without touching what it shares with the parent.
    unsafe { libc::_exit(code) }
}

/// Runs code in a child, which ends by itself if it hangs.
fn child_ends_with(code: i32, run: impl FnOnce()) {
    // SAFETY: this program has one other thread, which waits for this one.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: in the child; ends it without touching what it shares with the parent.
        unsafe {
            libc::alarm(20);
            libc::atexit(at_end);
            run();
            libc::_exit(1)
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code,
        "{status:#x}"
    );
}

fn exit() -> ! {
    // SAFETY: as a server calls it.
    unsafe { libc::exit(1) }
}

/// Waits forever in a system call.
fn pause(_: &Request) {
    loop {
        // SAFETY: no conditions.
        unsafe { libc::pause() };
    }
}

/// Says how the request ended, and waits for the end of the process.
fn ended<T, E>(outcome: &Result<T, RunError<E>>) -> ! {
    *FAILED.lock().unwrap() = Some(matches!(outcome, Err(RunError::Failed(_))));
    OUT.notify_all();
    loop {
        std::thread::park();
    }
}

/// A thread owns a request that another one has joined; each says what it does when both are there.
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
fn an_exit_in_a_request_fails_it_on_its_other_threads() {
    child_ends_with(7, || pair(pause, |_| exit()));
    child_ends_with(7, || pair(|_| exit(), pause));
    // The unfinished work of the thread that exits is discarded.
    child_ends_with(7, || pair(|_| (), |_| exit()));
}
