//! What is fetched from Debian, and where it is kept.
//!
//! A set of packages is resolved, downloaded and unpacked in a temporary folder, which is renamed when it is complete. So a
//! set is either complete or absent, and a complete one needs no network.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Archive, Package};
use crate::command;
use crate::debug_kernel;
use crate::error::{Error, IoContext, Result};
use crate::flavour::Flavour;
use crate::kernel::{self, Kernel, Series};
use crate::program::{LIBRARIES, Program};
use crate::qemu::Qemu;
use crate::release::Release;
use crate::toolchain::{self, Toolchain};
use crate::tools;

/// Packages that belong together.
struct Set {
    /// The folder's name in the cache.
    name: String,
    /// The packages to start from.
    packages: Vec<String>,
    /// Which versions, and which other packages.
    choice: Choice,
}

enum Choice {
    /// The newest versions that start with this text, with the kernel packages they depend on.
    Series(String),
    /// The versions in [`Release::qemu_suite`], with everything they depend on that this machine does not have.
    Missing,
    /// Debian 13's versions, with everything they depend on.
    Whole,
}

impl Set {
    fn kernel(series: Series) -> Self {
        Self {
            name: format!("linux-{series}"),
            // Image and headers come together: a module fits only the exact release it was built for.
            packages: [
                "linux-image-cloud-amd64".to_owned(),
                "linux-headers-cloud-amd64".to_owned(),
            ]
            .into(),
            choice: Choice::Series(format!("{series}.")),
        }
    }

    fn toolchain() -> Self {
        Self {
            name: "toolchain-trixie".to_owned(),
            packages: toolchain::PACKAGES
                .iter()
                .map(ToString::to_string)
                .collect(),
            choice: Choice::Whole,
        }
    }

    /// Whether it comes from Debian 13 and its backports, whatever this machine is.
    fn is_of_trixie(&self) -> bool {
        match &self.choice {
            Choice::Series(series) => series.starts_with(Series::V7.name()),
            Choice::Missing => false,
            Choice::Whole => true,
        }
    }

    fn source(series: Series) -> Self {
        let name = format!("linux-source-{series}");
        Self {
            packages: vec![name.clone()],
            name,
            choice: Choice::Series(format!("{series}.")),
        }
    }

    fn busybox() -> Self {
        Self {
            name: "busybox".to_owned(),
            packages: vec!["busybox-static".to_owned()],
            choice: Choice::Series(String::new()),
        }
    }

    fn qemu(release: Release) -> Self {
        Self {
            name: format!("qemu-{}", release.codename()),
            packages: vec!["qemu-system-x86".to_owned()],
            choice: Choice::Missing,
        }
    }

    fn program(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            packages: vec![name.to_owned()],
            choice: Choice::Missing,
        }
    }

    /// What every machine needs; a kernel's source is fetched on demand.
    fn all(release: Release) -> Vec<Self> {
        let mut sets: Vec<Self> = Series::ALL.into_iter().map(Self::kernel).collect();
        sets.extend([Self::toolchain(), Self::busybox(), Self::qemu(release)]);
        sets
    }
}

/// The folder of fetched packages.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
    release: Release,
}

impl Cache {
    /// The cache in `folder`, complete: what is missing is fetched, and with `update` everything is fetched again.
    ///
    /// Takes a lock, so several processes may do this at once.
    ///
    /// # Errors
    ///
    /// When this is not a supported Debian, or something is missing and cannot be fetched; the cache is then as it was before.
    pub fn fetch(folder: &Path, update: bool, progress: &dyn Fn(&str)) -> Result<Self> {
        let release = Release::of_machine()?;
        fs::create_dir_all(folder).context("create", folder)?;
        let cache = Self {
            folder: folder.canonicalize().context("find", folder)?,
            release,
        };
        let _lock = cache.lock("lock")?;
        let mut sets = Set::all(release);
        if update {
            let source = Set::source(Flavour::DEBUG_SERIES);
            sets.extend(cache.folder.join(&source.name).exists().then_some(source));
        }
        cache.fetch_sets(sets, update, progress)?;
        Ok(cache)
    }

    /// Takes the lock with that name; it is held until the file is closed.
    fn lock(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        let file = File::create(&path).context("create", &path)?;
        file.lock().context("lock", &path)?;
        Ok(file)
    }

    /// Fetches the sets that are missing, with `update` all of them. The caller holds the lock.
    fn fetch_sets(&self, mut sets: Vec<Set>, update: bool, progress: &dyn Fn(&str)) -> Result<()> {
        sets.retain(|set| update || !self.folder.join(&set.name).exists());
        if sets.is_empty() {
            return Ok(());
        }
        progress("reading Debian's lists of packages");
        let (of_trixie, others): (Vec<_>, Vec<_>) = sets.iter().partition(|set| set.is_of_trixie());
        let fetch = |archive: Archive, sets: Vec<&Set>| {
            let mut sets = sets.into_iter();
            sets.try_for_each(|set| fetch_set(&archive, set, &self.folder, progress))
        };
        if !others.is_empty() {
            let archive = Archive::update(&self.folder.join("apt"), self.release)?;
            fetch(archive, others)?;
        }
        if !of_trixie.is_empty() {
            let archive = Archive::of_trixie(&self.folder.join("apt-trixie"), self.release)?;
            fetch(archive, of_trixie)?;
        }
        Ok(())
    }

    /// The kernel of a series.
    ///
    /// # Errors
    ///
    /// When its folder has been damaged.
    pub fn kernel(&self, series: Series) -> Result<Kernel> {
        let kernel = Kernel::unpacked(&self.folder.join(Set::kernel(series).name))?;
        Ok(match series {
            Series::V6_1 | Series::V6_12 => kernel,
            Series::V7 => {
                let folder = self.folder.join(Set::toolchain().name);
                kernel.with_toolchain(Toolchain::unpacked(&folder))
            }
        })
    }

    /// The debug kernel; fetched as source and built when it is not there or its configuration has changed.
    ///
    /// Takes a separate lock while it builds, so nothing else waits for that.
    ///
    /// # Errors
    ///
    /// When the source cannot be fetched or does not build.
    pub fn debug_kernel(&self, progress: &dyn Fn(&str)) -> Result<Kernel> {
        let series = Flavour::DEBUG_SERIES;
        let name = format!("linux-{series}-debug");
        let _lock = self.lock(&format!("{name}.lock"))?;
        let set = Set::source(series);
        let folder = self.folder.join(&set.name);
        let archive = folder.join(format!("usr/src/{}.tar.xz", set.name));
        {
            let _lock = self.lock("lock")?;
            self.fetch_sets(vec![set], false, progress)?;
        }
        let path = folder.join(PACKAGES);
        let source = fs::read_to_string(&path).context("read", &path)?;
        debug_kernel::ensure(&self.folder.join(name), source.trim(), &archive, progress)
    }

    /// The static busybox.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn busybox(&self) -> Result<PathBuf> {
        let folder = self.folder.join(Set::busybox().name);
        ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|path| folder.join(path))
            .find(|path| path.is_file())
            .ok_or_else(|| Error::NotFetched {
                what: "bin/busybox".to_owned(),
                place: folder.display().to_string(),
            })
    }

    /// The program of a Debian package that has the program's name; fetched when it is not there. The machine's own, if it
    /// has the package.
    ///
    /// # Errors
    ///
    /// When the package cannot be fetched.
    pub fn program(&self, name: &str, progress: &dyn Fn(&str)) -> Result<Program> {
        self.program_of(name, name, progress)
    }

    /// A program of a Debian package that has another name; as [`Self::program`].
    ///
    /// # Errors
    ///
    /// When the package cannot be fetched.
    pub fn program_of(
        &self,
        package: &str,
        name: &str,
        progress: &dyn Fn(&str),
    ) -> Result<Program> {
        let set = Set::program(package);
        let folder = self.folder.join(&set.name);
        let _lock = self.lock("lock")?;
        self.fetch_sets(vec![set], false, progress)?;
        Ok(Program::unpacked(&folder, name))
    }

    /// `virtiofsd`; built from its crate when it is not there.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or built.
    pub fn virtiofsd(&self, progress: &dyn Fn(&str)) -> Result<PathBuf> {
        const VERSION: &str = "1.14.0";
        let _lock = self.lock("virtiofsd.lock")?;
        let folder = self.folder.join(format!("virtiofsd-{VERSION}"));
        let program = folder.join("bin/virtiofsd");
        if !program.is_file() {
            tools::ensure(tools::SHARING, progress)?;
            progress("building virtiofsd");
            let mut cargo = Command::new("cargo");
            cargo.args(["install", "--quiet", "--locked", "virtiofsd"]);
            cargo.args(["--version", VERSION, "--root"]).arg(&folder);
            command::output(&mut cargo)?;
        }
        Ok(program)
    }

    /// Allocators that replace the C library's: the name of each, and its shared library. The machine's own, if it has the
    /// package; fetched otherwise.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched.
    pub fn allocators(&self, progress: &dyn Fn(&str)) -> Result<Vec<(&'static str, PathBuf)>> {
        let _lock = self.lock("lock")?;
        let find = |(name, package, file)| {
            let of_machine = find_library(Path::new("/"), file);
            if let Some(path) = of_machine {
                return Ok((name, path));
            }
            let set = Set::program(package);
            let folder = self.folder.join(&set.name);
            self.fetch_sets(vec![set], false, progress)?;
            let fetched = find_library(&folder, file);
            let path = fetched.ok_or_else(|| Error::NotFetched {
                what: file.to_owned(),
                place: folder.display().to_string(),
            })?;
            Ok((name, path))
        };
        self.release.allocators().into_iter().map(find).collect()
    }

    /// The unpacked source of a Debian package, with Debian's patches; fetched when it is not there. Not to be changed.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or unpacked.
    pub fn source(&self, name: &str, progress: &dyn Fn(&str)) -> Result<PathBuf> {
        let _lock = self.lock("lock")?;
        let folder = self.folder.join(format!("source-{name}"));
        if !folder.exists() {
            progress(&format!("fetching the source of {name}"));
            let archive = Archive::of_sources(&self.folder.join("apt-source"), self.release)?;
            let temporary = tempfile::Builder::new()
                .prefix("fetch-")
                .tempdir_in(&self.folder)
                .context("create a folder in", &self.folder)?;
            archive.source(name, temporary.path())?;
            fs::rename(temporary.path(), &folder).context("create", &folder)?;
        }
        for entry in fs::read_dir(&folder).context("read", &folder)?.flatten() {
            if entry.path().is_dir() {
                return Ok(entry.path());
            }
        }
        Err(Error::NotFetched {
            what: format!("the source of {name}"),
            place: folder.display().to_string(),
        })
    }

    /// The QEMU for the nested KVM host.
    pub(crate) fn qemu(&self) -> Qemu {
        Qemu::unpacked(&self.folder.join(Set::qemu(self.release).name))
    }
}

/// A shared library among Debian's below `root`.
fn find_library(root: &Path, file: &str) -> Option<PathBuf> {
    let mut paths = LIBRARIES.iter().map(|folder| root.join(folder).join(file));
    paths.find(|path| path.is_file())
}

/// The file in a set's folder that lists its packages with their versions, one per line.
const PACKAGES: &str = "packages";

fn fetch_set(archive: &Archive, set: &Set, cache: &Path, progress: &dyn Fn(&str)) -> Result<()> {
    let packages = resolve(archive, set)?;
    let temporary = tempfile::Builder::new()
        .prefix("fetch-")
        .tempdir_in(cache)
        .context("create a folder in", cache)?;
    let tree = temporary.path().join("tree");
    fs::create_dir(&tree).context("create", &tree)?;
    progress(&format!(
        "fetching {}, packages: {}",
        set.name,
        packages.len()
    ));
    archive.download(&packages, temporary.path())?;
    let list: String = packages
        .iter()
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect();
    let path = tree.join(PACKAGES);
    fs::write(&path, list).context("write", &path)?;
    progress(&format!("unpacking {}", set.name));
    for entry in fs::read_dir(temporary.path())
        .context("read", temporary.path())?
        .flatten()
    {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            command::output(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&path)
                    .arg(&tree),
            )?;
        }
    }
    if matches!(set.choice, Choice::Whole) {
        Toolchain::complete(&tree)?;
    }
    if tree.join("usr/src").exists() {
        kernel::relocate_headers(&tree)?;
    }
    kernel::relocate_modules(&tree)?;
    let target = cache.join(&set.name);
    if target.exists() {
        let old = temporary.path().join("old");
        fs::rename(&target, &old).context("move away", &target)?;
    }
    fs::rename(&tree, &target).context("create", &target)
}

/// The packages of a set and the kernel packages they depend on. What installing a kernel takes besides is not needed.
fn resolve(archive: &Archive, set: &Set) -> Result<Vec<Package>> {
    let series = match &set.choice {
        Choice::Series(series) => series,
        Choice::Missing => return missing(archive, set),
        Choice::Whole => return archive.all_for(&set.packages),
    };
    // Since 7 an image is cut in three.
    const KINDS: [&str; 7] = [
        "linux-image-",
        "linux-base-",
        "linux-binary-",
        "linux-modules-",
        "linux-headers-",
        "linux-kbuild-",
        "linux-compiler-",
    ];
    let mut packages = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open = set.packages.clone();
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let (package, dependencies) = archive.newest(&name, series)?;
        packages.insert(package);
        open.extend(
            dependencies
                .into_iter()
                .filter(|name| KINDS.iter().any(|kind| name.starts_with(kind))),
        );
    }
    Ok(packages.into_iter().collect())
}

/// The packages of a set and those they depend on, except what this machine has.
fn missing(archive: &Archive, set: &Set) -> Result<Vec<Package>> {
    // The C library only works with its own dynamic loader, and every machine has one.
    const BASE: [&str; 2] = ["libc6", "libc-bin"];
    let mut packages = BTreeSet::new();
    for name in &set.packages {
        packages.extend(archive.missing_for(name)?);
    }
    packages.retain(|package| !BASE.contains(&package.name.as_str()));
    Ok(packages.into_iter().collect())
}
