//! Builds the debug kernel: Debian's source, a small configuration with the kernel's own checkers.
//!
//! The result has the layout of Debian's unpacked packages (`boot`, `lib/modules`, `usr/src/linux-headers-*`), so it is a
//! [`Kernel`] like the others. Every driver that a guest needs is built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::kernel::Kernel;

/// The configuration: what is not in it is off.
const CONFIG: &str = include_str!("../debug-kernel.config");

/// The compiler, for the kernel and for modules: they must fit.
const COMPILER: &[&str] = &["CC=gcc-12", "HOSTCC=gcc-12"];

/// Objects that run at the PVH entry, before there is a shadow of memory that KASAN could look into. (Linux itself
/// excludes them in other configurations only.)
const BEFORE_KASAN: &[&str] = &["KASAN_SANITIZE_enlighten.o=n", "KASAN_SANITIZE_string.o=n"];

/// The file in the kernel's folder that says what it was built from.
const STAMP: &str = "built-from";

/// What modules are built against, of a tree that has been built.
const HEADERS: &[&str] = &[
    ".config",
    "Kbuild",
    "Makefile",
    "Module.symvers",
    "arch/x86",
    "include",
    "scripts",
    "tools/objtool",
];

/// The debug kernel in `folder`, built from the package `source` (a name with its version) whose archive is `archive`;
/// nothing is done when it is there and up to date.
///
/// The caller keeps other processes from doing the same.
///
/// # Errors
///
/// [`Error::Command`] when it does not build, [`Error::KernelConfig`] when the configuration cannot be had.
pub(crate) fn ensure(
    folder: &Path,
    source: &str,
    archive: &Path,
    progress: &dyn Fn(&str),
) -> Result<Kernel> {
    let variables = [COMPILER, BEFORE_KASAN].concat();
    let stamp = format!("{source}\n{}\n{CONFIG}", variables.join(" "));
    if fs::read_to_string(folder.join(STAMP)).ok().as_ref() != Some(&stamp) {
        let cache = folder.parent().unwrap_or(folder);
        let temporary = tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(cache)
            .context("create a folder in", cache)?;
        let tree = unpack(archive, temporary.path(), progress)?;
        configure(&tree)?;
        progress(&format!(
            "building the debug kernel of {source}: 5 to 20 minutes, once"
        ));
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        command::output(
            make(&tree)
                .arg(format!("-j{threads}"))
                .args(["bzImage", "modules"]),
        )?;
        let kernel = temporary.path().join("kernel");
        lay_out(&tree, &kernel)?;
        let path = kernel.join(STAMP);
        fs::write(&path, stamp).context("write", &path)?;
        if folder.exists() {
            let old = temporary.path().join("old");
            fs::rename(folder, &old).context("move away", folder)?;
        }
        fs::rename(&kernel, folder).context("create", folder)?;
    }
    Ok(Kernel::unpacked(folder)?.with_make_variables(COMPILER))
}

/// Unpacks the source below `folder` and returns its top folder.
fn unpack(archive: &Path, folder: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    progress("unpacking the kernel's source");
    let tree = folder.join("source");
    fs::create_dir(&tree).context("create", &tree)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(&tree);
    command::output(&mut tar)?;
    Ok(tree)
}

/// Makes `.config` and sees that it is what was asked for: Kconfig drops silently what lacks a dependency.
fn configure(tree: &Path) -> Result<()> {
    let wanted = tree.join("debug-kernel.config");
    fs::write(&wanted, CONFIG).context("write", &wanted)?;
    command::output(
        make(tree)
            .env("KCONFIG_ALLCONFIG", &wanted)
            .arg("allnoconfig"),
    )?;
    let path = tree.join(".config");
    let config = fs::read_to_string(&path).context("read", &path)?;
    let lost = lost(CONFIG, &config);
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::KernelConfig {
        lost: lost.join(", "),
    })
}

/// The lines of `wanted` that do not hold in `config`.
fn lost<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let holds = |line: &str| match line.strip_suffix("=n") {
        Some(name) => {
            let set = format!("{name}=");
            !config.lines().any(|line| line.starts_with(&set))
        }
        None => config.lines().any(|present| present == line),
    };
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !holds(line))
        .collect()
}

/// `make` in the source's folder, out of the way of everything else on the machine.
fn make(tree: &Path) -> Command {
    let mut make = Command::new("nice");
    make.args(["-n", "19", "make", "--silent", "-C"])
        .arg(tree)
        .args(COMPILER)
        .args(BEFORE_KASAN)
        .env("LC_ALL", "C");
    command::without_outer_make(&mut make);
    make
}

/// Moves what is needed of a tree that has been built into `kernel`, in the layout of Debian's packages.
fn lay_out(tree: &Path, kernel: &Path) -> Result<()> {
    let path = tree.join("include/config/kernel.release");
    let release = fs::read_to_string(&path).context("read", &path)?;
    let release = release.trim();
    let headers = format!("usr/src/linux-headers-{release}");
    let mut moves = vec![
        (
            "arch/x86/boot/bzImage".to_owned(),
            format!("boot/vmlinuz-{release}"),
        ),
        ("vmlinux".to_owned(), format!("boot/vmlinux-{release}")),
        (
            "System.map".to_owned(),
            format!("boot/System.map-{release}"),
        ),
        (
            "modules.builtin".to_owned(),
            format!("lib/modules/{release}/modules.builtin"),
        ),
    ];
    moves.extend(
        HEADERS
            .iter()
            .map(|name| ((*name).to_owned(), format!("{headers}/{name}"))),
    );
    for (from, to) in moves {
        let (from, to) = (tree.join(from), kernel.join(to));
        let parent = to.parent().unwrap_or(kernel);
        fs::create_dir_all(parent).context("create", parent)?;
        fs::rename(&from, &to).context("move", &from)?;
    }
    // It has no modules of its own.
    let modules = kernel.join(format!("lib/modules/{release}/kernel"));
    fs::create_dir_all(&modules).context("create", &modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_kconfig_dropped_are_found() {
        let wanted = "# comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\nCONFIG_D=\"x\"\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=\"x\"\n";
        assert_eq!(lost(wanted, config), Vec::<&str>::new());
        let config = "# CONFIG_A is not set\nCONFIG_AA=y\nCONFIG_B=m\nCONFIG_D=\"xx\"\n";
        assert_eq!(
            lost(wanted, config),
            ["CONFIG_A=y", "CONFIG_B=n", "CONFIG_D=\"x\""]
        );
    }

    #[test]
    fn what_was_built_is_laid_out_as_a_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, kernel) = (folder.path().join("tree"), folder.path().join("kernel"));
        for (path, content) in [
            ("include/config/kernel.release", "6.1.9-debug\n"),
            ("arch/x86/boot/bzImage", "compressed"),
            ("vmlinux", "elf"),
            ("System.map", ""),
            ("modules.builtin", "kernel/drivers/virtio/virtio_mmio.ko\n"),
            (".config", ""),
            ("Kbuild", ""),
            ("Makefile", ""),
            ("Module.symvers", ""),
            ("scripts/mod/modpost", ""),
            ("tools/objtool/objtool", ""),
        ] {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        lay_out(&tree, &kernel).unwrap();
        let kernel = Kernel::unpacked(&kernel).unwrap();
        assert_eq!(kernel.release(), "6.1.9-debug");
        assert_eq!(fs::read_to_string(kernel.vmlinuz()).unwrap(), "compressed");
        assert_eq!(
            fs::read_to_string(kernel.vmlinux().unwrap()).unwrap(),
            "elf"
        );
        assert!(kernel.headers().join("scripts/mod/modpost").exists());
        // What a guest's image asks for is part of the kernel itself.
        let modules = kernel.modules(&["virtio_mmio".to_owned()], &[]).unwrap();
        assert!(modules.is_empty());
    }

    #[test]
    fn the_checkers_are_in_the_configuration() {
        for option in [
            "KASAN",
            "KASAN_VMALLOC",
            "PROVE_LOCKING",
            "DEBUG_ATOMIC_SLEEP",
        ] {
            assert!(
                CONFIG
                    .lines()
                    .any(|line| line == format!("CONFIG_{option}=y")),
                "{option}"
            );
        }
    }
}
