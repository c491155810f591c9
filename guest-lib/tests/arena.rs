//! Memory of requests outside of domains.

mod common;
#[path = "common/compiled.rs"]
mod compiled;

use common::{domain, failure};
use compiled::Program;
use std::sync::OnceLock;
use vmsrs::Kind;

/// Runs that part of the program.
fn in_c(mode: &str) {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| Program::compile("cc", &[], "tests/c/arena.c"));
    program.succeed(&[mode]);
}

#[test]
fn length_that_is_longer_than_its_input_is_found_at_the_first_byte() {
    in_c("inputs");
}

#[test]
fn arena_is_kept_until_the_threads_next_request_begins() {
    in_c("keeps");
}

#[test]
fn functions_after_the_commit_have_the_arena_also_if_they_run_requests() {
    in_c("answers");
}

#[test]
fn overrun_of_a_block_of_a_kept_arena_fails_the_request() {
    in_c("zones");
}

#[test]
fn arena_can_be_made_larger() {
    in_c("sizes");
}

#[test]
fn step_of_a_task_keeps_its_arena() {
    in_c("steps");
}

#[test]
fn input_in_rust_ends_at_a_guard_page() {
    let failure = failure(domain(), |request| {
        let packet = request.arena().input(b"packet").unwrap();
        // SAFETY: it is not; that is the test.
        unsafe { std::hint::black_box(packet.as_ptr().wrapping_add(6)).read_volatile() };
    });
    assert_eq!(failure.kind, Kind::Memory);
}
