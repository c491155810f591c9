//! What failed requests have done to their process.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::Program;

fn process(what: &str) {
    for flags in [&[][..], &["-static"]] {
        Program::compile("cc", flags, "tests/c/process.c").succeed(&[what]);
    }
}

#[test]
fn timers_and_keys_that_a_request_deletes_by_mistake_are_not_the_librarys() {
    process("numbers");
}

#[test]
fn a_request_that_uses_up_all_timers_takes_none_from_the_library() {
    process("timers");
}

#[test]
fn mutexes_in_a_domain_work_between_threads() {
    process("mutexes");
}

#[test]
fn settings_of_the_process_that_a_failed_request_changes_stay() {
    process("settings");
}
