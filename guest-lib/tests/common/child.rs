//! Tests that need a process of their own.

use std::process::Command;

/// What the child exits with if it succeeds: a harness that runs no test exits with another one.
const SUCCESS: i32 = 77;

/// Runs the body of the test with that name in a process of its own, which does not end by the test harness.
///
/// # Panics
///
/// If the child fails, with what it has written to standard error.
pub(crate) fn in_a_child(name: &str, test: impl FnOnce()) {
    const CHILD: &str = "VMSRS_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        test();
        // SAFETY: ends the process; a test that fails ends otherwise.
        unsafe { libc::_exit(SUCCESS) };
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert_eq!(status.code(), Some(SUCCESS), "{status}: {errors}");
}
