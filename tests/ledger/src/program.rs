//! The servers' programs: compiled from C, or built by cargo beside this program.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use vmsrs_bed::project;

/// Source of the server in C, from the project's root.
const SOURCE: &str = "tests/ledger/servers/ledger.c";

/// An implementation of the ledger on VMSRS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    /// tests/ledger/servers/ledger.c
    C,
    /// tests/ledger/servers/ledger-rs
    Rust,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::C => "c",
            Self::Rust => "rust",
        })
    }
}

impl Server {
    /// Builds the server in C into `folder`, with further arguments for the compiler. The server in Rust must have been
    /// built by cargo.
    ///
    /// # Errors
    ///
    /// As [`compile`] and [`project::built`].
    pub fn build(self, folder: &Path, arguments: &[&Path]) -> Result<PathBuf> {
        match self {
            Self::Rust => Ok(project::built("ledger-rs")?),
            Self::C => {
                let program = folder.join("ledger");
                let include = project::root().join("guest-lib/include");
                let arguments = [&["-I".as_ref(), include.as_path()], arguments].concat();
                compile(&[SOURCE], &program, &arguments)?;
                Ok(program)
            }
        }
    }
}

/// Compiles the C server without VMSRS into `folder`, with further arguments for the compiler.
///
/// # Errors
///
/// As [`compile`].
pub fn plain(folder: &Path, arguments: &[&Path]) -> Result<PathBuf> {
    let program = folder.join("ledger-plain");
    compile(
        &[SOURCE],
        &program,
        &[&["-DPLAIN".as_ref()], arguments].concat(),
    )?;
    Ok(program)
}

/// Compiles C or C++ sources of this project (paths from its root) to `output`, with further arguments for the compiler.
///
/// # Errors
///
/// When the compiler is missing, or it warns.
pub fn compile(sources: &[impl AsRef<Path>], output: &Path, arguments: &[&Path]) -> Result<()> {
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
