//! Functions of the driver, compiled with stubs around them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::source;

/// Compiles the program `stubs`, which includes functions of the driver's files as `functions.inc`, and runs it.
pub(crate) fn run(stubs: &str, functions: &[(&str, &[&str])]) {
    let folder = tempfile::tempdir().expect("a folder");
    let text: Vec<String> = functions
        .iter()
        .flat_map(|(file, names)| names.iter().map(move |name| (file, name)))
        .map(|(file, name)| source::function(file, name).expect("in the file").text)
        .collect();
    fs::write(folder.path().join("functions.inc"), text.join("\n")).expect("writable");
    let program = folder.path().join("program");
    let stubs = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/driver_sources")
        .join(stubs);
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
