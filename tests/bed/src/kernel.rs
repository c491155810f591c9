//! Debian kernels, unpacked into the cache: image, modules and headers of one release.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::modules;
use crate::toolchain::Toolchain;
use crate::tools::{self, Tool};
use crate::vmlinux;

/// A kernel series that the driver supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Series {
    /// Debian 12's own kernel.
    V6_1,
    /// Debian 13's own kernel, also in the backports of Debian 12.
    V6_12,
    /// The newest in the backports of Debian 13.
    V7,
}

impl Series {
    /// All supported series, oldest first.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::V7];

    /// What the versions begin with, as in `6.1`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7 => "7",
        }
    }
}

impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|series| series.name() == text)
            .ok_or_else(|| format!("no such kernel series: {text}; there are 6.1, 6.12 and 7"))
    }
}

/// Debian's variables for `make`, in the folder of headers.
const KERNEL_VARIABLES: &str = ".kernelvariables";

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
    make_variables: &'static [&'static str],
    toolchain: Option<Toolchain>,
}

impl Kernel {
    /// Finds the kernel whose packages were unpacked into `folder`.
    ///
    /// # Errors
    ///
    /// When `folder` holds no kernel.
    pub(crate) fn unpacked(folder: &Path) -> Result<Self> {
        let modules = folder.join("lib/modules");
        let release = fs::read_dir(&modules)
            .context("read", &modules)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .ok_or_else(|| not_fetched("lib/modules", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            release,
            make_variables: &[],
            toolchain: None,
        })
    }

    /// The same kernel, whose modules are built with these variables for `make`.
    pub(crate) fn with_make_variables(self, variables: &'static [&'static str]) -> Self {
        Self {
            make_variables: variables,
            ..self
        }
    }

    /// The same kernel, whose modules are built with these tools.
    pub(crate) fn with_toolchain(self, toolchain: Toolchain) -> Self {
        let toolchain = Some(toolchain);
        Self { toolchain, ..self }
    }

    /// The release, as in `uname -r`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The compressed kernel (bzImage).
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The folder that out-of-tree modules are built against.
    pub fn headers(&self) -> PathBuf {
        self.folder
            .join("usr/src")
            .join(format!("linux-headers-{}", self.release))
    }

    /// `make` in [`Kernel::headers`].
    pub(crate) fn make(&self) -> Command {
        let mut make = match &self.toolchain {
            Some(toolchain) => toolchain.command("make"),
            None => Command::new("make"),
        };
        make.arg("-C").arg(self.headers()).args(self.make_variables);
        make
    }

    /// Whether sparse can check its modules: Debian's, 0.6.4, does not understand the headers of Linux 7.
    pub fn is_checked(&self) -> bool {
        self.toolchain.is_none()
    }

    /// What this machine needs to build the kernel's modules.
    ///
    /// # Errors
    ///
    /// When the headers do not name the compiler that the kernel was built with: its modules need the same.
    pub fn tools(&self) -> Result<Vec<Tool>> {
        match self.toolchain {
            Some(_) => Ok(tools::NAMESPACES.to_vec()),
            None => Ok(tools::kmod(&self.compiler()?)),
        }
    }

    /// The compiler that the kernel was built with, as in `gcc-12`.
    fn compiler(&self) -> Result<String> {
        let set = |variable: &&str| variable.strip_prefix("CC=").map(str::to_owned);
        if let Some(compiler) = self.make_variables.iter().find_map(set) {
            return Ok(compiler);
        }
        let path = self.headers().join(KERNEL_VARIABLES);
        let text = fs::read_to_string(&path).context("read", &path)?;
        compiler_in(&text).ok_or_else(|| not_fetched("the compiler's name", &path))
    }

    /// The uncompressed kernel, an ELF file; unpacked on first use and kept beside the compressed one.
    ///
    /// # Errors
    ///
    /// When the image cannot be read or unpacked.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let path = self
            .folder
            .join("boot")
            .join(format!("vmlinux-{}", self.release));
        if path.exists() {
            return Ok(path);
        }
        let vmlinuz = self.vmlinuz();
        let image = fs::read(&vmlinuz).context("read", &vmlinuz)?;
        let (compression, payload) = vmlinux::payload(&image).map_err(|source| Error::Vmlinux {
            path: vmlinuz.display().to_string(),
            source,
        })?;
        let elf = unpack(compression.program(), payload)?;
        let folder = self.folder.join("boot");
        let mut file =
            tempfile::NamedTempFile::new_in(&folder).context("create a file in", &folder)?;
        file.write_all(&elf).context("write", file.path())?;
        file.persist(&path)
            .map_err(|error| error.error)
            .context("create", &path)?;
        Ok(path)
    }

    /// The modules to load for `wanted`, in order, each unpacked: name and content.
    ///
    /// `extra` are out-of-tree modules; their dependencies are loaded before them.
    ///
    /// # Errors
    ///
    /// When a module is not there or is damaged.
    pub(crate) fn modules(
        &self,
        wanted: &[String],
        extra: &[PathBuf],
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let root = self.folder.join("lib/modules").join(&self.release);
        let mut files = Vec::new();
        collect_modules(&root.join("kernel"), &mut files)?;
        files.extend(
            extra
                .iter()
                .filter_map(|path| Some((module_name(path)?, path.clone()))),
        );
        let builtin_list = root.join("modules.builtin");
        let builtin: Vec<String> = fs::read_to_string(&builtin_list)
            .context("read", &builtin_list)?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();

        let mut wanted = wanted.to_vec();
        wanted.extend(extra.iter().filter_map(|path| module_name(path)));
        let mut objects = std::collections::BTreeMap::new();
        let order = modules::load_order(&wanted, |name| {
            // The last one wins, so an extra module replaces one of the kernel's own.
            let Some((_, path)) = files.iter().rev().find(|(file, _)| file == name) else {
                return match builtin.iter().any(|module| module == name) {
                    true => Ok(None),
                    false => Err(self.modules_error(modules::Error::Missing(name.to_owned()))),
                };
            };
            let object = read_module(path)?;
            let depends =
                modules::depends(name, &object).map_err(|source| self.modules_error(source))?;
            objects.insert(name.to_owned(), object);
            Ok::<_, Error>(Some(depends))
        })?;
        Ok(order
            .into_iter()
            .filter_map(|name| objects.remove(&name).map(|object| (name, object)))
            .collect())
    }

    fn modules_error(&self, source: modules::Error) -> Error {
        Error::Modules {
            release: self.release.clone(),
            source,
        }
    }
}

impl From<modules::Error> for Error {
    fn from(source: modules::Error) -> Self {
        Self::Modules {
            release: "the unpacked kernel".to_owned(),
            source,
        }
    }
}

/// The compiler in Debian's variables for `make`: `gcc-12` in `CC = $(if ...) $(CROSS_COMPILE)gcc-12`.
fn compiler_in(variables: &str) -> Option<String> {
    let line = variables.lines().find(|line| line.starts_with("CC ="))?;
    let name = line.rsplit([' ', ')']).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Makes headers usable where they were unpacked: Debian's Makefile includes another by its installed path.
pub(crate) fn relocate_headers(folder: &Path) -> Result<()> {
    let sources = folder.join("usr/src");
    for entry in fs::read_dir(&sources).context("read", &sources)?.flatten() {
        let makefile = entry.path().join("Makefile");
        let Ok(text) = fs::read_to_string(&makefile) else {
            continue;
        };
        if let Some(relocated) = relocated_makefile(&text) {
            fs::write(&makefile, relocated).context("write", &makefile)?;
            // Without it modules get no BTF, which would take another tool and which nothing here reads.
            let _ = fs::remove_file(entry.path().join("vmlinux"));
        }
    }
    Ok(())
}

/// Moves modules and image to where Debian 12 has them: modules are in `usr/lib/modules` since Debian 13, the image beside them
/// since Linux 7.
pub(crate) fn relocate_modules(folder: &Path) -> Result<()> {
    let (merged, plain) = (folder.join("usr/lib/modules"), folder.join("lib/modules"));
    if merged.is_dir() {
        let parent = folder.join("lib");
        fs::create_dir_all(&parent).context("create", &parent)?;
        fs::rename(&merged, &plain).context("move", &merged)?;
    }
    let Ok(releases) = fs::read_dir(&plain) else {
        return Ok(());
    };
    for release in releases.flatten() {
        let image = release.path().join("vmlinuz");
        if !image.is_file() {
            continue;
        }
        let boot = folder.join("boot");
        fs::create_dir_all(&boot).context("create", &boot)?;
        let name = format!("vmlinuz-{}", release.file_name().to_string_lossy());
        fs::rename(&image, boot.join(name)).context("move", &image)?;
    }
    Ok(())
}

/// The Makefile of a headers folder with its paths made relative; `None` for all other Makefiles.
fn relocated_makefile(text: &str) -> Option<String> {
    const SOURCES: &str = "$(dir $(realpath $(lastword $(MAKEFILE_LIST))))../";
    let relocated = text.lines().map(|line| {
        // Since 7 the first line names the folder itself.
        let (start, path) = match line.strip_prefix("KBUILD_OUTPUT=/usr/src/") {
            Some(path) => ("KBUILD_OUTPUT := ", path),
            None => ("include ", line.strip_prefix("include /usr/src/")?),
        };
        let is_path = !path.is_empty() && !path.contains(char::is_whitespace);
        is_path.then(|| format!("{start}{SOURCES}{path}\n"))
    });
    relocated
        .collect::<Option<String>>()
        .filter(|text| !text.is_empty())
}

/// All modules below `folder`, by canonical name.
fn collect_modules(folder: &Path, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(folder).context("read", folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_modules(&path, found)?;
        } else if let Some(name) = module_name(&path) {
            found.push((name, path));
        }
    }
    Ok(())
}

/// `kvm_amd` for `…/kvm-amd.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = ["", ".xz", ".zst", ".gz"]
        .iter()
        .find_map(|packing| name.strip_suffix(packing)?.strip_suffix(".ko"))?;
    Some(modules::canonical(stem))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).context("read", path)?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => unpack("xz", &bytes),
        Some("zst") => unpack("zstd", &bytes),
        Some("gz") => unpack("gzip", &bytes),
        _ => Ok(bytes),
    }
}

/// Pipes `packed` through a decompressor.
fn unpack(program: &str, packed: &[u8]) -> Result<Vec<u8>> {
    let mut input = tempfile::tempfile().context("create a file in", &std::env::temp_dir())?;
    let written = input
        .write_all(packed)
        .and_then(|()| std::io::Seek::rewind(&mut input));
    written.context("write to", &std::env::temp_dir())?;
    let mut decompressor = Command::new(program);
    decompressor.arg("-dc").stdin(Stdio::from(input));
    let output = decompressor
        .output()
        .map_err(|source| command::spawn_error(&decompressor, source))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command {
        command: command::display(&decompressor),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn not_fetched(what: &str, folder: &Path) -> Error {
    Error::NotFetched {
        what: what.to_owned(),
        place: folder.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_makefile_of_headers_finds_itself_and_its_neighbour() {
        let text = relocated_makefile(
            "KBUILD_OUTPUT=/usr/src/x\ninclude /usr/src/linux-headers-6.1.0-1-common/Makefile\n",
        )
        .unwrap();
        assert!(text.starts_with("KBUILD_OUTPUT := $(dir "), "{text}");
        assert!(
            text.ends_with("../linux-headers-6.1.0-1-common/Makefile\n"),
            "{text}"
        );
        assert!(!text.contains("/usr/src"));
        for other in ["# a whole Makefile\ninclude /usr/src/x\n", ""] {
            assert_eq!(relocated_makefile(other), None);
        }
    }

    #[test]
    fn modules_and_image_of_newer_packages_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("usr/lib/modules/7.3.4");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("vmlinuz"), "image").unwrap();
        for _ in 0..2 {
            relocate_modules(folder.path()).unwrap();
            let kernel = Kernel::unpacked(folder.path()).unwrap();
            assert_eq!(kernel.release(), "7.3.4");
            assert_eq!(fs::read(kernel.vmlinuz()).unwrap(), b"image");
        }
    }

    #[test]
    fn the_compiler_is_the_one_of_the_headers() {
        let text = "CCACHE = ccache\nCC = $(if $(USE),$(CCACHE)) $(CROSS_COMPILE)gcc-12\nX = 1\n";
        assert_eq!(compiler_in(text).as_deref(), Some("gcc-12"));
        assert_eq!(compiler_in("override ARCH = x86\n"), None);
    }

    #[test]
    fn module_names_have_neither_packing_nor_hyphens() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(
            name("kernel/arch/x86/kvm/kvm-amd.ko.xz").as_deref(),
            Some("kvm_amd")
        );
        assert_eq!(name("tun.ko").as_deref(), Some("tun"));
        assert_eq!(name("modules.order"), None);
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let packed =
            command::output(Command::new("sh").args(["-c", "printf text | gzip -c"])).unwrap();
        assert_eq!(unpack("gzip", &packed.stdout).unwrap(), b"text");
        assert!(unpack("gzip", b"no archive").is_err());
    }

    #[test]
    fn series_are_read_as_written() {
        assert_eq!("6.12".parse(), Ok(Series::V6_12));
        assert!("5.10".parse::<Series>().is_err());
    }
}
