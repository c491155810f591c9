//! The library's signal handlers, which are the process's. One test, since all requests of a process change them.

mod common;

use common::{domain, failure, null_write, success};
use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr;
use vmsrs::{Options, RunError, Step, Task};

fn handler(signal: c_int) -> usize {
    // SAFETY: reads the disposition.
    unsafe {
        let mut action = zeroed::<libc::sigaction>();
        assert_eq!(libc::sigaction(signal, ptr::null(), &raw mut action), 0);
        action.sa_sigaction
    }
}

fn give_back(signals: &[c_int]) {
    for &signal in signals {
        // SAFETY: the default disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

#[test]
fn handlers_that_a_failed_request_has_taken_away_are_put_back() {
    let signals = [libc::SIGSEGV, libc::SIGABRT, libc::SIGRTMAX()];
    let domain = domain();
    success(domain, |_| ());
    let ours = signals.map(handler);
    assert!(ours.iter().all(|&handler| handler == ours[0]));
    failure(domain, |request| {
        give_back(&signals);
        request.fail("on purpose");
    });
    assert_eq!(signals.map(handler), ours);
    failure(domain, |_| null_write());
    // What the server does between requests stays, once it was looked at.
    give_back(&[libc::SIGABRT]);
    for _ in 0..64 {
        success(domain, |_| ());
    }
    failure(domain, |_| {
        give_back(&[libc::SIGRTMAX()]);
        null_write();
    });
    assert_eq!(signals.map(handler), [ours[0], libc::SIG_DFL, ours[0]]);
    // Nor is it undone by a step of a request, some of which look at it.
    let mut task = Task::new(domain, Options::default()).unwrap();
    assert_eq!(task.step(|_| Step::<()>::Suspend).unwrap(), Step::Suspend);
    give_back(&[libc::SIGRTMAX()]);
    for _ in 0..16 {
        assert_eq!(task.step(|_| Step::<()>::Suspend).unwrap(), Step::Suspend);
    }
    let outcome = task.step(|request| -> Step<()> { request.fail("on purpose") });
    assert!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    let expected = [ours[0], libc::SIG_DFL, libc::SIG_DFL];
    assert_eq!(signals.map(handler), expected);
}
