//! Compiling this project's C and C++ sources: for guests, and plugins of QEMU.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::Result;
use crate::project;

/// Compiles sources (paths from the project's root) to the program `output`, with more arguments for the compiler.
///
/// # Errors
///
/// When there is no compiler, or it warns.
pub fn compile(sources: &[impl AsRef<Path>], output: &Path, arguments: &[&Path]) -> Result<()> {
    let root = project::root();
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(output)
        .args(sources.iter().map(|source| root.join(source)))
        .args(arguments);
    command::output(&mut cc).map(drop)
}

/// Compiles a source to the TCG plugin `output`.
///
/// # Errors
///
/// When there is no compiler, or it warns.
pub fn compile_plugin(source: &Path, output: &Path) -> Result<()> {
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
        .args(["-fvisibility=hidden", "-o"])
        .args([output, source]);
    command::output(&mut cc).map(drop)
}
