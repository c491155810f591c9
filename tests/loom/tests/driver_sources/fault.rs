//! `thread_write` of `guest-kmod/page.c`, compiled with stubs around it (`fault.c`).

use crate::stubs;

#[test]
fn a_write_fault_that_succeeds_ends_the_wait_for_a_frame() {
    stubs::run("fault.c", &[("page.c", &["note_tag", "thread_write"])]);
}
