//! Debian 13's compiler and build tools, unpacked: on other machines they take the place of `/usr` for one command.
//!
//! Modules of the kernels in Debian 13's backports need the compiler that these were built with, and programs in their headers
//! need Debian 13's C library. A mount namespace lets a command see all of that, at the same paths as everything else.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{IoContext, Result};
use crate::tools;

/// The packages, besides those they depend on.
pub(crate) const PACKAGES: &[&str] = &[
    "coreutils",
    "dash",
    "findutils",
    "gcc-14",
    "grep",
    "libelf1t64",
    "libssl3t64",
    "make",
    "mawk",
    "sed",
];

/// Unpacked tools.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    usr: PathBuf,
}

impl Toolchain {
    /// The tools that were unpacked into `folder`.
    pub(crate) fn unpacked(folder: &Path) -> Self {
        Self {
            usr: folder.join("usr"),
        }
    }

    /// A command that has these tools, and no others, in `/usr`.
    pub(crate) fn command(&self, program: &str) -> Command {
        const ENTER: &str = r#"mount --bind "$0" /usr && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !tools::is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["sh", "-c", ENTER])
            .arg(&self.usr)
            .arg(program)
            .env("PATH", "/usr/bin");
        command
    }

    /// Does what installing the packages would have done: nothing but the name of `awk`.
    pub(crate) fn complete(folder: &Path) -> Result<()> {
        let awk = folder.join("usr/bin/awk");
        if awk.symlink_metadata().is_ok() {
            return Ok(());
        }
        std::os::unix::fs::symlink("mawk", &awk).context("create", &awk)
    }
}
