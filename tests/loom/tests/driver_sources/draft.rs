//! `take_filled` of `guest-kmod/drafts.c`, with what it calls in `pool.c`, compiled with stubs around it (`draft.c`).

use crate::stubs;

#[test]
fn a_broken_pool_frame_is_left_out_and_a_broken_vault_frame_is_an_error() {
    stubs::run(
        "draft.c",
        &[
            ("pool.c", &["vmsrs_pool_put_unfilled"]),
            ("drafts.c", &["fill", "fill_frame", "take_filled"]),
        ],
    );
}
