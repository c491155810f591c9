//! Variables outside of domains that go back when their request fails.

mod common;
#[path = "common/compiled.rs"]
mod compiled;

use common::{domain, failure, null_write};
use compiled::Program;
use std::sync::OnceLock;

/// Runs that part of the program.
fn in_c(mode: &str) {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| Program::compile("cc", &[], "tests/c/keep.c"));
    program.succeed(&[mode]);
}

#[test]
fn variables_go_back_when_the_request_fails_or_is_given_up() {
    in_c("ends");
}

#[test]
fn what_cannot_be_kept_or_put_back_is_told() {
    in_c("wrong");
}

#[test]
fn variables_that_threads_and_steps_have_changed_go_back() {
    in_c("threads and steps");
}

#[test]
fn variables_go_back_before_their_mutex_is_released() {
    in_c("locked");
}

#[test]
fn child_of_a_fork_keeps_what_its_parent_puts_back() {
    in_c("forks");
}

#[test]
fn variable_of_the_caller_goes_back() {
    let mut pair = (1u8, 2u64);
    let place = &raw mut pair;
    let failure = failure(domain(), |request| {
        // SAFETY: it lives longer than the request, and may have its old value.
        unsafe {
            request.keep(place).unwrap();
            *place = (3, 4);
        }
        null_write();
    });
    assert_eq!(failure.defers_failed, 0);
    // SAFETY: the variable above.
    assert_eq!(unsafe { place.read() }, (1, 2));
}
