//! The QEMU that emulates the nested KVM host.
//!
//! It is version 10, Debian 13's own and in the backports of Debian 12: with 7.2, a 6.12 kernel in level 2 crashed or hung in
//! about every other boot. It is unpacked, not installed, with the libraries that the machine lacks. A machine that has
//! that version installed uses its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::LIBRARIES;

const PROGRAM: &str = "qemu-system-x86_64";

/// Where Debian's packages keep firmware.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU, unpacked or installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qemu {
    /// The folder it was unpacked into; `None` for the installed one.
    folder: Option<PathBuf>,
}

impl Qemu {
    /// The QEMU in `folder`, or the installed one when there is none.
    pub(crate) fn unpacked(folder: &Path) -> Self {
        let program = folder.join("usr/bin").join(PROGRAM);
        Self {
            folder: program.is_file().then(|| folder.to_owned()),
        }
    }

    /// Whether it is the installed one.
    pub(crate) fn is_installed(&self) -> bool {
        self.folder.is_none()
    }

    /// A command that runs it through `runner` (a program and its arguments).
    pub(crate) fn command(&self, runner: &[&str]) -> Command {
        let mut command = Command::new(runner[0]);
        command.args(&runner[1..]);
        let Some(folder) = &self.folder else {
            command.arg(PROGRAM);
            return command;
        };
        command.arg(folder.join("usr/bin").join(PROGRAM));
        // What the machine has installed was not fetched.
        for root in [folder.as_path(), Path::new("/")] {
            for firmware in FIRMWARE {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        let libraries = LIBRARIES.map(|path| folder.join(path).to_string_lossy().into_owned());
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        command.env("QEMU_MODULE_DIR", folder.join(LIBRARIES[0]).join("qemu"));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_folder_means_the_installed_one() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = Qemu::unpacked(folder.path());
        assert!(qemu.is_installed());
        let command = qemu.command(&["setpriv", "--pdeathsig", "KILL"]);
        assert_eq!(
            crate::command::display(&command),
            "setpriv --pdeathsig KILL qemu-system-x86_64"
        );
    }

    #[test]
    fn an_unpacked_one_uses_its_own_firmware_first() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("usr/bin").join(PROGRAM);
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::write(&program, "").unwrap();
        let command = Qemu::unpacked(folder.path()).command(&["env"]);
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments[0], program.as_os_str());
        assert_eq!(
            arguments[2],
            folder.path().join("usr/share/qemu").as_os_str()
        );
    }
}
