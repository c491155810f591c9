//! Builds the driver and the test modules against unpacked headers, without warnings, and has `sparse` check them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::kernel::Kernel;
use crate::project;

/// The folders of the project's modules, relative to its root; copies keep the layout.
const DRIVER: &str = "guest-kmod";
const TEST_MODULES: &str = "tests/kmod";

/// Modules built for one kernel.
#[derive(Debug, Clone)]
pub struct Modules {
    /// `vmsrs.ko`, the driver.
    pub driver: PathBuf,
    /// `vmsrs_stray.ko`, which makes the kernel write where it should not.
    pub test: PathBuf,
    /// `vmsrs_hostile.ko`, a driver that lets a test do anything to the device.
    pub hostile: PathBuf,
}

/// Builds all modules with all warnings (`W=1`), each an error, and checks them with sparse where that understands the kernel's
/// headers.
///
/// The build happens in a copy below `build/`, so the sources stay clean and each kernel has its own objects.
///
/// # Errors
///
/// [`Error::Command`] with the compiler's messages, [`Error::Sparse`] with the checker's.
pub fn build(kernel: &Kernel, progress: &dyn Fn(&str)) -> Result<Modules> {
    let base = project::build().join("kmod").join(kernel.release());
    fs::create_dir_all(&base).context("create", &base)?;
    let lock_path = base.join("lock");
    let lock = File::create(&lock_path).context("create", &lock_path)?;
    lock.lock().context("lock", &lock_path)?;

    progress(&format!("building the driver for {}", kernel.release()));
    let driver = build_folder(kernel, project::root(), &base, DRIVER)?;
    // Both are in one folder.
    let built = build_folder(kernel, project::root(), &base, TEST_MODULES)?;
    Ok(Modules {
        driver,
        test: built.with_file_name("vmsrs_stray.ko"),
        hostile: built.with_file_name("vmsrs_hostile.ko"),
    })
}

/// Builds the module whose sources are in `folder` below `root`, in a copy below `base`; returns its `.ko` file.
///
/// # Errors
///
/// The same as [`build`].
pub fn build_folder(kernel: &Kernel, root: &Path, base: &Path, folder: &str) -> Result<PathBuf> {
    let copy = base.join(folder);
    sync(&root.join(folder), &copy)?;
    let mut make = kernel.make();
    make.arg(format!("M={}", copy.display()));
    make.args(["W=1", "KCFLAGS=-Werror", "modules"]);
    if kernel.is_checked() {
        // Every file, also those that are up to date: a complaint must not go away by itself.
        make.arg("C=2");
    }
    make.env("LC_ALL", "C");
    command::without_outer_make(&mut make);
    let output = command::output(&mut make)?;
    let messages = complaints(&String::from_utf8_lossy(&output.stderr), &copy);
    if !messages.is_empty() {
        return Err(Error::Sparse {
            release: kernel.release().to_owned(),
            messages,
        });
    }
    let built = fs::read_dir(&copy)
        .context("read", &copy)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "ko"));
    built.ok_or_else(|| Error::NotFetched {
        what: "a .ko file".to_owned(),
        place: copy.display().to_string(),
    })
}

/// The warnings and errors about files below `folder`; those about the kernel's own headers do not count.
fn complaints(stderr: &str, folder: &Path) -> String {
    let folder = folder.to_string_lossy();
    let about_us = |line: &&str| {
        line.contains(&*folder)
            && [" warning: ", " error: ", "WARNING: "]
                .iter()
                .any(|kind| line.contains(kind))
    };
    stderr
        .lines()
        .filter(about_us)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Copies the source files that are new or changed, and removes those that are gone.
fn sync(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).context("create", target)?;
    for entry in fs::read_dir(target).context("read", target)?.flatten() {
        let path = entry.path();
        if is_source(&path) && !source.join(entry.file_name()).exists() {
            fs::remove_file(&path).context("remove", &path)?;
        }
    }
    for entry in fs::read_dir(source).context("read", source)?.flatten() {
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        if from.is_dir() {
            sync(&from, &to)?;
        } else if is_source(&from) {
            let content = fs::read(&from).context("read", &from)?;
            if fs::read(&to).ok().as_ref() != Some(&content) {
                fs::write(&to, content).context("write", &to)?;
            }
        }
    }
    Ok(())
}

/// Whether a file is a module's source rather than a build product.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    matches!(&*name, "Kbuild" | "Makefile")
        || (matches!(&*extension, "c" | "h") && !name.ends_with(".mod.c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complaints_about_our_files_count() {
        let stderr = "/cache/include/linux/x.h:1:2: warning: old trouble\n\
            /build/kmod/main.c:3:4: warning: symbol 'x' was not declared\n\
            note: something\n";
        let found = complaints(stderr, Path::new("/build/kmod"));
        assert_eq!(
            found,
            "/build/kmod/main.c:3:4: warning: symbol 'x' was not declared"
        );
    }

    #[test]
    fn the_copy_follows_its_source_and_keeps_unchanged_files() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        fs::create_dir_all(&source).unwrap();
        for (name, text) in [
            ("a.c", "1"),
            ("b.h", "2"),
            ("Kbuild", "3"),
            ("README.md", "4"),
        ] {
            fs::write(source.join(name), text).unwrap();
        }
        sync(&source, &target).unwrap();
        let modified = |name: &str| fs::metadata(target.join(name)).unwrap().modified().unwrap();
        let before = modified("a.c");
        fs::write(target.join("a.o"), "object").unwrap();
        fs::remove_file(source.join("b.h")).unwrap();
        sync(&source, &target).unwrap();
        assert_eq!(modified("a.c"), before);
        assert!(target.join("a.o").exists() && target.join("Kbuild").exists());
        assert!(!target.join("b.h").exists() && !target.join("README.md").exists());
    }
}
