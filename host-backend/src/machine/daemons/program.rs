//! The programs that `vmsrs run` starts as daemons, and where they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A program that serves devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub(super) name: &'static str,
    pub(super) option: &'static str,
    pub(super) package: &'static str,
}

pub(super) const STORAGE: Program = Program {
    name: "qemu-storage-daemon",
    option: "--disk",
    package: "install Debian 13's package qemu-utils, or Debian 12's qemu-system-common",
};
pub(super) const SHARING: Program = Program {
    name: "virtiofsd",
    option: "--share",
    package: "install Debian 13's package virtiofsd, or the crate virtiofsd with `cargo install`",
};

/// Folders with programs beside those of `PATH`.
const FOLDERS: [&str; 1] = ["/usr/libexec"];

/// Where a program is.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    let mut programs = folders.map(|folder| folder.join(name));
    programs.find(|program| {
        let metadata = fs::metadata(program);
        metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-vmsrs"), None);
    }
}
