//! What is fetched from Debian, and where it is kept.
//!
//! A set of packages is resolved, downloaded and unpacked in a temporary folder that gets its final name when all of it
//! is there; so a set is either whole or absent, and a whole one needs no network.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Archive, Package};
use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::kernel::{self, Kernel, Series};
use crate::qemu::Qemu;

/// Packages that belong together.
struct Set {
    /// The folder's name in the cache.
    name: String,
    /// The packages to begin with.
    packages: Vec<&'static str>,
    /// Which versions, and which other packages.
    choice: Choice,
}

enum Choice {
    /// The newest versions that begin so, with the kernel packages they depend on.
    Series(String),
    /// The versions in the backports, with everything they depend on that this machine does not have.
    Missing,
}

impl Set {
    fn kernel(series: Series) -> Self {
        Self {
            name: format!("linux-{series}"),
            // Image and headers come together: a module fits only the very release it was built for.
            packages: vec!["linux-image-cloud-amd64", "linux-headers-cloud-amd64"],
            choice: Choice::Series(format!("{series}.")),
        }
    }

    fn busybox() -> Self {
        Self {
            name: "busybox".to_owned(),
            packages: vec!["busybox-static"],
            choice: Choice::Series(String::new()),
        }
    }

    fn qemu() -> Self {
        Self {
            name: "qemu".to_owned(),
            packages: vec!["qemu-system-x86"],
            choice: Choice::Missing,
        }
    }

    fn all() -> Vec<Self> {
        let mut sets: Vec<Self> = Series::ALL.into_iter().map(Self::kernel).collect();
        sets.extend([Self::busybox(), Self::qemu()]);
        sets
    }
}

/// The folder of fetched packages.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`, with everything in it; what is missing is fetched, and with `update` all of it anew.
    ///
    /// Takes a lock, so that several processes may ask at once.
    ///
    /// # Errors
    ///
    /// When something is missing and cannot be fetched; the cache is then as it was before.
    pub fn fetch(folder: &Path, update: bool, progress: &dyn Fn(&str)) -> Result<Self> {
        fs::create_dir_all(folder).context("create", folder)?;
        let folder = &folder.canonicalize().context("find", folder)?;
        let lock_path = folder.join("lock");
        let lock = File::create(&lock_path).context("create", &lock_path)?;
        lock.lock().context("lock", &lock_path)?;

        let missing: Vec<Set> = Set::all()
            .into_iter()
            .filter(|set| update || !folder.join(&set.name).exists())
            .collect();
        if !missing.is_empty() {
            progress("reading Debian's lists of packages");
            let archive = Archive::update(&folder.join("apt"))?;
            for set in &missing {
                fetch_set(&archive, set, folder, progress)?;
            }
        }
        Ok(Self {
            folder: folder.clone(),
        })
    }

    /// The kernel of a series.
    ///
    /// # Errors
    ///
    /// When its folder has been damaged.
    pub fn kernel(&self, series: Series) -> Result<Kernel> {
        Kernel::unpacked(&self.folder.join(Set::kernel(series).name))
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

    /// The QEMU for the nested KVM host.
    pub(crate) fn qemu(&self) -> Qemu {
        Qemu::unpacked(&self.folder.join(Set::qemu().name))
    }
}

fn fetch_set(archive: &Archive, set: &Set, cache: &Path, progress: &dyn Fn(&str)) -> Result<()> {
    let packages = resolve(archive, set)?;
    let temporary = tempfile::Builder::new()
        .prefix("fetch-")
        .tempdir_in(cache)
        .context("create a folder in", cache)?;
    let tree = temporary.path().join("tree");
    fs::create_dir(&tree).context("create", &tree)?;
    for (index, package) in packages.iter().enumerate() {
        let Package { name, version } = package;
        progress(&format!(
            "fetching {} ({}/{}): {name} {version}",
            set.name,
            index + 1,
            packages.len()
        ));
        archive.download(package, temporary.path())?;
    }
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
    if tree.join("usr/src").exists() {
        kernel::relocate_headers(&tree)?;
    }
    let target = cache.join(&set.name);
    if target.exists() {
        let old = temporary.path().join("old");
        fs::rename(&target, &old).context("move away", &target)?;
    }
    fs::rename(&tree, &target).context("create", &target)
}

/// The packages of a set and those they depend on, of the kernel's own kind: what a kernel needs to be installed on a
/// machine is not needed here.
fn resolve(archive: &Archive, set: &Set) -> Result<Vec<Package>> {
    let series = match &set.choice {
        Choice::Series(series) => series,
        Choice::Missing => return missing(archive, set),
    };
    const KINDS: [&str; 4] = [
        "linux-image-",
        "linux-headers-",
        "linux-kbuild-",
        "linux-compiler-",
    ];
    let mut packages = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<String> = set.packages.iter().map(|&name| name.to_owned()).collect();
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

/// The packages of a set and those they depend on, without what this machine has.
fn missing(archive: &Archive, set: &Set) -> Result<Vec<Package>> {
    // Parts of the C library work with their own dynamic loader alone, and each machine has them.
    const BASE: [&str; 2] = ["libc6", "libc-bin"];
    let mut packages = BTreeSet::new();
    for name in &set.packages {
        packages.extend(archive.missing_for(name)?);
    }
    packages.retain(|package| !BASE.contains(&package.name.as_str()));
    Ok(packages.into_iter().collect())
}
