//! The functions of `guest-kmod/predict.c`, compiled with stubs around them (`predict.c`).

use crate::stubs;

#[test]
fn pages_written_in_a_row_are_predicted_and_no_others() {
    let functions = [
        "end_row",
        "expected",
        "following",
        "vmsrs_predict",
        "vmsrs_heat_get",
        "add_hot",
        "remove_hot",
        "vmsrs_predict_written",
        "vmsrs_predict_end",
    ];
    stubs::run("predict.c", "predict.c", &functions);
}
