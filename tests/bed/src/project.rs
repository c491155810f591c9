//! Paths: the project, its build folder, the cache.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two folders below the project's root")
}

/// The folder for everything that can be rebuilt: `build/`, which git ignores.
pub fn build() -> PathBuf {
    root().join("build")
}

/// This program, by a path that other processes can read and that stays valid when cargo replaces the file.
pub fn own_program() -> PathBuf {
    format!("/proc/{}/exe", std::process::id()).into()
}

/// A file that cargo has built next to the program that runs.
///
/// # Errors
///
/// [`Error::NotBuilt`] when it is not there.
pub fn built(name: &str) -> Result<PathBuf> {
    // Only the folder counts: cargo may have replaced this program meanwhile.
    let program = std::env::current_exe().context("find", Path::new("this program"))?;
    let path = program.with_file_name(name);
    match path.exists() {
        true => Ok(path),
        false => Err(Error::NotBuilt { path }),
    }
}

/// Links the shared library to the name in `folder` by which programs look for it when they start.
///
/// # Errors
///
/// When the link cannot be made.
pub fn link_library(library: &Path, folder: &Path) -> Result<()> {
    let link = folder.join("libvmsrs.so.1");
    // That of an earlier run.
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("remove", &link)
        }
        _ => symlink(library, &link).context("create", &link),
    }
}

/// An open file of this process, by a path that other processes can read while it is open.
pub fn open_file(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// The folder of fetched packages: `VMSRS_CACHE` if set, otherwise `build/cache`.
pub fn cache() -> PathBuf {
    match std::env::var_os("VMSRS_CACHE") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => build().join("cache"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ldd;
    use std::process::Command;

    #[test]
    fn own_program_can_be_read_when_its_file_is_gone() {
        /// Tells this test that it runs in the child process.
        const ALONE: &str = "VMSRS_BED_TEST_ALONE";
        let file = std::env::current_exe().unwrap();
        if std::env::var_os(ALONE).is_some() {
            fs::remove_file(&file).unwrap();
            let program = own_program();
            assert!(fs::read(&program).unwrap().starts_with(b"\x7fELF"));
            assert!(!ldd::libraries(&program, &[]).unwrap().is_empty());
            return;
        }
        let folder = tempfile::tempdir_in(file.parent().unwrap()).unwrap();
        let link = folder.path().join("test");
        fs::hard_link(&file, &link).unwrap();
        let name = "project::tests::own_program_can_be_read_when_its_file_is_gone";
        let ended = Command::new(&link)
            .args(["--exact", name])
            .env(ALONE, "1")
            .output()
            .unwrap();
        assert!(ended.status.success(), "{ended:?}");
        assert!(!link.exists());
    }
}
