//! The functions of `guest-kmod/predict.c`, compiled with stubs around them (`predict.c`).

use crate::stubs;

#[test]
fn pages_written_in_a_row_are_predicted_and_steadily_written_domains_become_hot() {
    let functions = [
        "end_row",
        "expected",
        "following",
        "vmsrs_predict",
        "vmsrs_heat_get",
        "add_hot",
        "remove_hot",
        "find_kept",
        "kept_streak",
        "vmsrs_predict_written",
        "vmsrs_predict_sealed",
        "vmsrs_heat_steady",
        "vmsrs_heat_cooled",
        "vmsrs_predict_end",
    ];
    let inline = ["vmsrs_heat_paid"];
    stubs::run(
        "predict.c",
        &[("vmsrs.h", &inline), ("predict.c", &functions)],
    );
}
