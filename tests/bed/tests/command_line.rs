//! The `bed` command with wrong input: it ends before it fetches, builds or boots anything.

use std::process::{Command, Output};

use vmsrs_bed::Flavour;

fn bed(arguments: &[&str], kernel: &str) -> Output {
    let mut bed = Command::new(env!("CARGO_BIN_EXE_bed"));
    bed.args(arguments).env(Flavour::VARIABLE, kernel);
    bed.output().unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn an_unknown_kernel_is_named_before_anything_is_fetched() {
    let output = bed(&["fetch"], "5.10");
    assert_refused(&output, 125, &["5.10", "6.12", "debug"]);
}

#[test]
fn a_host_without_cpus_or_a_job_without_time_is_refused() {
    for option in ["--cpus", "--timeout"] {
        let output = bed(&["run", option, "0", "--", "true"], "");
        assert_refused(&output, 2, &[option]);
    }
}
