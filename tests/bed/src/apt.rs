//! A private view of the Debian archive.
//!
//! The machine's apt configuration is not touched: sources, package lists and caches are in a separate folder. The mirror
//! is the machine's own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::release::Release;

/// The archive's keys, present on every Debian machine.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package of a certain version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// The Debian archive, with lists of its own below a folder.
#[derive(Debug)]
pub(crate) struct Archive {
    config: PathBuf,
    release: Release,
}

impl Archive {
    /// Downloads the archive's current package lists into `folder`.
    pub(crate) fn update(folder: &Path, release: Release) -> Result<Self> {
        let list = source_list(release, &Mirrors::of_machine()?);
        Self::update_lists(folder, release, &list)
    }

    fn update_lists(folder: &Path, release: Release, list: &str) -> Result<Self> {
        // Only one list format and no translations: a tenth of the usual download.
        for part in ["lists/partial", "archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).context("create", &path)?;
        }
        let sources = folder.join("sources.list");
        fs::write(&sources, list).context("write", &sources)?;
        let config = folder.join("apt.conf");
        fs::write(&config, configuration(folder)).context("write", &config)?;
        let archive = Self { config, release };
        command::output(archive.command("apt-get").arg("update"))?;
        Ok(archive)
    }

    /// Downloads the current lists of Debian 13's backports and, for what these need, of Debian 13 into `folder`.
    pub(crate) fn of_trixie(folder: &Path, release: Release) -> Result<Self> {
        let mirror = Mirrors::of_machine()?.main;
        let options = options(Some("arch=amd64"));
        let line = |suite| format!("deb {options} {mirror} {suite} main\n");
        let list = ["trixie", "trixie-backports"].map(line).concat();
        Self::update_lists(folder, release, &list)
    }

    /// Downloads the archive's current lists of sources into `folder`: those of Debian 12, on every machine.
    pub(crate) fn of_sources(folder: &Path, release: Release) -> Result<Self> {
        let mirrors = Mirrors::of_machine()?;
        let line = format!("deb-src {} {} bookworm main\n", options(None), mirrors.main);
        Self::update_lists(folder, release, &line)
    }

    /// Downloads the source of a package into `folder` and unpacks it there; apt checks its signature chain and checksums.
    pub(crate) fn source(&self, name: &str, folder: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["source", name]);
        command::output(command.current_dir(folder)).map(drop)
    }

    /// The newest version of `name` that starts with `series`, and the names of its dependencies.
    pub(crate) fn newest(&self, name: &str, series: &str) -> Result<(Package, Vec<String>)> {
        let text =
            command::stdout(self.command("apt-cache").args(["show", name])).unwrap_or_default();
        pick(&text, series)
            .map(|(version, dependencies)| {
                let package = Package {
                    name: name.to_owned(),
                    version,
                };
                (package, dependencies)
            })
            .ok_or_else(|| Error::NoPackage {
                package: name.to_owned(),
                series: series.to_owned(),
            })
    }

    /// The packages that this machine would need for `name` from [`Release::qemu_suite`], itself included; none when it has a
    /// version as new as that.
    pub(crate) fn missing_for(&self, name: &str) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        command.args(["--simulate", "--no-install-recommends", "--target-release"]);
        command.arg(self.release.qemu_suite());
        let text = command::stdout(command.args(["install", name]))?;
        Ok(text.lines().filter_map(simulated).collect())
    }

    /// The packages that a machine with nothing on it would need for `names`, themselves included.
    pub(crate) fn all_for(&self, names: &[String]) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        command.args(["--simulate", "--no-install-recommends"]);
        command.args(["--option", "Dir::State::status=/dev/null", "install"]);
        let text = command::stdout(command.args(names))?;
        Ok(text.lines().filter_map(simulated).collect())
    }

    /// Downloads package files into `folder`; apt checks their signature chains and checksums.
    pub(crate) fn download(&self, packages: &[Package], folder: &Path) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let mut command = self.command("apt-get");
        let versions = packages
            .iter()
            .map(|one| format!("{}={}", one.name, one.version));
        command.arg("download").args(versions);
        command::output(command.current_dir(folder)).map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--quiet")
            .arg("--config-file")
            .arg(&self.config)
            .env("LC_ALL", "C");
        command
    }
}

/// The newest version in the output of `apt-cache show` (newest first) that begins with `series`, with the first
/// alternative of each of its dependencies.
fn pick(records: &str, series: &str) -> Option<(String, Vec<String>)> {
    records.split("\n\n").find_map(|record| {
        let field = |name: &str| {
            record
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let version = field("Version").filter(|version| version.starts_with(series))?;
        let dependencies = field("Depends")
            .unwrap_or_default()
            .split(',')
            .filter_map(|dependency| dependency.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        Some((version.to_owned(), dependencies))
    })
}

/// The package in a line `Inst name [old version] (version suite [amd64])` of a simulated installation.
fn simulated(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let (_, rest) = rest.split_once('(')?;
    Some(Package {
        name: name.to_owned(),
        version: rest.split(' ').next()?.to_owned(),
    })
}

/// Where the archive and its security updates are fetched from.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    main: String,
    /// `None` when the machine has no such source: kernels are then those of the last point release.
    security: Option<String>,
}

impl Mirrors {
    fn of_machine() -> Result<Self> {
        let mut command = Command::new("apt-get");
        command
            .args([
                "indextargets",
                "--format",
                "$(ORIGIN)|$(REPO_URI)|$(RELEASE)",
                "Created-By: Packages",
            ])
            .env("LC_ALL", "C");
        let mut mirrors = Self::among(&command::stdout(&mut command)?);
        if let Ok(main) = env::var("VMSRS_DEBIAN_MIRROR") {
            mirrors = Some(Self {
                main,
                security: None,
            });
        }
        mirrors.ok_or(Error::NoMirror)
    }

    /// Finds the mirrors in lines of `origin|address|release`.
    fn among(targets: &str) -> Option<Self> {
        let debian: Vec<(&str, &str)> = targets
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('|');
                let (origin, address, release) = (fields.next()?, fields.next()?, fields.next()?);
                // The origin is known only once lists have been fetched.
                let is_debian = matches!(origin, "Debian" | "") && address.contains("debian");
                is_debian.then_some((address, release))
            })
            .collect();
        let main = debian.iter().find(|(_, release)| !release.contains('-'))?;
        let security = debian
            .iter()
            .find(|(_, release)| release.ends_with("-security"));
        Some(Self {
            main: main.0.to_owned(),
            security: security.map(|(address, _)| (*address).to_owned()),
        })
    }
}

/// The options of a source, with the archive's keys where the machine has them.
fn options(architecture: Option<&str>) -> String {
    let keys = Path::new(KEYRING)
        .exists()
        .then(|| format!("signed-by={KEYRING}"));
    let options: Vec<_> = architecture
        .map(str::to_owned)
        .into_iter()
        .chain(keys)
        .collect();
    match options.is_empty() {
        true => String::new(),
        false => format!("[{}]", options.join(" ")),
    }
}

fn source_list(release: Release, mirrors: &Mirrors) -> String {
    let options = options(Some("arch=amd64"));
    let line = |mirror: &str, suite: &&str| format!("deb {options} {mirror} {suite} main\n");
    let main = release
        .suites()
        .iter()
        .map(|suite| line(&mirrors.main, suite));
    let security = mirrors.security.iter().flat_map(|mirror| {
        let suites = release.security_suites().iter();
        suites.map(move |suite| line(mirror, suite))
    });
    main.chain(security).collect()
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"// Made by the test-bed.
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "{folder}/lists";
Dir::Cache::Archives "{folder}/archives";
Dir::Cache::pkgcache "{folder}/pkgcache.bin";
Dir::Cache::srcpkgcache "{folder}/srcpkgcache.bin";
Acquire::Languages "none";
Acquire::Retries "3";
// apt's own user may not be able to read the folder.
APT::Sandbox::User "root";
// The machine's update hooks are not meant for this.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: &str = "Package: linux-headers-cloud-amd64\nVersion: 6.12.95-1~bpo12+1\n\
        Depends: linux-headers-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1), a | b\nSize: 1\n\n\
        Package: linux-headers-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-headers-6.1.0-56-cloud-amd64\n\n\
        Package: linux-headers-cloud-amd64\nVersion: 6.1.176-1\nSize: 1\n";

    #[test]
    fn the_newest_version_of_the_series_is_picked() {
        let (version, dependencies) = pick(RECORDS, "6.1.").unwrap();
        assert_eq!(version, "6.1.192-2");
        assert_eq!(dependencies, ["linux-headers-6.1.0-56-cloud-amd64"]);
    }

    #[test]
    fn of_alternatives_the_first_counts() {
        let (_, dependencies) = pick(RECORDS, "6.12.").unwrap();
        assert_eq!(
            dependencies,
            ["linux-headers-6.12.95+deb12-cloud-amd64", "a"]
        );
    }

    #[test]
    fn a_series_that_is_not_there_gives_nothing() {
        assert_eq!(pick(RECORDS, "7."), None);
        assert_eq!(pick("", ""), None);
    }

    #[test]
    fn a_simulated_installation_names_its_packages() {
        let package = |line| simulated(line).map(|package| (package.name, package.version));
        let expected = Some(("a".to_owned(), "1:10.0~bpo".to_owned()));
        assert_eq!(
            package("Inst a [1:7.2] (1:10.0~bpo Debian Backports:x [amd64]) []"),
            expected
        );
        assert_eq!(
            package("Inst a (1:10.0~bpo Debian Backports:x [amd64])"),
            expected
        );
        assert_eq!(
            package("Conf a (1:10.0~bpo Debian Backports:x [amd64])"),
            None
        );
    }

    #[test]
    fn each_release_has_its_suites() {
        let mirrors = Mirrors {
            main: "http://m/debian/".into(),
            security: Some("http://m/security/".into()),
        };
        let list = source_list(Release::Trixie, &mirrors);
        let suites = |list: &str| {
            let fields = list.lines().map(|line| line.split(' ').rev().nth(1));
            fields
                .map(|suite| suite.unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            suites(&list),
            ["bookworm", "trixie", "bookworm-security", "trixie-security"]
        );
        let mirrors = Mirrors {
            security: None,
            ..mirrors
        };
        let list = source_list(Release::Bookworm, &mirrors);
        assert_eq!(suites(&list), ["bookworm", "bookworm-backports"]);
    }

    #[test]
    fn the_machines_own_mirror_is_used() {
        let targets = "Other|https://example.org/other/|nodistro\n\
            Debian|http://mirror.example/debian/|bookworm\n\
            Debian|http://mirror.example/debian/|bookworm-updates\n\
            Debian|http://mirror.example/debian-security/|bookworm-security\n";
        let expected = Mirrors {
            main: "http://mirror.example/debian/".into(),
            security: Some("http://mirror.example/debian-security/".into()),
        };
        assert_eq!(Mirrors::among(targets), Some(expected));
        assert_eq!(
            Mirrors::among("Other|https://example.org/other/|nodistro\n"),
            None
        );
    }
}
