//! The C interface, used by programs that the C compiler of this machine builds.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo has put the static library of this build.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let library = folder.join("libvmsrs.a");
    assert!(library.exists(), "{} is missing", library.display());
    library
}

/// Compiles a source of this crate with warnings as errors and gives the program's output.
fn run(compiler: &str, flags: &[&str], source: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-g", "-O1", "-I"])
        .arg(root.join("include"))
        .args(flags)
        .arg(root.join(source))
        .arg(library())
        .args(["-lpthread", "-ldl", "-lm", "-o"])
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; install build-essential"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let output = Command::new(&program)
        .env("VMSRS_DEVICE", "none")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}{errors}", output.status);
    text
}

#[test]
fn the_example_survives_its_bug() {
    let text = run("cc", &[], "examples/notes.c");
    assert_eq!(text, "failed: memory at 0x8\nok 1\nok 1\nok 2\n");
}

#[test]
fn every_call_answers_as_its_description_says() {
    run("cc", &[], "tests/c/calls.c");
}

#[test]
fn the_header_is_good_for_cpp_and_an_exception_ends_its_request() {
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("skipped: no C++ compiler");
        return;
    }
    run("c++", &[], "tests/c/exception.cc");
}
