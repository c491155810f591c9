//! The sandbox of `vmsrs run`.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use vmsrs_host::control::{Client, Request};

use super::{Place, list, start_vm_with};

/// Names of the threads of a process that have, or lack, filters of system calls.
fn threads(process: &Child, are_confined: bool) -> Vec<String> {
    let tasks = list(Path::new(&format!("/proc/{}/task", process.id())));
    let chosen = tasks.iter().filter(|task| {
        // A thread that has ended meanwhile has no file.
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        status.contains("\nSeccomp:\t2\n") == are_confined && !status.is_empty()
    });
    let names = chosen.filter_map(|task| fs::read_to_string(task.join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

fn stop(place: &Place, vm: Child) -> String {
    let mut client = Client::connect(Path::new(&place.path("vm.sock"))).unwrap();
    client.ask(Request::Stop {}).unwrap();
    let output = vm.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn every_thread_of_a_running_vm_is_confined() {
    let place = Place::new();
    let Some(vm) = start_vm_with(&place, &[], Stdio::piped()) else {
        return;
    };
    // The main thread is the last: its virtual CPUs have its filters.
    while !threads(&vm, true).iter().any(|name| name == "vcpu0") {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(threads(&vm, false), Vec::<String>::new());
    let said = stop(&place, vm);
    assert!(!said.contains("sandbox"), "{said}");
}

#[test]
fn without_the_sandbox_no_thread_is_confined_and_a_warning_says_so() {
    let place = Place::new();
    let Some(vm) = start_vm_with(&place, &["--sandbox", "off"], Stdio::piped()) else {
        return;
    };
    let tests_are_confined = fs::read_to_string("/proc/self/status")
        .unwrap()
        .contains("\nSeccomp:\t2\n");
    if !tests_are_confined {
        assert_eq!(threads(&vm, true), Vec::<String>::new());
    }
    assert!(stop(&place, vm).contains("the sandbox is off"));
}
