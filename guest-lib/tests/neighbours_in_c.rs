//! What a failed request, a child or a plug-in does to the rest of its process: nothing. C programs without a device.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::Program;

#[test]
fn children_that_share_memory_have_no_part_in_the_request() {
    let children = Program::compile("cc", &[], "tests/c/children.c");
    for deed in ["crash", "abort", "raise", "fail", "exit", "run", "commit", "free"] {
        children.succeed(&["vfork", deed]);
        children.succeed(&["clone", deed]);
    }
}
