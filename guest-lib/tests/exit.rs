//! Calls of exit() in a request, without a device. A test program of its own, in whose children they happen.

mod common;

use common::{domain, null_write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use vmsrs::{Error, Request, RunError};

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

/// Runs code in a child that has an exit handler, and is killed if it hangs.
fn child_ends_with(code: i32, handler: extern "C" fn(), run: impl FnOnce()) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the other threads of this program wait for this one, or begin and end tests.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: in the child, which ends without the parent's exit handlers.
        unsafe {
            libc::alarm(300);
            libc::atexit(handler);
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
    child_ends_with(7, at_end, || pair(pause, |_| exit()));
    child_ends_with(7, at_end, || pair(|_| exit(), pause));
    // The leader returns, but the partial work of the exiting thread is not kept.
    child_ends_with(7, at_end, || pair(|_| (), |_| exit()));
}

/// Whether the other thread's request may end.
static MAY_END: AtomicBool = AtomicBool::new(false);

/// An exit handler that runs a request, then waits for that of another thread.
extern "C" fn finish_others() {
    assert!(domain().run(|_| Ok::<_, ()>(())).is_ok());
    MAY_END.store(true, Ordering::Relaxed);
    at_end()
}

#[test]
fn exit_outside_of_requests_lets_those_of_other_threads_go_on() {
    child_ends_with(8, finish_others, || {
        let (inside, is_inside) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = domain().run(|_| {
                inside.send(()).unwrap();
                while !MAY_END.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                Ok::<_, ()>(())
            });
            ended(&outcome)
        });
        is_inside.recv().unwrap();
        exit()
    });
}

/// What exit handlers have found, a decimal digit each: whether a request can be begun there (1), or one runs there
/// already (2).
static FOUND: AtomicU32 = AtomicU32::new(0);

extern "C" fn find() {
    let digit = match domain().run(|_| Ok::<_, ()>(())) {
        Ok(()) => 1,
        Err(RunError::Refused(Error::Nested)) => 2,
        Err(_) => 3,
    };
    FOUND.store(
        FOUND.load(Ordering::Relaxed) * 10 + digit,
        Ordering::Relaxed,
    );
}

/// The first one that was registered: it runs last.
extern "C" fn find_and_end() {
    find();
    // SAFETY: ends the child without the parent's exit handlers.
    unsafe { libc::_exit(FOUND.load(Ordering::Relaxed) as i32) }
}

fn at_exit(handler: extern "C" fn()) {
    // SAFETY: can be called at any time.
    assert_eq!(unsafe { libc::atexit(handler) }, 0);
}

#[test]
fn exit_handlers_of_a_request_that_were_registered_late_are_a_part_of_it() {
    child_ends_with(21, find_and_end, || {
        let outcome: Result<(), RunError<()>> = domain().run(|_| {
            at_exit(find);
            exit()
        });
        panic!("{outcome:?}");
    });
    // The first request of another thread moves the library's own handler to the front.
    child_ends_with(11, find_and_end, || {
        let outcome: Result<(), RunError<()>> = domain().run(|_| {
            at_exit(find);
            let other = std::thread::spawn(|| domain().run(|_| Ok::<_, ()>(())).is_ok());
            assert!(other.join().unwrap());
            exit()
        });
        panic!("{outcome:?}");
    });
}

extern "C" fn fail() {
    null_write();
}

#[test]
fn an_error_in_a_late_exit_handler_fails_the_request_and_the_exit_with_it() {
    child_ends_with(11, find_and_end, || {
        let outcome: Result<(), RunError<()>> = domain().run(|_| {
            at_exit(fail);
            exit()
        });
        assert!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
        // The handlers that have not run are run by the next one.
        at_exit(find);
        exit()
    });
}
