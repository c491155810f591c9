//! The tools that the test-bed needs, and how missing ones are installed.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};

/// What a tool is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A program in `PATH`.
    Program,
    /// A shared library in the system's library folders.
    Library,
    /// A header in the system's folder of headers.
    Header,
}

/// Something that must be installed, and its Debian package.
#[derive(Debug, Clone)]
pub struct Tool {
    kind: Kind,
    name: Cow<'static, str>,
    package: Cow<'static, str>,
}

impl Tool {
    const fn new(kind: Kind, name: &'static str, package: &'static str) -> Self {
        Self {
            kind,
            name: Cow::Borrowed(name),
            package: Cow::Borrowed(package),
        }
    }

    const fn program(name: &'static str, package: &'static str) -> Self {
        Self::new(Kind::Program, name, package)
    }

    const fn library(name: &'static str, package: &'static str) -> Self {
        Self::new(Kind::Library, name, package)
    }

    const fn header(name: &'static str, package: &'static str) -> Self {
        Self::new(Kind::Header, name, package)
    }

    fn is_present(&self) -> bool {
        let name = &*self.name;
        match self.kind {
            Kind::Program => {
                let path = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&path).any(|folder| folder.join(name).is_file())
            }
            Kind::Library => [
                "/lib/x86_64-linux-gnu",
                "/usr/lib/x86_64-linux-gnu",
                "/lib64",
                "/usr/lib64",
            ]
            .iter()
            .any(|folder| Path::new(folder).join(name).exists()),
            Kind::Header => Path::new("/usr/include").join(name).exists(),
        }
    }
}

/// What unpacking kernels needs.
pub const UNPACK: &[Tool] = &[
    Tool::program("lz4", "lz4"),
    Tool::program("xz", "xz-utils"),
    Tool::program("zstd", "zstd"),
];

/// What `make test` compiles with, besides the kernels' compilers: the C headers are tried in C++, too.
pub const TESTS: &[Tool] = &[Tool::program("gcc", "gcc"), Tool::program("g++", "g++")];

/// What unpacking and building packages' sources needs, and what their tests run in.
pub const SOURCES: &[Tool] = &[
    Tool::program("dpkg-source", "dpkg-dev"),
    Tool::program("gcc", "gcc"),
    Tool::program("make", "make"),
    Tool::program("perl", "perl"),
    Tool::program("diff", "diffutils"),
    Tool::header("event.h", "libevent-dev"),
];

/// What building `virtiofsd` needs.
pub const SHARING: &[Tool] = &[
    Tool::header("seccomp.h", "libseccomp-dev"),
    Tool::header("cap-ng.h", "libcap-ng-dev"),
];

/// What building the driver needs, for a kernel that was built with `compiler`: modules need the same one. `objtool` from
/// the kernel's build tools needs libelf.
pub(crate) fn kmod(compiler: &str) -> Vec<Tool> {
    let compilers = [compiler.to_owned(), format!("x86_64-linux-gnu-{compiler}")];
    let compilers = compilers.map(|name| Tool {
        kind: Kind::Program,
        name: name.into(),
        package: compiler.to_owned().into(),
    });
    let others = [
        Tool::program("make", "make"),
        Tool::program("sparse", "sparse"),
        Tool::library("libelf.so.1", "libelf1"),
    ];
    compilers.into_iter().chain(others).collect()
}

/// What a command in a mount namespace needs.
pub(crate) const NAMESPACES: &[Tool] = &[
    Tool::program("unshare", "util-linux"),
    Tool::program("mount", "mount"),
];

/// What building a kernel needs besides [`UNPACK`].
pub const KERNEL: &[Tool] = &[
    Tool::program("make", "make"),
    Tool::program("gcc-12", "gcc-12"),
    Tool::program("flex", "flex"),
    Tool::program("bison", "bison"),
    Tool::program("bc", "bc"),
    Tool::program("perl", "perl"),
    Tool::header("libelf.h", "libelf-dev"),
];

/// What booting the nested KVM host needs besides QEMU.
pub const NESTED: &[Tool] = &[Tool::program("setpriv", "util-linux")];

/// QEMU itself, where the installed one is used.
pub const QEMU: &[Tool] = &[Tool::program("qemu-system-x86_64", "qemu-system-x86")];

/// Makes sure that `tools` are installed; root installs missing ones.
///
/// # Errors
///
/// [`Error::MissingTools`] with the command to run when this is not root, [`Error::Command`] when the installation fails.
pub fn ensure(tools: &[Tool], progress: &dyn Fn(&str)) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !tool.is_present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: BTreeSet<&str> = missing.iter().map(|tool| &*tool.name).collect();
    let names = Vec::from_iter(names).join(", ");
    let packages: BTreeSet<&str> = missing.iter().map(|tool| &*tool.package).collect();
    let packages = Vec::from_iter(packages);
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
        // Package lists may be missing or old; a source that cannot be reached must not stop the others.
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

/// Whether this process may install packages and create taps.
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
        assert!(!Tool::program("no-such-program-vmsrs", "none").is_present());
        assert!(!Tool::library("libno-such-vmsrs.so.9", "none").is_present());
        assert!(!Tool::header("no-such-vmsrs.h", "none").is_present());
    }
}
