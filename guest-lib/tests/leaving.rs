//! Requests that are left by `longjmp`, and signal handlers of the server in the middle of requests.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::Program;
use std::sync::OnceLock;

/// Runs that part of the program, in its first thread and in another one.
fn run(mode: &str) {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| Program::compile("cc", &[], "tests/c/leaving.c"));
    program.succeed(&[mode]);
}

#[test]
fn request_left_by_longjmp_fails_and_its_thread_goes_on() {
    run("requests");
    run("steps");
    run("member");
}

#[test]
fn any_call_ends_a_request_that_was_left() {
    run("calls");
}

#[test]
fn request_left_by_longjmp_ends_with_its_thread_and_process() {
    run("end");
    run("exit");
}

#[test]
fn request_left_by_longjmp_may_miss_its_deadline() {
    run("deadline");
}

#[test]
fn defers_after_one_that_is_left_are_run() {
    run("defers");
}

#[test]
fn signal_handler_that_never_returns_costs_its_request() {
    run("handler");
}

/// It was blocked when the request failed, and waits for the thread on its way to the landing, or there.
#[test]
fn signal_that_waits_for_a_failed_request_may_leave_it_for_good() {
    run("landing");
}

#[test]
fn error_in_signal_handler_costs_the_interrupted_request() {
    run("failing-handler");
}

#[test]
fn error_in_signal_handler_ends_it_where_the_library_was_interrupted() {
    run("failing-handler-in-library");
}
