//! `vmsrs run --config FILE`.

use std::path::Path;
use std::process::Output;

use super::{Place, USAGE, assert_sentence, vmsrs};

/// `vmsrs run` with a configuration file of this content, and more arguments.
fn run(place: &Place, content: &str, arguments: &[&str]) -> Output {
    let path = place.file("vm.toml", content.as_bytes());
    let mut command = vmsrs();
    command.args(["run", "--config", &path]).args(arguments);
    command.output().unwrap()
}

#[test]
fn options_come_from_the_file_unless_the_command_line_has_them() {
    let place = Place::new();
    let kernel = place.kernel();
    let socket = place.path("vm.sock");
    let content = format!(
        "kernel = \"{kernel}\"\nsocket = \"{socket}\"\nconsole = \"none\"\nwindow = \"64K\"\nvcpus = 65\n"
    );
    // What is refused first shows which value counts.
    let output = run(&place, &content, &[]);
    assert_sentence(&output, USAGE, &["65", "--vcpus"]);
    let output = run(&place, &content, &["--vcpus", "2"]);
    assert_sentence(&output, USAGE, &["a window of 64K is too small"]);
    let output = run(&place, &content, &["--vcpus", "2", "--window", "1M"]);
    assert_sentence(&output, USAGE, &[&kernel, "does not load"]);
    let missing = [
        "--vcpus",
        "2",
        "--window",
        "1M",
        "--kernel",
        "/no/such/kernel",
    ];
    let output = run(&place, &content, &missing);
    assert_sentence(&output, USAGE, &["/no/such/kernel"]);
    assert!(!Path::new(&socket).exists());
}

#[test]
fn switches_of_the_file_can_be_turned_off() {
    let place = Place::new();
    let content = "kernel = \"/no/such/kernel\"\njson = true\nhugepages = true\nwindow = \"7M\"\n";
    let output = run(&place, content, &[]);
    assert_sentence(&output, USAGE, &["--window must be a multiple of 2M"]);
    assert!(output.stdout.starts_with(b"{\"error\":"));
    let output = run(&place, content, &["--json=false", "--hugepages=false"]);
    assert_sentence(&output, USAGE, &["/no/such/kernel"]);
    assert!(output.stdout.is_empty());
}

#[test]
fn mistakes_in_the_file_are_named_with_line_and_column() {
    let place = Place::new();
    for (content, words) in [
        (
            "vcpus = 1\nmemry = \"1G\"\n",
            &[":2:1: ", "did you mean `memory`"][..],
        ),
        ("\n  memory = \"lots\"\n", &[":2:12: ", "for example 512M"]),
        ("vcpus = \"two\"", &[":1:9: ", "a whole number"]),
        ("kernel = \"\u{fc}\" x", &[":1:14: ", "KEY = VALUE"]),
    ] {
        let output = run(&place, content, &[]);
        let path = place.path("vm.toml");
        let words = [&[path.as_str()], words].concat();
        assert_sentence(&output, USAGE, &words);
    }
    let output = run(&place, "vcpus = true", &["--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["exit"], USAGE);
}

#[test]
fn a_file_without_a_kernel_is_completed_by_the_command_line() {
    let place = Place::new();
    let output = run(&place, "vcpus = 2", &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(USAGE), "{text}");
    assert!(text.contains("--kernel <FILE>"), "{text}");
    let output = run(&place, "vcpus = 2", &["--kernel", "/no/such/kernel"]);
    assert_sentence(&output, USAGE, &["/no/such/kernel"]);
}

#[test]
fn a_configuration_file_that_is_missing_or_never_ends_is_refused() {
    for (path, remedy) in [
        ("/no/such/file", "check the path"),
        ("/dev/zero", "a regular file"),
        ("/tmp", "a regular file"),
    ] {
        let output = vmsrs().args(["run", "--config", path]).output().unwrap();
        assert_sentence(&output, USAGE, &[path, remedy]);
    }
}
