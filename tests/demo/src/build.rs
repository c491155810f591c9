//! Builds what the guests run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::project;

/// Compiles `tests/servers/ledger.c` to `program`, with more arguments for the compiler.
///
/// # Errors
///
/// When there is no compiler, or a warning.
pub fn compile(program: &Path, arguments: &[&Path]) -> Result<()> {
    let source = project::root().join("tests/servers/ledger.c");
    let output = Command::new("cc")
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(program)
        .arg(source)
        .args(arguments)
        .output()
        .context("start cc; install gcc")?;
    ensure!(
        output.status.success(),
        "the server does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A file that cargo has built beside this program.
///
/// # Errors
///
/// When it has not been built.
pub fn built(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    let path = program.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is missing; build it first: make build",
        path.display()
    );
    Ok(path)
}
