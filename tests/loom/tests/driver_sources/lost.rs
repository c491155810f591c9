//! How `guest-kmod/page.c` handles a loss that the host has reported, compiled with stubs around it (`lost.c`).

use crate::stubs;

#[test]
fn a_late_event_does_not_refuse_a_page_that_is_in_the_same_frame_again() {
    let functions = ["note_lost", "host_lost", "lock_lost", "vmsrs_page_damaged"];
    stubs::run("lost.c", &[("page.c", &functions)]);
}
