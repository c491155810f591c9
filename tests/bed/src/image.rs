//! Packs an initramfs: busybox, kernel modules, programs with their shared libraries, and a script as its init.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vmsrs_newc::Writer;

use crate::error::{IoContext, Result};
use crate::kernel::Kernel;
use crate::ldd;

/// What every init does first: mounts, devices, modules, the loopback interface.
const INIT_PREAMBLE: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs tmp /run
ln -s /proc/self/fd /dev/fd
for module in $(cat /etc/modules); do
	insmod /lib/modules/$module.ko || echo "init: cannot load $module"
done
ip link set lo up
"#;

/// What every init does last. `reboot` ends a VMM that has no power button, and QEMU with `-no-reboot`.
const INIT_END: &str = "\nsync\npoweroff -f\nreboot -f\n";

/// A builder for an initramfs. [`Image::write`] does the work and reports errors.
///
/// ```no_run
/// # fn main() -> Result<(), vmsrs_bed::Error> {
/// use vmsrs_bed::{Bed, Series};
///
/// let bed = Bed::auto()?;
/// let kernel = bed.kernel(Series::V6_1)?;
/// bed.image()?
///     .modules(["virtio_mmio", "virtio_net"])
///     .module_file("build/kmod/vmsrs.ko")
///     .binary("target/release/ledger-rs", "/bin/ledger-rs")
///     .init("ledger-rs")
///     .write(&kernel, "/tmp/guest.img".as_ref())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Image {
    busybox: Option<PathBuf>,
    modules: Vec<String>,
    module_files: Vec<PathBuf>,
    binaries: Vec<(PathBuf, String)>,
    library_folders: Vec<PathBuf>,
    files: Vec<(PathBuf, String)>,
    texts: Vec<(String, u32, String)>,
}

impl Image {
    /// An empty image. [`crate::Bed::image`] gives one with busybox in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a static busybox as `/bin/busybox`; the init of [`Image::init`] needs it.
    pub fn busybox(mut self, program: impl Into<PathBuf>) -> Self {
        self.busybox = Some(program.into());
        self
    }

    /// Adds a kernel module with its dependencies; init loads it. `-` and `_` are the same in names, and a built-in module is
    /// skipped.
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.modules.push(name.into());
        self
    }

    /// Adds several modules; see [`Image::module`].
    pub fn modules<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.modules.extend(names.into_iter().map(str::to_owned));
        self
    }

    /// Adds an out-of-tree module with its dependencies; init loads it after the kernel's.
    pub fn module_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.module_files.push(path.into());
        self
    }

    /// Adds an out-of-tree module at `/lib/modules/NAME.ko` that init does not load.
    pub fn module_file_unloaded(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        self.file(path, format!("/lib/modules/{name}"))
    }

    /// Adds an executable with the shared libraries that `ldd` lists.
    pub fn binary(mut self, source: impl Into<PathBuf>, destination: impl Into<String>) -> Self {
        self.binaries.push((source.into(), destination.into()));
        self
    }

    /// Adds a folder of this machine that is searched for shared libraries before the system's folders.
    pub fn library_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.library_folders.push(folder.into());
        self
    }

    /// Adds a file of this machine with its own permissions.
    pub fn file(mut self, source: impl Into<PathBuf>, destination: impl Into<String>) -> Self {
        self.files.push((source.into(), destination.into()));
        self
    }

    /// Adds a text file with these permission bits.
    pub fn text(
        mut self,
        destination: impl Into<String>,
        permissions: u32,
        content: impl Into<String>,
    ) -> Self {
        self.texts
            .push((destination.into(), permissions, content.into()));
        self
    }

    /// Has init run `script` (POSIX shell), after it has mounted the usual file systems, loaded the modules and set up the
    /// loopback interface. The machine powers off when the script ends.
    pub fn init(self, script: &str) -> Self {
        self.text("/init", 0o755, format!("{INIT_PREAMBLE}{script}{INIT_END}"))
    }

    /// Writes the image for `kernel` to `path`, uncompressed.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or a module or shared library is not found.
    pub fn write(&self, kernel: &Kernel, path: &Path) -> Result<()> {
        let file = File::create(path).context("create", path)?;
        self.write_to(kernel, BufWriter::new(file), path)
    }

    /// Writes the image for `kernel` to an unnamed file on the file system of `folder`, which is gone with this process.
    /// [`crate::project::open_file`] gives a path to it.
    ///
    /// # Errors
    ///
    /// As [`Image::write`].
    pub fn write_unnamed(&self, kernel: &Kernel, folder: &Path) -> Result<File> {
        fs::create_dir_all(folder).context("create", folder)?;
        let file = tempfile::tempfile_in(folder).context("create a file in", folder)?;
        self.write_to(kernel, BufWriter::new(&file), &folder.join("the image"))?;
        Ok(file)
    }

    /// Writes the image for `kernel` to `out`, which is called `path` in errors.
    pub(crate) fn write_to(&self, kernel: &Kernel, out: impl Write, path: &Path) -> Result<()> {
        let mut writer = Writer::new(out);
        let mut pack = |name: &str, permissions: u32, data: &[u8]| {
            writer.file(name, permissions, data).context("write", path)
        };
        for (name, (source, executable)) in self.sources()? {
            let metadata = fs::metadata(&source).context("read", &source)?;
            let permissions = match executable {
                true => 0o755,
                false => metadata.permissions().mode() & 0o777,
            };
            let data = fs::read(&source).context("read", &source)?;
            pack(&name, permissions, &data)?;
        }
        let mut load_order = String::new();
        for (name, object) in kernel.modules(&self.modules, &self.module_files)? {
            pack(&format!("/lib/modules/{name}.ko"), 0o644, &object)?;
            load_order.push_str(&name);
            load_order.push('\n');
        }
        pack("/etc/modules", 0o644, load_order.as_bytes())?;
        for (name, permissions, content) in &self.texts {
            pack(name, *permissions, content.as_bytes())?;
        }
        for folder in ["/proc", "/sys", "/dev", "/tmp", "/run"] {
            writer.folder(folder).context("write", path)?;
        }
        writer.finish().map(drop).context("write", path)
    }

    /// All files to copy: by their name in the image, where they come from and whether they are made executable.
    fn sources(&self) -> Result<BTreeMap<String, (PathBuf, bool)>> {
        let mut sources = BTreeMap::new();
        if let Some(busybox) = &self.busybox {
            sources.insert("/bin/busybox".to_owned(), (busybox.clone(), true));
        }
        for (source, destination) in &self.files {
            sources.insert(destination.clone(), (source.clone(), false));
        }
        for (source, destination) in &self.binaries {
            for library in ldd::libraries(source, &self.library_folders)? {
                let destination = library.destination.to_string_lossy().into_owned();
                sources.insert(destination, (library.source, true));
            }
            sources.insert(destination.clone(), (source.clone(), true));
        }
        Ok(sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_brings_its_libraries() {
        let program = std::env::current_exe().unwrap();
        let sources = Image::new()
            .binary(&program, "/bin/test")
            .sources()
            .unwrap();
        assert_eq!(sources["/bin/test"], (program, true));
        assert!(sources.contains_key("/lib/libc.so.6"), "{sources:?}");
    }

    #[test]
    fn the_init_script_has_no_syntax_error() {
        let image = Image::new().init("echo hello");
        let (name, permissions, script) = &image.texts[0];
        assert_eq!((name.as_str(), *permissions), ("/init", 0o755));
        let mut sh = std::process::Command::new("sh");
        crate::command::output(sh.args(["-n", "-c", script])).unwrap();
    }
}
