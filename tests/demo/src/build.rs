//! Builds what the guests run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::project;

/// Compiles `tests/servers/ledger.c` to `program`, with more arguments for the compiler.
///
/// # Errors
///
/// As [`compile_c`].
pub fn compile(program: &Path, arguments: &[&Path]) -> Result<()> {
    compile_c(&["tests/servers/ledger.c"], program, arguments)
}

/// Compiles sources of this project in C or C++ (their paths from the project's root) to `output`, with
/// more arguments for the compiler.
///
/// # Errors
///
/// When there is no compiler, or a warning.
pub fn compile_c(sources: &[impl AsRef<Path>], output: &Path, arguments: &[&Path]) -> Result<()> {
    let root = project::root();
    let ended = Command::new("cc")
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(output)
        .args(sources.iter().map(|source| root.join(source)))
        .args(arguments)
        .output()
        .context("start cc; install gcc")?;
    ensure!(
        ended.status.success(),
        "{} does not compile:\n{}",
        output.display(),
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(())
}

/// A file that cargo has built beside this program.
///
/// # Errors
///
/// When it has not been built.
pub fn built(name: &str) -> Result<PathBuf> {
    // Its name does not matter: cargo may have put a new one in its place meanwhile.
    let program = std::env::current_exe().context("find this program")?;
    let path = program.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is missing; build it first: make build",
        path.display()
    );
    Ok(path)
}
