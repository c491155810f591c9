//! The C interface, used by programs that the C compiler of this machine builds.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::Program;

#[test]
fn the_example_survives_its_bug() {
    let text = Program::compile("cc", &[], "examples/notes.c").succeed(&[]);
    assert_eq!(text, "failed: memory at 0x8\nok 1\nok 1\nok 2\n");
}

#[test]
fn every_call_answers_as_its_description_says() {
    Program::compile("cc", &[], "tests/c/calls.c").succeed(&[]);
}
