//! `take_filled` of `guest-kmod/drafts.c`, compiled with stubs around it (`draft.c`).

use crate::stubs;

#[test]
fn a_broken_pool_frame_is_left_out_and_a_broken_vault_frame_is_an_error() {
    stubs::run(
        "draft.c",
        "drafts.c",
        &["fill", "fill_frame", "take_filled"],
    );
}
