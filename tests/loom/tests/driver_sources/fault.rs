//! `thread_write` of `guest-kmod/page.c`, compiled with stubs around it (`fault.c`).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::source;

#[test]
fn a_write_fault_that_succeeds_ends_the_wait_for_a_frame() {
    let folder = tempfile::tempdir().expect("a folder");
    let text: Vec<String> = ["note_tag", "thread_write"]
        .iter()
        .map(|name| source::function("page.c", name).expect("in page.c").text)
        .collect();
    fs::write(folder.path().join("functions.inc"), text.join("\n")).expect("writable");
    let program = folder.path().join("fault");
    let stubs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver_sources/fault.c");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-std=gnu11", "-Wall", "-Werror", "-g", "-o"])
        .arg(&program)
        .arg(&stubs);
    compiler
        .arg("-I")
        .arg(folder.path())
        .arg("-I")
        .arg(source::folder());
    for command in [&mut compiler, &mut Command::new(&program)] {
        let output = command.output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}
