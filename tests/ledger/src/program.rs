//! The servers' programs: compiled from C, or built by cargo beside this program.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use vmsrs_bed::{cc, project};

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
    /// As [`cc::compile`] and [`project::built`].
    pub fn build(self, folder: &Path, arguments: &[&Path]) -> Result<PathBuf> {
        match self {
            Self::Rust => Ok(project::built("ledger-rs")?),
            Self::C => {
                let program = folder.join("ledger");
                let include = project::root().join("guest-lib/include");
                let arguments = [&["-I".as_ref(), include.as_path()], arguments].concat();
                cc::compile(&[SOURCE], &program, &arguments)?;
                Ok(program)
            }
        }
    }
}

/// Compiles the C server without VMSRS into `folder`, with further arguments for the compiler.
///
/// # Errors
///
/// As [`cc::compile`].
pub fn plain(folder: &Path, arguments: &[&Path]) -> Result<PathBuf> {
    let program = folder.join("ledger-plain");
    cc::compile(
        &[SOURCE],
        &program,
        &[&["-DPLAIN".as_ref()], arguments].concat(),
    )?;
    Ok(program)
}
