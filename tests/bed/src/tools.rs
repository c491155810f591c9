//! The programs the test-bed calls, and how a missing one gets onto the machine.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};

/// How a tool is recognised.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// A program of that name in `PATH`.
    Program(&'static str),
    /// A shared library of that name in the system's library folders.
    Library(&'static str),
    /// A header of that name in the system's folder of headers.
    Header(&'static str),
}

/// Something that must be on the machine, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    sign: Sign,
    package: &'static str,
}

impl Tool {
    const fn program(name: &'static str, package: &'static str) -> Self {
        Self {
            sign: Sign::Program(name),
            package,
        }
    }

    const fn library(name: &'static str, package: &'static str) -> Self {
        Self {
            sign: Sign::Library(name),
            package,
        }
    }

    const fn header(name: &'static str, package: &'static str) -> Self {
        Self {
            sign: Sign::Header(name),
            package,
        }
    }

    fn name(self) -> &'static str {
        match self.sign {
            Sign::Program(name) | Sign::Library(name) | Sign::Header(name) => name,
        }
    }

    fn present(self) -> bool {
        match self.sign {
            Sign::Program(name) => {
                let path = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&path).any(|folder| folder.join(name).is_file())
            }
            Sign::Library(name) => [
                "/lib/x86_64-linux-gnu",
                "/usr/lib/x86_64-linux-gnu",
                "/lib64",
                "/usr/lib64",
            ]
            .iter()
            .any(|folder| Path::new(folder).join(name).exists()),
            Sign::Header(name) => Path::new("/usr/include").join(name).exists(),
        }
    }
}

/// What unpacking kernels takes.
pub const UNPACK: &[Tool] = &[
    Tool::program("lz4", "lz4"),
    Tool::program("xz", "xz-utils"),
    Tool::program("zstd", "zstd"),
];

/// What building the driver takes. Debian's kernels want the compiler they were built with; `objtool` from the
/// kernel's build tools wants libelf.
pub const KMOD: &[Tool] = &[
    Tool::program("make", "make"),
    Tool::program("gcc-12", "gcc-12"),
    Tool::program("x86_64-linux-gnu-gcc-12", "gcc-12"),
    Tool::program("sparse", "sparse"),
    Tool::library("libelf.so.1", "libelf1"),
];

/// What building a kernel takes, beside [`UNPACK`].
pub const KERNEL: &[Tool] = &[
    Tool::program("make", "make"),
    Tool::program("gcc-12", "gcc-12"),
    Tool::program("flex", "flex"),
    Tool::program("bison", "bison"),
    Tool::program("bc", "bc"),
    Tool::program("perl", "perl"),
    Tool::header("libelf.h", "libelf-dev"),
];

/// What booting the nested KVM host takes, beside a QEMU.
pub const NESTED: &[Tool] = &[Tool::program("setpriv", "util-linux")];

/// QEMU itself, for machines whose own is as new as the one that would be fetched.
pub const QEMU: &[Tool] = &[Tool::program("qemu-system-x86_64", "qemu-system-x86")];

/// Makes sure that `tools` are there: installs what is missing when this is root.
///
/// # Errors
///
/// [`Error::MissingTools`] with the command to run when this is not root or the machine is no Debian, and
/// [`Error::Command`] when the installation fails.
pub fn ensure(tools: &[Tool], progress: &dyn Fn(&str)) -> Result<()> {
    let missing: Vec<Tool> = tools
        .iter()
        .copied()
        .filter(|tool| !tool.present())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing
        .iter()
        .map(|tool| tool.name())
        .collect::<Vec<_>>()
        .join(", ");
    let packages: BTreeSet<&str> = missing.iter().map(|tool| tool.package).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    if !is_root() {
        return Err(Error::MissingTools {
            missing: names,
            remedy: format!(
                "sudo apt-get update && sudo apt-get install --no-install-recommends {}",
                packages.join(" ")
            ),
        });
    }
    progress(&format!("installing {}", packages.join(" ")));
    if install(&packages).is_err() {
        // The lists of packages may be missing or old; a source that cannot be reached must not stop the others.
        let _ = command::output(apt_get().arg("update"));
        install(&packages)?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let mut command = apt_get();
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    command::output(&mut command).map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether this process may install packages and set up taps.
pub(crate) fn is_root() -> bool {
    command::stdout(Command::new("id").arg("--user")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn present_tools_need_nothing() {
        ensure(&[Tool::program("sh", "dash")], &|_| {
            panic!("nothing to install")
        })
        .unwrap();
    }

    #[test]
    fn a_missing_tool_is_noticed() {
        assert!(!Tool::program("no-such-program-vmsrs", "none").present());
        assert!(!Tool::library("libno-such-vmsrs.so.9", "none").present());
        assert!(!Tool::header("no-such-vmsrs.h", "none").present());
    }
}
