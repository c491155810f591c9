//! What requests have done once they are committed.

mod common;
#[path = "common/compiled.rs"]
mod compiled;

use common::{domain, failure, null_write};
use compiled::Program;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use vmsrs::{Error, RunError};

/// Runs that part of the program.
fn in_c(mode: &str) {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| Program::compile("cc", &[], "tests/c/on_commit.c"));
    program.succeed(&[mode]);
}

#[test]
fn functions_are_called_in_order_after_the_commit_and_only_then() {
    in_c("order");
}

#[test]
fn function_after_a_commit_may_run_requests() {
    in_c("nested");
}

#[test]
fn functions_of_all_threads_are_called_by_the_one_that_ends_the_request() {
    in_c("threads");
}

#[test]
fn functions_of_all_steps_are_called_after_the_last_one() {
    in_c("steps");
}

#[test]
fn child_of_a_fork_calls_none_of_its_parents_functions() {
    in_c("forks");
}

#[test]
fn list_of_functions_has_a_limit_and_is_emptied() {
    in_c("limit");
}

#[test]
fn error_in_a_function_after_the_commit_is_the_processs() {
    in_c("errors");
}

#[test]
fn stray_write_to_the_list_of_functions_fails_the_request() {
    in_c("strays");
}

/// Counts drops and calls.
#[derive(Clone, Default)]
struct Counts {
    drops: Arc<AtomicU32>,
    calls: Arc<AtomicU32>,
}

struct Owned(Counts);

impl Owned {
    fn call(&self) {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.drops.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn closures_are_called_once_or_dropped() {
    let domain = domain();
    let counts = Counts::default();
    let after = |request: &vmsrs::Request| {
        let owned = Owned(counts.clone());
        request.on_commit(move || owned.call()).unwrap();
    };
    let both = || {
        (
            counts.calls.swap(0, Ordering::SeqCst),
            counts.drops.swap(0, Ordering::SeqCst),
        )
    };
    domain
        .run(|request| {
            after(request);
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(both(), (1, 1));
    let failure = failure(domain, |request| {
        after(request);
        null_write();
    });
    assert_eq!((both(), failure.defers_failed), ((0, 1), 0));
    let given_up = domain.run(|request| {
        after(request);
        Err::<(), _>(Error::Nested)
    });
    assert!(matches!(given_up, Err(RunError::GivenUp(Error::Nested))));
    assert_eq!(both(), (0, 1));
}

struct CrashesInDrop;

impl Drop for CrashesInDrop {
    fn drop(&mut self) {
        null_write();
    }
}

#[test]
fn error_in_dropping_a_forgotten_function_ends_only_that() {
    let failure = failure(domain(), |request| {
        let owned = CrashesInDrop;
        request.on_commit(move || drop(owned)).unwrap();
        null_write();
    });
    assert_eq!(failure.defers_failed, 1);
}

#[test]
fn panic_in_a_function_after_the_commit_goes_on_from_run() {
    let domain = domain();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        domain.run(|request| request.on_commit(|| panic!("after the commit")))
    }));
    let payload = outcome.unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"after the commit"));
    domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
}
