//! An error in the middle of a panic costs its request: later panics, of any thread, are as ever. Processes of their own: the test
//! harness takes the hook, and nobody can after a panic was cut short.

#[path = "common/child.rs"]
mod child;
mod common;

use child::in_a_child;
use common::{domain, failure, null_write, success};
use std::fmt;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use vmsrs::Kind;

/// Printing it is an error.
struct Wild;

impl fmt::Display for Wild {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        null_write();
        Ok(())
    }
}

/// Panics, and prints, on this thread and on another one, in requests and outside of them.
fn all_goes_on() {
    // SAFETY: a hang fails the test.
    unsafe { libc::alarm(600) };
    let works = || {
        let domain = domain();
        let failure = failure(domain, |_| panic!("after it"));
        assert_eq!((failure.kind, &*failure.message), (Kind::Panic, "after it"));
        success(domain, |_| ());
        assert!(!std::thread::panicking());
        println!("after it");
        eprintln!("after it");
        assert!(panic::catch_unwind(|| panic!("outside")).is_err());
        drop(std::backtrace::Backtrace::force_capture());
    };
    works();
    std::thread::spawn(works).join().unwrap();
}

/// The next hook is an error.
static CRASH: AtomicBool = AtomicBool::new(false);

#[test]
fn error_in_a_panic_hook_costs_its_request() {
    in_a_child("error_in_a_panic_hook_costs_its_request", || {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |information: &PanicHookInfo<'_>| {
            if CRASH.swap(false, Ordering::Relaxed) {
                null_write();
            }
            previous(information);
        }));
        let domain = domain();
        CRASH.store(true, Ordering::Relaxed);
        let failure = failure(domain, |_| panic!("on purpose"));
        assert_eq!(failure.kind, Kind::Memory);
        all_goes_on();
    });
}

#[test]
fn error_in_what_a_panic_says_costs_its_request() {
    in_a_child("error_in_what_a_panic_says_costs_its_request", || {
        let failure = failure(domain(), |_| panic!("on purpose: {Wild}"));
        assert_eq!(failure.kind, Kind::Memory);
        all_goes_on();
    });
}
