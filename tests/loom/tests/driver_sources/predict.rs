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
        "streak_before",
        "vmsrs_predict_written",
        "vmsrs_predict_sealed",
        "vmsrs_heat_steady",
        "vmsrs_heat_paid",
        "vmsrs_heat_cooled",
        "vmsrs_predict_end",
    ];
    stubs::run("predict.c", &[("predict.c", &functions)]);
}
