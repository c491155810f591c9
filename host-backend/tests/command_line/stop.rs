//! `vmsrs stop`, with guests that do not react to their power button.

use std::process::Output;

use super::{Place, UNREACHABLE, USAGE, assert_sentence, report, start_vm, vmsrs};

const TIMED_OUT: i32 = 10;

fn stop(place: &Place, arguments: &[&str]) -> Output {
    let mut command = vmsrs();
    command.args(["stop", "--socket", &place.path("vm.sock")]);
    command.args(arguments).output().unwrap()
}

#[test]
fn a_guest_that_ignores_its_power_button_runs_on_until_it_is_forced() {
    let place = Place::new();
    let Some(mut vm) = start_vm(&place) else {
        return;
    };
    let output = stop(&place, &["--timeout", "0"]);
    assert_sentence(&output, TIMED_OUT, &["runs on", "--force"]);
    assert_eq!(vm.try_wait().unwrap(), None);
    let output = stop(&place, &["--timeout", "0", "--force", "--json"]);
    assert_sentence(&output, 0, &["was ended"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["forced"], true);
    // It has ended when the command has.
    assert!(vm.try_wait().unwrap().is_some());
    assert_eq!(report(&place, vm)["reason"], "stopped");
}

#[test]
fn a_vm_that_does_not_run_cannot_be_stopped() {
    let place = Place::new();
    assert_sentence(&stop(&place, &[]), UNREACHABLE, &["vm.sock", "vmsrs run"]);
    let output = vmsrs().args(["stop", "../vm"]).output().unwrap();
    assert_sentence(&output, USAGE, &["not a valid VM name"]);
    let output = vmsrs().args(["stop", "a", "--name", "b"]).output().unwrap();
    assert_eq!(output.status.code(), Some(USAGE));
}
